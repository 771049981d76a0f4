"""State dicts from anything that is a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, UnreadableError
from .index import INDEX, read_index
from .messages import shown
from .safetensors_files import read_safetensors
from .sources import DISTRIBUTED, NESTED, SAFETENSORS, Source, entry_of
from .torch_files import read_torch_file

_DEPTH = 8  # of a mapping under such keys, which may hold itself


def read_state_dict(source: Source, *, weights_only: bool = True) -> dict[str, Tensor]:
    """The state dict in a file, a folder or a mapping.

    Args:
        source: a state dict, or the path of a file or folder of one, alone or under ``state_dict`` or ``model``.
        weights_only: False also unpickles arbitrary objects, which can run code: only for files you trust.

    Raises:
        CheckpointError: missing, incomplete, untrusted, or not a state dict; names the file.
        DependencyError: the package that reads such files is missing.
    """
    name = "the given mapping" if isinstance(source, Mapping) else os.fspath(source)
    loaded: Any = source if isinstance(source, Mapping) else _read(entry_of(source), weights_only)
    for _ in range(_DEPTH):
        if nested := _nested(loaded):
            loaded = loaded[nested]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(key, str) for key in loaded):
        kind = type(loaded).__name__ if loaded or not isinstance(loaded, Mapping) else "an empty one"
        raise CheckpointError(f"{name}: expected a state dict (names to tensors), got {kind}; save model.state_dict()")
    if bad := [key for key, value in loaded.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(
            f"{name}: expected a state dict (names to tensors), but {shown(bad)} are not tensors; "
            "save model.state_dict(), or pass {step: torch.load(file)[key]} where it lies under one of these"
        )
    return dict(loaded)


def _nested(loaded: Any) -> str | None:
    """The key under which a checkpoint keeps its weights beside other things, if it does."""
    found = NESTED if isinstance(loaded, Mapping) else ()
    return next((key for key in found if isinstance(loaded.get(key), Mapping)), None)


def _read(entry: Path, weights_only: bool) -> Any:
    if entry.name == DISTRIBUTED:
        from .distributed import read_distributed  # half a second, for these folders only

        return read_distributed(entry.parent, weights_only=weights_only)
    if entry.name.endswith(INDEX):
        return _merged(entry, weights_only)
    if entry.suffix == SAFETENSORS:
        return read_safetensors(entry)
    return read_torch_file(entry, weights_only=weights_only)


def _merged(index: Path, weights_only: bool) -> dict[str, Tensor]:
    """The tensors of all shards that an index lists: each from the shard that it says, and what it does not list too.

    What is not listed is not dropped unsaid: the model either has it, or its keys are named as unexpected.
    """
    shards = read_index(index)
    if absent := [shard for shard in shards if not (index.parent / shard).is_file()]:
        raise UnreadableError(
            f"{index}: lists {len(shards)} shards, but {shown(absent)} are not there; "
            "save or download the checkpoint again, if it is not still being written"
        )
    listed, found = dict[str, Tensor](), dict[str, Tensor]()
    for shard, names in shards.items():
        state = read_state_dict(index.parent / shard, weights_only=weights_only)
        if lost := names - state.keys():
            raise UnreadableError(
                f"{index.parent / shard}: expected {shown(lost)} in it, as {index.name} says, but it lacks them; "
                "save or download the checkpoint again"
            )
        listed |= {name: state[name] for name in names}
        found |= state
    return found | listed
