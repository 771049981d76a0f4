"""What a loss curve is made of: its valley, its scatter between steps, and what other samples would have given."""

from __future__ import annotations

import math

import numpy as np

_GROUPS = 1_000
_CHUNK = 4_000_000


def valley(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares fits [R, K] of curves [R, K] that fall, then rise; and the index of each curve's minimum [R].

    The minimum is the smallest value among those steps that the fit pools into its lowest level.
    """
    size = curves.shape[1]
    chunk = max(1, _CHUNK // size**2)
    if len(curves) > chunk:
        parts = [valley(curves[i : i + chunk]) for i in range(0, len(curves), chunk)]
        return np.concatenate([fit for fit, _ in parts]), np.concatenate([place for _, place in parts])
    rising = _rising(curves)  # [R, s, K]: rises from step s on
    falling = _rising(curves[:, ::-1])[:, ::-1, ::-1]  # [R, k, K]: falls up to step k
    error = ((falling - curves[:, None]) ** 2).sum(axis=2)
    error[:, :-1] += ((rising - curves[:, None]) ** 2).sum(axis=2)[:, 1:]
    row, split = np.arange(len(curves)), error.argmin(axis=1)
    fit = np.where(np.arange(size) <= split[:, None], falling[row, split], rising[row, np.minimum(split + 1, size - 1)])
    bottom = fit <= fit.min(axis=1, keepdims=True)
    return fit, np.where(bottom, curves, np.inf).argmin(axis=1)


def _rising(curves: np.ndarray) -> np.ndarray:
    """[R, s, i]: the isotonic regression of steps s and after, and the curve itself before s.

    By the max-min formula: the fit at i is the largest over j <= i of the smallest over l >= i of the mean of j..l.
    """
    rows, size = curves.shape
    level = curves.mean(axis=1, keepdims=True)
    ends = np.concatenate([np.zeros((rows, 1)), np.cumsum(curves - level, axis=1)], axis=1)
    count = np.arange(size) - np.arange(size)[:, None] + 1  # [j, l]
    means = np.where(count > 0, (ends[:, None, 1:] - ends[:, :-1, None]) / np.maximum(count, 1), np.inf)
    least = np.minimum.accumulate(means[:, :, ::-1], axis=2)[:, :, ::-1]
    most = np.maximum.accumulate(np.where(count > 0, least, -np.inf)[:, ::-1], axis=1)[:, ::-1]
    return np.where(count > 0, most + level[:, None], curves[:, None])


def bootstrap(samples: np.ndarray, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """Mean curves [R, K] of resampled held-out samples, the same ones at every step.

    Many samples are first put into 1,000 random groups, and groups are drawn: as good a spread, and much cheaper.
    """
    groups = min(samples.shape[1], _GROUPS)
    starts = np.arange(groups) * samples.shape[1] // groups
    sums = np.add.reduceat(samples[:, rng.permutation(samples.shape[1])], starts, axis=1)  # [K, g]
    sizes = np.diff(starts, append=samples.shape[1])
    drawn = rng.integers(groups, size=(replicates, groups)) + groups * np.arange(replicates)[:, None]
    weights = np.bincount(drawn.ravel(), minlength=replicates * groups).reshape(replicates, groups).astype(np.float64)
    means: np.ndarray = (weights @ sums.T) / (weights @ sizes)[:, None]
    return means


def order_test(curve: np.ndarray, permutations: int, rng: np.random.Generator) -> float:
    """Twice (Bonferroni) the smaller p-value of being a better valley and of being smoother than in random order."""
    curves = np.concatenate([curve[None], rng.permuted(np.tile(curve, (permutations, 1)), axis=1)])
    residual = ((curves - valley(curves)[0]) ** 2).sum(axis=1)
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
    # Per order, the median absolute difference of white noise: 0.6745 times the root of the sum of squared binomials.
    middle = {k: float(np.median(np.abs(np.diff(curve, k)))) for k in (2, 3)}
    second, third = (value / (0.6745 * math.sqrt(math.comb(2 * k, k))) for k, value in middle.items())
    return min(second, max(third, unexplained)), second
