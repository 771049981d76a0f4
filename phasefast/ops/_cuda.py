"""What CUDA tensors are computed with: a kernel where it is built and was measured to be faster, else PyTorch.

PHASEFAST_CUDA_KERNELS=1 asks for the kernels wherever they take the arguments, 0 for none;
PHASEFAST_SM90=0 for the variants of compute capability 8.0 on Hopper too.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _checks, reference

_TARGET_BLOCKS = 64  # kTargetBlocks of csrc/cuda/residual_kernel.cuh
_WIDTH_OF_ONE = 256  # features of a system that fills a GPU by itself, as far as it can be filled
_FEW_COLUMNS = 128
_PRODUCTS = 1e10  # of which launches are a small part


def implementation(op: str, built: bool) -> Callable[..., None]:
    """The implementation of an op for CUDA tensors; ``built``: whether the extension has CUDA kernels."""
    wanted = os.environ.get("PHASEFAST_CUDA_KERNELS")
    reference_op: Callable[..., None] = _gram if op == "gram" else getattr(reference, op)
    check = getattr(_checks, op)

    def plain(*arguments: Any) -> None:
        check(*arguments)
        reference_op(*arguments)

    if not built or wanted == "0":
        return plain
    kernel = getattr(torch.ops.phasefast_cuda, op).default
    takes, faster = _TAKES[op], _FASTER[op]

    def route(*arguments: Any) -> None:
        try:
            use = _runs(*arguments) and takes(*arguments) and (wanted == "1" or faster(*arguments))
        except (IndexError, ValueError):  # of arguments that do not fit each other: the kernel's checks say which
            use = True
        (kernel if use else plain)(*arguments)

    return route


def _runs(*arguments: Any) -> bool:
    """Whether there is code for the GPU that the tensors are on."""
    tensors = itertools.chain(*(x if isinstance(x, (list, tuple)) else [x] for x in arguments))
    devices = {x.device for x in tensors if isinstance(x, Tensor) and x.is_cuda}
    return all(_capability(device) >= (8, 0) for device in devices)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _narrow(*tensors: Tensor) -> bool:
    return all(tensor.dtype != torch.float64 for tensor in tensors)


@torch.no_grad()
def _gram(rows: list[Tensor], targets: Tensor, grams: list[Tensor], crosses: list[Tensor]) -> None:
    """The reference, but for bfloat16: those products go to the tensor cores, which sum them in float32."""
    if any(matrix.dtype != torch.bfloat16 for matrix in (targets, *rows)):
        reference.gram(rows, targets, grams, crosses)
        return
    for part, *own in reference.some_rows(targets, rows):
        for i, (a, c) in enumerate(zip(own, crosses, strict=True)):
            if grams:
                grams[i].add_(torch.mm(a.mT, a, out_dtype=torch.float32).tril_())
            c.add_(torch.mm(a.mT, part, out_dtype=torch.float32))


def _takes_gram(rows: list[Tensor], targets: Tensor, *_: Any) -> bool:
    mixed = targets.dtype == torch.bfloat16 and any(row.dtype == torch.float32 for row in rows)
    return _narrow(targets, *rows) and not mixed


def hopper(device: torch.device) -> bool:
    """Whether kernels for Hopper run there, and are wanted."""
    unwanted = os.environ.get("PHASEFAST_SM90") == "0" or os.environ.get("PHASEFAST_CUDA_KERNELS") == "0"
    return _capability(device) == (9, 0) and not unwanted


# Whether a kernel takes these arguments of its op.
_TAKES: dict[str, Callable[..., bool]] = {
    "capture": lambda activations, shifts, pools, rows, *_: _narrow(*activations, *rows),
    "gram": _takes_gram,
    "ridge_solve": lambda grams, *_: _narrow(*grams),
    "residual": lambda rows, weights, offsets, targets, blocks, classes, *_: (
        _narrow(*rows, *weights, *offsets, targets) and len(classes) <= _TARGET_BLOCKS
    ),
}


def _solve_is_faster(grams: list[Tensor], crosses: Any, penalties: list[Tensor], *_: Any) -> bool:
    """Block columns wait for each other: it takes some systems at once to fill a GPU with them."""
    return bool(grams) and sum(map(len, penalties)) * _WIDTH_OF_ONE >= max(map(len, grams))


def _residual_is_faster(rows: list[Tensor], weights: list[Tensor], offsets: Any, targets: Tensor, *_: Any) -> bool:
    """Launches decide for narrow cells, products for wide ones."""
    narrow = targets.shape[1] <= _FEW_COLUMNS and all(row.shape[1] <= _WIDTH_OF_ONE for row in rows)
    many = sum(map(Tensor.numel, weights)) * len(targets) >= _PRODUCTS
    return narrow or (many and hopper(targets.device))


# Whether it was faster there, at no loss of accuracy: benchmarks/results/, of GPUs.
_FASTER: dict[str, Callable[..., bool]] = {
    "capture": lambda *_: True,
    "gram": lambda rows, targets, *_: hopper(targets.device),
    "ridge_solve": _solve_is_faster,
    "residual": _residual_is_faster,
}
