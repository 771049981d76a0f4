"""Quantiles of the distributions that intervals are based on, without a library of statistics."""

from __future__ import annotations

import math
from statistics import NormalDist


def normal(share: float) -> float:
    """Quantile of the standard normal distribution."""
    return NormalDist().inv_cdf(share)


def student(share: float, freedom: int) -> float:
    """Quantile of Student's t, exact for one and two degrees of freedom; Abramowitz & Stegun (1964), 26.7.5."""
    if freedom == 1:
        return math.tan(math.pi * (share - 0.5))
    if freedom == 2:
        return (2 * share - 1) / math.sqrt(2 * share * (1 - share))
    z = normal(share)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def chi_square(share: float, freedom: float) -> float:
    """Quantile of chi-square with so many degrees of freedom, three or more; Wilson & Hilferty (1931)."""
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + normal(share) * math.sqrt(spread)) ** 3)
