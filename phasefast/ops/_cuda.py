"""What CUDA tensors are computed with: a kernel where it is built and was measured to be faster, else PyTorch.

PHASEFAST_CUDA_KERNELS=1 asks for the kernels wherever they take the arguments, 0 for none;
PHASEFAST_SM90=0 for the variants of compute capability 8.0 on Hopper too.
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
    wanted = os.environ.get("PHASEFAST_CUDA_KERNELS")
    if not built or wanted == "0":
        return plain
    kernel = getattr(torch.ops.phasefast_cuda, op).default
    takes, faster = _TAKES[op], _FASTER[op]

    def route(*arguments: Any) -> None:
        use = takes(*arguments) and (wanted == "1" or faster(*arguments))
        (kernel if use else plain)(*arguments)

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


def _hopper(targets: Tensor) -> bool:
    return torch.cuda.get_device_capability(targets.device) == (9, 0) and os.environ.get("PHASEFAST_SM90") != "0"


# Whether a kernel takes these arguments of its op.
_TAKES: dict[str, Callable[..., bool]] = {
    "capture": lambda activations, shifts, pools, rows, *_: _narrow(*activations, *rows),
    "gram": _takes_gram,
    "ridge_solve": lambda grams, *_: _narrow(*grams),
    "residual": lambda rows, weights, offsets, targets, blocks, classes, *_: (
        _narrow(*rows, *weights, *offsets, targets) and len(classes) <= _TARGET_BLOCKS
    ),
}

# Whether it was faster there, at no loss of accuracy: benchmarks/results/, of GPUs.
_FASTER: dict[str, Callable[..., bool]] = {
    "capture": lambda activations, shifts, pools, *_: not any(pools),
    "gram": lambda rows, targets, *_: _hopper(targets),
    "ridge_solve": lambda *_: False,
    "residual": lambda *_: False,
}
