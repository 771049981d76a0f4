"""Activations become moments: all that a ridge decoder needs, per fold, added up in float64."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from ..types import Activations, Moments, Statistics, TargetMatrix

_CHUNK = 4096


class MomentsAccumulator:
    """Moments of several cells over the same rows of targets, added up batch by batch.

    Args:
        dims: features of each cell. p: target columns. dtype: of the products (float32 or float64); sums are float64.
    """

    def __init__(self, dims: Sequence[int], p: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.dtype, self.count = dtype, 0
        self.row_sums = [zeros(d) for d in dims]
        self.target_sum = zeros(p)
        self.grams = [zeros(d, d) for d in dims]
        self.crosses = [zeros(d, p) for d in dims]

    def update(self, rows: Sequence[Tensor], sums: Sequence[Tensor], targets: Tensor) -> None:
        """Add rows[i] [b, d_i], whose column sums [d_i] float64 the capture has made, and targets [b, p]."""
        for start in range(0, len(targets), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            wide = [row[chunk] if row.dtype == self.dtype else row[chunk].to(self.dtype) for row in rows]
            ops.gram(wide, targets[chunk].to(self.dtype), self.grams, self.crosses)
        for total, row_sum in zip(self.row_sums, sums, strict=True):
            total += row_sum
        self.target_sum += targets.sum(0, dtype=torch.float64)
        self.count += len(targets)

    def merge(self, other: MomentsAccumulator) -> None:
        """Add what another accumulator of the same cells has seen."""
        pairs = zip(
            [*self.row_sums, self.target_sum, *self.grams, *self.crosses],
            [*other.row_sums, other.target_sum, *other.grams, *other.crosses],
            strict=True,
        )
        for mine, theirs in pairs:
            mine += theirs
        self.count += other.count

    def compute(self) -> list[Moments]:
        """The moments of each cell so far."""
        cells = zip(self.row_sums, self.grams, self.crosses, strict=True)
        return [Moments(self.count, rows, self.target_sum, gram, cross) for rows, gram, cross in cells]


def accumulate(
    cells: Sequence[Activations], targets: TargetMatrix, dtype: torch.dtype, *, with_folds: bool = True
) -> list[Statistics]:
    """Moments of all fit rows and of each fold, for cells that share the folds.

    Args:
        dtype: of the products: float32, or float64 where float32 cannot hold the answer.
        with_folds: keep the folds' moments too, where there is more than one.
    """
    folds = cells[0].folds
    dims, device = [cell.layer.dim for cell in cells], targets.fit.device
    total = MomentsAccumulator(dims, targets.fit.shape[1], device, dtype)
    per_fold: list[list[Moments]] = []
    for fold, (start, stop) in enumerate(itertools.pairwise(folds)):
        part = MomentsAccumulator(dims, targets.fit.shape[1], device, dtype)
        part.update([c.fit[start:stop] for c in cells], [c.sums[fold] for c in cells], targets.fit[start:stop])
        total.merge(part)
        if with_folds and len(folds) > 2:
            per_fold.append([sketch(moments, targets.sketch) for moments in part.compute()])
    return [
        Statistics(cell.layer, dtype, moments, tuple(fold[i] for fold in per_fold))
        for i, (cell, moments) in enumerate(zip(cells, total.compute(), strict=True))
    ]


def sketch(moments: Moments, columns: Tensor | None) -> Moments:
    """The same moments with targets replaced by ``targets @ columns``."""
    if columns is None:
        return moments
    wide = columns.double()
    return Moments(moments.count, moments.row_sum, moments.target_sum @ wide, moments.gram, moments.cross @ wide)
