"""Valley fits against scikit-learn's isotonic regression, split by split."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from phasefast import ops
from phasefast.phases import valley
from phasefast.phases.valley import order_test, valleys


def best(curve: np.ndarray) -> tuple[float, np.ndarray]:
    """The least squared error of a fall and a rise over all splits, and such a fit."""
    found = []
    for split in range(len(curve)):
        parts = [curve[: split + 1], curve[split + 1 :]]
        fits = [
            IsotonicRegression(increasing=rises).fit_transform(np.arange(len(part)), part)
            for rises, part in zip((False, True), parts, strict=True)
            if len(part)
        ]
        fit = np.concatenate(fits)
        found.append((float(((curve - fit) ** 2).sum()), fit))
    return min(found, key=lambda pair: pair[0])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 30])
@pytest.mark.parametrize("kind", ["walk", "noise", "ties"])
def test_fits_have_the_least_error(size: int, kind: str) -> None:
    rng = np.random.default_rng(size)
    curves = rng.normal(size=(12, size))
    curves = {"walk": curves.cumsum(1) + 40, "noise": curves, "ties": np.round(curves)}[kind]
    found = valleys(curves)
    for row, curve in enumerate(curves):
        error, expected = best(curve)
        fit, split = found.fit(row), int(found.splits[row])
        assert found.residuals[row] == pytest.approx(error, abs=1e-9)
        assert ((curve - fit) ** 2).sum() == pytest.approx(error, abs=1e-9)
        assert (np.diff(fit[: split + 1]) <= 1e-12).all()
        assert (np.diff(fit[split + 1 :]) >= -1e-12).all()
        if kind != "ties":
            np.testing.assert_allclose(fit, expected, atol=1e-9)
        bottom = np.flatnonzero(fit <= fit.min() + 1e-12)
        assert curve[found.minima[row]] == curve[bottom].min()
        assert found.minima[row] in bottom


def test_a_single_odd_step_is_not_the_minimum() -> None:
    curve = np.array([5.0, 5.1, 1.9, 5.2, 4.0, 3.0, 2.0, 2.1, 3.0, 4.0])
    assert valleys(curve[None]).minima[0] == 6


@pytest.mark.parametrize("parts", [1_000, 1_000_000])
def test_ties_of_shares_are_ties(parts: int) -> None:
    """Of errors that are multiples of 1 / m, around 0.9: as exact as integers."""
    whole = np.round(np.random.default_rng(0).normal(size=(300, 8)), 0) + round(0.9 * parts)
    shares, exact = valleys(whole / parts), valleys(whole - round(0.9 * parts))
    assert shares.minima.tolist() == exact.minima.tolist()
    assert shares.splits.tolist() == exact.splits.tolist()


def test_equal_values_are_one_level_without_an_error() -> None:
    found = valleys(np.full((2, 9), 0.3))
    assert found.residuals.tolist() == [0, 0]
    assert found.minima.tolist() == [0, 0]
    assert found.fit(1).tolist() == [0.3] * 9


def test_a_valley_of_many_steps_has_an_order_and_noise_has_none() -> None:
    rng = np.random.default_rng(0)
    steps = np.linspace(-1, 1, 400)
    assert order_test(steps**2 + 0.1 * rng.normal(size=400), 500, rng) < 0.01
    assert order_test(rng.normal(size=400), 500, rng) > 0.05


@pytest.mark.skipif(ops.function("pools") is None, reason="the extension is not built")
@pytest.mark.parametrize("size", [1, 2, 9, 60])
@pytest.mark.parametrize("kind", ["walk", "noise", "ties", "flat"])
def test_compiled_pools_are_those_of_python(size: int, kind: str) -> None:
    curves = np.random.default_rng(size).normal(size=(50, size))
    curves = {"walk": curves.cumsum(1), "noise": curves, "ties": np.round(curves), "flat": 0 * curves + 1}[kind]
    slack = 1e-12 * np.sqrt((curves**2).sum(1))
    found = []
    for pool in (ops.function("pools"), valley._pool):
        errors, levels = np.full((2, *curves.shape), np.nan)
        starts = np.full(curves.shape, -1)
        pool(curves, slack, errors, starts, levels)
        found.append((errors, starts, levels))
    for compiled, python in zip(*found, strict=True):
        np.testing.assert_array_equal(compiled, python)


@pytest.mark.skipif(ops.function("pools") is None, reason="the extension is not built")
def test_compiled_pools_refuse_what_does_not_fit() -> None:
    pools, curves, whole = ops.function("pools"), np.ones((3, 4)), np.ones((3, 4), dtype=np.int64)
    with pytest.raises(ValueError, match="expected four matrices of one shape"):
        pools(curves, np.ones(3), np.ones((3, 5)), whole, curves)
    with pytest.raises(ValueError, match="a slack for each row"):
        pools(curves, np.ones(2), curves, whole, curves)
    with pytest.raises(TypeError):
        pools(curves, np.ones(3), curves.astype(np.float32), whole, curves)
    with pytest.raises(TypeError):
        pools(curves, np.ones(3), np.ones((4, 3)).T, whole, curves)
