"""Cheap fingerprints by which a stored step is known to come from the same weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .messages import damage_named
from .sources import TORCH_SUFFIXES, weights_files

_SAMPLE = 4096
_EDGE = 1 << 18
_BLOCKS = 256


def state_hash(state: Mapping[str, Any]) -> str:
    """Hash of names, shapes and up to 4,096 evenly spaced values of every tensor: tells one training from another."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in state.items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(f"{tuple(value.shape)}{value.dtype}".encode())
            flat = value.detach().reshape(-1)
            chosen = flat[:: max(1, len(flat) // _SAMPLE)].cpu().contiguous()
            digest.update(chosen.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_hash(path: str | os.PathLike[str]) -> str:
    """Hash of a checkpoint on disk; of a folder, of the names and hashes of the files that its weights are in.

    Raises:
        CheckpointError: it cannot be read.
    """
    files = weights_files(path)
    if files == [Path(path)]:
        return _of_file(files[0])
    listed = " ".join(f"{file.name}:{_of_file(file)}" for file in files)
    return hashlib.blake2b(listed.encode(), digest_size=8).hexdigest()


def _of_file(path: Path) -> str:
    """Hash of a file's size, head and tail, and of evenly spaced blocks.

    The tail of a file of ``torch.save`` holds checksums of all its tensors, so that it needs no blocks.
    """
    digest = hashlib.blake2b(digest_size=8)
    with damage_named(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(f"{size}".encode())
        digest.update(file.read(_EDGE))
        for block in () if path.suffix in TORCH_SUFFIXES else range(1, _BLOCKS):
            file.seek(size * block // _BLOCKS)
            digest.update(file.read(_SAMPLE))
        file.seek(max(0, size - _EDGE))
        digest.update(file.read(_EDGE))
    return digest.hexdigest()
