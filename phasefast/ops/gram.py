"""The op ``gram``: compiled where it can be, else the reference."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ._dispatch import run


def gram(
    rows: Sequence[Tensor],
    targets: Tensor,
    grams: Sequence[Tensor],
    crosses: Sequence[Tensor],
) -> None:
    """Gram matrices and cross products of many cells against the same targets, added to accumulators.

    Args:
        rows: [n, d] float32, float64, bfloat16 or float16.
        targets: [n, p] float32, float64 or bfloat16.
        grams: [d, d] float32 or float64; rows' rows is added to the lower triangle, the strict upper one means nothing.
            None at all, where only the cross products are wanted.
        crosses: [d, p] float32 or float64; rows' targets is added.

    Raises:
        ArgumentError: an argument has a shape, dtype, device or layout that does not fit; nothing was written.
    """
    run("gram", rows, targets, grams, crosses)
