"""Moments become decoders, with the certificates of each solution."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from .. import ops
from ..algebra.certificates import Certificate, Part, certify, certify_target_free, check_of, exact_combinations
from ..algebra.dense import aligned_empty, converted_rows, empty, left_product
from ..algebra.systems import Penalties, PenaltyChoice, Solution, System, solve_cholesky, solve_eigen
from ..common.timeline import stage
from ..data.target_matrix import TargetMatrix
from ..types import Activations, BlockFit, Decoder, Statistics, TargetBlock

_REFINE_ABOVE = 1e-8  # error estimate of a float64 solution that a step of refinement still mends
_GAIN = 50  # by which a step of refinement in float32 makes errors smaller, in every other cell
_REFINED = "-refined"
_MISSES, _STRIP = 4096, 1024  # rows and columns whose misses are kept at a time


def solve(
    cell: Activations,
    statistics: Statistics,
    targets: TargetMatrix,
    penalties: Penalties,
    choice: PenaltyChoice,
    tolerance: float,
    eigen: bool = False,
) -> Callable[[], Decoder]:
    """The ridge decoder of one cell: each target, or each column, with its chosen penalty.

    Returns:
        What gives the decoder: it waits for a GPU, which has most of the work by then, and refines.

    Args:
        statistics: of ``cell``; the systems are solved in ``statistics.dtype``.
        tolerance: error estimate above which a float32 solution is refined: in float32, and where that does not do
            and is cheaper than solving in float64, in float64; the weights are float64 then.
        eigen: by eigendecomposition instead of Cholesky.

    Raises:
        SolveError: no factorisation succeeded (float64 only; in float32 the error estimate is infinite instead).
    """
    system = System(cell, statistics.total, statistics.dtype)
    path = penalties.listed(system)
    d, p = system.cross.shape
    weights = aligned_empty(d, p, system.dtype, system.cross.device)
    parts: list[Part] = []
    for index, columns in _shared_penalties(targets, choice):
        crosses = [system.cross[:, chosen] for _, chosen in columns]
        rhs = crosses[0] if len(crosses) == 1 else torch.cat(crosses, 1)
        penalty = path[index]
        factor = choice.factors.get(index)
        solution = solve_eigen(system, rhs, penalty) if eigen else solve_cholesky(system, rhs, penalty, factor)
        alpha = penalties.relative(system, index)
        shares = solution.weights.split([cross.shape[1] for cross in crosses], 1)
        for (i, chosen), share in zip(columns, shares, strict=True):
            weights[:, chosen] = share.to(system.dtype)
            parts.append(
                Part(i, targets.blocks[i], chosen, alpha, solution, weights[:, chosen], check_of(targets, i, chosen))
            )
    parts.sort(key=lambda part: part.index)  # the order of what is made of all targets once
    certified = certify(cell, system, targets, parts)
    return partial(_finished, cell, system, targets, parts, weights, certified, tolerance)


@stage("solutions")
def _finished(
    cell: Activations,
    system: System,
    targets: TargetMatrix,
    parts: Sequence[Part],
    weights: Tensor,
    certified: Callable[[], list[Certificate]],
    tolerance: float,
) -> Decoder:
    """The decoder of parts whose weights [d, p] are certified: refined where they are off by more than is tolerated."""
    certificates = certified()
    how = [_Refinement.of(part, system, tolerance) for part in parts]
    again = system.dtype != torch.float64  # float64 has nothing to be solved again in
    if again and any(not own.error_estimate < each.hopeless for own, each in zip(certificates, how, strict=True)):
        how = [replace(each, steps=()) for each in how]  # the whole cell needs float64
    fits = []
    for part, certificate, each in zip(parts, certificates, how, strict=True):
        fit, refined = _refine(cell, system, targets, part, certificate, each)
        fits.append(fit)
        if refined is not None:
            weights = weights.to(torch.promote_types(weights.dtype, refined.dtype))
            weights[:, part.columns] = refined.to(weights.dtype)
    offset = system.offset(weights)
    merged = []
    for i in range(len(targets.blocks)):
        own = [(fit, part) for fit, part in zip(fits, parts, strict=True) if part.index == i]
        merged.append(_merged([fit for fit, _ in own], [part.weights.shape[1] for _, part in own]))
    return Decoder(cell.layer, weights, offset.to(weights.dtype), tuple(merged))


def solve_target_free(
    cell: Activations,
    statistics: Statistics,
    targets: TargetMatrix,
    penalties: Penalties,
    choice: PenaltyChoice,
    tolerance: float,
) -> Iterator[tuple[Activations, Decoder]]:
    """Held-out predictions as combinations of the fit rows' targets, without cross moments or weights of the targets.

    The ridge prediction of a row b is the targets' mean plus h T with h = (b - mean)' (G + penalty I)^-1 (A - mean)'
    (the rows of the hat matrix): one system with the held-out rows as right-hand sides, however wide the targets are.

    Args:
        statistics: of ``cell``; its cross moments are not used.
        tolerance: error estimate above which float32 combinations are refined, where one step may do.

    Yields:
        For each penalty, the cell with the combinations h [m, n] as its held-out rows, and the targets as the decoder.
    """
    system = System(cell, statistics.total, statistics.dtype)
    path, dtype = penalties.listed(system), statistics.dtype
    rhs = (cell.heldout.double() - system.row_mean).mT
    columns_of_fit, offset = targets.fit.to(dtype), targets.mean.to(dtype)
    for index, columns in _shared_penalties(targets, choice):
        solution = solve_cholesky(system, rhs, path[index], choice.factors.get(index))
        weights = solution.weights.to(dtype)
        combinations = empty((len(cell.heldout), len(cell.fit)), dtype, weights.device)
        _combine(cell, system, weights, combinations.zero_())
        alpha = penalties.relative(system, index)
        given = [(cell, system, targets, i, solution) for i, _ in columns]
        exact = [exact_combinations(*arguments) for arguments in given]
        certificates = [certify_target_free(combinations, truth) for truth in exact]
        worst, route = max(one.error_estimate for one in certificates), f"{cell.route}-target-free"
        if dtype == torch.float32 and tolerance < worst < tolerance * _GAIN:
            _correct_combinations(cell, system, rhs, solution, weights, combinations)
            pairs = zip(given, exact, strict=True)
            exact = [exact_combinations(*arguments, weights=before.weights) for arguments, before in pairs]
            certificates, route = [certify_target_free(combinations, truth) for truth in exact], route + _REFINED
        fits = tuple(
            _block_fit(targets.blocks[i], solution, alpha, certificate, route)
            for (i, _), certificate in zip(columns, certificates, strict=True)
        )
        yield replace(cell, heldout=combinations), Decoder(cell.layer, columns_of_fit, offset, fits)


def _combine(cell: Activations, system: System, weights: Tensor, combinations: Tensor) -> None:
    """Add weights' (A - mean)' [m, n] of weights [d, m]."""
    shift = left_product(system.row_mean[None], weights).to(weights.dtype).mT
    for place, (rows,) in converted_rows([cell.fit], weights.dtype):
        combinations[:, place].addmm_(weights.mT, rows.mT).sub_(shift)


def _correct_combinations(
    cell: Activations, system: System, rhs: Tensor, solution: Solution, weights: Tensor, combinations: Tensor
) -> None:
    """A step of refinement of combinations [m, n], as in ``_corrected``; the weights [d, m] they are made of stay.

    What the combinations' products with the rows lack of the right-hand sides [d, m] is solved for.
    """
    for start in range(0, len(combinations), _STRIP):
        strip = slice(start, min(start + _STRIP, len(combinations)))
        own, some = weights[:, strip], combinations[strip]
        lacking = aligned_empty(len(own), own.shape[1], torch.float64, own.device).zero_()
        for place, (rows,) in converted_rows([cell.fit], own.dtype, most=_MISSES):
            ops.gram([rows], some[:, place].mT.contiguous(), [], [lacking])
        lacking.addr_(system.row_mean, some.sum(1, dtype=torch.float64), alpha=-1)
        lacking.neg_().add_(rhs[:, strip]).sub_(own, alpha=solution.penalty)
        _combine(cell, system, solution.apply_inverse(lacking).to(own.dtype), some)


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


@dataclass(frozen=True)
class _Refinement:
    """What may be done about the rounding of a part's weights.

    Attributes:
        steps: types of the products of each step.
        allowed: error estimate that needs none. hopeless: one that they cannot make small enough.
    """

    steps: tuple[torch.dtype, ...]
    allowed: float
    hopeless: float

    @classmethod
    def of(cls, part: Part, system: System, tolerance: float) -> _Refinement:
        """A step multiplies 4 n d p times, solving in float64 n d (d + 2 p), and these take twice as long."""
        d, p = part.weights.shape
        if system.dtype == torch.float64:
            return cls((torch.float64, torch.float64), _REFINE_ABOVE, math.inf)
        steps = (torch.float32, torch.float64) if 2 * p < d else (torch.float32,) if p <= 4 * d else ()
        return cls(steps, tolerance, tolerance * _GAIN ** len(steps))


def _refine(
    cell: Activations,
    system: System,
    targets: TargetMatrix,
    part: Part,
    certificate: Certificate,
    how: _Refinement,
) -> tuple[BlockFit, Tensor | None]:
    """The part's record, and its refined weights where it pays to refine them: then the record is of those."""
    route, refined = part.solution.route, None
    for dtype in how.steps:
        if not how.allowed < certificate.error_estimate < how.hopeless:
            break
        weights = _corrected(cell, system, targets, part, dtype)
        (found,) = certify(cell, system, targets, [replace(part, weights=weights)])()
        if not found.error_estimate < certificate.error_estimate:
            break
        refined, certificate, route = weights, found, part.solution.route + _REFINED
        part = replace(part, weights=refined)
    return _block_fit(part.block, part.solution, part.alpha, certificate, route), refined


def _corrected(cell: Activations, system: System, targets: TargetMatrix, part: Part, dtype: torch.dtype) -> Tensor:
    """Weights [d, c] in ``dtype`` after a step of refinement whose products are of that type.

    Misses come from the rows themselves, not from their Gram matrix, so that what rounding does to a miss moves
    predictions by no more than that (Bjorck, Linear Algebra Appl. 88/89, 1987: corrected semi-normal equations).
    ``certificates.gradient`` makes the same of few columns in float64.
    """
    d, p = part.weights.shape
    refined = aligned_empty(d, p, dtype, part.weights.device)
    for start in range(0, p, _STRIP):
        strip = slice(start, min(start + _STRIP, p))
        if isinstance(part.columns, slice):
            columns: slice | Tensor = slice(part.columns.start + strip.start, part.columns.start + strip.stop)
        else:
            columns = part.columns[strip]
        weights = part.weights[:, strip].to(dtype)
        offset = system.offset(weights, columns)
        missing = aligned_empty(d, weights.shape[1], torch.float64, weights.device).zero_()
        sums = torch.zeros_like(offset)
        for _, (rows, expected) in converted_rows([cell.fit, targets.fit[:, columns]], dtype, most=_MISSES):
            miss = (expected - offset.to(dtype)).addmm_(rows, weights, alpha=-1)
            sums += miss.sum(0, dtype=torch.float64)
            ops.gram([rows], miss, [], [missing])
        missing.addr_(system.row_mean, sums, alpha=-1).sub_(weights, alpha=part.solution.penalty)
        refined[:, strip] = part.solution.apply_inverse(missing).add_(weights)
    return refined


def _block_fit(block: TargetBlock, solution: Solution, alpha: float, certificate: Certificate, route: str) -> BlockFit:
    return BlockFit(
        block=block,
        alpha=alpha,
        penalty=solution.penalty,
        jitter=solution.jitter,
        rank=solution.facts.rank,
        dof=solution.facts.dof,
        condition=solution.facts.condition,
        error_estimate=certificate.error_estimate,
        fit_error=certificate.fit_error,
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
