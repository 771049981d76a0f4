"""What CUDA tensors are computed with: a kernel where it is built and asked for, else the reference.

The kernels have not run on a GPU yet, so they are not the default: PHASEFAST_CUDA_KERNELS=1 asks for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import reference


def implementation(op: str, built: bool) -> Callable[..., None]:
    """The implementation of an op for CUDA tensors; ``built``: whether the extension has CUDA kernels."""
    plain: Callable[..., None] = getattr(reference, op)
    wanted = built and os.environ.get("PHASEFAST_CUDA_KERNELS") == "1"
    return _ROUTES[op] if wanted else plain


def _capture(
    activations: Sequence[Tensor],
    shifts: Sequence[Tensor],
    pools: Sequence[int],
    rows: Sequence[Tensor],
    sums: Sequence[Tensor],
    squares: Sequence[Tensor],
) -> None:
    wide = any(tensor.dtype == torch.float64 for tensor in (*activations, *rows))
    op = reference.capture if wide else torch.ops.phasefast_cuda.capture
    op(activations, shifts, pools, rows, sums, squares)


def _gram(rows: Sequence[Tensor], targets: Tensor, grams: Sequence[Tensor], crosses: Sequence[Tensor]) -> None:
    dtypes = {row.dtype for row in rows}
    mixed = targets.dtype == torch.bfloat16 and torch.float32 in dtypes
    if mixed or torch.float64 in dtypes | {targets.dtype}:
        reference.gram(rows, targets, grams, crosses)
    else:
        torch.ops.phasefast_cuda.gram(rows, targets, grams, crosses)


def _residual(
    rows: Sequence[Tensor],
    weights: Sequence[Tensor],
    offsets: Sequence[Tensor],
    targets: Tensor,
    blocks: Sequence[int],
    classes: Sequence[bool],
    errors: Sequence[Tensor],
    hits: Sequence[Tensor],
) -> None:
    arguments = (rows, weights, offsets, targets, blocks, classes, errors, hits)
    wide = any(tensor.dtype == torch.float64 for tensor in (*rows, *weights, *offsets, targets))
    if wide or len(classes) > _TARGET_BLOCKS:
        reference.residual(*arguments)
    else:
        torch.ops.phasefast_cuda.residual(*arguments)


def _ridge_solve(
    grams: Sequence[Tensor],
    crosses: Sequence[Tensor],
    penalties: Sequence[Tensor],
    weights: Sequence[Tensor],
    factors: Sequence[Tensor],
    info: Tensor,
) -> None:
    wide = any(gram.dtype == torch.float64 for gram in grams)
    op = reference.ridge_solve if wide else torch.ops.phasefast_cuda.ridge_solve
    op(grams, crosses, penalties, weights, factors, info)


_TARGET_BLOCKS = 64  # kTargetBlocks of csrc/cuda/residual_kernel.cuh
_ROUTES: dict[str, Callable[..., None]] = {
    "capture": _capture,
    "gram": _gram,
    "ridge_solve": _ridge_solve,
    "residual": _residual,
}
