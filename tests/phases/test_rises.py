"""Rises that no phase names, and that all changes that are named have intervals without 0."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from phasefast.phases.detect import detect_curve
from phasefast.phases.phase_report import phase_notes
from phasefast.phases.rules import DEFAULT_RULES

from ..curves import find, kinds

FEWER = {"replicates": 200, "rules": replace(DEFAULT_RULES, permutations=100)}
HUMP = [0.59, 0.61, 0.62, 0.60, 0.56, 0.52, 0.56, 0.60, 0.55, 0.50, 0.49, 0.47]
TOLD = "Rises within the decrease, large beside it"


def ending_below(rng: np.random.Generator, right_or_wrong: bool) -> np.ndarray:
    """[K, m] losses that fall and rise, some of them with a last step that comes down, of few samples or many."""
    size, count = int(rng.integers(4, 20)), int(rng.choice([5, 20, 60, 200]))
    x, low = np.linspace(0, 1, size), rng.uniform(0.2, 0.8)
    curve = 0.5 + 0.2 * np.where(x < low, -x / low, rng.uniform(0, 1) * (x - low) / (1 - low) - 1)
    curve += rng.normal(size=size) * rng.choice([0, 0.005, 0.02])
    curve[-1] -= rng.uniform(0, 0.15) * (rng.random() < 0.7)
    curve[:2] += rng.uniform(-0.2, 0.05) * (rng.random() < 0.3)
    if right_or_wrong:
        return (rng.random((size, count)) < curve.clip(0, 1)[:, None]).astype(float)
    own = rng.normal(size=count) * rng.uniform(0.1, 1) + rng.normal(size=(size, count)) * rng.uniform(0.01, 0.3)
    return curve[:, None] * np.exp(own)


@pytest.mark.parametrize("right_or_wrong", [False, True])
def test_the_interval_of_a_change_that_is_named_has_no_0(right_or_wrong: bool) -> None:
    named = list[str]()
    for seed in range(300):
        samples = ending_below(np.random.default_rng([seed, right_or_wrong]), right_or_wrong)
        for phase in detect_curve(np.arange(len(samples)), samples, seed=seed, **FEWER).phases:
            low, high = phase.ci
            assert phase.kind == "constant" or (high < 0 if phase.kind == "decrease" else low > 0), seed
            named.append(phase.kind)
    assert min(named.count("decrease"), named.count("increase")) > 20


def test_a_rise_of_which_the_last_step_would_leave_nothing_ends_at_its_top() -> None:
    curve = [0.60, 0.55, 0.48, 0.42, 0.40, 0.40, 0.404, 0.410, 0.418, 0.420, 0.412]
    # Samples that differ from step to step, so that .412 is not certain to lie above .40.
    rng = np.random.default_rng(0)
    samples = np.array(curve)[:, None] + 0.05 * rng.normal(size=(11, 100))
    samples += np.array(curve)[:, None] - samples.mean(axis=1, keepdims=True)
    cell = detect_curve(np.arange(11), samples)
    assert kinds(cell) == "di"
    assert (cell.phases[-1].start_step, cell.phases[-1].end_step) == (cell.minimum_step, 9)
    assert cell.phases[-1].ci[0] > 0


def test_a_hump_within_the_decrease_is_told() -> None:
    cell = find(HUMP, np.arange(12), scatter=0.005)
    assert kinds(cell).endswith("d")
    assert cell.evidence["rise_within"] == [5, 7]
    assert f"{TOLD}: {cell.layer} 5-7." in phase_notes([cell])


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_scatter_within_a_decrease_is_not_told(share: float) -> None:
    rng = np.random.default_rng(0)
    curve = np.linspace(0.6, 0.4, 12) + rng.uniform(-0.5, 0.5, 12) * share * 0.2
    cell = find(curve, np.arange(12), scatter=0.005)
    assert kinds(cell).endswith("d")
    assert cell.evidence["rise_within"] is None
    assert not any(TOLD in note for note in phase_notes([cell]))


def test_a_rise_that_other_samples_may_not_show_is_not_told() -> None:
    samples = np.array(HUMP)[:, None] + 0.3 * np.random.default_rng(0).normal(size=(12, 40))
    samples += np.array(HUMP)[:, None] - samples.mean(axis=1, keepdims=True)
    assert detect_curve(np.arange(12), samples).evidence["rise_within"] is None
