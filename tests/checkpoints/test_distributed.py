"""Folders of torch.distributed.checkpoint, as torch itself saves them."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp

from phasefast.checkpoints import file_hash, read_state_dict
from phasefast.errors import CheckpointError

from .test_reading import STATE, equal

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are made; empty again after reading."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def save(state: dict[str, object], folder: Path) -> Path:
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.mark.parametrize("outer", [lambda s: s, lambda s: {"model": s}, lambda s: {"app": {"model": s, "optim": {}}}])
def test_what_was_saved_is_read_and_nothing_left_behind(tmp_path: Path, temporary: Path, outer: object) -> None:
    folder = save(outer(STATE), tmp_path / "step_1")  # type: ignore[operator]
    assert equal(read_state_dict(folder), STATE)
    assert not list(temporary.iterdir())


def test_more_than_tensors_is_read_only_from_folders_that_are_trusted(tmp_path: Path, temporary: Path) -> None:
    folder = save({"model": STATE, "epoch": 3}, tmp_path / "step_1")
    with pytest.raises(CheckpointError, match=r"step_1: holds more than plain tensors; .*weights_only=False"):
        read_state_dict(folder)
    assert equal(read_state_dict(folder, weights_only=False), STATE)
    assert not list(temporary.iterdir())


class Touching:
    """Pickled so that unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_code_in_the_metadata_is_not_run(tmp_path: Path) -> None:
    folder, mark = save(dict(STATE), tmp_path / "step_1"), tmp_path / "ran"
    content = pickle.dumps(Touching(mark))
    pickle.loads(content)
    mark.unlink()  # so it does run where nothing looks
    (folder / ".metadata").write_bytes(content)
    with pytest.raises(CheckpointError, match="more than plain tensors"):
        read_state_dict(folder)
    assert not mark.exists()


def test_damaged_and_incomplete_folders_are_named(tmp_path: Path, temporary: Path) -> None:
    folder = save(dict(STATE), tmp_path / "step_1")
    (part,) = folder.glob("*.distcp")
    whole, metadata = part.read_bytes(), folder / ".metadata"
    for content in (whole[: len(whole) // 2], b""):
        part.write_bytes(content)
        with pytest.raises(CheckpointError, match="step_1: cannot be read, perhaps truncated"):
            read_state_dict(folder)
    part.unlink()
    with pytest.raises(CheckpointError, match=f"step_1/{part.name}: no such file"):
        read_state_dict(folder)
    part.write_bytes(whole)
    metadata.write_bytes(metadata.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="step_1: cannot be read, perhaps truncated"):
        read_state_dict(folder)
    metadata.unlink()
    with pytest.raises(CheckpointError, match="expected a folder with one of"):
        read_state_dict(folder)
    assert not list(temporary.iterdir())


def test_a_full_disk_of_temporary_files_is_named(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(dict(STATE), tmp_path / "step_1")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(CheckpointError, match=rf"step_1: .*{temporary} has 0.0 GB left; set TMPDIR"):
        read_state_dict(folder)


def test_the_fingerprint_is_that_of_all_parts(tmp_path: Path) -> None:
    folder = save(dict(STATE), tmp_path / "step_1")
    before = file_hash(folder)
    (part,) = folder.glob("*.distcp")
    part.write_bytes(part.read_bytes().replace(b"\x00\x3c", b"\x00\x3d"))
    assert file_hash(folder) != before
