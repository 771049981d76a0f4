"""Which steps count for a curve's phases, and which changes: odd checkpoints, the lowest of many steps."""

from __future__ import annotations

import re

import numpy as np
import pytest

from phasefast.phases.detect import detect_curve
from phasefast.phases.phase_report import CellPhases, PhaseReport, phase_notes
from phasefast.phases.rules import DEFAULT_RULES
from phasefast.phases.valley import odd_steps, persistence, rarely_apart, rarely_gained, valleys
from tests import curves
from tests.curves import QUICK, kinds

VALLEY = np.interp(np.arange(14), [0, 3, 6, 13], [0.6, 0.6, 0.4, 0.6])


def find(loss: np.ndarray, seed: int = 0) -> CellPhases:
    """Phases of a curve at steps 0, 10, 20, ... of few samples, between which it hardly scatters."""
    return curves.find(loss, 10 * np.arange(len(loss)), seed, m=200, scatter=0.002, layer="fc", **QUICK)


def noisy(curve: np.ndarray, noise: float, seed: int) -> np.ndarray:
    return curve + noise * np.random.default_rng(seed).normal(size=len(curve))


@pytest.mark.parametrize("place", [1, 2, 4, 8, 12])
@pytest.mark.parametrize("height", [0.1, 0.4, 5.0])
def test_a_single_diverged_checkpoint_is_left_out_and_named(place: int, height: float) -> None:
    loss = noisy(VALLEY, 0.002, 3)
    clean = find(loss)
    loss[place] = max(loss[place - 1], loss[place + 1]) + height
    cell = find(loss)
    assert cell.evidence["left_out"] == [10 * place]
    assert kinds(cell) == kinds(clean) == "cdi"
    assert (cell.minimum_step, clean.minimum_step) == (60, 60)
    ends = {phase.end_step for phase in cell.phases} | {phase.start_step for phase in cell.phases}
    assert 10 * place not in ends
    for phase, other in zip(cell.phases[1:], clean.phases[1:], strict=True):
        assert phase.change == pytest.approx(other.change, abs=0.01)
    assert f"far above their neighbours: fc at {10 * place}." in str(PhaseReport((cell,)))
    assert "Left out" not in str(PhaseReport((clean,)))


def test_what_is_left_out_is_named_where_all_curves_have_the_same_reason() -> None:
    loss = noisy(np.full(12, 0.5), 0.002, 3)
    loss[5] = 0.9
    cells = (find(loss), find(loss))
    assert len({cell.why for cell in cells}) == 1
    assert cells[0].why
    assert "neighbours: fc at 50; fc at 50." in str(PhaseReport(cells))


def test_several_diverged_checkpoints() -> None:
    loss = noisy(np.interp(np.arange(30), [0, 8, 15, 29], [0.6, 0.6, 0.4, 0.6]), 0.002, 1)
    loss[[4, 11, 22]] += 0.5
    cell = find(loss)
    assert cell.evidence["left_out"] == [40, 110, 220]
    assert kinds(cell) == "cdi"


@pytest.mark.parametrize(
    "loss",
    [
        VALLEY,
        np.where(np.arange(14) == 6, 0.2, 0.6),  # a dip may be the valley
        np.where(np.arange(14) == 0, 2.0, VALLEY),  # a fall from the first step
        np.where(np.arange(14) == 13, 2.0, VALLEY),  # a rise to the last one
        0.3 + 0.2 * np.sin(np.linspace(0, np.pi, 14)),
        0.5 + 0.1 * (-1.0) ** np.arange(14),
        np.where(np.arange(8) == 4, 5.0, 1.0),  # too few to tell
        np.append(0.3, np.linspace(0.6, 0.2, 19)),  # a jump at the first update, then a fall
        np.interp(np.arange(20), [0, 5, 9, 15, 19], [0.6, 0.6, 0.3, 0.6, 0.5]),  # two descents
        np.interp(np.arange(25), [0, 4, 8, 14, 18, 24], [0.6, 0.6, 0.3, 0.6, 0.45, 0.45]),
    ],
)
def test_what_is_no_single_odd_step_stays(loss: np.ndarray) -> None:
    rules = DEFAULT_RULES
    assert odd_steps(loss, rules.odd, rules.change * loss, rules.order_steps) == []
    assert find(loss).evidence["left_out"] == []


def test_one_error_more_among_hundreds_is_no_odd_step() -> None:
    wrong = np.zeros((14, 600))
    wrong[:, :8] = 1
    wrong[6, 8] = 1
    cell = detect_curve(np.arange(14), wrong, **QUICK)
    assert cell.evidence["left_out"] == []
    wrong[6, 8:60] = 1
    assert detect_curve(np.arange(14), wrong, **QUICK).evidence["left_out"] == [6]


@pytest.mark.parametrize("seed", range(40))
def test_noise_alone_leaves_no_step_out(seed: int) -> None:
    assert find(noisy(np.full(30, 0.5), 0.02, seed)).evidence["left_out"] == []


@pytest.mark.parametrize("count", [1, 4, 50])
def test_rarely_apart_is_as_rare_as_from_a_single_step(count: int) -> None:
    rng = np.random.default_rng(count)
    steps = rng.normal(size=(200_000, count + 1))
    above = steps[:, 0] - steps[:, 1:].min(1) > rarely_apart(count, 3.0)
    assert above.mean() == pytest.approx(0.0169, abs=0.0015)  # a normal deviate above 3 / sqrt(2)
    assert rarely_apart(1, 3.0) == pytest.approx(3.0, abs=1e-3)


@pytest.mark.parametrize("count", [8, 17, 60, 300])
def test_gains_of_white_noise_are_rarely_larger(count: int) -> None:
    found = valleys(np.random.default_rng(count).normal(size=(4000, count)))
    gains = [found.gains(row) for row in range(4000)]
    for kind in ("decrease", "increase"):
        assert np.quantile([gain[kind] for gain in gains], 1 - 0.0169) == pytest.approx(rarely_gained(count), rel=0.1)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_persistence_is_that_of_correlated_residuals(share: float) -> None:
    rng = np.random.default_rng(5)
    residuals = np.zeros(20_000)
    for i in range(1, len(residuals)):
        residuals[i] = share * residuals[i - 1] + rng.normal()
    assert persistence(residuals, np.zeros(20_000)) == pytest.approx((1 + share) / (1 - share), rel=0.05)
    assert persistence(np.ones(5), np.ones(5)) == 1
    assert persistence(np.array([1.0, -1, 1, -1]), np.zeros(4)) == 1


def test_gains_are_what_the_better_fit_explains() -> None:
    gains = valleys(np.array([[3.0, 2.0, 2.0, 4.0, 4.0]])).gains(0)
    assert gains["increase"] == pytest.approx(np.var([3, 2, 2, 4, 4]) * 5)  # all in one level without it
    assert gains["decrease"] == pytest.approx(2 / 3)  # 3, 2, 2 in one


def test_a_low_rise_of_many_steps_is_named_although_single_ones_are_not_far_above() -> None:
    x = np.linspace(0, 1, 60)
    curve = np.interp(x, [0, 0.25, 0.5, 0.6, 1], [0.6, 0.6, 0.4, 0.46, 0.46])
    found = [kinds(find(noisy(curve, 0.02, seed), seed)) for seed in range(20)]
    assert sum("i" in each for each in found) >= 15


@pytest.mark.parametrize("size", [30, 60])
def test_the_lowest_of_many_steps_of_a_flat_end_is_no_minimum_to_rise_from(size: int) -> None:
    x = np.linspace(0, 1, size)
    fall = 0.4 + 0.2 / (1 + np.exp(40 * (x - 0.25)))
    found = [kinds(find(noisy(fall, 0.006, seed), seed)) for seed in range(60)]
    assert sum("d" in each for each in found) == 60
    assert sum("i" in each for each in found) <= 6


@pytest.mark.parametrize("seed", range(40))
def test_changes_are_as_large_as_the_evidence_says_they_must_be(seed: int) -> None:
    rng = np.random.default_rng(seed)
    places = np.sort(rng.choice(np.arange(1, 12), 2, replace=False))
    level = [0.5, 0.5 + 0.02 * rng.normal(), 0.5 - 0.05 * rng.random(), 0.5 + 0.05 * rng.normal()]
    cell = find(noisy(np.interp(np.arange(13), [0, *places, 12], level), 0.003, seed), seed)
    for phase in cell.phases:
        if phase.kind != "constant":
            sign = -1 if phase.kind == "decrease" else 1
            assert sign * phase.change >= (1 - 1e-9) * cell.evidence["needed"][phase.kind]


def test_a_rise_that_is_the_last_steps_alone_is_not_named() -> None:
    loss = noisy(np.interp(np.arange(12), [0, 3, 8, 11], [0.6, 0.6, 0.4, 0.395]), 0.001, 2)
    loss[-1] = 0.9
    cell = find(loss)
    assert kinds(cell) == "cd"
    assert cell.stop_open
    assert kinds(find(np.append(loss, [0.9, 0.91]))) == "cdi"


@pytest.mark.parametrize("size", [8, 9, 16])
@pytest.mark.parametrize("slope", [-0.021, 0.021])
def test_straight_changes_count_however_many_steps_they_have(size: int, slope: float) -> None:
    assert kinds(find(np.linspace(1, 1 + slope, size))) == ("d" if slope < 0 else "i")


def test_a_lucky_early_step_is_no_minimum_to_rise_from() -> None:
    rises = 0
    for seed in range(40):
        scatter = np.where(np.arange(17) < 8, 0.01, 1e-4) * np.random.default_rng(seed).normal(size=17)
        loss = np.interp(np.arange(17), [0, 2, 5], [0.6, 0.6, 0.5]) + scatter
        rises += "i" in kinds(find(loss, seed))
    assert rises <= 8


def test_an_open_window_tells_what_speaks_against_it() -> None:
    """A rise to above a quarter of the decrease that single steps cannot show."""
    cell = find(np.array([0.575, 0.569, 0.565, 0.500, 0.483, 0.432, 0.397, 0.461, 0.527, 0.472, 0.458, 0.458]))
    assert kinds(cell) == "cd"
    assert cell.stop_open
    assert cell.doubt.startswith("open, though the curve ends 0.06")
    assert any("would be certain" in note for note in phase_notes([cell]))
    assert find(np.linspace(0.6, 0.4, 12)).doubt == ""


def test_what_varies_without_order_is_not_constant() -> None:
    cell = find(np.array([0.521, 0.536, 0.449, 0.497, 0.520, 0.527, 0.513, 0.530, 0.506, 0.511, 0.504, 0.479]))
    assert kinds(cell) == ""
    assert cell.why.startswith("varies by ")
    assert "but steps in random order would look as regular" in cell.why


def test_what_falls_as_much_as_a_change_is_no_plateau() -> None:
    """The curve of a regression of digits' ink: flat for eight steps, then down ever faster."""
    loss = np.array([0.577, 0.577, 0.576, 0.577, 0.579, 0.58, 0.579, 0.575, 0.56, 0.514, 0.489, 0.486, 0.377, 0.209])
    cell = find(np.append(loss, [0.161, 0.141, 0.204, 0.308, 0.399, 0.502, 0.468, 0.45, 0.433, 0.422, 0.413]))
    assert kinds(cell) == "cdi"
    assert abs(cell.phase("constant").change) < cell.evidence["needed"]["decrease"]
    assert cell.phase("decrease").start_step < 100  # where it lies .088 below its beginning


@pytest.mark.parametrize("apart", [0.6, 0.61, 0.57])
@pytest.mark.parametrize("place", [0, 1])
def test_one_step_that_is_apart_leaves_the_plateau(apart: float, place: int) -> None:
    """Before any training a network may give back more, or less, than after its first steps."""
    loss = np.concatenate([np.full(12, 0.585), [0.45, 0.3, 0.15, 0.05, 0.02]])
    loss[place] = apart
    cell = find(loss)
    assert [(phase.kind, phase.end_step) for phase in cell.phases] == [("constant", 110), ("decrease", 160)]


def test_a_plateau_ends_where_the_fall_begins_though_its_second_step_is_apart() -> None:
    cell = find(np.array([0.6, 0.55, *[0.6] * 6, 0.585, 0.57, 0.555, 0.4, 0.2, 0.05, 0.02]))
    assert kinds(cell) == "cd"
    assert 70 <= cell.phase("constant").end_step <= 80


@pytest.mark.parametrize("seed", range(20))
def test_plateaus_move_by_less_than_a_change(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = np.interp(np.arange(20), [0, 4 + rng.integers(4), 12, 19], [0.6, 0.6 - 0.03 * rng.random(), 0.4, 0.5])
    loss = noisy(shape, 0.01 * rng.random(), seed)
    cell = find(loss, seed)
    if (plateau := cell.phase("constant")) is not None and cell.phase("decrease") is not None:
        start = float(np.median(loss[:3]))  # one step may be apart by itself
        moved = abs(loss[plateau.end_step // 10] - start)
        assert moved < 1.02 * max(3 * cell.evidence["step_noise"], 0.02 * start)


def test_what_a_change_lacks_without_one_step_is_told() -> None:
    cell = find(np.concatenate([np.full(10, 0.94), [0.92], np.linspace(0.932, 0.945, 7)]))
    assert kinds(cell) == "c"
    assert cell.why.startswith("falls by 0.02, but without one of its steps by only ")
    told = re.findall(r"without one of its steps by only (\S+) \((\S+) needed\)", cell.why)
    assert len(told) == 2  # of the fall and of the rise
    assert all(float(left) < float(asked) < 0.02 for left, asked in told)
