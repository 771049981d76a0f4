"""Folders of ``torch.distributed.checkpoint``."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, Never

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from ..errors import CheckpointError
from .messages import damage_named
from .metadata import of_tensors, read_metadata
from .sources import BESIDE, DISTRIBUTED, NESTED

_BESIDE = re.compile(f"{BESIDE}|train_state")  # a file of that name may hold the weights too


class _OfTensors(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> Never:
        """Refuses what torch would unpickle, whatever is in it."""
        raise CheckpointError(f"{read_item.dest_index.fqn!r}: expected a tensor, got a pickle; save it again")


def read_distributed(folder: Path, *, weights_only: bool) -> dict[str, Tensor]:
    """The tensors that a folder holds, on the CPU, with one flat name each, except those of optimizers and the like.

    Other entries are never read, as torch would unpickle them; ``weights_only`` is about their description.

    Raises:
        CheckpointError: damaged, incomplete or untrusted; names the folder.
    """
    with damage_named(folder):
        whole = read_metadata(folder / DISTRIBUTED, weights_only=weights_only)
        entries = whole.state_dict_metadata.items()
        paths = _weights({key: _path(whole, key) for key, entry in entries if type(entry) is TensorStorageMetadata})
        metadata = of_tensors(whole, paths, folder)
        tensors: dict[str, Any] = metadata.state_dict_metadata
        state = {
            key: torch.empty(entry.size, dtype=entry.properties.dtype, device="cpu") for key, entry in tensors.items()
        }
        # The steps of torch's load(), which would first unpickle the metadata once more, whatever is in it.
        planner, reader = _OfTensors(flatten_state_dict=False), FileSystemReader(folder)
        planner.set_up_planner(state, metadata, is_coordinator=True)
        reader.set_up_storage_reader(metadata, is_coordinator=True)
        reader.read_data(planner.create_local_plan(), planner).wait()
    return {".".join(map(str, path)): state[key] for key, path in paths.items()}


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
