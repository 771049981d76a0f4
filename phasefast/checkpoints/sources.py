"""What a path of a checkpoint is, and in which files its weights are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UnreadableError
from .index import INDEX, read_index

Source = str | os.PathLike[str] | Mapping[str, Any]
TORCH_SUFFIXES = (".pt", ".pth", ".pth.tar", ".ckpt", ".bin")
SAFETENSORS = ".safetensors"
SUFFIXES = (*TORCH_SUFFIXES, SAFETENSORS)
DISTRIBUTED = ".metadata"
# The keys of weights beside other things, and the names of such things, also one for each rank or group.
NESTED = ("state_dict", "model_state_dict", "model", "app")
BESIDE = (
    r"(?:optim(?:izer)?s?|(?:lr_)?schedulers?|(?:grad_)?scalers?|data_?loaders?|rng(?:_states?)?|training_args)"
    r"(?:[-_]?\d+)?"
)
# Of several in a folder the first counts, in the order of transformers.
ENTRIES = (
    f"model{SAFETENSORS}",
    f"model{SAFETENSORS}{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
    DISTRIBUTED,
)


def suffix_of(path: Path) -> str:
    """The suffix by which a file may be weights; empty where it may not."""
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")


def find_entry(folder: Path) -> Path | None:
    """The file by which the checkpoint in a folder is read; None where the folder is no checkpoint."""
    return next((folder / name for name in ENTRIES if (folder / name).is_file()), None)


def entry_of(path: str | os.PathLike[str]) -> Path:
    """The file by which a checkpoint is read: itself, or the one in a folder.

    Raises:
        CheckpointError: a folder without one.
    """
    path = Path(path)
    entry = find_entry(path) if path.is_dir() else path
    if entry is None:
        raise UnreadableError(f"{path}: expected a folder with one of {', '.join(ENTRIES)}; is it still being written?")
    return entry


def weights_files(path: str | os.PathLike[str]) -> list[Path]:
    """All files that the weights of a checkpoint are read from.

    Raises:
        CheckpointError: a folder that is no checkpoint, or an index that cannot be read.
    """
    entry = entry_of(path)
    if entry.name == DISTRIBUTED:
        return [entry, *sorted(entry.parent.glob("*.distcp"))]
    if entry.name.endswith(INDEX):
        return [entry, *(entry.parent / shard for shard in read_index(entry))]
    return [entry]


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether any of a checkpoint's weights is there; of a folder that was emptied to save space, the rest may be.

    Raises:
        CheckpointError: an index that cannot be read.
    """
    entry = find_entry(Path(path)) if Path(path).is_dir() else Path(path)
    if entry is None or not entry.is_file():
        return False
    describes = entry.name == DISTRIBUTED or entry.name.endswith(INDEX)
    return any(file.is_file() for file in weights_files(entry)[1 if describes else 0 :])
