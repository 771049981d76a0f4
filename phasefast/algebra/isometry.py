"""Fewer columns for the same inner products: coordinates of rows in their own span.

Squared errors see targets only through lengths, and ridge regression sees features only through inner products of rows
(its dual form: Saunders, Gammerman & Vovk 1998). So where there are more columns than rows, the Cholesky factor of the
rows' inner products stands for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from .dense import aligned_empty, cholesky, converted_rows

_COLUMNS = 1024
# Of the largest squared length. A jitter is one more feature for each row, of the rounding's own size. Never none:
# centred rows add up to nothing but rounding, by which others would be divided.
_JITTERS = (1e-14, 1e-13)


def coordinates(rows: Tensor, others: Tensor) -> tuple[Tensor, Tensor] | None:
    """Coordinates [n, n] of rows [n, d], and [m, n] of the projections of others [m, d] on their span, float64.

    Returns:
        None where rows depend on each other so much that there is no factor.
    """
    inner, across = _inner_products(rows, others)
    factor = _factor(inner)
    del inner  # as large as what follows
    if factor is None:
        return None
    return factor, torch.linalg.solve_triangular(factor, across, upper=False).mT


def _inner_products(rows: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows with each other [n, n], lower triangle, and with others [n, m], float64."""
    n = len(rows)
    inner = aligned_empty(n, n, torch.float64, rows.device).zero_()
    across = torch.zeros(n, len(others), dtype=torch.float64, device=rows.device)
    for _, (left, right) in converted_rows([rows.mT, others.mT], torch.float64, _COLUMNS):
        ops.gram([left], right, [inner], [across])
    return inner, across


def _factor(inner: Tensor) -> Tensor | None:
    """The Cholesky factor [n, n] with the least jitter that allows one; the diagonal of ``inner`` is overwritten."""
    diagonal = inner.diagonal()
    largest, before = diagonal.max(), diagonal.clone()
    for jitter in _JITTERS:
        diagonal.copy_(before + jitter * largest)
        if (factor := cholesky(inner)) is not None:
            return factor
    return None
