"""Checks of the ops' arguments. They run before the reference, and after a compiled op has refused its arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WIDE = (torch.float32, torch.float64)


def counts(like: str, expected: int, **lists: Sequence[Any]) -> None:
    """Every list has one entry per cell."""
    for name, entries in lists.items():
        if len(entries) != expected:
            raise ArgumentError(f"{name} has {len(entries)} entries, expected {expected}, one for each of {like}")


def tensor(
    name: str,
    value: Tensor,
    shape: Sequence[int | None],
    dtypes: Sequence[torch.dtype],
    device: torch.device,
    written: bool = False,
) -> None:
    """Shape (None: any size), dtype and device; a tensor that is written needs rows of adjacent elements."""
    if value.dim() != len(shape) or any(want not in (None, got) for want, got in zip(shape, value.shape)):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ArgumentError(f"{name} has shape {list(value.shape)}, expected [{expected}]")
    if value.dtype not in dtypes:
        raise ArgumentError(f"{name} has dtype {value.dtype}, expected {' or '.join(map(str, dtypes))}; convert it")
    if value.device != device:
        raise ArgumentError(f"{name} is on {value.device}, expected {device}; move it there")
    if written and not _row_major(value):
        raise ArgumentError(
            f"{name} has strides {list(value.stride())} for shape {list(value.shape)}, "
            "expected rows of adjacent elements; give a contiguous tensor"
        )


def _row_major(value: Tensor) -> bool:
    """Whether the last dimension is dense and no two rows overlap."""
    span = 1  # elements from the first to the last of the dimensions seen, plus one
    for i in reversed(range(value.dim())):
        size, stride = value.shape[i], value.stride(i)
        if size > 1 and (stride != 1 if i == value.dim() - 1 else stride < span):
            return False
        span += max(size - 1, 0) * stride
    return True


def capture(
    activations: Sequence[Tensor],
    shifts: Sequence[Tensor],
    pools: Sequence[int],
    rows: Sequence[Tensor],
    sums: Sequence[Tensor],
    squares: Sequence[Tensor],
) -> None:
    """ArgumentError where the arguments of ``capture`` do not fit together."""
    counts("activations", len(activations), shifts=shifts, pools=pools, rows=rows, sums=sums, squares=squares)
    for i, (x, pool) in enumerate(zip(activations, pools)):
        low, high = (3, 5) if pool else (2, 16)
        if pool < 0:
            raise ArgumentError(f"pools[{i}] is {pool}, expected 0 or a size")
        if not low <= x.dim() <= high:
            raise ArgumentError(
                f"activations[{i}] has shape {list(x.shape)}, expected {low} to {high} dimensions"
                + ("; set its pool to 0" if pool else "")
            )
        if pool and 0 in x.shape[2:]:
            raise ArgumentError(f"activations[{i}] has shape {list(x.shape)}: nothing to pool")
        width = x.shape[1] * pool ** (x.dim() - 2) if pool else math.prod(x.shape[1:])
        tensor(f"activations[{i}]", x, x.shape, FLOATS, x.device)
        tensor(f"shifts[{i}]", shifts[i], [width], [torch.float32], x.device)
        tensor(f"rows[{i}]", rows[i], [x.shape[0], width], FLOATS, x.device)
        if not rows[i].is_contiguous():
            raise ArgumentError(f"rows[{i}] has strides {list(rows[i].stride())}, expected a contiguous tensor")
        tensor(f"sums[{i}]", sums[i], [width], [torch.float64], x.device, written=True)
        tensor(f"squares[{i}]", squares[i], [width], [torch.float64], x.device, written=True)


def gram(rows: Sequence[Tensor], targets: Tensor, grams: Sequence[Tensor], crosses: Sequence[Tensor]) -> None:
    """ArgumentError where the arguments of ``gram`` do not fit together."""
    counts("rows", len(rows), crosses=crosses)
    if grams:
        counts("rows", len(rows), grams=grams)
    device = targets.device
    tensor("targets", targets, [None, None], (*WIDE, torch.bfloat16), device)
    for i, row in enumerate(rows):
        tensor(f"rows[{i}]", row, [targets.shape[0], None], FLOATS, device)
        width = row.shape[1]
        if grams:
            tensor(f"grams[{i}]", grams[i], [width, width], WIDE, device, written=True)
        tensor(f"crosses[{i}]", crosses[i], [width, targets.shape[1]], WIDE, device, written=True)


def ridge_solve(
    grams: Sequence[Tensor],
    crosses: Sequence[Tensor],
    penalties: Sequence[Tensor],
    weights: Sequence[Tensor],
    factors: Sequence[Tensor],
    info: Tensor,
) -> None:
    """ArgumentError where the arguments of ``ridge_solve`` do not fit together."""
    cells = len(grams)
    counts("grams", cells, crosses=crosses, penalties=penalties, weights=weights)
    if factors:
        counts("grams", cells, factors=factors)
    device = info.device
    tensor("info", info, [cells, None], [torch.int32], device)
    steps = info.shape[1]
    for i, g in enumerate(grams):
        tensor(f"grams[{i}]", g, [None, None], WIDE, device)
        width, dtype = g.shape[0], [g.dtype]
        tensor(f"grams[{i}]", g, [width, width], WIDE, device)
        tensor(f"crosses[{i}]", crosses[i], [width, None], dtype, device)
        tensor(f"penalties[{i}]", penalties[i], [steps], [torch.float64], device)
        tensor(f"weights[{i}]", weights[i], [steps, width, crosses[i].shape[1]], dtype, device, written=True)
        if factors:
            tensor(f"factors[{i}]", factors[i], [steps, width, width], dtype, device, written=True)


def residual(
    rows: Sequence[Tensor],
    weights: Sequence[Tensor],
    offsets: Sequence[Tensor],
    targets: Tensor,
    blocks: Sequence[int],
    classes: Sequence[bool],
    errors: Sequence[Tensor],
    hits: Sequence[Tensor],
) -> None:
    """ArgumentError where the arguments of ``residual`` do not fit together."""
    counts("rows", len(rows), weights=weights, offsets=offsets, errors=errors, hits=hits)
    counts("classes, plus one", len(classes) + 1, blocks=blocks)
    device = targets.device
    tensor("targets", targets, [None, None], WIDE, device)
    samples, columns = targets.shape
    if any(low > high for low, high in zip([0, *blocks], [*blocks, columns])):
        raise ArgumentError(f"blocks is {list(blocks)}, expected edges that ascend from 0 to at most {columns}")
    for j, flag in enumerate(classes):
        if flag and blocks[j] == blocks[j + 1]:
            raise ArgumentError(f"blocks[{j}] holds classes but no column")
    for i, row in enumerate(rows):
        tensor(f"rows[{i}]", row, [samples, None], FLOATS, device)
        tensor(f"weights[{i}]", weights[i], [row.shape[1], columns], WIDE, device)
        tensor(f"offsets[{i}]", offsets[i], [columns], WIDE, device)
        tensor(f"errors[{i}]", errors[i], [len(classes), samples], [torch.float64], device, written=True)
        tensor(f"hits[{i}]", hits[i], [len(classes), samples], [torch.bool], device, written=True)
