"""Crafted descriptions of folders of torch.distributed.checkpoint run no code and change nothing."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.serialization import _get_layout

from phasefast.checkpoints import read_state_dict
from phasefast.checkpoints.distributed import _OfTensors
from phasefast.checkpoints.metadata import _PlainUnpickler, of_tensors, read_metadata
from phasefast.errors import CheckpointError

from .test_distributed import Touching, save
from .test_reading import STATE, equal

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def fragment(value: object) -> bytes:
    """What puts a value on the stack of a pickle."""
    return pickle.dumps(value, 2)[2:-1]


class Shifting:
    """Pickled as a dict of entries whose items() are those that torch's ``_get_layout`` gives."""

    def __reduce__(self) -> tuple[object, ...]:
        return OrderedDict, (), {"items": _get_layout}, None, iter([("w", BytesStorageMetadata())])


def test_code_in_an_entry_that_looks_like_a_tensor_is_not_run(tmp_path: Path) -> None:
    folder, mark = tmp_path / "step_1", tmp_path / "ran"
    folder.mkdir()
    torch.save(Touching(mark), folder / "__0_0.distcp")
    where = _StorageInfo("__0_0.distcp", 0, (folder / "__0_0.distcp").stat().st_size)
    whole = torch.Size([1])
    tensor = TensorStorageMetadata(
        TensorProperties(torch.float32), whole, [ChunkStorageMetadata(torch.Size([0]), whole)]
    )
    entries: Any = Shifting()
    metadata = Metadata(entries, storage_data={MetadataIndex("w"): where})
    state = ({"cache": {"k": [("w", tensor)]}}, {"__defaults__": ("k",)})
    build = fragment(_get_layout) + fragment(state) + b"b0"
    before = vars(_get_layout).copy(), _get_layout.__defaults__
    (folder / ".metadata").write_bytes(b"\x80\x02" + build + fragment(metadata) + b".")
    with pytest.raises(CheckpointError, match="step_1: "):
        read_state_dict(folder)
    assert (vars(_get_layout), _get_layout.__defaults__) == before
    assert not mark.exists()


@pytest.mark.parametrize("place", ["../other.distcp", "/tmp/other.distcp", "sub/other.distcp"])
def test_a_place_outside_the_folder_is_refused(tmp_path: Path, place: str) -> None:
    whole = torch.Size([1])
    chunks = [ChunkStorageMetadata(torch.Size([0]), whole)]
    entries = {"w": TensorStorageMetadata(TensorProperties(torch.float32), whole, chunks)}
    where = _StorageInfo(place, 0, 100)
    metadata = Metadata(entries, storage_data={MetadataIndex("w", torch.Size([0])): where})  # type: ignore[arg-type]
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="not in the folder"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("shared", [PosixPath, PosixPath("a"), _MEM_FORMAT_ENCODING(0), OrderedDict, torch.strided])
def test_what_this_process_shares_is_not_changed_by_a_file(tmp_path: Path, shared: object) -> None:
    (tmp_path / ".metadata").write_bytes(b"\x80\x02" + fragment(shared) + fragment((None, {"ab": 1})) + b"b.")
    with pytest.raises(CheckpointError, match="more than plain tensors"):
        read_state_dict(tmp_path)
    assert not hasattr(shared, "ab")


def test_the_layout_is_that_of_torch_whatever_its_cache_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(dict(STATE), tmp_path / "step_1")
    monkeypatch.setattr(_get_layout, "cache", {"other": torch.strided})
    assert equal(read_state_dict(folder), STATE)


def test_pickles_are_not_read_even_if_torch_plans_it() -> None:
    item: Any = SimpleNamespace(dest_index=MetadataIndex("w"))
    with pytest.raises(CheckpointError, match="'w': expected a tensor"):
        _OfTensors().load_bytes(item, io.BytesIO(pickle.dumps(1)))


class Entry(BytesStorageMetadata):
    """Of none of torch's own types."""


def _other_entries(metadata: Metadata) -> object:
    metadata.state_dict_metadata = OrderedDict(metadata.state_dict_metadata)
    return metadata


def _other_entry(metadata: Metadata) -> object:
    metadata.state_dict_metadata["a.weight"] = Entry()
    return metadata


def _other_key(metadata: Metadata) -> object:
    keys: Any = metadata.state_dict_metadata
    keys[3] = keys.pop("a.weight")
    return metadata


def _other_places(metadata: Metadata) -> object:
    metadata.storage_data = OrderedDict(metadata.storage_data)
    return metadata


def _other_place(metadata: Metadata) -> object:
    metadata.storage_data = dict.fromkeys(metadata.storage_data, 3)
    return metadata


def _no_metadata(metadata: Metadata) -> object:
    return metadata.state_dict_metadata


@pytest.mark.parametrize(
    "change", [_other_entries, _other_entry, _other_key, _other_places, _other_place, _no_metadata]
)
def test_a_description_is_of_exactly_the_types_that_torch_writes(
    tmp_path: Path, change: Callable[[Metadata], object]
) -> None:
    folder = save(dict(STATE), tmp_path / "step_1")
    path = folder / ".metadata"
    path.write_bytes(pickle.dumps(change(pickle.loads(path.read_bytes()))))
    with pytest.raises(CheckpointError, match=r"step_1: expected .metadata as torch.distributed.checkpoint writes it"):
        read_state_dict(folder, weights_only=False)


def test_torch_sees_only_what_was_checked(tmp_path: Path) -> None:
    folder = save({"model": dict(STATE), "optimizer": {"m": torch.ones(2)}, "epoch": 3}, tmp_path / "step_1")
    seen = of_tensors(read_metadata(folder / ".metadata", weights_only=True), ["model.a.bias"], folder)
    assert list(seen.state_dict_metadata) == ["model.a.bias"]
    assert [index.fqn for index in seen.storage_data] == ["model.a.bias"]
    assert seen.planner_data is None


class Reached:
    """Pickled as something that ``getattr`` gives, as some Pythons, such as 3.11.2, pickle the members of an enum."""

    def __init__(self, owner: object, name: str) -> None:
        self.reached = owner, name

    def __reduce__(self) -> tuple[object, tuple[object, str]]:
        return getattr, self.reached


def test_only_members_of_an_enum_are_reached_by_name(tmp_path: Path) -> None:
    def load(owner: object, name: str) -> object:
        return _PlainUnpickler(io.BytesIO(pickle.dumps(Reached(owner, name))), tmp_path).load()

    member = _MEM_FORMAT_ENCODING.TORCH_PRESERVE_FORMAT
    assert load(_MEM_FORMAT_ENCODING, member.name) is member
    for owner, name in ((_MEM_FORMAT_ENCODING, "__class__"), (Metadata, "__init__"), ("text", "format")):
        with pytest.raises(CheckpointError, match="more than plain tensors"):
            load(owner, name)
