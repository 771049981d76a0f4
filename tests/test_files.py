"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from phasefast.errors import StoreError
from phasefast.files import writing


def interrupted(path: Path) -> None:
    with writing(path, "numbers to") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert path.read_text() == "old"
    with writing(path, "one") as first, writing(path, "another") as second:
        first.write_text("new")
        second.write_text("newest")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "a.txt"
    with (
        pytest.raises(StoreError, match=r"cannot write numbers to .*absent/a\.txt: "),
        writing(path, "numbers to") as new,
    ):
        new.write_text("1")
    with writing(path, "numbers to", parents=True) as new:
        new.write_text("1")
    assert path.read_text() == "1"
