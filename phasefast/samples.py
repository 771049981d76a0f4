"""Samples of a data set: inputs, labels and what else is to be decoded, as tensors."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .notices import warn


def draw(split: str, dataset: Sized, count: int | None, seed: int) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """Inputs [count, ...], labels [count] or None, and values by name of randomly chosen samples.

    Args:
        split: what it is for, in messages. count: all by default.

    Raises:
        DataError: too few samples, or some that are of another form or shape.
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(f"{split}: expected a data set with len() and [i], got {type(dataset).__name__}")
    size = len(dataset)
    count = size if count is None else count
    if not 0 < count <= size:
        raise DataError(f"n_{split}: expected between 1 and the {size} samples of the dataset, got {count}")
    chosen = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count].tolist()
    inputs, labels, values = zip(*(_parts(split, dataset[i]) for i in chosen), strict=True)  # type: ignore[index]
    if shapes := {tuple(each.shape) for each in inputs if each.shape != inputs[0].shape}:
        got = f"{tuple(inputs[0].shape)} and {sorted(shapes)[0]}"
        raise DataError(f"{split}: expected inputs of one shape, got {got}; crop, resize or pad them")
    if len({label is None for label in labels}) > 1 or any(each.keys() != values[0].keys() for each in values):
        raise DataError(f"{split}: expected the same for every sample: some have labels or values that others have not")
    named = {}
    for name in values[0]:
        own = [each[name] for each in values]
        if isinstance(own[0], str):
            warn(f"{split}: values {name!r} are left out: they are text")
        else:
            named[name] = _stacked(name, own)
    return torch.stack(inputs), None if labels[0] is None else torch.tensor(labels), named


def _parts(split: str, sample: Any) -> tuple[Tensor, int | None, Mapping[str, Any]]:
    """Input, label and values of one sample of a data set."""
    given = tuple(sample) if isinstance(sample, (tuple, list)) else (sample,)
    tensor, label, *others = given if len(given) > 1 else (*given, None) if given else (given, None)
    if not isinstance(tensor, Tensor):
        kind = type(tensor).__name__
        raise DataError(
            f"{split}: expected inputs that are tensors, got {kind}; add a transform such as ToTensor(), and wrap a "
            "model of several inputs in a module that makes them from one tensor"
        )
    if len(others) > 1 or not all(isinstance(each, Mapping) for each in others):
        kinds = ", ".join(type(each).__name__ for each in given)
        raise DataError(
            f"{split}: expected samples (input, label) or (input, label, {{name: value}}), got ({kinds}); wrap the "
            "data set"
        )
    try:
        # NumPy's booleans are no indices.
        number = None if label is None else int(label) if isinstance(label, np.bool_) else operator.index(label)
    except TypeError as error:
        got = f"{tuple(label.shape)} {label.dtype}" if isinstance(label, Tensor) else repr(label)
        raise DataError(
            f"{split}: expected labels that are integers or None, got {got}; other things to decode are given as "
            "(input, None, {name: value})"
        ) from error
    return tensor, number, others[0] if others else {}


def _stacked(name: str, values: Sequence[Any]) -> Tensor:
    try:
        # As NumPy has it, a float is one of 64 bits.
        return torch.stack([each if isinstance(each, Tensor) else torch.as_tensor(np.asarray(each)) for each in values])
    except (TypeError, ValueError, RuntimeError) as error:
        got = " and ".join(repr(each) for each in values[:2])
        raise DataError(f"values {name!r}: expected numbers, as many for every sample, got such as {got}") from error
