"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from phasefast.common.files import remove_partial, save, writing
from phasefast.errors import StoreError


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


def test_a_link_stays_and_whoever_may_read_a_file_still_may(tmp_path: Path) -> None:
    path, link = tmp_path / "a.txt", tmp_path / "link.txt"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    with writing(link, "numbers to") as partial:
        partial.write_text("new")
    assert link.is_symlink()
    path.chmod(0o440)  # may be replaced all the same
    with writing(path, "numbers to") as partial:
        partial.write_text("new")
    assert path.stat().st_mode & 0o777 == 0o440
    path.chmod(0o640)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o640)


def test_only_what_cannot_be_written_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="of the block"), writing(tmp_path / "a.txt", "numbers to"):
        raise RuntimeError("of the block")

    def full(*_: object) -> None:
        raise RuntimeError("unexpected pos 64 vs 0")  # as torch.save says it

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StoreError, match=r"cannot write numbers to .*a\.pt: unexpected pos 64 vs 0; free some space"):
        save({}, tmp_path / "a.pt", "numbers to")
    assert not list(tmp_path.iterdir())


def test_what_was_left_by_a_killed_process_goes_once_it_is_old(tmp_path: Path) -> None:
    old, young = tmp_path / "step-1.0123abcd.partial", tmp_path / "step-2.0123abcd.partial"
    foreign = tmp_path / "film.partial"
    for path in (old, young, foreign):
        path.touch()
    for path in (old, foreign):
        os.utime(path, (0, 0))
    remove_partial(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {young.name, foreign.name}
