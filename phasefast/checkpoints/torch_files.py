"""State dicts from ``torch.save`` files."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .messages import shown
from .steps import Source

_NESTED = ("state_dict", "model_state_dict", "model")


def read_state_dict(source: Source, *, weights_only: bool = True) -> dict[str, Tensor]:
    """The state dict in a file or a mapping.

    Args:
        source: a state dict, or the path of a file that holds one, alone or under ``state_dict`` or ``model``.
        weights_only: False also unpickles arbitrary objects, which can run code: only for files you trust.

    Raises:
        CheckpointError: missing, truncated, untrusted, or not a state dict; names the file.
    """
    name = "the given mapping" if isinstance(source, Mapping) else os.fspath(source)
    loaded: Any = source if isinstance(source, Mapping) else _load(name, weights_only)
    for key in _NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(key, str) for key in loaded):
        kind = type(loaded).__name__
        raise CheckpointError(f"{name}: expected a state dict (names to tensors), got {kind}; save model.state_dict()")
    if bad := [key for key, value in loaded.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(
            f"{name}: expected a state dict (names to tensors), but {shown(bad)} are not tensors; "
            "save model.state_dict()"
        )
    return dict(loaded)


def _load(path: str, weights_only: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=weights_only, mmap=None)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than plain tensors; save model.state_dict(), or, if you trust the file and there is a "
            "state dict in it, pass weights_only=False"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read, perhaps truncated or still being written ({detail})") from error
