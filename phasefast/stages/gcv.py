"""Choosing penalties by generalised cross-validation: of all rows, from their moments and a few Cholesky factors."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from .. import ops
from ..choosing import (
    FEW,
    FLOAT32_ALPHA,
    LEFT,
    LEFT_OUT,
    LOOKED_AT,
    MANY,
    MISLED,
    SIGNS,
    SMALL,
    SPREAD,
    LeftOut,
    checked,
    column_errors,
    least_error,
    paired,
    per_unit,
    signs,
)
from ..dense import Factor, converted_rows, empty, fetched
from ..systems import Penalties, PenaltyChoice, System, eigen_path, factor_path, solve_eigen
from ..types import Activations, Statistics, TargetMatrix

_CANCELLED = {torch.float32: 1e-3, torch.float64: 1e-10}  # of the targets: less than that moments cannot tell
_DOUBTFUL = 0.01  # of the squared residuals: what rounding may do to them by moments
_FLAT = {torch.float32: 1e-3, torch.float64: 1e-9}  # slopes in the logarithms that rounding may make
_ROUNDING = 8.0  # times what rounding may do to a trace: less than that is not known
_PENALTY = 100.0  # times the rounding of eigenvalues: less than that is not known
_AT_ONCE = 1 << 30  # bytes on a GPU of which all penalties take hardly longer than one


def select_by_gcv(
    cell: Activations,
    statistics: Statistics,
    targets: TargetMatrix,
    penalties: Penalties,
    start: PenaltyChoice | None = None,
    eigen: bool = False,
) -> PenaltyChoice:
    """The penalty of least generalised cross-validation error, per target or per column.

    With dof degrees of freedom, the mean's among them, that is n |residuals|^2 / (n - dof)^2 (Golub, Heath & Wahba
    1979): no row is left out. Its slope tells on which side of a penalty the least error lies, so few of many are
    tried; of an error with several minima that is one of them. A penalty of zero that goes through all rows has none.
    Where leaving out some rows tells of a much larger error, as their leverages differ, penalties are compared by that.

    Args:
        statistics: of ``cell``. start: tried first; the middle one by default.
        eigen: all penalties from one eigendecomposition, instead of a Cholesky factor for each that is tried.

    Returns:
        The choice, with the factors of chosen penalties that it has left.
    """
    if not penalties.selects:
        return PenaltyChoice.first(targets)
    scan = _Scan(cell, statistics, targets, penalties)
    if eigen:
        errors = scan.eigen_errors()
        choice = least_error(errors, targets, penalties, statistics.dtype)
        # Whether a weak penalty is better, only its own error can tell.
        weak = torch.tensor(penalties.alphas, dtype=torch.float64) < FLOAT32_ALPHA
        choice = replace(choice, reliable=choice.reliable and bool((errors.isfinite().all(1) | weak).all()))
    elif scan.searched:
        middle = torch.full((len(targets.blocks),), len(penalties.alphas) // 2)
        best, least = _searched(scan, middle if start is None else torch.cat(start.indices), penalties.stride)
        failed = bool((least.isinf() | scan.error((best - 1).clamp(min=0)).isinf()).any())
        choice = checked(best, least, failed, targets, penalties, statistics.dtype)
    else:
        choice = least_error(scan.all_errors(), targets, penalties, statistics.dtype)
    best = torch.cat(choice.indices)
    if scan.misleads(best):
        best, least, failed = _left_out(scan, best, penalties.stride)
        choice = checked(best, least, failed or not choice.reliable, targets, penalties, statistics.dtype)
    scan.keep(set(best.tolist()))
    # Factors that were made at once lie in one piece of memory.
    return replace(choice, factors={index: own.clone() if scan.at_once else own for index, own in scan.factors.items()})


def _left_out(scan: _Scan, first: Tensor, stride: int) -> tuple[Tensor, Tensor, bool]:
    """The penalty [u] of least leave-one-out error, that error, and whether that of the next weaker one is unknown.

    Args:
        first: [u], chosen by an error that misleads. stride: how many make a decade.
    """
    best, least, start = first, torch.full(first.shape, math.inf, dtype=torch.float64), int(first.min())
    unknown: list[int] = []
    for indices in range(start, len(scan.path)), range(start - 1, -1, -1):
        for index in indices:
            scan.make([index], slopes=False)
            error = scan.error(torch.full_like(first, index)) * fetched(scan.misled_by(index, LEFT_OUT))[0]
            better = (error < least) | ((error == least) & error.isfinite() & (index > best))
            best, least = torch.where(better, index, best), torch.where(better, error, least)
            unknown += [index] * (not bool(error.isfinite().all()))
            if not scan.at_once:
                scan.keep(best.tolist())
                if int((best - index).abs().min()) > stride:  # it has risen for more than a decade
                    break
    return best, least, not set(unknown).isdisjoint((best - 1).tolist())


def _searched(scan: _Scan, first: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Of each target, the penalty [u] of least error among those compared, and that error.

    Args:
        first: [u], tried first. stride: how many make a decade, a power of two.
    """
    # Of each target, the strongest penalty known to be too weak and the weakest known to be too strong. The least error
    # is close to the first penalty, as a rule: it is looked for at distances that double, then by halves.
    exact, last = scan.exact, len(scan.path) - 1
    low, high = torch.full_like(first, -1), torch.full_like(first, last + 1)
    ahead, beside = first, first + stride
    best, least = first, torch.full(first.shape, math.inf, dtype=torch.float64)
    compared = set[int]()
    while bool((searching := high - low > 1).any()):
        scan.make(ahead[searching].unique().tolist(), beside[searching].clamp(0, last).tolist())
        if scan.exact != exact:
            return _searched(scan, first, stride)
        for some in (ahead, beside):
            errors, strong = scan.error(some), scan.rises(some)
            between = (low < some) & (some < high) & ~errors.isnan()
            # The largest of equally good penalties is the steadiest.
            better = between & ((errors < least) | ((errors == least) & (some > best)))
            best, least = torch.where(better, some, best), torch.where(better, errors, least)
            low, high = torch.where(between & ~strong, some, low), torch.where(between & strong, some, high)
        compared.update(ahead.tolist(), beside.tolist())
        # One that another target chooses later is made anew.
        scan.keep({*best.tolist(), *(scan.factors.keys() - compared)})
        above, below = (low - first).clamp(min=stride), (first - high).clamp(min=stride)
        up, down = high > last, low < 0
        ahead = torch.where(up, low + above, torch.where(down, high - below, (low + high) // 2)).clamp(0, last)
        beside = torch.where(up, ahead + above, torch.where(down, ahead - below, (low + ahead) // 2))
    return best, least


class _Scan:
    """Generalised cross-validation errors of the penalties that are asked for, and whether they rise.

    Attributes:
        searched: whether only some penalties are made. at_once: whether all are made together. in_pairs: whether two
            take hardly longer than one.
        exact: whether traces are made of inverses, instead of estimated: of all penalties or of none, since estimates
            do not rank near ties.
        factors: of penalties by index, until they are dropped.
    """

    def __init__(self, cell: Activations, statistics: Statistics, targets: TargetMatrix, penalties: Penalties) -> None:
        total, cross = statistics.total, _sketched_cross(cell, statistics, targets)
        moments = replace(total, cross=cross, target_sum=targets.sketch.sums.sum(0))
        self.cell, self.targets, self.system = cell, targets, System(cell, moments, statistics.dtype)
        self.path, self.rows, dim = penalties.absolute(self.system), total.count - 1, len(cross)  # centring takes one
        count, width = len(self.path), dim + cross.shape[1] + SIGNS
        fits = 20 * count * dim * width <= _AT_ONCE if cross.is_cuda else dim <= SMALL
        self.at_once = fits and count <= MANY
        self.in_pairs = not cross.is_cuda and statistics.dtype == torch.float32 and paired(dim)
        self.searched = not (self.at_once or targets.per_column or count <= FEW)
        self.exact = self.rows - dim < LEFT and not self.searched  # a search finds out
        self.factors: dict[int, Factor] = {}
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        self._left: dict[int, float] = {}
        self._solved: dict[int, Tensor] = {}
        self._left_out: dict[int, LeftOut] = {}

    @cached_property
    def _sizes(self) -> list[Tensor]:
        """Penalties [L], the trace of the Gram matrix, squared deviations [1, u] of the targets."""
        squares = per_unit(self.targets.sketch.squares[None], self.targets)
        return fetched(self.path, self.system.diagonal.sum(), squares)

    @property
    def _rhs(self) -> Tensor:
        """Targets and signs [d, q + s]; no signs where traces are exact."""
        return self.system.cross if self.exact else self._with_signs

    @cached_property
    def _with_signs(self) -> Tensor:
        cross = self.system.cross
        return torch.cat([cross, signs(len(cross)).to(cross)], 1)

    def keep(self, indices: Collection[int]) -> None:
        """Drop the factors of all other penalties."""
        self.factors = {index: factor for index, factor in self.factors.items() if index in indices}
        self._solved = {index: weights for index, weights in self._solved.items() if index in indices}

    def error(self, indices: Tensor) -> Tensor:
        """[u] float64, a penalty for each unit; Inf where the precision cannot tell, NaN where it was not tried."""
        return self._at(indices, 0)

    def rises(self, indices: Tensor) -> Tensor:
        """[u], whether the error rises with the penalty; not where it is flat, or the penalty too weak to tell."""
        return self._at(indices, 1) > _FLAT[self.system.dtype]

    def _at(self, indices: Tensor, which: int) -> Tensor:
        untried = (torch.full(indices.shape, math.nan, dtype=torch.float64),) * 2
        return torch.stack([self._known.get(k, untried)[which][unit] for unit, k in enumerate(indices.tolist())])

    def all_errors(self) -> Tensor:
        """[L, u] of all penalties; factors only where all are made at once."""
        indices = range(len(self.path))
        for some in [indices] if self.at_once else [[index] for index in indices]:
            self.make(some, slopes=False)
            self.keep(indices if self.at_once else ())
        return torch.stack([self._known[index][0] for index in indices])

    def eigen_errors(self) -> Tensor:
        """[L, u] of all penalties, from one eigendecomposition."""
        self.at_once, values, found = True, self.system.eigenvectors[0].double(), list[Tensor]()
        rounding = 0.0 if self.system.dtype == torch.float64 else torch.finfo(self.system.dtype).eps * values.max()
        for index, path in enumerate(self.path.split(1)):
            weights, info = eigen_path(self.system, self.system.cross, path)
            dof = (values / (values + path)).nan_to_num(1.0).sum()
            left = torch.where((info == 0) & (path >= _PENALTY * rounding), self.rows - dof, 0.0)
            left, *sums = fetched(left, *self._sums(weights, path))
            found.append(self._errors([index], weights, left, *sums)[1])
            self._solved[index], self._left[index], self._known[index] = weights[0], float(left), (found[-1][0],) * 2
        return torch.cat(found)

    def misleads(self, chosen: Tensor) -> bool:
        """Whether leaving out rows tells that the error of some chosen penalty [u] is far larger."""
        ratios = {index: self.misled_by(index, LOOKED_AT) for index in chosen.unique().tolist()}
        pairs = zip(ratios, fetched(*ratios.values()), strict=True)
        return any(bool((own[chosen == index] > MISLED).any()) for index, own in pairs)

    def misled_by(self, index: int, most: int) -> Tensor:
        """How many times the error of a penalty that of so many left out rows is [u]; 1 where that is not known."""
        system = self.system
        if index not in self._solved:  # its factor serves the solution too
            solved, (factor,), info = factor_path(system, system.cross, self.path[index : index + 1])
            if not bool(info[0]):
                self._solved[index], self.factors[index] = solved[0], factor
            elif system.dtype == torch.float64:
                solution = solve_eigen(system, system.cross, float(self._sizes[0][index]))
                self._solved[index], self._left[index] = solution.weights, self.rows - solution.facts.dof
            else:
                return torch.ones_like(self._known[index][0], device=self.path.device)
        if most not in self._left_out:
            self._left_out = {most: LeftOut(self.cell, system, self.targets, most)}
        some = self._left_out[most]
        if index in self.factors:
            leverages = self.factors[index].halve(some.rows.mT).square_().sum(0, dtype=torch.float64)
        else:
            values, basis = system.eigenvectors
            leverages = (some.rows @ basis).double().square_() @ (1 / (values.double() + self.path[index]))
        share, unknown = self._left[index] / self.rows, float(self._unknown(self._sizes[0][index]))
        return some.ratios(self._solved[index], leverages, share, unknown)

    def _unknown(self, penalties: Tensor) -> Tensor:
        """Below that, what rows or all of them keep of their errors [L] may be rounding."""
        dim, eps = len(self.system.cross), torch.finfo(self.system.dtype).eps
        return _ROUNDING * eps * (dim + torch.where(penalties > 0, self._sizes[1] / (dim * penalties), 0.0))

    def make(self, indices: Sequence[int], beside: Sequence[int] = (), slopes: bool = True) -> None:
        """Errors of these penalties, where they are not known yet, and whether they rise.

        Args:
            beside: penalties that may be asked for next: one of them is made where it takes hardly any time.
        """
        new = [index for index in indices if index not in self._known]
        if len(new) == 1 and self.in_pairs:
            new += [index for index in beside if index not in {*self._known, *new}][:1]
        for some in [new] if new and (self.at_once or self.in_pairs) else [[index] for index in new]:
            # Slices, not lists: indices from the CPU would have to be copied to a GPU.
            whole = list(some) == list(range(len(self.path)))
            path = self.path if whole else torch.stack([self.path[index] for index in some])
            solved, factors, info = factor_path(self.system, self._rhs, path)
            failed, errors, rises = self._of_factors(some, path, solved, factors, info, slopes)
            for place, (index, bad) in enumerate(zip(some, failed, strict=True)):
                if not bad:
                    self.factors[index] = factors[place]
                    self._solved[index] = solved[place, :, : self.system.cross.shape[1]]
                self._known[index] = self._without(index) if bad else (errors[place], rises[place])

    def _of_factors(
        self,
        indices: Sequence[int],
        path: Tensor,
        solved: Tensor,
        factors: Sequence[Factor],
        info: Tensor,
        slopes: bool,
    ) -> tuple[list[bool], Tensor, Tensor]:
        """Which have failed, errors [L, u] and slopes [L, u] of their logarithms.

        Where a search's estimates are too uncertain, traces are exact from here on, and what was known is forgotten.

        Args:
            solved: [L, d, q + s], of the right-hand sides.
        """
        dim, columns = self.system.cross.shape
        weights, (taken, own) = solved[:, :, :columns], _column_sums(solved, self._rhs)
        traces, spread, squares = torch.zeros(3, len(path), dtype=torch.float64, device=path.device)
        if not self.exact:
            samples, squares = taken[:, columns:], own[:, columns:].mean(1)
            traces, spread = samples.mean(1), samples.std(1) / SIGNS**0.5
        moved = torch.zeros_like(path[:, None])
        if slopes:
            pairs = zip(factors, weights, strict=True)
            halves = torch.stack([factor.halve(own).square_().sum(0, dtype=torch.float64) for factor, own in pairs])
            moved = per_unit(halves, self.targets)
        info, traces, spread, squares, moved, *sums = fetched(
            info, traces, spread, squares, moved, *self._summed(taken[:, :columns], own[:, :columns], path)
        )
        penalties, final = self._sizes[0][list(indices)], self.system.dtype == torch.float64
        failed = info.bool() | (penalties == 0) if final else info.bool()
        left = self.rows - dim + penalties * traces
        if self.searched and not self.exact and bool(((penalties * spread > SPREAD * left) & ~failed).any()):
            self.exact = True
            self._known.clear()
            self.keep(())
        if self.exact:
            traces, squares = fetched(torch.stack([factor.inverse_traces() for factor in factors], 1))[0]
            left = self.rows - dim + penalties * traces
        residuals, errors = self._errors(indices, weights, left, *sums)
        self._left.update(zip(indices, left.tolist(), strict=True))
        if not slopes:
            return failed.tolist(), errors, torch.full_like(errors, math.nan)
        # d|residuals|^2 = 2 penalty tr W'(G + penalty I)^-1 W, d tr (G + penalty I)^-1 = -|(G + penalty I)^-1|^2.
        steps = 2 * penalties[:, None] * moved
        freed = (traces - penalties * squares) / left
        relative = penalties[:, None] * (steps / residuals - 2 * freed[:, None])
        return failed.tolist(), errors, torch.where(errors.isinf(), math.nan, relative)

    def _without(self, index: int) -> tuple[Tensor, Tensor]:
        """Errors [u] of one penalty that has no factor; in float64 by an eigendecomposition."""
        weights, left = torch.zeros_like(self.system.cross), 0.0
        if self.system.dtype == torch.float64:
            solution = solve_eigen(self.system, self.system.cross, float(self._sizes[0][index]))
            weights, left = solution.weights, self.rows - solution.facts.dof
        sums = fetched(*self._sums(weights[None], self.path[index : index + 1]))
        errors = self._errors([index], weights[None], torch.tensor([left], dtype=torch.float64), *sums)[1][0]
        return errors, torch.full_like(errors, math.nan)

    def _sums(self, weights: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
        """tr W'A'T + penalty tr W'W and tr W'W [L, u] of weights [L, d, q]."""
        return self._summed(*_column_sums(weights, self.system.cross), path)

    def _summed(self, taken: Tensor, own: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
        return per_unit(torch.addcmul(taken, path[:, None], own), self.targets), per_unit(own, self.targets)

    def _errors(
        self, indices: Sequence[int], weights: Tensor, left: Tensor, taken: Tensor, own: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Squared residuals [L, u] on all fit rows, and n^2 of them over the square of what is left [L] of n."""
        cell, (penalties, trace, squares) = self.cell, self._sizes
        penalties = penalties[list(indices)]
        # With (G + penalty I) W = A'T: |T - A W|^2 = tr T'T - tr W'A'T - penalty tr W'W.
        residuals = squares - taken
        dim, eps = weights.shape[1], torch.finfo(weights.dtype).eps
        # Of weights that rounding moved, the identity is off by their product with the residual of (G + penalty I) W.
        unsure = residuals < _CANCELLED[weights.dtype] * squares
        unsure |= eps * dim**0.5 * (trace / dim + penalties[:, None]) * own > _DOUBTFUL * residuals
        if bool((places := unsure.any(1)).any()):
            rows = slice(0, len(cell.fit))
            again = column_errors(cell, self.system, weights[places.to(weights.device)], self.targets, rows).cpu()
            residuals[places] = torch.where(unsure[places], again, residuals[places])
        errors = torch.where(
            (left > self._unknown(penalties))[:, None], residuals * (self.rows / left[:, None]) ** 2, math.inf
        )
        return residuals, errors.nan_to_num(math.inf, math.inf)


def _column_sums(solved: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [L, c] float64 over the rows of solutions [L, d, c] times right-hand sides [d, c], and of their squares."""
    wide, mixed = empty((2, *solved.shape), torch.float64, solved.device)
    taken = torch.mul(wide.copy_(solved), rhs, out=mixed).sum(1)
    return taken, wide.square_().sum(1)


def _sketched_cross(cell: Activations, statistics: Statistics, targets: TargetMatrix) -> Tensor:
    """Products [d, q] float64 of the rows with the targets' sketch, from those with all columns where that is less."""
    cross, sketch = statistics.total.cross, targets.sketch
    known = cross.shape[1] > 0 and cell.fit.dtype != torch.bfloat16  # those are of targets that are rounded too
    if known and sketch.fit is targets.fit:
        return cross
    out = torch.zeros(len(cross), sketch.fit.shape[1], dtype=torch.float64, device=cross.device)
    # In float64 what the sketch was rounded by would count.
    if known and sketch.mixes and statistics.dtype == torch.float32 and cross.shape[1] <= len(cell.fit):
        for block, part, mix in zip(targets.blocks, sketch.blocks, sketch.mixes, strict=True):
            own, place = cross[:, block.start : block.stop], out[:, part.start : part.stop]
            if mix is None:
                place.copy_(own)
                continue
            for rows, (wide,) in converted_rows([own], statistics.dtype):
                place[rows] = wide @ mix.to(wide)
        return out
    for _, (part_of_rows, of_columns) in converted_rows([cell.fit, sketch.fit], statistics.dtype):
        ops.gram([part_of_rows], of_columns, [], [out])
    return out
