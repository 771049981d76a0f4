"""Files of ``torch.save``."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from .messages import damage_named, not_plain


def read_torch_file(path: Path, *, weights_only: bool) -> Any:
    """What a file holds, on the CPU.

    Raises:
        CheckpointError: missing, truncated or untrusted; names the file.
    """
    with damage_named(path):
        try:
            return torch.load(path, map_location="cpu", weights_only=weights_only, mmap=None)
        except pickle.UnpicklingError as error:
            raise not_plain(path) from error
