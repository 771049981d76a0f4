"""Samples of a data set: inputs, labels and what else is to be decoded, as tensors."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..common.devices import has_float64
from ..common.notices import warn
from ..common.scalars import is_integer
from ..errors import ArgumentError, DataError

_AGAIN = 8  # samples of a data set that are asked for twice


def draw(
    split: str, dataset: Sized, count: int | None, seed: int, text: str | None = None
) -> tuple[Tensor, Tensor | None, dict[str, Any], Tensor]:
    """Inputs [count, ...], labels [count] or of tokens [count, t] or None, values by name of random samples, and which.

    Args:
        split: what it is for, in messages. count: all by default. text: the name of the values that may be text.

    Raises:
        DataError: too few samples, or some that are of another form or shape.
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        mend = "; give its data set, loader.dataset" if isinstance(dataset, DataLoader) else ""
        raise DataError(f"{split}: expected a data set with len() and [i], got {type(dataset).__name__}{mend}")
    size = len(dataset)
    count = size if count is None else count
    if not is_integer(count, 1) or count > size:
        raise DataError(f"n_{split}: expected between 1 and the {size} samples of the dataset, got {count!r}")
    rows = random_order(size, seed)[:count]
    chosen = rows.tolist()
    inputs, labels, values = zip(*(_sample(split, dataset, i) for i in chosen), strict=True)
    again = [_sample(split, dataset, i)[0] for i in chosen[:_AGAIN]]
    for i, each in zip(chosen, inputs, strict=True):
        if each.shape != inputs[0].shape:
            got = f"{tuple(inputs[0].shape)}, and {tuple(each.shape)} of sample {i}"
            raise DataError(f"{split}: expected inputs of one shape, got {got}; crop, resize or pad them")
        if each.is_floating_point() and not bool(each.isfinite().all()):
            raise DataError(f"{split}: expected finite values, got NaN or Inf in sample {i}")
    if not all(map(torch.equal, inputs, again)):
        warn(
            f"{split}: the data set gives other inputs each time, as random transforms do: give it without them, since "
            "these samples are not those of the next call, nor what a model is used with"
        )
    if len({label is None for label in labels}) > 1 or any(each.keys() != values[0].keys() for each in values):
        raise DataError(f"{split}: expected labels and values for all samples or none: some have what others lack")
    named = dict[str, Any]()
    for name in values[0]:
        own = [each[name] for each in values]
        if name == text:
            named[name] = own
        elif isinstance(own[0], str):
            warn(f"{split}: values {name!r} are left out, since they are text")
        else:
            named[name] = as_numbers(f"values {name!r}", own)
    return torch.stack(inputs), None if labels[0] is None else as_numbers(f"{split}_labels", labels), named, rows


def instead_of_a_pair(given: Any) -> str:
    """What is given where one thing for each split is expected, for messages; empty for a tuple or list of two."""
    if isinstance(given, (tuple, list)):
        return "" if len(given) == 2 else f"{len(given)} parts"
    return type(given).__name__


def random_order(size: int, seed: int) -> Tensor:
    """So many row numbers [size], shuffled; ArgumentError for a seed that is no integer."""
    if not is_integer(seed, -(2**63)) or seed >= 2**64:
        raise ArgumentError(f"seed: expected an integer, got {seed!r}")
    return torch.randperm(size, generator=torch.Generator().manual_seed(int(seed)), device="cpu")


def _sample(split: str, dataset: Any, row: int) -> tuple[Tensor, int | Tensor | None, Mapping[str, Any]]:
    """Input, label or those of its tokens [t], and values of one sample of a data set."""
    where, sample = f"{split}: sample {row}", dataset[row]
    if isinstance(sample, Mapping):
        raise DataError(f"{where}: expected (input, label), got a dict of {list(sample)}; wrap the data set")
    given = tuple(sample) if isinstance(sample, (tuple, list)) else (sample,)
    if len(given) < 2:
        given = (given[0] if given else given, None)
    tensor, label, *others = given
    if isinstance(tensor, np.ndarray):
        tensor = as_numbers(where, tensor)
    if not isinstance(tensor, Tensor):
        kind = type(tensor).__name__
        raise DataError(
            f"{where}: expected inputs that are tensors, got {kind}; add a transform such as ToTensor(), and wrap a "
            "model of several inputs in a module that makes them from one tensor"
        )
    if len(others) > 1 or not all(isinstance(each, Mapping) for each in others):
        kinds = ", ".join(type(each).__name__ for each in given)
        raise DataError(
            f"{where}: expected (input, label) or (input, label, {{name: value}}), got ({kinds}); wrap the data set"
        )
    return tensor, None if label is None else _label(where, label), others[0] if others else {}


def _label(where: str, label: Any) -> int | Tensor:
    try:
        return int(label) if isinstance(label, np.bool_) else operator.index(label)  # NumPy's booleans are no indices
    except TypeError as error:
        array = isinstance(label, (Tensor, np.ndarray))
        several = array or isinstance(label, (list, tuple))
        numbers = as_numbers(f"{where}: labels", label) if several else torch.empty(())
        if numbers.dim() == 1 and not numbers.is_floating_point():
            return numbers
        got = f"{tuple(label.shape)} {label.dtype}" if array else repr(label)
        of_classes = "of one-hot labels give label.argmax(); " if numbers.dim() == 1 else ""
        raise DataError(
            f"{where}: expected labels that are integers or None, got {got}; {of_classes}give other things to "
            "decode as (input, None, {name: value})"
        ) from error


def as_numbers(what: str, given: Any) -> Tensor:
    """A tensor of real numbers, made of a tensor, an array or nested sequences, also of tensors.

    As NumPy has it, a float is one of 64 bits, and integers are of 64 at most.

    Args:
        what: they are, in messages.

    Raises:
        DataError: text, complex numbers, rows of different lengths and the like.
    """
    try:
        if isinstance(given, (list, tuple)) and given and isinstance(given[0], Tensor):
            numbers = torch.stack(
                [each if isinstance(each, Tensor) else torch.as_tensor(each, device="cpu") for each in given]
            )
        else:
            numbers = given if isinstance(given, Tensor) else _from_numpy(np.asarray(given))
        numbers = numbers if has_float64(numbers.device) else numbers.cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"the same number for every sample, got {_odd(given)}; {error}"
        if any(kind in str(error) for kind in ("numpy.str_", "numpy.bytes_")):
            got = "got text; numpy.unique(text, return_inverse=True) turns it into integers"
        raise DataError(f"{what}: expected numbers, {got}") from error
    if numbers.is_complex() or numbers.layout != torch.strided:
        raise DataError(f"{what}: expected real numbers in a dense tensor, got {numbers.dtype}, {numbers.layout}")
    if numbers.dtype == torch.uint64 and bool((numbers.view(torch.int64) < 0).any()):
        raise DataError(f"{what}: expected integers below 2^63, got larger ones; give floats")
    numbers = numbers.detach()
    return (
        numbers.float() if numbers.is_floating_point() and numbers.element_size() < 2 else numbers
    )  # few ops take these


def _from_numpy(given: np.ndarray) -> Tensor:
    """A tensor of an array's copy, also of one of negative strides or of the other order of bytes."""
    return torch.as_tensor(np.array(given, dtype=given.dtype.newbyteorder("="), order="C"), device="cpu")


def _odd(given: Any) -> str:
    """What is given, or the first of it that is of another kind than the first."""
    kinds = [type(given).__name__]
    if isinstance(given, (list, tuple)) and given:
        kinds = [f"{type(each).__name__} {getattr(each, 'shape', '')}".strip() for each in given]
    return next(
        (f"{kinds[0]} and, at {place}, {kind}" for place, kind in enumerate(kinds) if kind != kinds[0]), kinds[0]
    )
