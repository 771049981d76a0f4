"""The op ``capture``: compiled where it can be, else the reference."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ._dispatch import run


def capture(
    activations: Sequence[Tensor],
    shifts: Sequence[Tensor],
    pools: Sequence[int],
    rows: Sequence[Tensor],
    sums: Sequence[Tensor],
    squares: Sequence[Tensor],
) -> None:
    """One pass over activations: rows, column sums and sums of squares.

    Args:
        activations: [b, ...], any strides, float32, float64, bfloat16 or float16.
        shifts: [d] float32, subtracted from every row.
        pools: 0 (flatten), or the size k that adaptive means shrink every spatial dimension of [b, c, ...] to.
        rows: [b, d] contiguous, any of the four dtypes; written.
        sums: [d] float64; the column sums of the stored rows are added. squares: [d] float64; those of their squares.

    Raises:
        ArgumentError: an argument has a shape, dtype, device or layout that does not fit; nothing was written.
    """
    run("capture", activations, shifts, pools, rows, sums, squares)
