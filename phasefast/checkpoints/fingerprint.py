"""Cheap fingerprints by which a stored step is known to come from the same weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

_SAMPLE = 4096
_EDGE = 1 << 18


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
    """Hash of a file's size, head and tail; the tail of a file of ``torch.save`` holds checksums of all its tensors.

    Raises:
        CheckpointError: the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{size}".encode())
            digest.update(file.read(_EDGE))
            file.seek(max(0, size - _EDGE))
            digest.update(file.read(_EDGE))
    except FileNotFoundError as error:
        raise CheckpointError(f"{os.fspath(path)}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{os.fspath(path)}: cannot be read ({error})") from error
    return digest.hexdigest()
