"""What other held-out samples would have given: curves of resampled ones."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..common.distributions import normal, student

_GROUPS = 1_000
_MORE_SAMPLES = 2


@dataclass(frozen=True)
class Draws:
    """Which of m samples are drawn, the same for all curves of one seed.

    Many samples are first put into 1,000 random groups, and groups are drawn: as good a spread, and much cheaper.

    Attributes:
        order: [m], of which contiguous parts are groups, that begin at ``starts`` [g].
        weights: [R, g] how often each is drawn. others: [R] how often what is right or wrong by chance; None without.
        after: the state of the generator then.
    """

    order: np.ndarray
    starts: np.ndarray
    weights: np.ndarray
    others: np.ndarray | None
    after: np.random.Generator

    @property
    def rng(self) -> np.random.Generator:
        """What draws on after them."""
        return copy.deepcopy(self.after)


@lru_cache(maxsize=2)  # a report's curves are of classes or not: each has 8 MB
def draw(seed: int, samples: int, replicates: int, of_classes: bool = False) -> Draws:
    """Draws of so many samples, ``replicates`` times.

    Args:
        of_classes: samples are right or wrong. Few may all change alike, though others would not: of less than 1,000,
            two more are drawn from, which are right or wrong by chance (Agresti & Min 2005, doi:10.1002/sim.1781).
    """
    rng, groups = np.random.default_rng(seed), min(samples, _GROUPS)
    order = rng.permutation(samples)
    more = _MORE_SAMPLES if of_classes and groups < _GROUPS else 0
    pool = groups + more
    drawn = rng.integers(pool, size=(replicates, pool)) + pool * np.arange(replicates)[:, None]
    weights = np.bincount(drawn.ravel(), minlength=replicates * pool).reshape(replicates, pool).astype(np.float64)
    others = weights[:, groups:].sum(axis=1) if more else None
    return Draws(order, np.arange(groups) * samples // groups, weights[:, :groups], others, rng)


def bootstrap(
    samples: np.ndarray, unit: np.ndarray, draws: Draws, confidence: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mean curves [R, K] of resampled held-out samples [K, m], the same ones at every step, over the unit's mean [m].

    Of few samples, resampled means spread too little: by the root of (m - 1) / m, and as if their variance were known.
    Curves are moved apart by as much (Hesterberg 2015, doi:10.1080/00031305.2015.1089789), for intervals of a
    confidence.

    Args:
        rng: what is right or wrong by chance is drawn from.

    Returns:
        The curves, from 0 to 1 of classes, and without what is drawn by chance, which says nothing of where they lie.
    """
    # [K, g] and [g]
    sums, units = (np.add.reduceat(each[..., draws.order], draws.starts, axis=-1) for each in (samples, unit))
    more = 0 if draws.others is None else _MORE_SAMPLES
    pool = len(draws.starts) + more
    totals, whole = draws.weights @ sums.T, draws.weights @ units
    share = (1 + confidence) / 2
    spread = student(share, pool - 1) / normal(share) * math.sqrt(pool / (pool - 1))

    def spread_out(totals: np.ndarray, whole: np.ndarray, middle: np.ndarray) -> np.ndarray:
        means = totals / np.where(whole > 0, whole, units.sum())[:, None]  # that has none of it
        if more:  # where nothing else was drawn
            means[whole == 0] = middle
        apart: np.ndarray = middle + spread * (means - middle)
        return apart

    plain = spread_out(totals, whole, sums.sum(axis=1) / units.sum())
    if draws.others is None:
        return plain, plain
    totals = totals + rng.binomial(draws.others.astype(np.int64)[:, None], 0.5, size=totals.shape)
    middle = (sums.sum(axis=1) + more / 2) / (units.sum() + more)
    return spread_out(totals, whole + draws.others, middle).clip(0, 1), plain
