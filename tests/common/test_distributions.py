"""Quantiles against scipy's."""

from __future__ import annotations

import pytest

from phasefast.common.distributions import chi_square, student

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("share", [0.025, 0.5, 0.9, 0.975, 0.995])
@pytest.mark.parametrize(("freedom", "off"), [(1, 1e-9), (2, 1e-9), (3, 0.06), (5, 0.02), (20, 1e-3), (1000, 1e-6)])
def test_students_t(share: float, freedom: int, off: float) -> None:
    assert student(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=off, abs=1e-9)


@pytest.mark.parametrize("share", [0.01, 0.025, 0.5, 0.975, 0.99])
@pytest.mark.parametrize(("freedom", "off"), [(3, 0.4), (7.5, 0.05), (40, 4e-3), (1e4, 1e-5)])
def test_chi_square(share: float, freedom: float, off: float) -> None:
    assert chi_square(share, freedom) == pytest.approx(stats.chi2.ppf(share, freedom), rel=off)
