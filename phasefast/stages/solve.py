"""Moments become decoders: the penalty from folds of the fit rows, the solution with its certificates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import ops
from ..errors import ArgumentError, SolveError
from ..types import Activations, BlockFit, Decoder, Moments, PenaltyChoice, Statistics, TargetBlock, TargetMatrix

DEFAULT_ALPHAS = tuple(10.0**k for k in range(-6, 2))
_CHUNK = 1024
# Rounding of a float32 Gram matrix acts like a penalty of about the first size; what it adds to the errors of weak
# penalties only matters where hardly anything else is left unexplained.
_FLOAT32_ALPHA, _FLOAT32_SMALL_ALPHA, _FLOAT32_FVU = 1e-5, 1e-2, 1e-3
_REFINE_ABOVE = 1e-8  # error estimate of a float64 solution that a step of refinement still mends
_REFINEMENTS, _REFINED = 2, "-refined"
# Below this share of the deviation the identity for the fit error cancels too many digits of the statistics.
_CANCELLED = {torch.float32: 5e-2, torch.float64: 1e-8}
_FIT_TOLERANCE = 2e-6
_JITTERS = (1e-14, 1e-13, 1e-12, 1e-11)


@dataclass(frozen=True)
class Penalties:
    """Which ridge penalties are tried.

    Attributes:
        alphas: relative to the mean diagonal of the centred Gram matrix: what is linearly there; ascending.
        noise: instead, a standard deviation of noise on the activations, penalty = n noise^2: what survives it.
    """

    alphas: tuple[float, ...] = DEFAULT_ALPHAS
    noise: float | None = None

    def __post_init__(self) -> None:
        values = self.alphas if self.noise is None else (self.noise,)
        numbers = all(isinstance(value, (int, float)) and math.isfinite(value) and value >= 0 for value in values)
        if not values or not numbers:
            raise ArgumentError(f"alphas, noise: expected finite numbers >= 0, got {values}")
        object.__setattr__(self, "alphas", tuple(sorted(set(self.alphas))))

    @property
    def selects(self) -> bool:
        """Whether there is a choice to make, and so a need for folds."""
        return self.noise is None and len(self.alphas) > 1

    def relative(self, system: _System, index: int) -> float:
        """A penalty over the mean diagonal of the Gram matrix; 0 where that is zero."""
        if self.noise is None:
            return self.alphas[index]
        return float(torch.nan_to_num(self.absolute(system)[index] / system.mean_diagonal, 0, 0, 0))

    def absolute(self, system: _System) -> Tensor:
        """Penalties [L] float64 for a system."""
        device = system.gram.device
        if self.noise is not None:
            return torch.tensor([system.count * self.noise**2], dtype=torch.float64, device=device)
        return torch.tensor(self.alphas, dtype=torch.float64, device=device) * system.mean_diagonal


@dataclass(frozen=True)
class _System:
    """Centred normal equations of some fit rows, (gram + penalty I) weights = cross, float64, solved in ``dtype``.

    Only the lower triangle of ``gram`` has a meaning. ``cell``: whose rows these are.
    """

    gram: Tensor
    cross: Tensor
    row_mean: Tensor
    target_mean: Tensor
    count: int
    dtype: torch.dtype
    cell: Activations

    @property
    def mean_diagonal(self) -> Tensor:
        """Of the Gram matrix of the layer's own features, however many columns stand for them here."""
        return self.gram.trace() / self.cell.layer.dim


def select(cell: Activations, statistics: Statistics, targets: TargetMatrix, penalties: Penalties) -> PenaltyChoice:
    """The penalty of least squared error on held-out folds of the fit rows, per target block."""
    if not penalties.selects:
        return PenaltyChoice((0,) * len(targets.blocks), True)
    errors = torch.stack(list(_fold_errors(cell, statistics, targets, penalties))).sum(0)
    failed = torch.isinf(errors).any(1).tolist()
    # The largest of equally good penalties is the steadiest, so the last of equal minima counts.
    indices = tuple((len(errors) - 1 - errors.flip(0).argmin(0)).tolist())
    weakest = min(indices)
    alpha = penalties.alphas[weakest]
    close = any(errors[i, j] < _FLOAT32_FVU * targets.deviation["fit"][j] for j, i in enumerate(indices))
    doubtful = alpha < _FLOAT32_ALPHA or (alpha < _FLOAT32_SMALL_ALPHA and close) or failed[max(weakest - 1, 0)]
    doubtful = doubtful or penalties.alphas[0] == 0  # a rank-deficient matrix may pass float32's Cholesky by chance
    return PenaltyChoice(indices, statistics.dtype == torch.float64 or not doubtful)


def solve(
    cell: Activations,
    statistics: Statistics,
    targets: TargetMatrix,
    penalties: Penalties,
    choice: PenaltyChoice,
    tolerance: float,
) -> Decoder:
    """The ridge decoder of one cell: each target with its chosen penalty.

    Args:
        statistics: of ``cell``; the systems are solved in ``statistics.dtype``.
        tolerance: error estimate above which a float32 solution is refined in float64, where that is cheaper than
            solving in float64; the weights are float64 then.

    Raises:
        SolveError: no factorisation succeeded (float64 only; in float32 the error estimate is infinite instead).
    """
    system = _centre(cell, statistics.total, statistics.dtype)
    path = penalties.absolute(system)
    weights = torch.empty_like(system.cross)
    parts: list[_Part] = []
    for index in sorted(set(choice.indices)):
        chosen = [i for i, of_block in enumerate(choice.indices) if of_block == index]
        blocks = [targets.blocks[i] for i in chosen]
        crosses = [system.cross[:, b.start : b.stop] for b in blocks]
        together = replace(system, cross=crosses[0] if len(crosses) == 1 else torch.cat(crosses, 1))
        solution = _solve_one(together, float(path[index]))
        alpha = penalties.relative(system, index)
        shares = solution.weights.split([b.stop - b.start for b in blocks], 1)
        for i, block, share in zip(chosen, blocks, shares, strict=True):
            parts.append(_Part(i, block, alpha, solution, weights[:, block.start : block.stop].copy_(share)))
    parts.sort(key=lambda part: part.index)
    fits = _certify(cell, system, targets, parts)
    fits = [_refine(cell, system, targets, part, fit, tolerance) for part, fit in zip(parts, fits, strict=True)]
    offset = system.target_mean - system.row_mean @ weights
    refined = any(fit.route.endswith(_REFINED) for fit in fits)
    dtype = torch.float64 if refined else statistics.dtype
    return Decoder(cell.layer, weights.to(dtype), offset.to(dtype), tuple(fits))


def _centre(cell: Activations, moments: Moments, dtype: torch.dtype) -> _System:
    # Rows and targets are already shifted to nearly zero mean: this rank-one correction in float64 does not cancel.
    row_mean, target_mean = moments.row_sum / moments.count, moments.target_sum / moments.count
    gram = torch.addr(moments.gram, moments.row_sum, row_mean, alpha=-1)
    gram.diagonal().clamp_(min=0)
    cross = torch.addr(moments.cross, moments.row_sum, target_mean, alpha=-1)
    return _System(gram, cross, row_mean, target_mean, moments.count, dtype, cell)


def _fold_errors(
    cell: Activations, statistics: Statistics, targets: TargetMatrix, penalties: Penalties
) -> Iterator[Tensor]:
    """Squared errors [L, k] float64 on each fold, of decoders solved without it; Inf where a float32 solve failed."""
    blocks = targets.sketch.blocks
    edges, classes = [0, *(block.stop for block in blocks)], [False] * len(blocks)
    cross = torch.stack([fold.cross for fold in statistics.folds]).sum(0)
    total = replace(statistics.total, cross=cross, target_sum=targets.sketch.sums.sum(0))
    for fold, (start, stop) in zip(statistics.folds, itertools.pairwise(targets.folds), strict=True):
        train = _centre(cell, _without(total, fold), statistics.dtype)
        path = penalties.absolute(train)
        weights, _, info = _ridge(train, path, keep_factors=False)
        if statistics.dtype == torch.float64:
            for index in (info.bool() | (path == 0)).nonzero()[:, 0].tolist():
                weights[index] = _eigen_solution(train, float(path[index])).weights
        offsets = (train.target_mean - train.row_mean @ weights.double()).to(statistics.dtype)
        errors = torch.empty(len(path), len(blocks), stop - start, dtype=torch.float64, device=path.device)
        hits = torch.empty(errors.shape, dtype=torch.bool, device=path.device)
        rows, expected = [cell.fit[start:stop]] * len(path), targets.sketch.fit[start:stop]
        ops.residual(rows, list(weights), list(offsets), expected, edges, classes, list(errors), list(hits))
        yield torch.nan_to_num(errors.sum(2), math.inf, math.inf).cpu()


def _without(total: Moments, fold: Moments) -> Moments:
    return Moments(
        total.count - fold.count,
        total.row_sum - fold.row_sum,
        total.target_sum - fold.target_sum,
        total.gram - fold.gram,
        total.cross - fold.cross,
    )


def _ridge(system: _System, path: Tensor, keep_factors: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """Weights [L, d, p], factors [L, d, d] or None, info [L] for one system and a path of absolute penalties."""
    (d, p), count, device, dtype = system.cross.shape, len(path), system.cross.device, system.dtype
    weights = torch.empty(count, d, p, dtype=dtype, device=device)
    factors = torch.empty(count, d, d, dtype=dtype, device=device) if keep_factors else None
    info = torch.empty(1, count, dtype=torch.int32, device=device)
    ops.ridge_solve(
        [system.gram.to(dtype)],
        [system.cross.to(dtype)],
        [path],
        [weights],
        [] if factors is None else [factors],
        info,
    )
    return weights, factors, info[0]


@dataclass(frozen=True)
class _Solution:
    """Weights [d, p] of one penalty, and a function's worth of factors to solve further right-hand sides with."""

    weights: Tensor
    penalty: float
    jitter: float
    rank: int
    dof: float
    condition: float
    route: str
    inverse_root: Tensor | None

    def apply_inverse(self, rhs: Tensor) -> Tensor:
        """(G + penalty I)^-1 rhs in float64."""
        if self.inverse_root is None:
            return torch.full_like(rhs, math.nan)
        return self.inverse_root.mT @ (self.inverse_root @ rhs)


def _solve_one(system: _System, penalty: float) -> _Solution:
    """Solve with one penalty: Cholesky, then (float64) with jitter, then by eigendecomposition with a rank cut."""
    diagonal = system.gram.diagonal()
    largest = float(diagonal.max())
    alive = diagonal > 0
    rank = min(int(alive.sum()), system.count - 1)  # centring takes one
    final = system.dtype == torch.float64
    if not math.isfinite(largest):
        if final:
            name = system.cell.layer.name
            raise SolveError(f"layer {name!r}: its Gram matrix overflows float64; scale the activations down")
        return _failed(system, penalty)
    jitters = (0.0, *(j * largest for j in _JITTERS)) if final and penalty > 0 else (0.0,)
    for jitter in jitters if penalty > 0 else ():
        path = torch.tensor([penalty + jitter], dtype=torch.float64, device=diagonal.device)
        weights, factors, info = _ridge(system, path, keep_factors=True)
        if int(info[0]) == 0 and factors is not None:
            root = factors[0].diagonal().double()
            eye = torch.eye(len(root), dtype=system.dtype, device=root.device)
            inverse_root = torch.linalg.solve_triangular(factors[0], eye, upper=False).double()
            dof = len(root) - (penalty + jitter) * float(inverse_root.square().sum())
            live = root[alive] if rank else root
            condition = float((live.max() / live.min()) ** 2)
            route = system.cell.route
            return _Solution(weights[0], penalty + jitter, jitter, rank, dof, condition, route, inverse_root)
    if not final:
        return _failed(system, penalty)
    return _eigen_solution(system, penalty)


def _failed(system: _System, penalty: float) -> _Solution:
    weights = torch.full_like(system.cross, math.nan)
    return _Solution(weights, penalty, 0.0, 0, math.nan, math.inf, system.cell.route, None)


def _eigen_solution(system: _System, penalty: float) -> _Solution:
    """Weights of least norm on the numerical range of the Gram matrix: where Cholesky fails, or penalty = 0."""
    symmetric = torch.tril(system.gram) + torch.tril(system.gram, -1).mT
    try:
        values, vectors = torch.linalg.eigh(symmetric)
    except RuntimeError as error:
        name = system.cell.layer.name
        raise SolveError(f"layer {name!r}: neither Cholesky nor the eigendecomposition succeeded: {error}") from error
    keep = values > len(values) * torch.finfo(torch.float64).eps * values[-1].clamp_min(0)
    kept, basis = values[keep], vectors[:, keep]
    inverse_root = (basis / (kept + penalty).sqrt()).mT
    weights = inverse_root.mT @ (inverse_root @ system.cross)
    dof = float((kept / (kept + penalty)).sum())
    condition = float((kept[-1] + penalty) / (kept[0] + penalty)) if len(kept) else 1.0
    route = f"{system.cell.route}-eigen"
    return _Solution(weights, penalty, 0.0, len(kept), dof, condition, route, inverse_root)


@dataclass(frozen=True)
class _Part:
    """One target's share of a decoder: its place among the targets and its weights [d, p] float64."""

    index: int
    block: TargetBlock
    alpha: float
    solution: _Solution
    weights: Tensor

    @property
    def columns(self) -> slice:
        return slice(self.block.start, self.block.stop)


def _gradient(cell: Activations, system: _System, expected: Tensor, mean: Tensor, weights: Tensor) -> Tensor:
    """A'(T - A W) [d, k] float64 of the centred fit rows themselves, for targets [n, k] of some mean, weights [d, k].

    Less penalty W it is the residual of the normal equations, zero for the exact W; (G + penalty I)^-1 of that is what
    W lacks, to first order (Higham, Accuracy and Stability of Numerical Algorithms, ch. 12: iterative refinement).
    """
    offset = mean - system.row_mean @ weights
    gradient = torch.zeros_like(weights)
    for start in range(0, len(cell.fit), _CHUNK):
        rows = cell.fit[start : start + _CHUNK].double()
        miss = expected[start : start + _CHUNK].double() - rows @ weights - offset
        gradient += rows.mT @ miss - torch.outer(system.row_mean, miss.sum(0))
    return gradient


def _refine(
    cell: Activations, system: _System, targets: TargetMatrix, part: _Part, fit: BlockFit, tolerance: float
) -> BlockFit:
    """Refine the part's weights in place where that pays, and certify them anew."""
    d, p = part.weights.shape
    # A step of refinement multiplies 4 n d p times, solving in float64 n d (d + 2 p).
    pays = system.dtype == torch.float64 or 2 * p < d
    allowed = _REFINE_ABOVE if system.dtype == torch.float64 else tolerance
    for _ in range(_REFINEMENTS):
        if not pays or not allowed < fit.error_estimate < math.inf:
            break
        expected, mean = targets.fit[:, part.columns], system.target_mean[part.columns]
        missing = _gradient(cell, system, expected, mean, part.weights) - part.solution.penalty * part.weights
        part.weights.add_(part.solution.apply_inverse(missing))
        fit = replace(_certify(cell, system, targets, [part])[0], route=part.solution.route + _REFINED)
    return fit


def _certify(cell: Activations, system: _System, targets: TargetMatrix, parts: Sequence[_Part]) -> list[BlockFit]:
    """Estimate what rounding did to the held-out squared error of random combinations of each part's columns."""
    probes = [targets.probes[part.index] for part in parts]
    wz = torch.cat([part.weights @ probe.directions for part, probe in zip(parts, probes, strict=True)], 1)
    mean = torch.cat(
        [system.target_mean[part.columns] @ probe.directions for part, probe in zip(parts, probes, strict=True)]
    )
    gradient = _gradient(cell, system, torch.cat([probe.fit for probe in probes], 1), mean, wz)
    pairs = zip(parts, gradient.chunk(len(parts), 1), wz.chunk(len(parts), 1), strict=True)
    residuals = [own - part.solution.penalty * own_wz for part, own, own_wz in pairs]
    correction = torch.cat([part.solution.apply_inverse(r) for part, r in zip(parts, residuals, strict=True)], 1)
    slacks = (wz * torch.cat(residuals, 1)).sum(0).abs().chunk(len(parts))
    expected = torch.cat([probe.heldout for probe in probes], 1)
    offset = mean - system.row_mean @ wz
    lost, kept = torch.zeros_like(wz[0]), torch.zeros_like(wz[0])
    for start in range(0, len(cell.heldout), _CHUNK):
        rows = cell.heldout[start : start + _CHUNK].double()
        miss = expected[start : start + _CHUNK] - rows @ wz - offset
        moved = rows @ correction - system.row_mean @ correction
        lost += (moved.square() - 2 * miss * moved).sum(0)
        kept += miss.square().sum(0)
    estimates = (lost.abs() / kept.clamp_min(torch.finfo(torch.float64).tiny)).chunk(len(parts))
    return [
        _block_fit(system, targets, part, float(estimate.max()), float(slack.mean()))
        for part, estimate, slack in zip(parts, estimates, slacks, strict=True)
    ]


def _block_fit(system: _System, targets: TargetMatrix, part: _Part, estimate: float, slack: float) -> BlockFit:
    """The record of a part; ``slack``: estimate of tr W'R for the residual R of its normal equations."""
    solution, deviation = part.solution, targets.deviation["fit"][part.index]
    explained = float((part.weights * system.cross[:, part.columns]).sum())
    # With G W = C - penalty W - R, the fit error is tr T'T - tr W'C - penalty tr W'W - tr W'R: no second pass over the
    # rows where R is small.
    fit_error = deviation - explained - solution.penalty * float(part.weights.square().sum())
    return BlockFit(
        block=part.block,
        alpha=part.alpha,
        penalty=solution.penalty,
        jitter=solution.jitter,
        rank=solution.rank,
        dof=solution.dof,
        condition=solution.condition,
        error_estimate=math.inf if math.isnan(estimate) else estimate,
        fit_error=fit_error if fit_error > _CANCELLED[system.dtype] * deviation + slack / _FIT_TOLERANCE else None,
        route=solution.route,
    )
