"""From the errors of penalties to a choice, whatever way they were measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..data.target_matrix import TargetMatrix, TargetSketch
from ..types import Activations, TargetBlock
from .dense import converted_rows, wide_rows
from .systems import Penalties, PenaltyChoice, System, fold_sums

# Traces are estimated with so many columns of random signs (Hutchinson 1990), unless their spread is more than so much
# of what is left of n; then inverses tell them. Where r degrees of freedom are left at least, it is
# sqrt(2 / (SIGNS r)) / 2 at most, which is SPREAD for r = LEFT.
SIGNS, SPREAD, LEFT = 32, 0.01, 156
SMALL, ONE_CORE = 256, 768  # columns up to which all penalties are made at once; of a system that one core solves
_TWO_CORES = 1400  # ... where another one keeps the other core busy; csrc/cpu/ridge_solve.cpp
FEW, MANY = 4, 20  # penalties that are all made, and the most that are made at once
# Rows that are left out, where there are more: to see whether generalised cross-validation misleads, as it does where
# they miss so many times as much, and may where they miss a tenth more; and to choose by (docs/performance.md).
LOOKED_AT, LEFT_OUT, MISLED, DOUBTFUL = 128, 2048, 1.4, 1.1
TIE = 0.005  # by how much errors of cross-validation may differ that tell little of which penalty is better
_FAR_OUT = 4  # one of so many rows that are left out is of those of the largest leverages
_CHUNK = {"cpu": 1024, "cuda": 32768}  # rows whose errors are made at a time

# Rounding of a float32 Gram matrix acts like a penalty of about the first size; what it adds to the errors of weak
# penalties only matters where hardly anything else is left unexplained.
FLOAT32_ALPHA, _FLOAT32_SMALL_ALPHA, _FLOAT32_FVU = 1e-5, 1e-2, 1e-3


def paired(dim: int) -> bool:
    """Whether two float32 systems take hardly longer than one on a CPU with AVX-512, as each is left to one core."""
    threads = torch.get_num_threads()
    return 2 <= threads <= 4 and dim <= (_TWO_CORES if threads == 2 else ONE_CORE)


def makes_all(at_once: bool, count: int, per_column: bool) -> bool:
    """Whether the errors of all penalties are made, instead of those that a search tries.

    Args:
        at_once: whether all are made together. count: of the penalties. per_column: whether each column has its own.
    """
    return at_once or per_column or count <= FEW


def least_error(errors: Tensor, targets: TargetMatrix, penalties: Penalties, dtype: torch.dtype) -> PenaltyChoice:
    """The index of least error [L, u] of each unit: target, or column where each has its own penalty."""
    errors = errors.cpu()
    best = _last_least(errors)
    failed = torch.isinf(errors).any(1).tolist()[max(int(best.min()) - 1, 0)]
    return checked(best, errors.gather(0, best[None])[0], failed, targets, penalties, dtype)


def _last_least(errors: Tensor) -> Tensor:
    """The largest of equally good penalties is the steadiest, so the last of equal minima counts."""
    return len(errors) - 1 - errors.flip(0).argmin(0)


def checked(
    best: Tensor,
    least: Tensor,
    failed: bool,
    targets: TargetMatrix,
    penalties: Penalties,
    dtype: torch.dtype,
) -> PenaltyChoice:
    """The choice [u] with its errors; ``failed``: float32 found no solution for a weaker penalty."""
    widths = [units_of(block, targets) for block in targets.blocks]
    alpha = penalties.alphas[int(best.min())]
    explained = zip(least.split(widths), targets.deviation["fit"], strict=True)
    close = any(float(error.sum()) < _FLOAT32_FVU * deviation for error, deviation in explained)
    doubtful = alpha < FLOAT32_ALPHA or (alpha < _FLOAT32_SMALL_ALPHA and close) or failed
    doubtful = doubtful or penalties.alphas[0] == 0  # a rank-deficient matrix may pass float32's Cholesky by chance
    return PenaltyChoice(tuple(best.split(widths)), dtype == torch.float64 or not doubtful)


def units_of(block: TargetBlock, targets: TargetMatrix) -> int:
    """How many penalties a target has: one, or one for each column of a regression."""
    return block.stop - block.start if targets.per_column and block.kind == "regression" else 1


def per_unit(errors: Tensor, targets: TargetMatrix) -> Tensor:
    """Errors [L, q] of sketched columns, summed over the columns that share a penalty."""
    parts = []
    for block in targets.sketch.blocks:
        own = errors[:, block.start : block.stop]
        parts.append(own if units_of(block, targets) > 1 else own.sum(1, keepdim=True))
    return torch.cat(parts, 1)


def sketch_of(
    blocks: Sequence[TargetBlock], fit: Tensor, folds: Sequence[int], mixes: Sequence[Tensor | None] = ()
) -> TargetSketch:
    """Columns [n, q] that stand for all target columns, with their sums over each fold."""
    sums = fold_sums(fit, folds)
    squares = torch.stack([rows.square().sum(0) for _, rows in wide_rows(fit, fit.shape[1])]).sum(0)
    return TargetSketch(tuple(blocks), fit, sums, squares - sums.sum(0).square() / len(fit), tuple(mixes))


def offsets_of(train: System, weights: Tensor) -> Tensor:
    """[L, q] of weights [L, d, q], which centred columns are predicted with."""
    return (train.target_mean - train.row_mean @ weights.double()).to(weights.dtype)


def column_errors(cell: Activations, train: System, weights: Tensor, targets: TargetMatrix, fold: slice) -> Tensor:
    """Squared errors [L, u] per column on the rows of a fold."""
    offsets = offsets_of(train, weights)
    errors = torch.zeros(len(weights), weights.shape[2], dtype=torch.float64, device=weights.device)
    size = _CHUNK.get(weights.device.type, _CHUNK["cpu"])
    for _, (rows, expected) in converted_rows([cell.fit[fold], targets.sketch.fit[fold]], weights.dtype, size):
        for index, (weight, offset) in enumerate(zip(weights, offsets, strict=True)):
            miss = torch.addmm(offset, rows, weight).sub_(expected)
            errors[index] += miss.square_().sum(0, dtype=torch.float64)
    return per_unit(errors, targets)


class LeftOut:
    """Fit rows that are left out one by one: those of the largest leverages, and some of the others, for all of them.

    Few rows may have most of the error, as they lie far out, so that a choice by chance would miss them.

    Args:
        most: so many at most. root: [d, k] float, random combinations of a root of (G + penalty I)^-1: a row's
            products with them have its leverage for their mean square (Drineas et al. 2012).
    """

    def __init__(self, cell: Activations, train: System, targets: TargetMatrix, most: int, root: Tensor) -> None:
        n, dtype, device = len(cell.fit), train.dtype, train.row_mean.device
        self._targets, self._share = targets, 1 - 1 / n  # of what a row misses, the mean leaves
        fit, columns, self._weights = cell.fit, targets.sketch.fit, torch.ones(n, dtype=torch.float64, device=device)
        if n > most:
            products = fit @ root.to(fit) - (train.row_mean.to(root) @ root).to(fit)
            order = products.float().square().sum(1).argsort(descending=True)
            first, rest = order[: most // _FAR_OUT], order[most // _FAR_OUT :]
            some = rest[:: -(-len(rest) // (most - len(first)))]  # each of the most leverage of those it stands for
            chosen = torch.cat([first, some])
            fit, columns, self._weights = fit[chosen], columns[chosen], self._weights[: len(chosen)]
            self._weights[len(first) :] = len(rest) / len(some)
        self.rows = fit.to(dtype) - train.row_mean.to(dtype)
        self.squares: Tensor | None = None  # [n, r] of their products with the Gram matrix's eigenvectors, once made
        self._fit = columns.to(dtype) - train.target_mean.to(dtype)

    def ratios(self, weights: Tensor, leverages: Tensor, share: float, unknown: float) -> Tensor:
        """Leave-one-out error over that of generalised cross-validation, per unit [u] float64.

        Row i, left out, is missed by r_i / (1 - h_i) with its residual r_i and leverage h_i = a_i' (G + penalty I)^-1
        a_i; generalised cross-validation takes the mean leverage for all (Golub, Heath & Wahba 1979).

        Args:
            weights: [d, q]. leverages: of the rows. share: 1 less the mean leverage. unknown: the least 1 - h_i that is
                more than rounding; Inf where one is less.
        """
        squares = per_unit(torch.addmm(self._fit, self.rows, weights, alpha=-1).double().square_(), self._targets)
        kept = self._share - leverages
        ratios = (self._weights * (share / kept).square()) @ squares / (self._weights @ squares)
        return torch.where(kept.min() > unknown, ratios.nan_to_num(1.0), math.inf)  # NaN: nothing is missed


@lru_cache(maxsize=8)
def signs(dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[d, SIGNS], the same for every checkpoint; kept, as a GPU would wait for each copy."""
    drawn = torch.randint(0, 2, (dim, SIGNS), generator=torch.Generator().manual_seed(0), device="cpu")
    return (2 * drawn - 1).to(device, dtype)
