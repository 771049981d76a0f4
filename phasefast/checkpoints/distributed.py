"""Folders of ``torch.distributed.checkpoint``."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .messages import damage_named, not_plain
from .sources import BESIDE, DISTRIBUTED, NESTED

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

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
    "torch.serialization": {"_get_layout"},
}
_BESIDE = re.compile(f"{BESIDE}|train_state")  # a file of that name may hold the weights too


def read_distributed(folder: Path, *, weights_only: bool) -> dict[str, Tensor]:
    """The tensors that a folder holds, on the CPU, with one flat name each; those of optimizers and such are not read.

    Other entries are never read, as torch would unpickle them; ``weights_only`` is about their description.

    Raises:
        CheckpointError: damaged, incomplete or untrusted; names the folder.
    """
    # Half a second, for these folders only.
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    with damage_named(folder):
        metadata = _read_metadata(folder / DISTRIBUTED, weights_only)
        tensors = _tensors(metadata)
        paths = _weights({key: _path(metadata, key) for key in tensors})
        state = {key: _empty(tensors[key], f"{folder}: {key!r}") for key in paths}
        # The steps of torch's load(), which would first unpickle the metadata once more, whatever is in it.
        planner, reader = DefaultLoadPlanner(flatten_state_dict=False), FileSystemReader(folder)
        planner.set_up_planner(state, metadata, is_coordinator=True)
        reader.set_up_storage_reader(metadata, is_coordinator=True)
        reader.read_data(planner.create_local_plan(), planner).wait()
    return {".".join(map(str, path)): state[key] for key, path in paths.items()}


def _read_metadata(path: Path, weights_only: bool) -> Metadata:
    with path.open("rb") as file:
        metadata: Metadata = (_Plain(file, path) if weights_only else pickle.Unpickler(file)).load()
    return metadata


def _tensors(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    entries = metadata.state_dict_metadata.items()
    return {key: entry for key, entry in entries if isinstance(entry, TensorStorageMetadata)}


def _empty(entry: TensorStorageMetadata, name: str) -> Tensor:
    """What an entry is read into. Refuses one of which only parts were saved: the rest would be whatever was there."""
    if sum(chunk.sizes.numel() for chunk in entry.chunks) != entry.size.numel():
        raise CheckpointError(f"{name}: expected a whole tensor, but only parts of it were saved; save from all ranks")
    return torch.empty(entry.size, dtype=entry.properties.dtype)


def _path(metadata: Metadata, key: str) -> tuple[str | int, ...]:
    """The keys under which an entry was in what was saved; one where torch did not flatten it."""
    path: tuple[str | int, ...] = (metadata.planner_data or {}).get(key, (key,))
    return path


def _weights(paths: dict[str, tuple[str | int, ...]]) -> dict[str, tuple[str | int, ...]]:
    """Those under the key of weights, from there on, if there is one; never those under keys of other things."""
    for name in NESTED:
        if inside := {key: path[1:] for key, path in paths.items() if path[0] == name and path[1:]}:
            return _weights(inside)
    return {key: path for key, path in paths.items() if not any(_BESIDE.fullmatch(str(part)) for part in path[:-1])}


class _Plain(pickle.Unpickler):
    """Unpickles what describes entries, and raises CheckpointError at anything else."""

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of that name."""
        known = name in _PLAIN.get("pathlib" if module.startswith("pathlib.") else module, ())
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise not_plain(self._path.parent)
