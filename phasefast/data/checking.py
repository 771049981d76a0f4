"""Whether what users give as samples can be a probe set."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .samples import as_numbers, instead_of_a_pair

_ORDER = "fit_inputs", "fit_labels", "heldout_inputs", "heldout_labels"
_OF_PIXELS = (
    "decode labels of pixels by patches (docs/sequences.md), or as numbers: give masks.flatten(1).float() as values="
)


def check_split(split: str, inputs: Tensor, labels: Tensor | None, minimum: int) -> Tensor | None:
    """The labels of inputs as int64; DataError for these inputs and labels, or fewer than ``minimum``."""
    if not isinstance(inputs, Tensor) or inputs.dim() < 2:
        got = f"shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        if isinstance(inputs, (tuple, list, Mapping)):
            got += "; wrap a model of several inputs in a module that makes them from one tensor"
        raise DataError(f"{split}_inputs: expected a tensor [rows, ...] with at least 2 dimensions, got {got}")
    if len(inputs) < minimum or inputs.numel() == 0:
        raise DataError(f"{split}_inputs: expected at least {minimum} non-empty rows, got shape {tuple(inputs.shape)}")
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        row, column = (~torch.isfinite(inputs.flatten(1))).nonzero()[0].tolist()
        where = f"row {row}, column {column}" if inputs.dim() == 2 else f"row {row}"
        raise DataError(f"{split}_inputs: expected finite values, got NaN or Inf, first in {where}")
    if labels is None:
        return None
    labels = as_numbers(f"{split}_labels", labels)
    if labels.is_floating_point():
        mend = "give other numbers as values={name: (of fit, of held-out samples)}"
        if (
            labels.dim() == 2
            and labels.shape[1] > 1
            and bool(((labels >= 0).all(1) & ((labels.sum(1) - 1).abs() < 1e-3)).all())
        ):
            mend += "; of one-hot labels give labels.argmax(1)"
        elif bool((labels == labels.round()).all()):
            mend += "; if they are classes, give labels.long()"
        mend += f"; the order is {', '.join(_ORDER)}" if labels.shape[1:] == inputs.shape[1:] else ""
        raise DataError(f"{split}_labels: expected integers, got {labels.dtype}; {mend}")
    if labels.shape != (len(inputs),) and not (inputs.dim() < 4 and labels.shape == inputs.shape[:2]):
        several = "for one-hot labels give labels.argmax(1); give several labels per sample as values="
        several = _OF_PIXELS if labels.dim() > 2 else "give labels.squeeze(1)" if labels.shape[1:] == (1,) else several
        got = f"{tuple(labels.shape)}; {several}" if len(labels) == len(inputs) else f"{tuple(labels.shape)}"
        raise DataError(f"{split}_labels: expected shape ({len(inputs)},) like the inputs, got {got}")
    return labels.long()


def of_array(split: str, given: Any) -> Any:
    """Inputs that are an array as a tensor, and without a graph."""
    given = as_numbers(f"{split}_inputs", given) if isinstance(given, np.ndarray) else given
    return given.detach() if isinstance(given, Tensor) else given


def check_pairs(values: Any) -> None:
    """DataError for values that are not pairs by name."""
    expected = "values: expected {name: (of fit, of held-out samples)}, got"
    if not isinstance(values, (Mapping, NoneType)):
        raise DataError(f"{expected} {type(values).__name__}")
    for name, both in (values or {}).items():
        if not isinstance(name, str):
            raise DataError(f"{expected} {name!r} as a name")
        if got := instead_of_a_pair(both):
            raise DataError(f"{expected} {got} for {name!r}")


def checked_values(split: str, name: str, values: Tensor, shape: torch.Size) -> Tensor:
    """The values of inputs of a shape, as a tensor of numbers; classes are int64."""
    values, rows = as_numbers(f"values {name!r}", values), shape[0]
    of_tokens = values.dim() == 3 and values.shape[:2] == shape[:2]
    if (values.dim() not in (1, 2) and not of_tokens) or len(values) != rows or values.numel() == 0:
        got = f"{values.dtype} {tuple(values.shape)}" + f"; {_OF_PIXELS}" * (values.dim() > 2)
        raise DataError(f"values {name!r}: expected numbers [{rows}] or [{rows}, q] like {split}_inputs, got {got}")
    if len(bad := (~values.isfinite()).nonzero()):
        raise DataError(
            f"values {name!r}: expected finite values, got NaN or Inf in {len(bad[:, 0].unique())} rows, first in row "
            f"{int(bad[0, 0])}; leave these samples out"
        )
    if values.is_floating_point():
        return values if values.dtype in (torch.float32, torch.float64) else values.float()
    return values.long()
