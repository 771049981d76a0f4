"""Curves of two valleys, and lowest steps that lie outside the fit's bottom."""

from __future__ import annotations

import numpy as np
import pytest

from phasefast.phases.detect import detect_curve
from phasefast.phases.phase_report import phase_notes


def of_two(seed: int, later: float, top: float = 0.31) -> tuple[np.ndarray, np.ndarray]:
    """Dense early, then regular steps: a fall to a dip at 64, a bump, and a slow fall to ``later``."""
    steps = np.array([0, 1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, *range(128, 2401, 48)])
    at, values = (
        np.log2(np.array([0, 2, 64, 700, 1100, 2400]) + 1),
        [0.325, 0.335, 0.279, top, (top + later) / 2, later],
    )
    rng = np.random.default_rng(seed)
    curve = np.interp(np.log2(steps + 1), at, values) + rng.normal(0, 0.0015, len(steps))
    share = rng.gamma(20.0, 0.05, 300)
    return steps, curve[:, None] * share / share.mean() * (1 + 0.02 * rng.normal(size=(len(steps), 300)))


@pytest.mark.parametrize("seed", range(4))
def test_of_two_valleys_the_deeper_one_counts_however_many_steps_the_other_has(seed: int) -> None:
    steps, samples = of_two(seed, later=0.287)
    loss = samples.mean(1)
    cell = detect_curve(steps, samples)
    assert cell.minimum_step == steps[loss.argmin()]
    assert cell.minimum_ci[0] <= cell.minimum_step <= cell.minimum_ci[1] <= 200
    assert cell.stop_window is not None
    assert 12 <= cell.stop_window[0] <= cell.minimum_step <= cell.stop_window[1] <= 300
    assert [phase.kind for phase in cell.phases][-2:] == ["decrease", "increase"]
    assert 300 < cell.phases[-1].end_step < 1200
    assert cell.evidence["other_minimum"] > 1500
    assert any("Two valleys, of which the lower one counts" in note for note in phase_notes([cell]))
    steps, samples = of_two(seed, later=0.26)
    cell = detect_curve(steps, samples)
    assert cell.minimum_step > 1500
    assert 32 <= cell.evidence["other_minimum"] <= 128
    assert cell.stop_window is not None
    assert cell.stop_window[0] > 600


def test_one_low_step_makes_no_valley_and_two_make_one_the_minimum() -> None:
    steps, samples = of_two(0, later=0.2, top=0.25)  # a single valley
    low = int(np.flatnonzero(steps == 24)[0])
    samples[low] *= 0.19 / samples[low].mean()
    assert detect_curve(steps, samples).minimum_step > 1500
    samples[low + 1] *= 0.195 / samples[low + 1].mean()
    cell = detect_curve(steps, samples)
    assert cell.minimum_step == 24


@pytest.mark.parametrize(
    ("curve", "other", "window"),
    [
        ([1, 0.9, 0.7, *[0.6] * 30, 0.75, 0.78, 0.75, 0.55, 0.551, 0.552], 4, (36, 38)),
        ([1, 0.8, 0.5, 0.52, 0.7, 0.7, *[0.55] * 25, 0.6, 0.7, 0.8, 0.9], 29, (2, 3)),
    ],
)
def test_a_stop_window_does_not_hold_the_top_between_two_valleys(
    curve: list[float], other: int, window: tuple[int, int]
) -> None:
    scatter = np.random.default_rng(0).normal(0, 0.0005, len(curve))
    samples = (np.array(curve) + scatter)[:, None] * np.random.default_rng(1).gamma(50.0, 0.02, 200)
    cell = detect_curve(np.arange(len(curve)), samples)
    assert cell.evidence["other_minimum"] is not None
    assert abs(cell.evidence["other_minimum"] - other) < 30
    assert cell.stop_window is not None
    assert window[0] <= cell.stop_window[0] <= cell.minimum_step <= cell.stop_window[1] <= window[1]
    assert all(phase.end_step <= 6 for phase in cell.phases if phase.kind == "increase")


@pytest.mark.parametrize("scatter", [0, 0.0005, 0.002])
@pytest.mark.parametrize(
    ("places", "values", "steps"),
    [
        ([0, 0.3, 0.6, 1], [0.6, 0.4, 0.5, 0.42], 21),
        ([0, 0.3, 0.45, 0.9, 1], [0.6, 0.41, 0.465, 0.4, 0.4], 36),
        ([0, 0.15, 0.5, 0.7, 1], [0.6, 0.4, 0.47, 0.42, 0.42], 36),
        ([0, 0.2, 0.3, 0.4, 0.5, 1], [0.6, 0.4, 0.5, 0.5, 0.405, 0.405], 40),
    ],
)
def test_a_second_valley_is_told_though_the_fit_has_its_minimum_in_the_lower_one(
    places: list[float], values: list[float], steps: int, scatter: float
) -> None:
    rng = np.random.default_rng(0)
    curve = np.interp(np.linspace(0, 1, steps), places, values) + rng.normal(0, scatter, steps)
    cell = detect_curve(np.arange(steps), curve[:, None] * rng.lognormal(0, 0.5, 200))
    assert cell.evidence["other_minimum"] is not None
    assert cell.stop_window is not None
    low, high = cell.stop_window
    top, fall = sorted((cell.minimum_step, cell.evidence["other_minimum"])), cell.phases[0].change
    assert not low <= top[0] + curve[top[0] : top[1]].argmax() <= high
    loss = curve / curve[0] * cell.evidence["loss"]["first"]
    assert (loss[low : high + 1] > cell.evidence["loss"]["minimum"] - 0.25 * fall).mean() <= (0.2 if scatter else 0)


def test_a_hump_and_what_rises_before_it_falls_are_no_valleys() -> None:
    steps = np.arange(30)
    for values in ([0.4, 0.5, 0.41], [0.45, 0.6, 0.3], [0.4, 0.4, 0.5, 0.41]):
        curve = np.interp(steps, np.linspace(0, 29, len(values)), values)
        assert detect_curve(steps, curve[:, None] * np.linspace(0.5, 1.5, 100)).evidence["other_minimum"] is None


def test_early_scatter_does_not_move_the_minimum() -> None:
    steps, moved = np.arange(120), 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        noise = rng.normal(size=120) * np.geomspace(0.025, 0.002, 120)
        curve = 0.6 + 0.4 * np.exp(-1.5 * steps) - 0.02 * steps / 120 + noise
        moved += detect_curve(steps, curve[:, None] * rng.gamma(50.0, 0.02, 60)).minimum_step < 40
    assert moved <= 2


def scattered(curve: list[float], scatter: float = 0.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (np.array(curve) + rng.normal(0, scatter, len(curve)))[:, None] * rng.gamma(50.0, 0.02, 200)


@pytest.mark.parametrize(
    ("curve", "end", "increase"),
    [
        ([1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2, 0.6, 0.6, 0.6, 0.6, 0.2], 6, (4, 7)),
        ([1, 0.5, 0.1, *[0.1] * 4, *[0.4] * 22, 0.1], 6, (2, 7)),
        ([1, 0.8, 0.6, 0.3, 0.31, 0.4, 0.5, 0.6, 0.65, 0.7, 0.3], 5, (3, 9)),
        ([1, 0.6, 0.3, 0.1, 0.14, 0.18, 0.22, 0.26, 0.3, 0.34, 0.38, 0.1], 8, (3, 10)),  # a slow one
        ([1, 0.7, 0.3, 0.1, 0.13, 0.16, 0.19, 0.22, 0.25, 0.28, 0.31, 0.34, 0.37, 0.1], 10, (3, 12)),
    ],
)
@pytest.mark.parametrize("scatter", [0, 0.001])
def test_a_last_step_that_comes_back_down_does_not_open_the_window(
    curve: list[float], end: int, increase: tuple[int, int], scatter: float
) -> None:
    cell = detect_curve(np.arange(len(curve)), scattered(curve, scatter))
    assert not cell.stop_open
    assert cell.stop_window is not None
    assert cell.stop_window[1] == end
    phase = cell.phase("increase")
    assert phase is not None
    if not scatter:
        assert (phase.start_step, phase.end_step) == increase


def test_of_three_valleys_the_nearest_bounds_the_window() -> None:
    places, values = [0, 7, 19, 28, 40, 50], [1, 0.1, 0.35, 0.13, 0.92, 0.58]
    curve = np.interp(np.arange(51), places, values).tolist()
    for count in (30, 51):
        cell = detect_curve(np.arange(count), scattered(curve[:count], 0.002))
        assert cell.minimum_step == 7
        assert cell.evidence["other_minimum"] in (27, 28, 29)
        assert cell.stop_window is not None
        assert cell.stop_window[1] <= 19


@pytest.mark.parametrize(
    ("places", "values", "other"),
    [
        ([0, 7, 15, 22, 30, 38], [1, 0.2, 0.9, 0.1, 0.7, 0.15], 38),
        ([0, 7, 15, 22, 30, 38], [1, 0.2, 0.9, 0.1, 0.7, 0.1005], 38),
        ([0, 7, 15, 22, 34, 35], [1, 0.2, 0.9, 0.1, 0.7, 0.1], 7),  # whose last step alone comes down
    ],
)
def test_an_earlier_valley_does_not_hide_a_rise_after_the_minimum(
    places: list[int], values: list[float], other: int
) -> None:
    curve = np.interp(np.arange(places[-1] + 1), places, values).tolist()
    cell = detect_curve(np.arange(len(curve)), scattered(curve))
    assert (cell.minimum_step, cell.evidence["other_minimum"]) == (22, other)
    assert cell.stop_window is not None
    assert max(curve[cell.stop_window[0] : cell.stop_window[1] + 1]) <= 0.1 + 0.25 * 0.9
    assert cell.phase("increase") is not None


def test_a_last_step_that_is_the_lowest_of_all_is_told() -> None:
    curve = [*np.linspace(1, 0.16, 9).tolist(), *np.linspace(0.2, 0.61, 7).tolist(), 0.06]
    cell = detect_curve(np.arange(len(curve)), scattered(curve))
    assert (cell.minimum_step, cell.stop_open) == (8, False)
    (note,) = phase_notes([cell])
    assert note == "curve: the last step alone lies 0.1 below the minimum: later steps would show if that lasts"
    assert not detect_curve(np.arange(len(curve)), scattered([*curve[:-1], 0.159])).doubt
