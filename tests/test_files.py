"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from phasefast.files import replacing


def interrupted(path: Path) -> None:
    with replacing(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert path.read_text() == "old"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("new")
        second.write_text("newest")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
