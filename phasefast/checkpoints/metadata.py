"""The description of a folder of ``torch.distributed.checkpoint``: a pickle, of which nothing is believed unchecked."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Size
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

from ..errors import CheckpointError
from .messages import not_plain

# What describes entries and where they are. It holds nothing of the entries themselves.
_PLAIN = {
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "torch": {"Size"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "_MEM_FORMAT_ENCODING",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    },
}


def read_metadata(path: Path, *, weights_only: bool) -> Metadata:
    """What a folder's file of metadata says.

    Raises:
        CheckpointError: untrusted, or not as torch writes it; names the folder.
    """
    with path.open("rb") as file:
        loaded = (_PlainUnpickler(file, path.parent) if weights_only else pickle.Unpickler(file)).load()
    # Exactly these: what is derived from them can look different each time that it is looked at.
    if type(loaded) is not Metadata or type(loaded.state_dict_metadata) is not dict:
        raise _unexpected(path.parent, "no Metadata with a dict of entries")
    for key, entry in loaded.state_dict_metadata.items():
        if type(key) is not str or type(entry) not in (TensorStorageMetadata, BytesStorageMetadata):
            raise _unexpected(path.parent, f"a {type(entry).__name__} under a {type(key).__name__}")
    if type(loaded.planner_data) not in (dict, type(None)) or type(loaded.storage_data) is not dict:
        raise _unexpected(path.parent, "no dicts of paths and places")
    return loaded


def of_tensors(metadata: Metadata, keys: Iterable[str], folder: Path) -> Metadata:
    """The description of some of the tensors and of nothing else, built from numbers and names alone.

    Raises:
        CheckpointError: one that torch has not written so, or has written in part only; names it.
    """
    entries, places = {}, {}
    for key in keys:
        entry = _rebuilt(metadata.state_dict_metadata[key])
        # The rest would be whatever was in memory.
        if sum(chunk.sizes.numel() for chunk in entry.chunks) != entry.size.numel():
            raise CheckpointError(
                f"{folder}: {key!r}: expected a whole tensor, but only parts of it were saved; save from all ranks"
            )
        entries[key] = entry
        for index in (MetadataIndex(key, chunk.offsets) for chunk in entry.chunks):
            place = metadata.storage_data[index]
            if type(place) is not _StorageInfo or type(place.relative_path) is not str:
                raise _unexpected(folder, f"a {type(place).__name__} as the place of {key!r}")
            if Path(place.relative_path).name != place.relative_path:
                raise _unexpected(folder, f"{place.relative_path!r}, which is not in the folder")
            places[index] = dataclasses.replace(place, offset=int(place.offset), length=int(place.length))
    return Metadata(dict(entries), storage_data=places)


def _rebuilt(entry: Any) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(Size(chunk.offsets), Size(chunk.sizes)) for chunk in entry.chunks]
    return TensorStorageMetadata(TensorProperties(dtype=entry.properties.dtype), Size(entry.size), chunks)


def _unexpected(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{folder}: expected .metadata as torch.distributed.checkpoint writes it, got {what}")


def _layout(name: str) -> torch.layout:
    """As ``torch.serialization._get_layout``, which takes what it gives from an attribute of its own."""
    return next(value for value in vars(torch).values() if isinstance(value, torch.layout) and str(value) == name)


_BUILD: Any = pickle._Unpickler.dispatch[pickle.BUILD[0]]


class _PlainUnpickler(pickle._Unpickler):  # that in C has no step of its own for states of objects
    """Unpickles what describes entries, and raises CheckpointError at anything else."""

    stack: list[Any]

    def __init__(self, file: Any, folder: Path) -> None:
        super().__init__(file)
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of that name."""
        if (module, name) == ("torch.serialization", "_get_layout"):
            return _layout
        if (module, name) == ("builtins", "getattr"):
            return self._member
        known = name in _PLAIN.get("pathlib" if module.startswith("pathlib.") else module, ())
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise not_plain(self._folder)

    def _member(self, kind: object, name: str) -> _MEM_FORMAT_ENCODING:
        """As ``getattr``, by which some Pythons, such as 3.11.2, write the members of an enum; of this one alone."""
        if kind is not _MEM_FORMAT_ENCODING or name not in _MEM_FORMAT_ENCODING.__members__:
            raise not_plain(self._folder)
        return _MEM_FORMAT_ENCODING[name]

    def _build(self) -> None:
        """Give an object of a file its state: never a class, a function or a member of an enum, which all share."""
        if not dataclasses.is_dataclass(type(self.stack[-2])):
            raise not_plain(self._folder)
        _BUILD(self)

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: _build}
