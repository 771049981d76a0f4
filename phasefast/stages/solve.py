"""Moments become decoders, with the certificates of each solution."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..systems import Penalties, Solution, System, centre, solve_cholesky, solve_eigen
from ..types import Activations, BlockFit, Decoder, PenaltyChoice, Probe, Statistics, TargetBlock, TargetMatrix

_CHUNK = 1024
_REFINE_ABOVE = 1e-8  # error estimate of a float64 solution that a step of refinement still mends
_REFINEMENTS, _REFINED = 2, "-refined"
# Below this share of the deviation the identity for the fit error cancels too many digits of the statistics.
_CANCELLED = {torch.float32: 5e-2, torch.float64: 1e-8}
_FIT_TOLERANCE = 2e-6


@dataclass(frozen=True)
class _Part:
    """Columns of one target that share a penalty: their place among the targets and their weights [d, c] float64."""

    index: int
    block: TargetBlock
    columns: slice | Tensor
    alpha: float
    solution: Solution
    weights: Tensor
    probe: Probe


def solve(
    cell: Activations,
    statistics: Statistics,
    targets: TargetMatrix,
    penalties: Penalties,
    choice: PenaltyChoice,
    tolerance: float,
    eigen: bool = False,
) -> Decoder:
    """The ridge decoder of one cell: each target, or each column, with its chosen penalty.

    Args:
        statistics: of ``cell``; the systems are solved in ``statistics.dtype``.
        tolerance: error estimate above which a float32 solution is refined in float64, where that is cheaper than
            solving in float64; the weights are float64 then.
        eigen: by eigendecomposition instead of Cholesky.

    Raises:
        SolveError: no factorisation succeeded (float64 only; in float32 the error estimate is infinite instead).
    """
    system = centre(cell, statistics.total, statistics.dtype)
    path = penalties.absolute(system)
    weights = torch.empty_like(system.cross)
    parts: list[_Part] = []
    for index, columns in _shared_penalties(targets, choice):
        crosses = [system.cross[:, chosen] for _, chosen in columns]
        together = replace(system, cross=crosses[0] if len(crosses) == 1 else torch.cat(crosses, 1))
        solution = (solve_eigen if eigen else solve_cholesky)(together, float(path[index]))
        alpha = penalties.relative(system, index)
        shares = solution.weights.split([cross.shape[1] for cross in crosses], 1)
        for (i, chosen), share in zip(columns, shares, strict=True):
            own = weights[:, chosen].copy_(share)  # a view of the weights where the columns are a slice
            parts.append(_Part(i, targets.blocks[i], chosen, alpha, solution, own, _probe(targets, i, chosen)))
    fits = _certify(cell, system, targets, parts)
    fits = [_refine(cell, system, targets, part, fit, tolerance) for part, fit in zip(parts, fits, strict=True)]
    for part in parts:
        if isinstance(part.columns, Tensor):
            weights[:, part.columns] = part.weights
    offset = system.target_mean - system.row_mean @ weights
    refined = any(fit.route.endswith(_REFINED) for fit in fits)
    dtype = torch.float64 if refined else statistics.dtype
    merged = []
    for i in range(len(targets.blocks)):
        own_fits = [(fit, part) for fit, part in zip(fits, parts, strict=True) if part.index == i]
        merged.append(_merged([fit for fit, _ in own_fits], [part.weights.shape[1] for _, part in own_fits]))
    return Decoder(cell.layer, weights.to(dtype), offset.to(dtype), tuple(merged))


def solve_target_free(
    cell: Activations, statistics: Statistics, targets: TargetMatrix, penalties: Penalties, choice: PenaltyChoice
) -> Iterator[tuple[Activations, Decoder]]:
    """Held-out predictions as combinations of the fit rows' targets, without cross moments or weights of the targets.

    The ridge prediction of a row b is the targets' mean plus h T with h = (b - mean)' (G + penalty I)^-1 (A - mean)'
    (the rows of the hat matrix): one system with the held-out rows as right-hand sides, however wide the targets are.

    Args:
        statistics: of ``cell``; its cross moments are not used.

    Yields:
        For each penalty, the cell with the combinations h [m, n] as its held-out rows, and the targets as the decoder.
    """
    system = centre(cell, statistics.total, statistics.dtype)
    path, dtype = penalties.absolute(system), statistics.dtype
    system = replace(system, cross=(cell.heldout.double() - system.row_mean).mT)
    columns_of_fit, target_mean = targets.fit.to(dtype), targets.sums.sum(0) / len(targets.fit)
    for index, columns in _shared_penalties(targets, choice):
        solution = solve_cholesky(system, float(path[index]))
        weights = solution.weights.to(dtype)
        shift = (system.row_mean @ weights.double()).to(dtype)[:, None]
        combinations = torch.empty(len(cell.heldout), len(cell.fit), dtype=dtype, device=weights.device)
        for start in range(0, len(cell.fit), _CHUNK):
            rows = cell.fit[start : start + _CHUNK].to(dtype)
            torch.sub(weights.mT @ rows.mT, shift, out=combinations[:, start : start + len(rows)])
        alpha = penalties.relative(system, index)
        free = replace(cell, heldout=combinations)
        fits = []
        for i, _ in columns:
            estimate = _estimate_target_free(cell, system, targets, i, target_mean, solution, combinations)
            fits.append(_block_fit(targets.blocks[i], solution, alpha, estimate, None, f"{cell.route}-target-free"))
        yield free, Decoder(cell.layer, columns_of_fit, target_mean.to(dtype), tuple(fits))


def _shared_penalties(
    targets: TargetMatrix, choice: PenaltyChoice
) -> Iterator[tuple[int, list[tuple[int, slice | Tensor]]]]:
    """Each chosen penalty with the (target, columns) that it was chosen for; a target's own columns are a slice."""
    for index in torch.cat(choice.indices).unique().tolist():
        columns: list[tuple[int, slice | Tensor]] = []
        for i, (block, chosen) in enumerate(zip(targets.blocks, choice.indices, strict=True)):
            own = (chosen == index).nonzero()[:, 0]
            if len(own) == len(chosen):
                columns.append((i, slice(block.start, block.stop)))
            elif len(own):
                columns.append((i, (block.start + own).to(targets.fit.device)))
        yield index, columns


def _probe(targets: TargetMatrix, index: int, columns: slice | Tensor) -> Probe:
    """The random combinations of a target's columns, or those of some of them."""
    probe = targets.probes[index]
    if isinstance(columns, slice):
        return probe
    directions = probe.directions[columns - targets.blocks[index].start]
    products = [
        torch.cat([rows[:, columns].double() @ directions for rows in matrix.split(_CHUNK)])
        for matrix in (targets.fit, targets.heldout)
    ]
    return Probe(directions, *products)


def _gradient(cell: Activations, system: System, expected: Tensor, mean: Tensor, weights: Tensor) -> Tensor:
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
    cell: Activations, system: System, targets: TargetMatrix, part: _Part, fit: BlockFit, tolerance: float
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


def _certify(cell: Activations, system: System, targets: TargetMatrix, parts: Sequence[_Part]) -> list[BlockFit]:
    """Estimate what rounding did to the held-out squared error of random combinations of each part's columns."""
    wz = torch.cat([part.weights @ part.probe.directions for part in parts], 1)
    mean = torch.cat([system.target_mean[part.columns] @ part.probe.directions for part in parts])
    gradient = _gradient(cell, system, torch.cat([part.probe.fit for part in parts], 1), mean, wz)
    triples = zip(parts, gradient.chunk(len(parts), 1), wz.chunk(len(parts), 1), strict=True)
    residuals = [own - part.solution.penalty * own_wz for part, own, own_wz in triples]
    correction = torch.cat([part.solution.apply_inverse(r) for part, r in zip(parts, residuals, strict=True)], 1)
    slacks = (wz * torch.cat(residuals, 1)).sum(0).abs().chunk(len(parts))
    expected = torch.cat([part.probe.heldout for part in parts], 1)
    offset = mean - system.row_mean @ wz
    lost, kept = torch.zeros_like(wz[0]), torch.zeros_like(wz[0])
    for start in range(0, len(cell.heldout), _CHUNK):
        rows = cell.heldout[start : start + _CHUNK].double()
        miss = expected[start : start + _CHUNK] - rows @ wz - offset
        moved = rows @ correction - system.row_mean @ correction
        lost += (moved.square() - 2 * miss * moved).sum(0)
        kept += miss.square().sum(0)
    estimates = _share(lost, kept).chunk(len(parts))
    return [
        _part_fit(system, targets, part, float(estimate.max()), float(slack.mean()))
        for part, estimate, slack in zip(parts, estimates, slacks, strict=True)
    ]


def _estimate_target_free(
    cell: Activations,
    system: System,
    targets: TargetMatrix,
    index: int,
    target_mean: Tensor,
    solution: Solution,
    combinations: Tensor,
) -> float:
    """What rounding did to the held-out squared error of random combinations of a target's columns."""
    probe, block = targets.probes[index], targets.blocks[index]
    mean = target_mean[block.start : block.stop] @ probe.directions
    nothing = torch.zeros(cell.fit.shape[1], len(mean), dtype=torch.float64, device=mean.device)
    wz = solution.apply_inverse(_gradient(cell, system, probe.fit, mean, nothing))
    wz += solution.apply_inverse(_gradient(cell, system, probe.fit, mean, wz) - solution.penalty * wz)
    lost, kept = torch.zeros_like(mean), torch.zeros_like(mean)
    for start in range(0, len(cell.heldout), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        predicted = combinations[chunk].double() @ probe.fit
        miss = probe.heldout[chunk] - mean - predicted
        moved = (cell.heldout[chunk].double() - system.row_mean) @ wz - predicted
        lost += (moved.square() - 2 * miss * moved).sum(0)
        kept += miss.square().sum(0)
    return float(_share(lost, kept).max())


def _share(lost: Tensor, kept: Tensor) -> Tensor:
    return lost.abs() / kept.clamp_min(torch.finfo(torch.float64).tiny)


def _part_fit(system: System, targets: TargetMatrix, part: _Part, estimate: float, slack: float) -> BlockFit:
    """The record of a part; ``slack``: estimate of tr W'R for the residual R of its normal equations."""
    if isinstance(part.columns, slice):
        deviation = targets.deviation["fit"][part.index]
    else:
        deviation = float(targets.fit[:, part.columns].double().var(0, correction=0).sum() * len(targets.fit))
    explained = float((part.weights * system.cross[:, part.columns]).sum())
    # With G W = C - penalty W - R, the fit error is tr T'T - tr W'C - penalty tr W'W - tr W'R: no second pass over the
    # rows where R is small.
    fit_error = deviation - explained - part.solution.penalty * float(part.weights.square().sum())
    trusted = fit_error > _CANCELLED[system.dtype] * deviation + slack / _FIT_TOLERANCE
    return _block_fit(
        part.block, part.solution, part.alpha, estimate, fit_error if trusted else None, part.solution.route
    )


def _block_fit(
    block: TargetBlock, solution: Solution, alpha: float, estimate: float, fit_error: float | None, route: str
) -> BlockFit:
    return BlockFit(
        block=block,
        alpha=alpha,
        penalty=solution.penalty,
        jitter=solution.jitter,
        rank=solution.rank,
        dof=solution.dof,
        condition=solution.condition,
        error_estimate=math.inf if math.isnan(estimate) else estimate,
        fit_error=fit_error,
        route=route,
    )


def _merged(fits: Sequence[BlockFit], widths: Sequence[int]) -> BlockFit:
    """One record of a target whose columns have different penalties: their means, the worst of the rest."""
    if len(fits) == 1:
        return fits[0]
    share = [width / sum(widths) for width in widths]

    def geometric(values: list[float]) -> float:
        if min(values) <= 0:
            return 0.0
        return math.exp(sum(weight * math.log(value) for weight, value in zip(share, values, strict=True)))

    errors = [fit.fit_error for fit in fits if fit.fit_error is not None]
    return BlockFit(
        block=fits[0].block,
        alpha=geometric([fit.alpha for fit in fits]),
        penalty=geometric([fit.penalty for fit in fits]),
        jitter=max(fit.jitter for fit in fits),
        rank=min(fit.rank for fit in fits),
        dof=sum(weight * fit.dof for weight, fit in zip(share, fits, strict=True)),
        condition=max(fit.condition for fit in fits),
        error_estimate=max(fit.error_estimate for fit in fits),
        fit_error=sum(errors) if len(errors) == len(fits) else None,
        route=max((fit.route for fit in fits), key=len),
    )
