"""State dicts from ``torch.save`` files, and loading them into a model with errors that name the keys."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .steps import Source

_NESTED = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("_orig_mod.", "module.")
_SHOWN = 5


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
            f"{name}: expected a state dict (names to tensors), but {bad[:_SHOWN]} are not tensors; "
            "save model.state_dict()"
        )
    return dict(loaded)


def load_into(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load a state dict whose keys and shapes must be the model's, but for the prefixes of ``torch.compile`` and DDP.

    Raises:
        CheckpointError: names the checkpoint and the keys that are missing, unexpected or of another shape.
    """
    own = model.state_dict()
    while state.keys() != own.keys():
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key[len(prefix) :]: value for key, value in state.items()}
    problems = [
        f"{what} {sorted(keys)[:_SHOWN]}{' ...' if len(keys) > _SHOWN else ''}"
        for what, keys in (
            ("lacks the keys", own.keys() - state.keys()),
            ("has unexpected keys", state.keys() - own.keys()),
        )
        if keys
    ]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, the model's is {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and isinstance(value, Tensor) and state[key].shape != value.shape
    ][:_SHOWN]
    if problems:
        raise CheckpointError(f"{name} does not fit {type(model).__name__}: it " + "; it ".join(problems))
    model.load_state_dict(state)


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
