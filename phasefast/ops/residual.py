"""The op ``residual``: compiled where it can be, else the reference."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ._dispatch import run


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
    """Squared errors and label hits of linear predictions, per target block and sample.

    Args:
        rows: [m, d] float32, float64, bfloat16 or float16.
        weights: [d, p]. offsets: [p]. targets: [m, p]. All float32 or float64; products are taken in weights' dtype.
        blocks: k + 1 ascending column edges. classes: k flags, whether a block is scored by its arg-max too.
        errors: [k, m] float64; written.
        hits: [k, m] bool; written, False where a block holds no classes or a NaN.

    Raises:
        ArgumentError: an argument has a shape, dtype, device or layout that does not fit; nothing was written.
    """
    run("residual", rows, weights, offsets, targets, blocks, classes, errors, hits)
