"""Which penalty each target is decoded with: the one of least error on fit rows that its decoder has not seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from .. import ops
from ..dense import converted_rows, product, wide_rows
from ..systems import Penalties, System, eigen_path, ridge_path, ridge_paths, solve_eigen
from ..types import Activations, Moments, PenaltyChoice, Statistics, TargetBlock, TargetMatrix

_CHUNK = 1024  # rows whose errors are made at a time
_FOLDS_BYTES = 1 << 30
# Rounding of a float32 Gram matrix acts like a penalty of about the first size; what it adds to the errors of weak
# penalties only matters where hardly anything else is left unexplained.
_FLOAT32_ALPHA, _FLOAT32_SMALL_ALPHA, _FLOAT32_FVU = 1e-5, 1e-2, 1e-3


def select_by_folds(
    cell: Activations, statistics: Statistics, targets: TargetMatrix, penalties: Penalties, eigen: bool = False
) -> PenaltyChoice:
    """The penalty of least squared error on held-out folds of the fit rows, per target or per column.

    Args:
        statistics: of ``cell``, with its folds. targets: those of the cell's rows.
        eigen: all penalties from one eigendecomposition per fold, instead of a Cholesky factor for each.
    """
    if not penalties.selects:
        return PenaltyChoice.first(targets)
    errors = torch.stack(list(_fold_errors(cell, statistics, targets, penalties, eigen))).sum(0)
    return _choice(errors, targets, penalties, statistics.dtype)


def select_by_leave_one_out(
    cell: Activations, statistics: Statistics, targets: TargetMatrix, penalties: Penalties
) -> PenaltyChoice:
    """The penalty of least squared leave-one-out error, per target or per column: one eigendecomposition, float64.

    With leverages h of the ridge fit, the error on a row that is left out is its residual over 1 - h (Allen 1974).

    Args:
        statistics: of ``cell``; its cross moments are not used.
    """
    if not penalties.selects:
        return PenaltyChoice.first(targets)
    columns = targets.sketch.fit
    system = System(cell, statistics.total, torch.float64)
    path = penalties.absolute(system)
    mean = columns.mean(0, dtype=torch.float64)
    # Rows: eigenvectors over the roots of their eigenvalues.
    basis = solve_eigen(system, columns.new_empty(len(system.diagonal), 0), 0.0).inverse_root
    assert basis is not None
    values = 1 / basis.square().sum(1)
    scores = product(cell.fit, basis.mT).sub_(basis @ system.row_mean)  # U of U S V'
    rotated = torch.zeros(len(values), columns.shape[1], dtype=torch.float64, device=columns.device)
    for place, expected in wide_rows(columns, len(values)):
        rotated.addmm_(scores[place].mT, expected.sub_(mean))
    errors = torch.zeros(len(path), columns.shape[1], dtype=torch.float64, device=columns.device)
    shrunk = values / (values + path[:, None])
    for place, expected in wide_rows(columns, len(values)):
        expected.sub_(mean)
        rows = scores[place]
        for index, shrink in enumerate(shrunk):
            left = 1 - 1 / len(scores) - rows.square() @ shrink
            miss = expected - rows @ (shrink[:, None] * rotated)
            errors[index] += (miss / left.clamp_min(torch.finfo(torch.float64).eps)[:, None]).square().sum(0)
    if len(values) >= len(scores) - 1:
        errors[path == 0] = math.inf  # it goes through all rows, and what is left of each is rounding over rounding
    return _choice(_per_unit(errors, targets), targets, penalties, statistics.dtype)


def refine_by_leave_one_out(
    cell: Activations,
    statistics: Statistics,
    targets: TargetMatrix,
    penalties: Penalties,
    start: PenaltyChoice,
    left_out: int,
) -> PenaltyChoice:
    """From a first choice downhill to the penalty of least leave-one-out error on some of the rows.

    Each step costs one Cholesky factor of the whole cell: for cells whose folds would cost more than everything else.
    The slope of the error says on which side the least one lies; a neighbour is a decade away at first, then half as
    far, and so on.

    Args:
        statistics: of ``cell``; its cross moments are not used. start: from a sample of the rows.
        left_out: how many rows.

    Returns:
        The choice, with the factors of the chosen penalties.
    """
    walk = _Walk(cell, statistics, targets, penalties, min(left_out, len(cell.fit)))
    best, stride, last = torch.cat(start.indices), penalties.stride, len(penalties.alphas) - 1
    while stride:
        searching = torch.ones_like(best, dtype=torch.bool)
        while bool(searching.any()):
            walk.keep(best)
            errors, slopes = walk.at(best)
            # Where nothing was found, the penalty was too weak for float32.
            ahead = (best + torch.where(slopes > 0, -stride, stride)).clamp(0, last)
            ahead = torch.where(searching, ahead, best)
            theirs, _ = walk.at(ahead)
            # The largest of equally good penalties is the steadiest.
            searching &= (theirs < errors) | ((theirs == errors) & (ahead > best))
            best = torch.where(searching, ahead, best)
        stride //= 2
    walk.keep(best)
    least = walk.at(best)[0] * (len(cell.fit) / walk.count)
    return _checked(best, least, walk.failed, targets, penalties, statistics.dtype, walk.factors)


class _Walk:
    """Leave-one-out errors, and their slopes, of the penalties that are asked for.

    Attributes:
        count: rows that are left out, one after the other. factors: of penalties by index, until they are dropped.
        failed: whether a penalty was too weak for a factor.
    """

    def __init__(
        self, cell: Activations, statistics: Statistics, targets: TargetMatrix, penalties: Penalties, count: int
    ) -> None:
        columns, sums = targets.sketch.fit, targets.sketch.sums.sum(0)
        self.targets, self.count, self.total = targets, count, len(cell.fit)
        system = System(cell, statistics.total, statistics.dtype)
        self.path = penalties.absolute(system)
        self.rows = cell.fit[:count].double() - system.row_mean
        self.expected = columns[:count].double() - sums / len(columns)
        cross = torch.zeros(cell.fit.shape[1], columns.shape[1], dtype=torch.float64, device=columns.device)
        for _, (part, of_columns) in converted_rows([cell.fit, columns], statistics.dtype):
            ops.gram([part], of_columns, [], [cross])
        cross -= torch.outer(system.row_mean, sums)
        self.system, self.rhs = system, torch.cat([cross, self.rows.mT], 1).to(statistics.dtype)
        self.factors: dict[int, Tensor] = {}
        self.failed = False
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, best: Tensor) -> None:
        """Drop the factors of other penalties."""
        self.factors = {index: factor for index, factor in self.factors.items() if index in best.tolist()}

    def at(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Errors [u], and their derivatives [u] in the penalty, of one penalty for each unit."""
        for index in set(indices.tolist()) - self._known.keys():
            self._known[index] = self._solve(index)
        pairs = [
            (self._known[index][0][unit], self._known[index][1][unit]) for unit, index in enumerate(indices.tolist())
        ]
        errors, slopes = zip(*pairs, strict=True)
        return torch.stack(errors), torch.stack(slopes)

    def _solve(self, index: int) -> tuple[Tensor, Tensor]:
        weights, factors, info = ridge_path(self.system, self.rhs, self.path[index : index + 1], keep_factors=True)
        if int(info[0]) == 0:
            self.factors[index] = factors[0]
        else:
            self.failed = True
        own, inverse = weights[0].double().split([self.expected.shape[1], self.count], 1)
        left = 1 - 1 / self.total - (self.rows * inverse.mT).sum(1)
        left = left.clamp_min(torch.finfo(weights.dtype).eps)[:, None]
        miss = (self.expected - self.rows @ own) / left
        # With the inverse's columns u of the rows a: d(a'W) = -u'W and d(a'u) = -u'u, per unit of penalty.
        slope = (inverse.mT @ own - miss * inverse.square().sum(0)[:, None]) / left
        sums = [_per_unit(each.sum(0)[None], self.targets)[0].cpu() for each in (miss.square(), 2 * miss * slope)]
        self.failed |= not bool(sums[0].isfinite().all())
        return torch.nan_to_num(sums[0], math.inf, math.inf), sums[1]


def _choice(errors: Tensor, targets: TargetMatrix, penalties: Penalties, dtype: torch.dtype) -> PenaltyChoice:
    """The index of least error [L, u] of each unit: target, or column where each has its own penalty."""
    errors = errors.cpu()
    best = _last_least(errors)
    failed = torch.isinf(errors).any(1).tolist()[max(int(best.min()) - 1, 0)]
    return _checked(best, errors.gather(0, best[None])[0], failed, targets, penalties, dtype)


def _last_least(errors: Tensor) -> Tensor:
    """The largest of equally good penalties is the steadiest, so the last of equal minima counts."""
    return len(errors) - 1 - errors.flip(0).argmin(0)


def _checked(
    best: Tensor,
    least: Tensor,
    failed: bool,
    targets: TargetMatrix,
    penalties: Penalties,
    dtype: torch.dtype,
    factors: Mapping[int, Tensor] | None = None,
) -> PenaltyChoice:
    """The choice [u] with its errors; ``failed``: float32 found no solution for a weaker penalty."""
    units = [_units(block, targets) for block in targets.blocks]
    alpha = penalties.alphas[int(best.min())]
    explained = zip(least.split(units), targets.deviation["fit"], strict=True)
    close = any(float(error.sum()) < _FLOAT32_FVU * deviation for error, deviation in explained)
    doubtful = alpha < _FLOAT32_ALPHA or (alpha < _FLOAT32_SMALL_ALPHA and close) or failed
    doubtful = doubtful or penalties.alphas[0] == 0  # a rank-deficient matrix may pass float32's Cholesky by chance
    return PenaltyChoice(tuple(best.split(units)), dtype == torch.float64 or not doubtful, factors or {})


def _units(block: TargetBlock, targets: TargetMatrix) -> int:
    """How many penalties a target has: one, or one for each column of a regression."""
    return block.stop - block.start if targets.per_column and block.kind == "regression" else 1


def _per_unit(errors: Tensor, targets: TargetMatrix) -> Tensor:
    """Errors [L, q] of sketched columns, summed over the columns that share a penalty."""
    parts = []
    for block in targets.sketch.blocks:
        own = errors[:, block.start : block.stop]
        parts.append(own if _units(block, targets) > 1 else own.sum(1, keepdim=True))
    return torch.cat(parts, 1)


def _fold_errors(
    cell: Activations, statistics: Statistics, targets: TargetMatrix, penalties: Penalties, eigen: bool
) -> Iterator[Tensor]:
    """Squared errors [L, u] float64 on each fold, of decoders solved without it; Inf where a float32 solve failed."""
    cross = torch.stack([fold.cross for fold in statistics.folds]).sum(0)
    total = replace(statistics.total, cross=cross, target_sum=targets.sketch.sums.sum(0))
    measure = _column_errors if targets.per_column else _target_errors
    folds = list(zip(statistics.folds, itertools.starmap(slice, itertools.pairwise(targets.folds)), strict=True))
    together = 1 if eigen else _folds_at_once(len(folds), cross)
    for first in range(0, len(folds), together):
        some = folds[first : first + together]
        systems = [System(cell, _without(total, fold), statistics.dtype) for fold, _ in some]
        paths = [penalties.absolute(system) for system in systems]
        if eigen:
            solved = [eigen_path(system, system.cross, path) for system, path in zip(systems, paths, strict=True)]
        else:
            weights, _, infos = ridge_paths(systems, [system.cross for system in systems], paths)
            solved = list(zip(weights, infos, strict=True))
        for (_, rows), train, path, (found, info) in zip(some, systems, paths, solved, strict=True):
            if statistics.dtype == torch.float64 and not eigen:
                for index in (info.bool() | (path == 0)).nonzero()[:, 0].tolist():
                    found[index] = solve_eigen(train, train.cross, float(path[index])).weights
            yield torch.nan_to_num(measure(cell, train, found, targets, rows), math.inf, math.inf)


def _folds_at_once(folds: int, cross: Tensor) -> int:
    """A GPU takes hardly longer for all of them than for one, as long as their matrices are small."""
    matrices = 20 * folds * len(cross) ** 2  # bytes: float64 and float32, and factors
    return folds if cross.is_cuda and matrices <= _FOLDS_BYTES else 1


def _offsets(train: System, weights: Tensor) -> Tensor:
    return (train.target_mean - train.row_mean @ weights.double()).to(weights.dtype)


def _target_errors(cell: Activations, train: System, weights: Tensor, targets: TargetMatrix, fold: slice) -> Tensor:
    """Squared errors [L, k] per target on the rows of a fold."""
    blocks = targets.sketch.blocks
    edges, classes = [0, *(block.stop for block in blocks)], [False] * len(blocks)
    shape = len(weights), len(blocks), fold.stop - fold.start
    errors = torch.empty(shape, dtype=torch.float64, device=weights.device)
    hits = torch.empty(shape, dtype=torch.bool, device=weights.device)
    rows, expected = [cell.fit[fold]] * len(weights), targets.sketch.fit[fold]
    offsets = list(_offsets(train, weights))
    ops.residual(rows, list(weights), offsets, expected, edges, classes, list(errors), list(hits))
    return errors.sum(2)


def _column_errors(cell: Activations, train: System, weights: Tensor, targets: TargetMatrix, fold: slice) -> Tensor:
    """Squared errors [L, u] per column on the rows of a fold."""
    offsets = _offsets(train, weights)
    errors = torch.zeros(len(weights), weights.shape[2], dtype=torch.float64, device=weights.device)
    for _, (rows, expected) in converted_rows([cell.fit[fold], targets.sketch.fit[fold]], weights.dtype, _CHUNK):
        for index, (weight, offset) in enumerate(zip(weights, offsets, strict=True)):
            miss = torch.addmm(offset, rows, weight).sub_(expected)
            errors[index] += miss.square_().sum(0, dtype=torch.float64)
    return _per_unit(errors, targets)


def _without(total: Moments, fold: Moments) -> Moments:
    return Moments(
        total.count - fold.count,
        total.row_sum - fold.row_sum,
        total.target_sum - fold.target_sum,
        total.gram - fold.gram,
        total.cross - fold.cross,
    )
