"""Choosing penalties by generalised cross-validation: of all rows, from their moments and a few Cholesky factors."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..algebra.choosing import DOUBTFUL, FLOAT32_ALPHA, LEFT_OUT, LOOKED_AT, MISLED, TIE, checked, least_error
from ..algebra.scanning import Scan
from ..algebra.systems import Penalties, PenaltyChoice
from ..common.fetching import fetched
from ..data.target_matrix import TargetMatrix
from ..types import Activations, Statistics

_CLEAR = 0.1  # a slope in the logarithms that noise of a few strong directions has not: the error does fall


def select_by_gcv(
    cell: Activations,
    statistics: Statistics,
    targets: TargetMatrix,
    penalties: Penalties,
    start: PenaltyChoice | None = None,
    eigen: bool = False,
    float64_follows: bool = False,
) -> PenaltyChoice:
    """The penalty of least generalised cross-validation error, per target or per column.

    With dof degrees of freedom, the mean's among them, that is n |residuals|^2 / (n - dof)^2 (Golub, Heath & Wahba
    1979): no row is left out. Its slope tells on which side of a penalty the least error lies, so few of many are
    tried; of an error with several minima that is one of them. A penalty of zero that goes through all rows has none.
    Of stronger penalties with hardly more error the strongest is taken: it moves less where samples lie far out.
    Where leaving out some rows tells of a much larger error, as their leverages differ, penalties are compared by that.

    Args:
        statistics: of ``cell``. start: tried first; the middle one by default. If it is of the same cell, by less
            exact numbers, its traces need not be estimated where that has failed.
        eigen: all penalties from one eigendecomposition, instead of a Cholesky factor for each that is tried.
        float64_follows: whether a choice that is not reliable will be made again, in float64.

    Returns:
        The choice, with the factors of chosen penalties that it has left.
    """
    if not penalties.selects:
        return PenaltyChoice.first(targets)
    scan = Scan(cell, statistics, targets, penalties, exact=start is not None and start.exact)
    choice = _least(scan, targets, penalties, start, eigen, float64_follows)
    exact, best = scan.exact, _steadied(scan, torch.cat(choice.indices), penalties.stride)
    if scan.exact != exact:  # estimates do not do
        choice = _least(scan, targets, penalties, choice, eigen, float64_follows)
        best = _steadied(scan, torch.cat(choice.indices), penalties.stride)
    # Whether the precision could tell depends on the penalty of least error, not on a stronger one.
    choice = replace(choice, indices=tuple(best.split([len(own) for own in choice.indices])))
    ratios = scan.misled_at(best)
    if float64_follows and bool(ratios.isinf().any()):  # only float64 can tell
        choice = replace(choice, reliable=False)
    elif bool((misled := _misled(scan, best, ratios, penalties.stride)).any()):
        best, least, failed = _left_out(scan, best, misled, penalties.stride)
        choice = checked(best, least, failed or not choice.reliable, targets, penalties, statistics.dtype)
    scan.keep(set(best.tolist()))
    # Factors that were made at once lie in one piece of memory.
    factors = {index: own.clone() if scan.at_once else own for index, own in scan.factors.items()}
    return replace(choice, factors=factors, exact=scan.exact)


def _least(
    scan: Scan,
    targets: TargetMatrix,
    penalties: Penalties,
    start: PenaltyChoice | None,
    eigen: bool,
    float64_follows: bool,
) -> PenaltyChoice:
    """The penalty of least error; of an error with several minima, where few are tried, of one of them.

    Args: start, eigen, float64_follows: as for ``select_by_gcv``.
    """
    dtype = scan.system.dtype
    if eigen:
        errors = scan.eigen_errors()
        choice = least_error(errors, targets, penalties, dtype)
        # Whether a weak penalty is better, only its own error can tell.
        weak = torch.tensor(penalties.alphas, dtype=torch.float64, device="cpu") < FLOAT32_ALPHA
        return replace(choice, reliable=choice.reliable and bool((errors.isfinite().all(1) | weak).all()))
    if not scan.searched:
        return least_error(scan.all_errors(), targets, penalties, dtype)
    middle = torch.full((len(targets.blocks),), len(penalties.alphas) // 2, device="cpu")
    best, least, close = _searched(scan, middle if start is None else torch.cat(start.indices), penalties.stride)
    failed = bool((least.isinf() | scan.error((best - 1).clamp(min=0)).isinf()).any()) or _is_cut_off(scan, best)
    choice = checked(best, least, failed, targets, penalties, dtype)
    if float64_follows and not choice.reliable:  # which begins there: what was found farther away may be rounding
        return replace(choice, indices=tuple(close.split([len(own) for own in choice.indices])))
    return choice


def _is_cut_off(scan: Scan, best: Tensor) -> bool:
    """Whether an error falls beyond the weakest penalties that rounding lets a search see, though it rose before."""
    last = max((index for index in scan.tried if index <= scan.weakest), default=-1)
    known = scan.weakest > 0 and last >= 0
    return known and bool((scan.rises(torch.full_like(best, last)) & (best > last)).any())


def _steadied(scan: Scan, best: Tensor, stride: int) -> Tensor:
    """The strongest penalty [u] up to which no error is more than ``TIE`` above that of the best ones [u].

    As far as those that are made tell: they are a decade apart at first, then halfway between.

    Args:
        stride: how many penalties make a decade, a power of two.
    """
    last, limit = len(scan.path) - 1, scan.error(best) * (1 + TIE)
    low, high = best, torch.where(limit.isfinite(), last + 1, best + 1)  # the strongest that does, the weakest not to
    while True:
        tried, errors = scan.known()
        high = torch.where((tried > low) & (errors > limit), tried, high).amin(0).minimum(high)
        low = torch.where((tried > low) & (tried < high), tried, low).amax(0)
        if not scan.all_made:
            scan.keep(low.tolist())
        between = high - low > 1
        if not bool(between.any()):
            return low
        ahead = torch.where(between, torch.where(high > last, (low + stride).clamp(max=last), (low + high) // 2), low)
        # Above the least one errors rise ever faster, as a rule: where the slope leads too far, none need be made.
        beyond = between & (scan.error(low) * scan.grows(low, ahead) > limit)
        high = torch.where(beyond, ahead, high)
        scan.make(ahead[between & ~beyond].unique().tolist(), slopes=False)


def _misled(scan: Scan, chosen: Tensor, ratios: Tensor, stride: int) -> Tensor:
    """Which penalties [u] are to be compared by rows that are left out: bool.

    Those whose rows miss much more than their error says, and those whose rows miss some more and, with a penalty that
    is half a decade stronger, or the next one, less: an error that misleads says that too weak ones are good.

    Args:
        ratios: [u] of the errors of rows left out with the chosen penalties. stride: how many make a decade.
    """
    found, doubtful = ratios > MISLED, (ratios > DOUBTFUL) & (ratios <= MISLED)
    here, last = scan.error(chosen) * ratios, len(scan.path) - 1
    for index in chosen[doubtful & (chosen < last)].unique().tolist():
        ahead = min(index + max(stride // 2, 1), last)
        scan.make([ahead], slopes=False)
        there = scan.error(torch.full_like(chosen, ahead)) * fetched(scan.misled_by(ahead, LOOKED_AT))[0]
        if not scan.all_made:
            scan.keep(set(chosen.tolist()))
        found |= doubtful & (chosen == index) & (there < here)
    return found


def _left_out(scan: Scan, first: Tensor, misled: Tensor, stride: int) -> tuple[Tensor, Tensor, bool]:
    """The penalty [u] of least leave-one-out error, that error, and whether that of a weaker one is unknown.

    Of the next weaker one, and of all from the first on: theirs may be less.

    Args:
        first: [u], chosen by an error that misleads some. misled: [u], those; the others keep it. stride: how many make
            a decade.
    """
    best, least, start = first, torch.where(misled, math.inf, scan.error(first)), int(first[misled].min())
    unknown: list[int] = []
    for indices in range(start, len(scan.path)), range(start - 1, -1, -1):
        for index in indices:
            scan.make([index], slopes=False)
            error = scan.error(torch.full_like(first, index)) * fetched(scan.misled_by(index, LEFT_OUT))[0]
            better = misled & ((error < least) | ((error == least) & error.isfinite() & (index > best)))
            best, least = torch.where(better, index, best), torch.where(better, error, least)
            unknown += [index] * (not bool(error[misled].isfinite().all()))
            if not scan.all_made:
                scan.keep(best.tolist())
                if int((best - index)[misled].abs().min()) >= 2 * stride:  # it has risen for two decades
                    break
    weaker = (
        range(min(begin, end - 1), end)
        for begin, end in zip(first[misled].tolist(), best[misled].tolist(), strict=True)
    )
    return best, least, any(index in unknown for indices in weaker for index in indices)


def _searched(scan: Scan, first: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each target, the penalty [u] of least error among those compared, that error, and the minimum close to first.

    Args:
        first: [u], tried first. stride: how many make a decade, a power of two.
    """
    exact, searching = scan.exact, torch.ones_like(first, dtype=torch.bool)
    best, least, close = first, torch.full_like(first, math.inf, dtype=torch.float64), None
    while bool(searching.any()):
        found, error = _bracketed(scan, first, searching, stride)
        best, least = torch.where(searching, found, best), torch.where(searching, error, least)
        close = best if close is None else close
        first = _beyond(scan, best, stride) if scan.exact == exact else best
        searching = first != best
        if scan.exact != exact:
            return _searched(scan, best, stride)
    return best, least, best if close is None else close


def _beyond(scan: Scan, best: Tensor, stride: int) -> Tensor:
    """Penalties [u] of less error than the best ones [u], which may lie on plateaus; these where there are none.

    One that was tried for another target, or a weaker one. Between the eigenvalues of a few strong directions and those
    of the others, and above all of them, errors hardly change with the penalty, so their slopes lead nowhere: weaker
    ones are tried until errors clearly fall with it.
    """
    tried, errors = scan.known()
    errors = torch.where(tried < scan.weakest, math.inf, errors)
    found = torch.where(errors.amin(0) < scan.error(best), tried[errors.argmin(0), 0], best).tolist()
    for unit, first in enumerate(best.tolist()):
        at, far = first, stride
        if found[unit] != first:
            continue
        while at > scan.weakest and scan.slope(at, unit) > -_CLEAR:
            known = [index for index in scan.tried if max(at - far, scan.weakest) <= index < at]
            at, far = (max(known), far) if known else (max(at - far, scan.weakest), 2 * stride)
            scan.make([at])
            if first not in scan.tried:
                return best
            if scan.error_of(at, unit) < scan.error_of(first, unit):
                found[unit] = at
                break
            scan.keep({*best.tolist(), *found})
    return torch.tensor(found, device="cpu")


def _bracketed(scan: Scan, first: Tensor, searching: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """As ``_searched``, of an error with one minimum. Args: searching: [u], of which targets; of others the first."""
    # Of each target, the strongest penalty known to be too weak and the weakest known to be too strong. The least error
    # is close to the first penalty, as a rule: it is looked for at distances that double, then by halves.
    exact, last = scan.exact, len(scan.path) - 1
    low, high = torch.where(searching, -1, first), torch.where(searching, last + 1, first + 1)
    ahead, beside = first, first + stride
    best, least = first, torch.full_like(first, math.inf, dtype=torch.float64)
    compared = set[int]()
    while bool((searching := high - low > 1).any()):
        scan.make(ahead[searching].unique().tolist(), beside[searching].clamp(0, last).tolist())
        if scan.exact != exact:  # what was known is forgotten
            return best, least
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
