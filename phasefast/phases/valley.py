"""What a loss curve is made of: its valley, and its scatter between steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .. import ops

# Two times, by calibration: of white noise, 13 steps seldom scatter so much more than all. More steps tell less of one.
_AROUND, _MORE = 6, 2.0
_MEDIAN = 0.6745  # standard deviations that half the values of white noise lie within
_TIE = 1e-12  # of the deviation of a curve, or of its square


@dataclass(frozen=True)
class Valleys:
    """The least-squares fits of curves [R, K] that fall, then rise.

    Attributes:
        splits: [R] the last step of the fall. residuals: [R] squared errors. minima: [R] the smallest value among those
            steps that the fit pools into its lowest level.
    """

    splits: np.ndarray
    residuals: np.ndarray
    minima: np.ndarray
    _means: np.ndarray
    _falling: _Pools
    _rising: _Pools

    def gains(self, row: int, split: int | None = None) -> dict[str, float]:
        """What the squared error of one curve is larger by without its decrease, and without its increase.

        Args:
            split: the last step of the fall; that of the best fit by default.
        """
        split = int(self.splits[row]) if split is None else split
        after = self._falling.errors.shape[1] - 2 - split
        residual = self._falling.errors[row, split] + (self._rising.errors[row, after] if after >= 0 else 0.0)
        without = {"decrease": self._rising, "increase": self._falling}
        return {kind: float(pools.errors[row, -1] - residual) for kind, pools in without.items()}

    def fit(self, row: int, split: int | None = None) -> np.ndarray:
        """The fit [K] of one curve; ``split`` as for ``gains``."""
        split = int(self.splits[row]) if split is None else split
        left, right = self._falling.fit(row, split), self._rising.fit(row, len(self._rising.errors[row]) - 2 - split)
        return np.asarray(np.concatenate([left, right[::-1]]) + self._means[row])


def valleys(curves: np.ndarray) -> Valleys:
    """The valley fits of curves [R, K]."""
    size, means = curves.shape[1], curves.mean(axis=1)
    curves = curves - means[:, None]
    falling, rising = _pools(-curves), _pools(-curves[:, ::-1])  # a rise from a step on is a fall up to it, backwards
    errors = falling.errors.copy()
    errors[:, :-1] += rising.errors[:, -2::-1]
    # What differs by rounding alone is the same, so that of equal steps it is always the first that counts.
    deviation = (curves**2).sum(axis=1, keepdims=True)
    row, splits = (
        np.arange(len(curves)),
        (errors <= errors.min(axis=1, keepdims=True) + _TIE * deviation).argmax(axis=1),
    )
    after = size - 2 - splits  # the rest, backwards; -1 where there is none
    left, right = -falling.levels[row, splits], np.where(after < 0, np.inf, -rising.levels[row, after])
    tie = _TIE * np.sqrt(deviation[:, 0])
    first = np.where(left <= right + tie, falling.starts[row, splits], splits + 1)
    last = np.where(right <= left + tie, size - 1 - rising.starts[row, after], splits)
    steps = np.arange(size)
    bottom = (steps >= first[:, None]) & (steps <= last[:, None])
    minima = np.where(bottom, curves, np.inf).argmin(axis=1)
    return Valleys(splits, errors[row, splits], minima, means, falling, rising)


@dataclass(frozen=True)
class _Pools:
    """Isotonic regressions of the first 1, 2, ... values of curves [R, K], in which each level is larger than the last.

    Attributes, all [R, K]:
        errors: squared errors of the regression of the values up to there. starts, levels: where its last level begins,
            and its value.
    """

    errors: np.ndarray
    starts: np.ndarray
    levels: np.ndarray

    def fit(self, row: int, last: int) -> np.ndarray:
        """The negative regression [last + 1] of the values up to ``last``: its levels, from the last one back."""
        out = np.empty(last + 1)
        while last >= 0:
            start = int(self.starts[row, last])
            out[start : last + 1] = -self.levels[row, last]
            last = start - 1  # what lies before a level is the regression of those values alone
        return out


def _pools(curves: np.ndarray) -> _Pools:
    """Regressions of all beginnings of centred curves, by pooling adjacent violators once (Stout 2008)."""
    rows, size = curves.shape
    errors, levels = np.zeros((2, rows, size))
    starts = np.zeros((rows, size), dtype=np.int64)
    slack = _TIE * np.sqrt((curves**2).sum(axis=1))
    (ops.function("pools") or _pool)(np.ascontiguousarray(curves), slack, errors, starts, levels)
    return _Pools(errors, starts, levels)


def _pool(curves: np.ndarray, slack: np.ndarray, errors: np.ndarray, starts: np.ndarray, levels: np.ndarray) -> None:
    """What csrc/pools.h does, where it is not compiled."""
    rows, size = curves.shape
    before = np.zeros(rows)  # the error of all but the last level
    for i in range(size):
        level, start, own = curves[:, i].copy(), np.full(rows, i), np.zeros(rows)
        before = errors[:, i - 1].copy() if i else before
        active = np.arange(rows if i else 0)
        while True:
            active = active[start[active] > 0]
            place = start[active] - 1
            lower = levels[active, place] >= level[active] - slack[active]
            active, place = active[lower], place[lower]
            if not len(active):
                break
            other, begin = levels[active, place], starts[active, place]
            outside = np.where(begin > 0, errors[active, begin - 1], 0.0)
            count, more = i + 1 - start[active], start[active] - begin
            gap = other - level[active]
            own[active] += errors[active, place] - outside + count * more / (count + more) * gap**2
            level[active] += gap * (more / (count + more))
            start[active], before[active] = begin, outside
        levels[:, i], starts[:, i], errors[:, i] = level, start, before + own


def order_test(curve: np.ndarray, permutations: int, rng: np.random.Generator) -> float:
    """Twice (Bonferroni) the smaller p-value of being a better valley and of being smoother than in random order."""
    curves = np.concatenate([curve[None], rng.permuted(np.tile(curve, (permutations, 1)), axis=1)])
    residual = valleys(curves).residuals
    rough = (np.diff(curves, axis=1) ** 2).sum(axis=1)
    slack = 1e-9 * ((curve - curve.mean()) ** 2).sum()  # a permutation that ties with the curve counts against it
    p = min((values <= values[0] + slack).mean() for values in (residual, rough))
    return min(1.0, 2 * float(p))


def step_noise(curve: np.ndarray, fit: np.ndarray, few: int) -> tuple[float, float]:
    """Standard deviation of what neighbouring steps scatter: without the curvature of the curve, and with it.

    Fewer steps than ``few`` tell only what no valley explains. Second differences take the curvature of a steep
    curve for scatter, third ones less of it; but these are few, so that what the valley leaves unexplained counts too.
    """
    free = len(curve) - len(np.unique(fit))  # a fitted level costs one degree of freedom
    unexplained = float(np.sqrt(((curve - fit) ** 2).sum() / max(free, 1)))
    if len(curve) < max(few, 4):  # the shortest curve with a third difference
        return unexplained, unexplained
    # Per order, the median absolute difference of white noise is that of its values times the root of the sum of
    # squared binomials.
    middle = {k: float(np.median(np.abs(np.diff(curve, k)))) for k in (2, 3)}
    second, third = (value / (_MEDIAN * math.sqrt(math.comb(2 * k, k))) for k, value in middle.items())
    # Residuals that change their sign often are scatter, even if correlated, which differences hardly see; else a hump.
    sides = np.sign(curve - fit)[np.abs(curve - fit) > _TIE * np.ptp(curve)]
    if 4 * np.count_nonzero(np.diff(sides)) >= len(curve) - 1:
        return max(min(second, third), unexplained), second
    return min(second, max(third, unexplained)), second


def noise_around(place: int, curve: np.ndarray, fit: np.ndarray, few: int) -> tuple[float, float]:
    """Like :func:`step_noise`; of the steps around an index alone, where these scatter much more than all do.

    Scatter dwindles as a training converges: most steps may tell little of what the lowest one is low by.
    """
    noise, rough = step_noise(curve, fit, few)
    start = max(0, min(place, len(curve) - 1 - _AROUND) - _AROUND)  # at an end as many steps, of its one side
    near = slice(start, start + 2 * _AROUND + 1)
    own = step_noise(curve[near], fit[near], few)[0]
    return (own, max(own, rough)) if own > _MORE * noise else (noise, rough)


def odd_steps(curve: np.ndarray, deviations: float, least: np.ndarray, few: int) -> list[int]:
    """Single inner steps far above both sides, such as the checkpoint of a training that diverged and came back.

    A valley falls, then rises, so that none is part of its shape. At most a fifth of the steps, and ``few`` stay; of
    neighbours one at most, which else would be the flank of a hump.

    Args:
        deviations: how far, in standard deviations of what the other steps scatter, and
        least: [K] at least, at each step.
    """
    kept, odd = np.arange(len(curve)), list[int]()
    while len(kept) > max(few, len(curve) - len(curve) // 5):
        loss = curve[kept]
        above = _above_both_sides(loss)
        beside = np.isin(kept[1:-1], [step + side for step in odd for side in (-1, 1)])
        above[beside | (above <= least[kept[1:-1]])] = -np.inf
        place = int(above.argmax()) + 1
        others = np.delete(loss, place)
        noise, _ = step_noise(others, valleys(others[None]).fit(0), few)
        if above[place - 1] <= deviations * noise:
            break
        odd.append(int(kept[place]))
        kept = np.delete(kept, place)
    return sorted(odd)


def _above_both_sides(curve: np.ndarray) -> np.ndarray:
    """How far inner steps [K - 2] lie above their neighbours, and above where straight lines from both sides lead."""
    left, right = curve[:-2], curve[2:]
    leads = np.full((2, len(left)), -np.inf)
    leads[0, 1:], leads[1, :-1] = 2 * left[1:] - left[:-1], 2 * right[:-1] - right[1:]
    above: np.ndarray = curve[1:-1] - np.maximum(np.maximum(left, right), leads.max(axis=0))
    return above


def apart_together(curve: np.ndarray, deviations: float) -> tuple[int, float]:
    """The first of two neighbours that lie farthest from the median, on one side of it, and how far the nearer one.

    0 where they lie within so many standard deviations of what most steps scatter, or most of those around the hump, by
    the median distance from it, or within twice what any step is on the other side: then some scatter more than others.
    """
    away = curve - np.median(curve)
    one, next_one = away[:-1], away[1:]
    pairs = np.where(one * next_one > 0, np.minimum(np.abs(one), np.abs(next_one)), 0.0)
    place = int(pairs.argmax())
    side = float(np.sign(one[place]))
    outside = np.flatnonzero(side * away <= pairs[place] / 2)
    first, last = outside[outside < place].max(initial=-1) + 1, outside[outside > place].min(initial=len(away))
    around = np.concatenate([away[max(0, first - _AROUND) : first], away[last : last + _AROUND]])
    most = max(float(np.median(np.abs(each))) for each in (away, around) if len(each))
    scatter = max(deviations * most / _MEDIAN, 2 * float((-side * away).max()))
    return place, side * float(pairs[place]) if pairs[place] > scatter else 0.0


def persistence(curve: np.ndarray, fit: np.ndarray) -> float:
    """How many times the variance of a sum of residuals is what it would be of independent ones; at least 1.

    As of residuals of which each keeps a share of the last one, by the correlation of neighbours.
    """
    own = curve - fit
    share = float(own[1:] @ own[:-1] / max(own @ own, np.finfo(np.float64).tiny))
    return (1 + share) / (1 - share) if share > 0 else 1.0


def rarely_gained(count: int) -> float:
    """What a fall or a rise gains, :meth:`Valleys.gains`, in 1.7 of 100 curves of ``count`` steps of white noise.

    In squared standard deviations. A fit to simulated curves of 8 to 300 steps, off by up to 5 % of it.
    """
    return 10.6 + 4.9 * math.log(count / 8)


@lru_cache
def rarely_apart(count: int, deviations: float) -> float:
    """How far a step lies above the lowest of ``count`` others as rarely as above a single one by ``deviations``.

    In standard deviations of white noise, which all of them are but for.
    """
    at, grid = np.linspace(-8, 8, 1601), np.linspace(-24, 8, 3201)
    density = np.exp(-(at**2) / 2)
    density /= density.sum()
    below = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in grid])

    def chance(apart: float, among: int) -> float:
        none = 1 - np.interp(at - apart, grid, below)
        return float(density @ (1 - none**among))

    level = chance(deviations, 1)
    low, high = deviations, deviations + 8
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if chance(middle, count) > level else (low, middle)
    return high
