"""What rounding did to a solution, measured on random combinations of its target columns, in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..common.fetching import later
from ..common.timeline import stage, staged
from ..data.target_matrix import Check, CheckColumns, TargetMatrix
from ..types import Activations, TargetBlock
from .dense import centred_left_product, centred_product, inner, product, wide_rows
from .systems import Solution, System

_UNSURE = 10  # times less than the condition is what a factor's diagonal says of it, as a rule
_FIT_FLOOR = 1e-3  # of the deviation: rounding of a fit error below that is told relative to that, not to nothing
# Relative error that the identity for the fit error may have, the second where another is estimated as large, and of
# rounded rows: these show what few combinations of rounded targets are off by, which is more than all columns are.
_FIT_TOLERANCES = 1e-5, 3e-4
_CHANCE = 3.0  # standard errors
_SIGNS, _SOME = 8, 1024  # random vectors of signs that a trace is estimated with, and rows, at most
# Mean squared error of rounding to bfloat16 over the mean square: numbers of a mantissa m in [1, 2), evenly spread on a
# logarithmic scale, are off by up to 2^-8, evenly spread too: 2^-16 / 3 over the mean of m^2.
_ROUNDED = 2.0**-16 / 3 * 2 * math.log(2) / 3


@dataclass(frozen=True)
class Part:
    """Columns of one target that share a penalty: their place among the targets and their weights [d, c]."""

    index: int
    block: TargetBlock
    columns: slice | Tensor
    alpha: float
    solution: Solution
    weights: Tensor
    check: Check

    @property
    def has_identity(self) -> bool:
        """Whether an identity tells the error on the fit rows: not of classes, nor of columns that are all measured."""
        return self.block.kind == "regression" and not self.check.exact


@dataclass(frozen=True)
class Certificate:
    """How far rounding moved the solution of one part.

    Attributes:
        error_estimate: relative error of the squared errors, held-out and fit, the larger; or what rounded rows are
            expected to do to the held-out one, where that is more.
        fit_error: squared error on the fit rows, or None where only a pass over them can tell it.
    """

    error_estimate: float
    fit_error: float | None


def check_of(targets: TargetMatrix, index: int, columns: slice | Tensor) -> Check:
    """The random combinations of a target's columns, or those of some of them."""
    check = targets.checks[index]
    if isinstance(columns, slice):
        return check
    directions = check.directions[columns - targets.blocks[index].start]
    if len(directions) <= directions.shape[1]:
        directions = torch.eye(len(directions), dtype=directions.dtype, device=directions.device)
    products = [product(matrix[:, columns], directions) for matrix in (targets.fit, targets.heldout)]
    return Check(directions, *products)


def gradient(
    cell: Activations, system: System, expected: Tensor, mean: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """A'(T - A W) [d, k] of the centred fit rows themselves, and the squares [k] of T - A W, float64.

    Less penalty W the first is the residual of the normal equations, zero for the exact W; (G + penalty I)^-1 of that
    is what W lacks, to first order (Higham, Accuracy and Stability of Numerical Algorithms, ch. 12: iterative
    refinement).

    Args:
        expected: targets [n, k] of some mean [k]. weights: [d, k].
    """
    columns = weights.mT.contiguous()  # few columns are multiplied faster as rows
    offset = (mean - columns @ system.row_mean)[:, None]
    total, squares, sums = torch.zeros_like(columns), torch.zeros_like(mean), torch.zeros_like(mean)
    for place, rows in wide_rows(cell.fit, len(columns)):
        miss = (expected[place].mT - offset).sub_(columns @ rows.mT)
        squares += miss.square().sum(1)
        sums += miss.sum(1)
        total.addmm_(miss, rows)
    return total.addr_(sums, system.row_mean, alpha=-1).mT, squares


@stage("certificates")
def certify(
    cell: Activations, system: System, targets: TargetMatrix, parts: Sequence[Part]
) -> Callable[[], list[Certificate]]:
    """Certificates of all parts of a cell, in one pass over its rows.

    Returns:
        What gives them: it waits for a GPU, which has all the work by then.
    """
    sizes = [part.check.directions.shape[1] for part in parts]
    wz = torch.cat([product(part.weights, part.check.directions) for part in parts], 1)
    whole = [part.index for part in parts if isinstance(part.columns, slice)]
    if whole == list(range(len(targets.checks))) and len(parts) == len(whole):
        own_columns = targets.check_columns  # made once
    else:
        means = [targets.mean[part.columns] for part in parts]
        own_columns = CheckColumns.of([part.check for part in parts], means)
    mean, deviation = own_columns.mean, own_columns.deviation
    found, missed = gradient(cell, system, own_columns.fit, mean, wz)
    places = list(zip(parts, _places(sizes), strict=True))
    corrections, losses = [], []
    for solution, own in _runs(places):
        residual = torch.sub(found[:, own], wz[:, own], alpha=solution.penalty)
        corrections.append(correction := solution.apply_inverse(residual))
        # What fit rows lose, without another pass: found = A'(T - A W), and (G + penalty I) correction = residual.
        change = residual.sub_(found[:, own], alpha=2).sub_(correction, alpha=solution.penalty)
        losses.append(change.mul_(correction).sum(0))
    both = torch.cat([wz, *corrections], 1)
    predicted, moved = centred_product(cell.heldout, system.row_mean, both).split(wz.shape[1], 1)
    lost, kept = _changed(own_columns.heldout - predicted, moved)
    blurred = [_blurred(cell, system, part.solution, wz[:, own], missed[own]) for part, own in places if cell.rounded]
    of_identities = [
        [*_identity(system, targets, part, wz[:, own])] if part.has_identity else [] for part, own in places
    ]
    solutions = list({id(part.solution): part.solution for part in parts}.values())
    asked = (lost, kept, *losses), (missed, deviation), blurred, *of_identities, [each.told for each in solutions]
    fetch = later(*itertools.chain(*asked))

    @np.errstate(all="ignore")  # a solution that has failed is told by its factor
    def read() -> list[Certificate]:
        answers = iter(fetch())
        (lost, kept, *losses), (missed, deviation), blurred, *known, told = (
            list(itertools.islice(answers, len(some))) for some in asked
        )
        for solution, facts in zip(solutions, told, strict=True):
            solution.learn(facts)
        lost_fit, scale = np.concatenate(losses), np.maximum(missed, _FIT_FLOOR * deviation)
        certificates = []
        for index, ((part, own), identity) in enumerate(zip(places, known, strict=True)):
            if not part.solution.facts.works:
                certificates.append(Certificate(math.inf, None))
                continue
            unsure = _unsure(part.solution, system.dtype)
            estimates = [unsure * _share(a[own], b[own], part.check) for a, b in ((lost, kept), (lost_fit, scale))]
            estimate = max(*estimates, float(blurred[index].sum() / kept[own].sum()) if cell.rounded else 0.0)
            if part.block.kind == "regression":  # classes are scored by their hits, row by row
                least, most = _FIT_TOLERANCES
                tolerance = most if cell.rounded else min(max(estimate, least), most)
                fit_error, doubt = _fit_error(part, identity, deviation[own], missed[own], tolerance)
                certificates.append(Certificate(max(estimate, doubt), fit_error))
            else:
                certificates.append(Certificate(estimate, None))
        return certificates

    return staged("certificates", read)


def _runs(places: Sequence[tuple[Part, slice]]) -> Iterator[tuple[Solution, slice]]:
    """Parts side by side that share a solution, together."""
    for _, some in itertools.groupby(places, key=lambda place: id(place[0].solution)):
        run = list(some)
        yield run[0][0].solution, slice(run[0][1].start, run[-1][1].stop)


@dataclass(frozen=True)
class ExactCombinations:
    """What the held-out rows' combinations of a target's fit rows are compared with, on its random combinations.

    Attributes:
        weights: [d, c], refined with float64 products. expected: of the held-out rows [m, c], less their mean.
        predicted: by the weights [m, c]. blurred: see ``_blurred`` [c].
    """

    solution: Solution
    check: Check
    weights: Tensor
    expected: Tensor
    predicted: Tensor
    blurred: Tensor


@stage("certificates")
def exact_combinations(
    cell: Activations,
    system: System,
    targets: TargetMatrix,
    index: int,
    solution: Solution,
    weights: Tensor | None = None,
) -> ExactCombinations:
    """What a target's random combinations are predicted as by the exact weights of a penalty's solution.

    Args:
        weights: [d, c], to refine once more.
    """
    check, block = targets.checks[index], targets.blocks[index]
    mean = targets.mean[block.start : block.stop] @ check.directions
    if weights is None:
        nothing = torch.zeros(cell.fit.shape[1], len(mean), dtype=torch.float64, device=mean.device)
        weights = solution.apply_inverse(gradient(cell, system, check.fit, mean, nothing)[0])
    found, missed = gradient(cell, system, check.fit, mean, weights)
    wz = weights + solution.apply_inverse(found - solution.penalty * weights)
    predicted = centred_product(cell.heldout, system.row_mean, wz)
    blurred = _blurred(cell, system, solution, wz, missed)
    return ExactCombinations(solution, check, wz, check.heldout - mean, predicted, blurred)


@stage("certificates")
def certify_target_free(combinations: Tensor, exact: ExactCombinations) -> Certificate:
    """The certificate of held-out rows' combinations [m, n] of a target's fit rows."""
    predicted = product(combinations, exact.check.fit)
    changes = _changed(exact.expected - predicted, exact.predicted - predicted)
    lost, kept, blurred = later(*changes, exact.blurred)()
    unsure = _unsure(exact.solution, exact.solution.weights.dtype)
    with np.errstate(all="ignore"):
        estimate = max(unsure * _share(lost, kept, exact.check), float(blurred.sum() / kept.sum()))
    return Certificate(estimate if exact.solution.facts.works else math.inf, None)


def _unsure(solution: Solution, dtype: torch.dtype) -> float:
    """How many times an estimate may be too small, as the factor that it was made with was rounded itself.

    To first order the condition times the rounding. The condition is told from below, and where it is beyond what the
    type can tell not at all: hence the square.
    """
    return (1 + _UNSURE * torch.finfo(dtype).eps * solution.facts.condition) ** 2


def _blurred(cell: Activations, system: System, solution: Solution, weights: Tensor, missed: Tensor) -> Tensor:
    """What rounding the stored rows is expected to do to the held-out squared errors [c] of weights [d, c].

    Each number is off on its own, so to first order what is off in predictions is a sum of three random ones: by
    held-out rows, by weights that fit rows move through what they predict, and through what they miss. Traces are
    estimated with random signs (Hutchinson 1990).

    Args:
        missed: squared errors on the fit rows [c].
    """
    if not cell.rounded:
        return torch.zeros_like(missed)
    sizes = system.moments.gram.diagonal()  # of the rows as they are stored
    if cell.route == "dual":  # coordinates of the rows have the weights' norms, but not the features' sizes
        sizes = (sizes.sum() / cell.layer.dim).expand(len(weights))
    variance = _ROUNDED / system.moments.count * sizes
    # Sums over all rows are those over some, far apart, times as many.
    fit, heldout = (split[:: max(-(-len(split) // _SOME), 1)] for split in (cell.fit, cell.heldout))
    rows, features = _signs(tuple(fit.shape), weights.dtype, weights.device)
    back = centred_left_product(rows, fit, system.row_mean)
    turned = solution.apply_inverse(torch.cat([back, features * variance.sqrt()]).mT)
    moved = centred_product(heldout, system.row_mean, turned)
    by_rows, by_misses = (
        part.square().sum() / _SIGNS * len(cell.heldout) / len(heldout) for part in moved.split(_SIGNS, 1)
    )
    by_predictions = len(cell.heldout) + by_rows * len(cell.fit) / len(fit)
    total: Tensor = (variance @ weights.square()) * by_predictions + missed * by_misses
    return total


@lru_cache(maxsize=8)
def _signs(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """[_SIGNS, size] of each size, the same for every checkpoint; kept, as a GPU would wait for each copy."""
    random = torch.Generator().manual_seed(0)
    drawn = (torch.randint(0, 2, (_SIGNS, size), generator=random, device="cpu") for size in sizes)
    return tuple(each.mul_(2).sub_(1).to(device, dtype) for each in drawn)


def _changed(miss: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
    """What squared errors of rows [m, c] lose as predictions move, and the errors themselves [c]."""
    return (move.square() - 2 * miss * move).sum(0), miss.square().sum(0)


def _places(sizes: Sequence[int]) -> list[slice]:
    return [slice(stop - size, stop) for size, stop in zip(sizes, itertools.accumulate(sizes), strict=True)]


def _identity(system: System, targets: TargetMatrix, part: Part, wz: Tensor) -> tuple[Tensor, Tensor]:
    """By an identity, the squared error on the fit rows, and what its combinations take of their deviations [c].

    With G W = C - penalty W that is tr T'T - tr W'C - penalty tr W'W: no second pass over the rows.

    Args:
        wz: the combinations' weights [d, c].
    """
    columns, penalty = part.columns, part.solution.penalty
    whole: float | Tensor = targets.squares[part.index]
    if not isinstance(columns, slice):
        whole = targets.fit[:, columns].double().var(0, correction=0).sum() * len(targets.fit)
    cross = system.cross[:, columns]
    combined = (part.check.directions.mT.contiguous() @ cross.mT).mT  # few columns are multiplied faster as rows
    taken = combined.add_(wz, alpha=penalty).mul_(wz).sum(0)
    return whole - inner(part.weights, cross, share=penalty), taken


def _fit_error(
    part: Part, identity: Sequence[np.ndarray], deviation: np.ndarray, missed: np.ndarray, tolerance: float
) -> tuple[float | None, float]:
    """The squared error on the fit rows and what it may be off by; None where that is too much.

    Of few columns it is what they were measured to have, of more what the identity leaves.

    What it is off by on the random combinations, if that is more than chance, as where sums are cut off, is taken out.

    Args:
        identity: of ``_identity``. deviation: of the combinations [c]. missed: their squared errors [c]. tolerance:
            relative.
    """
    if part.check.exact:
        return float(missed.sum()), 0.0
    error, taken = identity
    off = deviation - taken - missed
    bias, chance = float(off.mean()), math.sqrt(off.var(ddof=1) / len(off))
    bias = bias if abs(bias) > _CHANCE * chance else 0.0
    doubt = _share(off - bias, missed, part.check)
    return (float(error) - bias, doubt) if doubt <= tolerance else (None, 0.0)


def _share(errors: np.ndarray, totals: np.ndarray, check: Check) -> float:
    """Estimate of the error of a sum over all columns, relative to the sum, from those of a check's columns [c].

    Random combinations have it for their mean (Hutchinson 1990). The standard error of that mean is taken out of it,
    but it is never less: what the combinations cannot tell from nothing counts. Inf where there is no solution.
    """
    error, total = float(errors.sum()), max(float(totals.sum()), torch.finfo(torch.float64).tiny)
    if not check.exact:
        variance = len(errors) * float(errors.var(ddof=1))
        error = math.sqrt(max(error * error - variance, variance))
    share = abs(error) / total
    return share if math.isfinite(share) else math.inf
