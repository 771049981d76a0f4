"""What CUDA tensors are computed with: a kernel where it is built and asked for, else PyTorch.

The kernels have not run on a GPU yet, so they are not the default: PHASEFAST_CUDA_KERNELS=1 asks for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import reference

_TARGET_BLOCKS = 64  # kTargetBlocks of csrc/cuda/residual_kernel.cuh


def implementation(op: str, built: bool) -> Callable[..., None]:
    """The implementation of an op for CUDA tensors; ``built``: whether the extension has CUDA kernels."""
    plain: Callable[..., None] = _gram if op == "gram" else getattr(reference, op)
    if not built or os.environ.get("PHASEFAST_CUDA_KERNELS") != "1":
        return plain
    kernel = getattr(torch.ops.phasefast_cuda, op).default

    def route(*arguments: Any) -> None:
        (kernel if _TAKES[op](*arguments) else plain)(*arguments)

    return route


def _narrow(*tensors: Tensor) -> bool:
    return all(tensor.dtype != torch.float64 for tensor in tensors)


@torch.no_grad()
def _gram(rows: list[Tensor], targets: Tensor, grams: list[Tensor], crosses: list[Tensor]) -> None:
    """The reference, but for bfloat16: those products go to the tensor cores, which sum them in float32."""
    if any(matrix.dtype != torch.bfloat16 for matrix in (targets, *rows)):
        reference.gram(rows, targets, grams, crosses)
        return
    for i, (a, c) in enumerate(zip(rows, crosses, strict=True)):
        if grams:
            grams[i].add_(torch.mm(a.mT, a, out_dtype=torch.float32).tril_())
        c.add_(torch.mm(a.mT, targets, out_dtype=torch.float32))


def _takes_gram(rows: list[Tensor], targets: Tensor, *_: Any) -> bool:
    mixed = targets.dtype == torch.bfloat16 and any(row.dtype == torch.float32 for row in rows)
    return _narrow(targets, *rows) and not mixed


# Whether a kernel takes these arguments of its op.
_TAKES: dict[str, Callable[..., bool]] = {
    "capture": lambda activations, shifts, pools, rows, *_: _narrow(*activations, *rows),
    "gram": _takes_gram,
    "ridge_solve": lambda grams, *_: _narrow(*grams),
    "residual": lambda rows, weights, offsets, targets, blocks, classes, *_: (
        _narrow(*rows, *weights, *offsets, targets) and len(classes) <= _TARGET_BLOCKS
    ),
}
