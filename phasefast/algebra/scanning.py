"""Generalised cross-validation errors of one cell's penalties, from moments and Cholesky factors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .. import ops
from ..common.fetching import fetched
from ..data.target_matrix import TargetMatrix
from ..types import Activations, Statistics
from .choosing import (
    FEW,
    LEFT,
    LOOKED_AT,
    MANY,
    SIGNS,
    SMALL,
    SPREAD,
    LeftOut,
    column_errors,
    makes_all,
    paired,
    per_unit,
    signs,
)
from .dense import Factor, converted_rows, empty
from .systems import Penalties, System, eigen_path, factor_path, solve_eigen

_CANCELLED = {torch.float32: 1e-3, torch.float64: 1e-10}  # of the targets: less than that moments cannot tell
_DOUBTFUL = 0.01  # of the squared residuals: what rounding may do to them by moments
_FLAT = {torch.float32: 1e-3, torch.float64: 1e-9}  # slopes in the logarithms that rounding may make
_ROUNDING = 8.0  # times what rounding may do to a trace: less than that is not known
_BLUR = 20.0  # times what rounding may do to eigenvalues: of less, errors are off by more than some thousandths
_PENALTY = 100.0  # times the rounding of eigenvalues: less than that is not known
_AT_ONCE = 1 << 30  # bytes on a GPU of which all penalties take hardly longer than one


@dataclass
class _Tried:
    """A penalty that was tried: its errors [u] float64, whether they rise, and what is left of the rows.

    Attributes:
        error: Inf where the precision cannot tell. rises: slopes of the logarithms; NaN where that is not known.
        left: rows less degrees of freedom. weights: [d, q], None where there are none or they were dropped.
    """

    error: Tensor
    rises: Tensor
    left: float
    weights: Tensor | None = None
    factor: Factor | None = None


class Scan:
    """Generalised cross-validation errors of the penalties that are asked for, and whether they rise.

    Attributes:
        searched: whether only some penalties are made. at_once: whether all are made together. in_pairs: whether two
            take hardly longer than one. all_made: whether all are there, with their solutions.
        exact: whether traces are made of inverses, instead of estimated: of all penalties or of none, since estimates
            do not rank near ties.
    """

    def __init__(
        self,
        cell: Activations,
        statistics: Statistics,
        targets: TargetMatrix,
        penalties: Penalties,
        exact: bool = False,
    ) -> None:
        total, cross = statistics.total, _sketched_cross(cell, statistics, targets)
        moments = replace(total, cross=cross, target_sum=targets.sketch.sums.sum(0))
        self.cell, self.targets, self.system = cell, targets, System(cell, moments, statistics.dtype)
        self.path, self.rows, dim = penalties.absolute(self.system), total.count - 1, len(cross)  # centring takes one
        self._penalties = torch.tensor(penalties.listed(self.system), dtype=torch.float64, device="cpu")
        count, width = len(self.path), dim + cross.shape[1] + SIGNS
        fits = 20 * count * dim * width <= _AT_ONCE if cross.is_cuda else dim <= SMALL
        self.at_once = fits and count <= MANY
        self.in_pairs = not cross.is_cuda and statistics.dtype == torch.float32 and paired(dim)
        self.searched = not makes_all(self.at_once, count, targets.per_column)
        self.exact = exact or (self.rows - dim < LEFT and not self.searched)  # a search finds out
        self.all_made = False
        self._tried: dict[int, _Tried] = {}
        self._left_out: dict[int, LeftOut] = {}

    @property
    def factors(self) -> dict[int, Factor]:
        """Of penalties by index, until they are dropped."""
        return {index: tried.factor for index, tried in self._tried.items() if tried.factor is not None}

    @cached_property
    def _sizes(self) -> list[Tensor]:
        """Penalties [L], the trace of the Gram matrix, squared deviations [1, u] of the targets."""
        trace = torch.tensor(self.system.scale * self.cell.layer.dim, dtype=torch.float64, device="cpu")
        return [self._penalties, trace, per_unit(self.targets.sketch.squares_here[None], self.targets)]

    @property
    def _rhs(self) -> Tensor:
        """Targets and signs [d, q + s]; no signs where traces are exact."""
        return self.system.cross if self.exact else self._with_signs

    @cached_property
    def _with_signs(self) -> Tensor:
        cross = self.system.cross
        return torch.cat([cross, signs(len(cross), cross.dtype, cross.device)], 1)

    def keep(self, indices: Collection[int]) -> None:
        """Drop the solutions and factors of all other penalties."""
        for index in self._tried.keys() - set(indices):
            self._tried[index].weights = self._tried[index].factor = None

    def error(self, indices: Tensor) -> Tensor:
        """[u] float64, a penalty for each unit; Inf where the precision cannot tell, NaN where it was not tried."""
        return self._at(indices, "error")

    def rises(self, indices: Tensor) -> Tensor:
        """[u], whether the error rises with the penalty; not where it is flat, or the penalty too weak to tell."""
        return self._at(indices, "rises") > _FLAT[self.system.dtype]

    @property
    def tried(self) -> Collection[int]:
        """Penalties whose errors are known."""
        return self._tried.keys()

    @cached_property
    def weakest(self) -> int:
        """The weakest penalty that is well above what rounding does to eigenvalues, which the trace bounds."""
        blurred = self._penalties <= _BLUR * torch.finfo(self.system.dtype).eps * self._sizes[1]
        return int(blurred.sum())

    def error_of(self, index: int, unit: int) -> float:
        """The error of one penalty that was tried."""
        return float(self._tried[index].error[unit])

    def slope(self, index: int, unit: int) -> float:
        """How the logarithm of its error changes with that of the penalty; NaN where that is not known."""
        return float(self._tried[index].rises[unit])

    def grows(self, indices: Tensor, to: Tensor) -> Tensor:
        """[u], times how much the errors of penalties ``to`` are, were the slope the same; 1 where it is not known."""
        steps = self._penalties[to] / self._penalties[indices]
        return steps.pow(self._at(indices, "rises")).nan_to_num(1.0)

    def known(self) -> tuple[Tensor, Tensor]:
        """The penalties that were tried [K, 1] from weak to strong, and their errors [K, u]."""
        indices = sorted(self._tried)
        return torch.tensor(indices, device="cpu")[:, None], torch.stack([self._tried[own].error for own in indices])

    def _at(self, indices: Tensor, which: str) -> Tensor:
        nan = torch.full_like(indices, math.nan, dtype=torch.float64)
        found = (getattr(self._tried.get(index), which, nan) for index in indices.tolist())
        return torch.stack([own[unit] for unit, own in enumerate(found)])

    def all_errors(self) -> Tensor:
        """[L, u] of all penalties; factors only where all are made at once."""
        indices = range(len(self.path))
        for some in [indices] if self.at_once else [[index] for index in indices]:
            self.make(some, slopes=False)
            self.keep(indices if self.at_once else ())
        self.all_made = self.at_once
        return torch.stack([self._tried[index].error for index in indices])

    def eigen_errors(self) -> Tensor:
        """[L, u] of all penalties, from one eigendecomposition."""
        values = self.system.eigenvectors[0].double()
        rounding = 0.0 if self.system.dtype == torch.float64 else torch.finfo(self.system.dtype).eps * values[-1:].sum()
        solved, sums = [], []
        for path in self.path.split(1):
            weights, info = eigen_path(self.system, self.system.cross, path)
            dof = (values / (values + path)).nan_to_num(1.0).sum()
            left = torch.where((info == 0) & (path >= _PENALTY * rounding), self.rows - dof, 0.0)
            solved.append(weights)
            sums.append((left, *self._sums(weights, path)))
        known = iter(fetched(*itertools.chain(*sums)))  # at once, as a GPU works on while the host asks for all
        for index, (weights, left, taken, own) in enumerate(zip(solved, known, known, known, strict=True)):
            (error,) = self._errors([index], weights, left, taken, own)[1]
            self._tried[index] = _Tried(error, torch.full_like(error, math.nan), float(left), weights[0])
        self.all_made = True
        return torch.stack([tried.error for tried in self._tried.values()])

    def misled_at(self, chosen: Tensor) -> Tensor:
        """``misled_by`` some rows of each unit's chosen penalty [u]; Inf where it cannot be told."""
        ratios = {index: self.misled_by(index, LOOKED_AT) for index in chosen.unique().tolist()}
        found = torch.ones_like(chosen, dtype=torch.float64)
        for index, own in zip(ratios, fetched(*ratios.values()), strict=True):
            found = torch.where(chosen == index, own, found)
        return found

    def misled_by(self, index: int, most: int) -> Tensor:
        """Leave-one-out error of at most so many rows over that of cross-validation, [u]; 1 where it is not known."""
        system, tried = self.system, self._tried[index]
        if tried.weights is None:  # its factor serves the solution too
            solved, (factor,), info = factor_path(system, system.cross, self.path[index : index + 1])
            if not bool(info[0]):
                tried.weights, tried.factor = solved[0], factor
            elif system.dtype == torch.float64:
                tried.weights = solve_eigen(system, system.cross, float(self._sizes[0][index])).weights
            else:
                return torch.ones_like(tried.error, device=self.path.device)
        halve, back, rank = self._root_of(index)
        if most not in self._left_out:
            random = signs(rank, system.dtype, self.path.device) / SIGNS**0.5
            self._left_out = {most: LeftOut(self.cell, system, self.targets, most, back(random))}
        some = self._left_out[most]
        if (found := self._leverages_by_directions(some, index)) is None:
            found = halve(some.rows.mT).square_().sum(0, dtype=torch.float64)
        unknown = float(self._unknown(self._sizes[0][index]))
        return some.ratios(tried.weights, found, tried.left / self.rows, unknown)

    def _leverages_by_directions(self, some: LeftOut, index: int) -> Tensor | None:
        """Leverages of rows by the Gram matrix's eigenvectors, where these take less than a product for each penalty.

        None where they do not, or the penalty is not far above what eigenvalues may be off.
        """
        if not self.all_made or len(self.path) <= FEW or len(some.rows) <= LOOKED_AT or some.rows.is_cuda:
            return None
        values, vectors = self.system.eigenvectors
        if not self.path[index] > _PENALTY * torch.finfo(values.dtype).eps * values[-1:].sum():
            return None
        if some.squares is None:
            some.squares = (some.rows @ vectors).square_()
        return (some.squares @ (values + self.path[index]).reciprocal().to(some.squares)).double()

    def _root_of(self, index: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], int]:
        """Products with a root of (G + penalty I)^-1, with its transpose, and the number of its rows."""
        if (factor := self._tried[index].factor) is not None:
            return factor.halve, factor.halve_back, len(self.system.cross)
        values, basis = self.system.eigenvectors
        root = basis * (values.double() + self.path[index]).rsqrt().to(basis)
        return root.mT.__matmul__, root.__matmul__, len(values)

    def _unknown(self, penalties: Tensor) -> Tensor:
        """Below that, what rows or all of them keep of their errors [L] may be rounding."""
        dim, eps = len(self.system.cross), torch.finfo(self.system.dtype).eps
        return _ROUNDING * eps * (dim + torch.where(penalties > 0, self._sizes[1] / (dim * penalties), 0.0))

    def make(self, indices: Sequence[int], beside: Sequence[int] = (), slopes: bool = True) -> None:
        """Errors of these penalties, where they are not known yet, and whether they rise.

        Args:
            beside: penalties that may be asked for next: one of them is made where it takes hardly any time.
        """
        new = [index for index in indices if index not in self._tried]
        if len(new) == 1 and self.in_pairs:
            new += [index for index in beside if index not in {*self._tried, *new}][:1]
        for some in [new] if new and (self.at_once or self.in_pairs) else [[index] for index in new]:
            # Slices, not lists: indices from the CPU would have to be copied to a GPU.
            whole = list(some) == list(range(len(self.path)))
            path = self.path if whole else torch.stack([self.path[index] for index in some])
            solved, factors, info = factor_path(self.system, self._rhs, path)
            found = self._of_factors(some, path, solved, factors, info, slopes)
            self._tried |= {index: own or self._without(index) for index, own in zip(some, found, strict=True)}

    def _of_factors(
        self,
        indices: Sequence[int],
        path: Tensor,
        solved: Tensor,
        factors: Sequence[Factor],
        info: Tensor,
        slopes: bool,
    ) -> list[_Tried | None]:
        """What their factors tell of penalties, None of one that has failed.

        Where a search's estimates are too uncertain, traces are exact from here on, and what was known is forgotten.

        Args:
            solved: [L, d, q + s], of the right-hand sides.
        """
        dim, columns = self.system.cross.shape
        weights, (taken, own) = solved[:, :, :columns], _column_sums(solved, self._rhs)
        traces, spread, squares = torch.zeros(3, len(path), dtype=torch.float64, device=path.device)
        if self.exact:
            traces, squares = _inverse_traces(factors)
        else:
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
            self._tried.clear()
            traces, squares = fetched(_inverse_traces(factors))[0]
            left = self.rows - dim + penalties * traces
        residuals, errors = self._errors(indices, weights, left, *sums)
        rises = torch.full_like(errors, math.nan)
        if slopes:
            # d|residuals|^2 = 2 penalty tr W'(G + penalty I)^-1 W, d tr (G + penalty I)^-1 = -|(G + penalty I)^-1|^2.
            steps = 2 * penalties[:, None] * moved
            freed = (traces - penalties * squares) / left
            relative = penalties[:, None] * (steps / residuals - 2 * freed[:, None])
            rises = torch.where(errors.isinf(), math.nan, relative)
        found = zip(errors, rises, left.tolist(), weights, factors, strict=True)
        return [None if bad else _Tried(*own) for bad, own in zip(failed.tolist(), found, strict=True)]

    def _without(self, index: int) -> _Tried:
        """Errors of one penalty that has no factor: in float64 by an eigendecomposition, else unknown."""
        none = torch.full(self._sizes[2].shape[1:], math.inf, dtype=torch.float64, device="cpu")
        if self.system.dtype != torch.float64:
            return _Tried(none, none * math.nan, 0.0)
        solution = solve_eigen(self.system, self.system.cross, float(self._sizes[0][index]))
        weights, left = solution.weights, self.rows - solution.facts.dof
        sums = fetched(*self._sums(weights[None], self.path[index : index + 1]))
        (error,) = self._errors([index], weights[None], torch.tensor([left], dtype=torch.float64, device="cpu"), *sums)[
            1
        ]
        return _Tried(error, none * math.nan, left, weights)

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
        if places := unsure.any(1).nonzero()[:, 0].tolist():
            # Slices: a GPU would wait for indices from here.
            own = weights if len(places) == len(weights) else torch.stack([weights[place] for place in places])
            again = column_errors(cell, self.system, own, self.targets, slice(0, len(cell.fit))).cpu()
            residuals[places] = torch.where(unsure[places], again, residuals[places])
        errors = torch.where(
            (left > self._unknown(penalties))[:, None], residuals * (self.rows / left[:, None]) ** 2, math.inf
        )
        return residuals, errors.nan_to_num(math.inf, math.inf)


def _inverse_traces(factors: Sequence[Factor]) -> Tensor:
    """tr X and tr X^2 [2, L] of each matrix's inverse X."""
    return torch.stack([factor.inverse_traces() for factor in factors], 1)


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
