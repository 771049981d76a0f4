"""Activations become moments: all that a ridge decoder needs, per fold, added up in float64."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from ..algebra.dense import aligned_empty, converted_rows
from ..common.timeline import stage
from ..data.target_matrix import TargetMatrix, rounding_of
from ..types import Activations, Moments, Statistics


@stage("moments")
def accumulate(
    cells: Sequence[Activations],
    targets: TargetMatrix,
    dtype: torch.dtype,
    *,
    with_folds: bool = True,
    with_cross: bool = True,
) -> list[Statistics]:
    """Moments of all fit rows with all target columns, and of each fold with the sketched ones.

    Args:
        dtype: of the products: float32, or float64 where float32 cannot hold the answer; sums are float64. The float32
            products of rows stored in bfloat16 are those with targets rounded to it, which keep their means.
        with_folds: keep the folds' moments too, where there is more than one.
        with_cross: make the cross moments of all fit rows; otherwise they have no columns.
    """
    everything = slice(0, len(targets.fit))
    narrow = dtype == torch.float32 and cells[0].fit.dtype == torch.bfloat16
    columns = (targets.rounded if narrow else targets.fit) if with_cross else targets.fit[:, :0]
    kind = torch.bfloat16 if narrow else dtype
    row_sums = [cell.sums.sum(0) for cell in cells]
    if not with_folds or len(targets.folds) == 2:
        grams, crosses = _zeros(cells, None), _zeros(cells, columns)
        _add_products(cells, columns, everything, kind, grams, crosses)
        apart, folds = with_cross, list[list[Moments]]()
    else:
        sketch = targets.sketch
        folds = []
        for k, (start, stop) in enumerate(itertools.pairwise(targets.folds)):
            grams, crosses = _zeros(cells, None), _zeros(cells, sketch.fit)
            _add_products(cells, sketch.fit, slice(start, stop), kind, grams, crosses)
            if narrow:
                rounding = rounding_of(sketch.fit[start:stop].bfloat16(), sketch.sums[k])
                _keep_means([cell.sums[k] for cell in cells], rounding, crosses)
            parts = zip(cells, grams, crosses, strict=True)
            folds.append([Moments(stop - start, cell.sums[k], sketch.sums[k], g, c) for cell, g, c in parts])
        grams, crosses = _sums([[m.gram for m in fold] for fold in folds]), _zeros(cells, columns)
        apart = with_cross and sketch.fit is not targets.fit
        if apart:
            _add_products(cells, columns, everything, kind, [], crosses)
        elif with_cross:
            crosses = _sums([[m.cross for m in fold] for fold in folds])
    if apart and narrow:
        _keep_means(row_sums, targets.rounding, crosses)
    totals = zip(row_sums, grams, crosses, strict=True)
    return [
        Statistics(
            dtype,
            Moments(len(targets.fit), row_sum, targets.sums.sum(0)[: cross.shape[1]], gram, cross),
            tuple(fold[i] for fold in folds),
        )
        for i, (row_sum, gram, cross) in enumerate(totals)
    ]


def _zeros(cells: Sequence[Activations], columns: Tensor | None) -> list[Tensor]:
    """Accumulators [d, p] for products with ``columns`` [n, p], or [d, d] for the rows' own."""
    widths = [cell.fit.shape[1] for cell in cells]
    shapes = [(width, width if columns is None else columns.shape[1]) for width in widths]
    return [aligned_empty(*s, torch.float64, c.fit.device).zero_() for s, c in zip(shapes, cells, strict=True)]


def _add_products(
    cells: Sequence[Activations],
    columns: Tensor,
    rows: slice,
    kind: torch.dtype,
    grams: Sequence[Tensor],
    crosses: Sequence[Tensor],
) -> None:
    """Add the products of some fit rows, in a type."""
    for _, (*parts, of_columns) in converted_rows([*(cell.fit[rows] for cell in cells), columns[rows]], kind):
        ops.gram(parts, of_columns, grams, crosses)


def _keep_means(row_sums: Sequence[Tensor], rounding: Tensor, crosses: Sequence[Tensor]) -> None:
    """Take what rounding adds to the targets' means out of their products with rows.

    It lies along the rows' mean, a direction in which the centred rows may hardly vary, so weights would be far off.
    """
    for row_sum, cross in zip(row_sums, crosses, strict=True):
        cross.addr_(row_sum, rounding, alpha=-1)


def _sums(folds: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Per cell, the sum over the folds."""
    totals = [matrix.clone() for matrix in folds[0]]
    for fold in folds[1:]:
        for total, matrix in zip(totals, fold, strict=True):
            total += matrix
    return totals
