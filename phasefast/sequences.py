"""Which tokens of a sequence stand for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor

from .errors import DataError
from .notices import warn
from .types import TokenMode

TOKEN_MODES: tuple[TokenMode, ...] = get_args(TokenMode)
_ONE = {"cls": 0, "last": -1}  # position of the token that stands for all


def real_tokens(inputs: Tensor, padding: float) -> Tensor:
    """Which positions of inputs [b, t, ...] are no padding: bool [b, t]; of [b, t, c] those with any other number."""
    other = inputs != padding
    return other if other.dim() == 2 else other.flatten(2).any(2)


def check_padding(padding: float, splits: Mapping[str, Tensor]) -> None:
    """Warn where the inputs [b, t, ...] of no split hold padding; DataError for a sample that is nothing else."""
    some = False
    for name, inputs in splits.items():
        real = real_tokens(inputs, padding)
        if len(empty := (~real.any(1)).nonzero()):
            raise DataError(f"{name}_inputs: expected more than padding={padding}, row {int(empty[0])} is nothing else")
        some |= not bool(real.all())
    if not some:
        warn(f"padding={padding} changes nothing: no input holds it")


def as_one(output: Tensor, mode: TokenMode, real: Tensor | None) -> tuple[Tensor, int]:
    """One row for each sequence of [b, t, f]: a tensor [b, f], or one that the pool size that comes with it makes so.

    Args:
        real: bool [b, t]: of which tokens; all by default. Each sequence has one.
    """
    if real is None:
        return (output.transpose(1, 2), 1) if mode == "mean" else (output[:, _ONE[mode]], 0)
    if mode == "mean":
        # What stands at padding may be NaN, as of attention to nothing.
        taken = torch.where(real[:, :, None], output, 0).sum(1, dtype=torch.promote_types(output.dtype, torch.float32))
        return taken / real.sum(1, keepdim=True), 0
    positions = torch.arange(real.shape[1], device=real.device)
    first, last = torch.where(real, positions, real.shape[1]).amin(1), torch.where(real, positions, -1).amax(1)
    chosen = first if mode == "cls" else last
    return output.take_along_dim(chosen[:, None, None], 1)[:, 0], 0
