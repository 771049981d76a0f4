"""The op ``ridge_solve``: compiled where it can be, else the reference."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ._dispatch import run


def ridge_solve(
    grams: Sequence[Tensor],
    crosses: Sequence[Tensor],
    penalties: Sequence[Tensor],
    weights: Sequence[Tensor],
    factors: Sequence[Tensor],
    info: Tensor,
) -> None:
    """Ridge weights of many cells for every penalty of a path.

    Args:
        grams: [d, d] float32 or float64, lower triangle.
        crosses: [d, p], as ``grams``.
        penalties: [L] float64, absolute.
        weights: [L, d, p], as ``grams``; (gram + penalty I)^-1 cross is written, NaN where there is no solution.
        factors: empty, or [L, d, d]; the lower Cholesky factors are written.
        info: [cells, L] int32; 0, or the order of the leading minor that is not positive definite, is written.

    Raises:
        ArgumentError: an argument has a shape, dtype, device or layout that does not fit; nothing was written.
    """
    run("ridge_solve", grams, crosses, penalties, weights, factors, info)
