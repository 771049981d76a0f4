"""Which penalty each target is decoded with: the one of least error on fit rows that its decoder has not seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .. import ops
from ..algebra.choosing import column_errors, least_error, offsets_of, per_unit
from ..algebra.dense import product, wide_rows
from ..algebra.systems import Penalties, PenaltyChoice, System, eigen_path, ridge_paths, solve_eigen
from ..common.fetching import fetched
from ..data.target_matrix import TargetMatrix
from ..types import Activations, Moments, Statistics

_FOLDS_BYTES = 1 << 30
_WEAK, _NEAR = 1e-4, 1e-3  # penalty up to which float32's errors of folds are not trusted; their rounding beyond it


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
    errors = torch.stack(list(_fold_errors(cell, statistics, targets, penalties, eigen))).sum(0).cpu()
    choice = least_error(errors, targets, penalties, statistics.dtype)
    # Where features are about as many as rows, rounding moves the errors of weak penalties by per cents, and of others
    # by less than a thousandth.
    if not choice.reliable or statistics.dtype == torch.float64 or 2 * len(statistics.total.cross) < len(cell.fit):
        return choice
    best = torch.cat(list(choice.indices))
    weaker = torch.arange(len(errors), device="cpu")[:, None] < best
    near = weaker & (errors <= errors.gather(0, best[None]) * (1 + _NEAR))
    return replace(choice, reliable=penalties.alphas[int(best.min())] > _WEAK and not bool(near.any()))


def select_by_leave_one_out(
    cell: Activations, statistics: Statistics, targets: TargetMatrix, penalties: Penalties
) -> PenaltyChoice:
    """The penalty of least squared leave-one-out error, per target or per column: one eigendecomposition, float64.

    With leverages h of the ridge fit, the error on a row that is left out is its residual over 1 - h (Allen 1974).

    Args:
        statistics: of ``cell``, in float64: float32's products with fewer rows than features know too little of what a
            leverage leaves of 1 at weak penalties. Its cross moments are not used.
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
        rotated.addmm_(scores[place].mT, expected - mean)
    errors = torch.zeros(len(path), columns.shape[1], dtype=torch.float64, device=columns.device)
    shrunk = values / (values + path[:, None])
    for place, expected in wide_rows(columns, len(values)):
        rows, centred = scores[place], expected - mean
        for index, shrink in enumerate(shrunk):
            left = 1 - 1 / len(scores) - rows.square() @ shrink
            miss = centred - rows @ (shrink[:, None] * rotated)
            errors[index] += (miss / left.clamp_min(torch.finfo(torch.float64).eps)[:, None]).square().sum(0)
    if len(values) >= len(scores) - 1:
        errors[path == 0] = math.inf  # it goes through all rows, and what is left of each is rounding over rounding
    return least_error(per_unit(errors, targets), targets, penalties, statistics.dtype)


def _fold_errors(
    cell: Activations, statistics: Statistics, targets: TargetMatrix, penalties: Penalties, eigen: bool
) -> Iterator[Tensor]:
    """Squared errors [L, u] float64 on each fold, of decoders solved without it; Inf where a float32 solve failed."""
    cross = torch.stack([fold.cross for fold in statistics.folds]).sum(0)
    total = replace(statistics.total, cross=cross, target_sum=targets.sketch.sums.sum(0))
    measure = column_errors if targets.per_column else _target_errors
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
        again = dict[int, list[int]]()
        if statistics.dtype == torch.float64 and not eigen:
            failed = fetched(*(info.bool() | (path == 0) for (_, info), path in zip(solved, paths, strict=True)))
            again = {fold: own.nonzero()[:, 0].tolist() for fold, own in enumerate(failed)}
        for fold, ((_, rows), train, path, (found, _)) in enumerate(zip(some, systems, paths, solved, strict=True)):
            for index in again.get(fold, ()):
                found[index] = solve_eigen(train, train.cross, float(path[index])).weights
            yield torch.nan_to_num(measure(cell, train, found, targets, rows), math.inf, math.inf)


def _folds_at_once(folds: int, cross: Tensor) -> int:
    """A GPU takes hardly longer for all of them than for one, as long as their matrices are small."""
    matrices = 20 * folds * len(cross) ** 2  # bytes: float64 and float32, and factors
    return folds if cross.is_cuda and matrices <= _FOLDS_BYTES else 1


def _target_errors(cell: Activations, train: System, weights: Tensor, targets: TargetMatrix, fold: slice) -> Tensor:
    """Squared errors [L, k] per target on the rows of a fold."""
    blocks = targets.sketch.blocks
    edges, classes = [0, *(block.stop for block in blocks)], [False] * len(blocks)
    shape = len(weights), len(blocks), fold.stop - fold.start
    errors = torch.empty(shape, dtype=torch.float64, device=weights.device)
    hits = torch.empty(shape, dtype=torch.bool, device=weights.device)
    rows, expected = [cell.fit[fold]] * len(weights), targets.sketch.fit[fold]
    offsets = list(offsets_of(train, weights))
    ops.residual(rows, list(weights), offsets, expected, edges, classes, list(errors), list(hits))
    return errors.sum(2)


def _without(total: Moments, fold: Moments) -> Moments:
    return Moments(
        total.count - fold.count,
        total.row_sum - fold.row_sum,
        total.target_sum - fold.target_sum,
        total.gram - fold.gram,
        total.cross - fold.cross,
    )
