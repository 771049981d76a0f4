"""Why no decrease and no increase is named."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from phasefast.phases.detect import detect_curve
from phasefast.phases.phase_report import PhaseReport
from phasefast.phases.rules import DEFAULT_RULES
from phasefast.phases.valley import apart_together
from tests.curves import find, kinds, log_steps

from .test_phases import DIGITS


def test_a_curve_with_a_change_needs_no_reason() -> None:
    cell = find(DIGITS)
    assert cell.evidence["reason"] is None
    assert cell.why == ""


def test_order_that_is_no_more_regular_than_chance() -> None:
    rng = np.random.default_rng(7)
    cell = find(0.4 + 0.03 * rng.normal(size=12))
    assert kinds(cell) == "c"
    assert cell.evidence["order_p"] > 0.03
    assert re.fullmatch(r"stays within 0\.0\d+ of its mean, no more than the 0\.\d+ that a change needs", cell.why)
    flat = find(np.full(12, 0.4), scatter=0.0)
    assert kinds(flat) == "c"
    assert re.fullmatch(r"stays within \S+ of its mean, no more than the 0.008 that a change needs", flat.why)


@pytest.mark.parametrize(
    ("loss", "side"),
    [
        ([0.1] * 4 + [0.5] * 2 + [0.1] * 4, "above"),
        ([0.1] * 5 + [0.14, 0.16] + [0.1] * 3, "above"),
        ([0.5] * 4 + [0.4] * 2 + [0.5] * 4, "below"),
    ],
)
def test_neighbours_that_leave_the_others_and_come_back_are_no_constant(loss: list[float], side: str) -> None:
    scatter = 0.002 * np.random.default_rng(3).normal(size=len(loss))
    cell = find(np.array(loss) + scatter, scatter=0.001)
    assert kinds(cell) == ""
    assert re.fullmatch(rf"varies by 0\.\d+: neighbouring steps lie 0\.\d+ {side} most others", cell.why)
    if side == "above":  # a single one may be odd
        single = [value if step != 5 else 0.1 for step, value in enumerate(loss)]
        assert "neighbouring" not in find(np.array(single) + scatter, scatter=0.001).why


@pytest.mark.parametrize(
    "loss",
    [
        [0.2, 0.22, 0.24, 0.26, 0.28, 0.3, 0.29, 0.28, 0.27, 0.26, 0.25, 0.24, 0.23] + [0.22] * 11,
        [0.2, 0.25, 0.3, 0.29, 0.27, 0.25] + [0.24] * 6,
    ],
)
def test_a_rise_that_comes_back_is_told(loss: list[float]) -> None:
    cell = find(np.array(loss), scatter=0.001)
    assert kinds(cell) == ""
    back = max(loss) - min(loss[loss.index(max(loss)) :])
    assert cell.why.endswith(f"; it rises by 0.1 to its top, then falls by {back:.2g}, which no phase names")
    assert "no phase names" not in find(np.linspace(0.2, 0.4, len(loss)), scatter=0.001).why


def test_a_hump_of_steps_that_have_an_order_is_no_constant_either() -> None:
    loss = np.full(12, 0.5)
    loss[1:5] += 0.03
    cell = find(loss + 0.0008 * np.random.default_rng(0).normal(size=12), scatter=0.001)
    assert cell.evidence["order_p"] < 0.03
    assert (kinds(cell), cell.why) == ("", "varies by 0.031: neighbouring steps lie 0.03 above most others")


@pytest.mark.parametrize(("size", "first", "last"), [(30, 11, 19), (30, 9, 21), (20, 11, 19), (16, 9, 15)])
def test_a_wide_hump_is_no_scatter_around_itself(size: int, first: int, last: int) -> None:
    loss = np.full(size, 0.5)
    loss[first:last] += 0.03
    cell = find(loss + 0.001 * np.random.default_rng(5).normal(size=size), scatter=0.001)
    assert kinds(cell) == ""


def test_what_few_steps_or_samples_cannot_tell_is_no_hump() -> None:
    rng = np.random.default_rng(3)
    assert kinds(find(np.array([0.1, 0.1, 0.5, 0.5, 0.1, 0.1, 0.1]) + 0.002 * rng.normal(size=7), scatter=0.001)) == "c"
    hump = np.array([0.1] * 4 + [0.5] * 2 + [0.1] * 4)
    assert kinds(detect_curve(np.arange(10), np.stack([hump, 0.2 - hump / 8, 0.2 - hump / 8], 1), seed=0)) == "c"
    rules = replace(DEFAULT_RULES, absolute=0.0)
    assert kinds(detect_curve(np.arange(10), np.zeros((10, 50)), rules=rules)) == "c"


def test_scatter_is_hardly_ever_taken_for_a_hump() -> None:
    rng = np.random.default_rng(1)
    found = [find(0.4 + 0.03 * rng.normal(size=size)) for size in (9, 12, 20) for _ in range(40)]
    assert sum("neighbouring" in cell.why for cell in found) <= 3
    deviations = 0.05 * np.exp(-np.arange(40) / 8) + 0.003
    dwindling = [apart_together(0.4 + deviations * rng.normal(size=40), 3.0)[1] for _ in range(400)]
    assert np.count_nonzero(dwindling) <= 10


def test_a_change_too_small_to_count() -> None:
    cell = find(np.linspace(0.400, 0.394, 14), scatter=0)
    assert kinds(cell) == "c"
    assert cell.why == "stays within 0.003 of its mean, no more than the 0.0079 that a change needs"


SMALL = re.compile(
    r"varies by (\S+), but falls from (its plateau|the first step) to the minimum by only (\S+) \((\S+) needed\), "
    r"and rises from there to the last step by only (\S+) \((\S+) needed\)"
    r"(?:; it rises by (\S+) to its top, then falls by (\S+), which no phase names)?"
)
UNSURE = re.compile(r"(falls|rises) by (\S+), but the interval of this change, (\S+) to (\S+), includes 0")


@pytest.mark.parametrize(
    ("loss", "start", "fall"),
    [
        (0.3 + 0.2 * np.sin(np.linspace(0, np.pi, 14)), "the first step", 0.0),  # a hump
        (np.array([0.325, 0.413, 0.427, 0.164]), "the first step", 0.161),  # a rise, then a fall that ends lowest
        (np.array([0.4] * 6 + [0.3995, 0.4] + [0.4125] * 4 + [0.3935, 0.3925]), "its plateau", None),
    ],
)
def test_a_curve_that_varies_without_a_change_that_counts(loss: np.ndarray, start: str, fall: float | None) -> None:
    cell = find(loss, scatter=0)
    assert kinds(cell) == ""
    found = SMALL.fullmatch(cell.why)
    assert found is not None, cell.why
    varies, fallen, asked, risen, asked_of_rise = map(float, found.group(1, 3, 4, 5, 6))
    assert varies == pytest.approx(np.ptp(loss), rel=0.05)
    assert found[2] == start
    assert fallen < asked
    assert risen < asked_of_rise
    top = int(loss.argmax())
    humped = loss[top] - np.array([loss[:top].min(), loss[top:].min()])
    assert (found[7] is not None) == (float(humped.min()) >= max(asked, 0.02 * float(loss[:top].min())))
    assert found[7] is None or [*map(float, found.group(7, 8))] == pytest.approx(humped, rel=0.05)
    if fall is not None:
        assert fallen == pytest.approx(fall, rel=0.02)


@pytest.mark.parametrize("change", [-0.05, 0.05, -0.012])
def test_a_change_that_other_samples_may_undo(change: float) -> None:
    rng = np.random.default_rng(0)
    slopes = 12 * abs(change) * rng.normal(size=(1, 40))
    samples = 0.4 + np.linspace(0, 1, 14)[:, None] * (slopes - slopes.mean() + change)
    cell = detect_curve(log_steps(14), samples)
    assert kinds(cell) == ("c" if change == -0.012 else "")  # all steps are near their mean, but not the same
    found = UNSURE.fullmatch(cell.why)
    assert found is not None, cell.why
    assert found[1] == ("falls" if change < 0 else "rises")
    assert float(found[2]) == pytest.approx(abs(change), rel=0.02)
    assert float(found[3]) < 0 < float(found[4])


def test_what_is_said_of_random_curves_is_true_of_them() -> None:
    rng = np.random.default_rng(1)
    told = 0
    for _ in range(150):
        size = int(rng.integers(3, 16))
        walk = np.cumsum(rng.normal(size=size)) * rng.choice([0.002, 0.01, 0.05])
        samples = (1 + walk)[:, None] + rng.choice([0.01, 0.1, 1.0]) * rng.normal(size=(size, 30))
        cell = detect_curve(log_steps(size), samples, replicates=100)
        loss, low = samples.mean(axis=1), int(samples.mean(axis=1).argmin())
        assert bool(cell.why) == (not cell.phase("decrease"))
        assert cell.why.startswith("no stop window: ") == bool(cell.phase("increase") and not cell.phase("decrease"))
        if fallen := re.fullmatch(
            r"no stop window: falls from .* to the minimum by only (\S+) \((\S+) needed\)", cell.why
        ):
            told += 1
            assert float(fallen[1]) < float(fallen[2])
        elif unsure := UNSURE.match(cell.why):
            told += 1
            assert float(unsure[3]) <= 0 <= float(unsure[4])
            assert float(unsure[2]) >= 0.0195 * loss.min()
        elif small := SMALL.fullmatch(cell.why):
            told += 1
            assert float(small[3]) < float(small[4])
            assert float(small[5]) < float(small[6])
            if small[2] == "the first step" and cell.minimum_step == log_steps(size)[low]:
                assert float(small[3]) == pytest.approx(loss[0] - loss[low], rel=0.06, abs=1e-6)
        elif near := re.match(r"stays within (\S+) of its mean, no more than the (\S+) that", cell.why):
            told += 1
            assert float(near[1]) <= float(near[2])
            assert float(near[1]) == pytest.approx(np.abs(loss - loss.mean()).max(), rel=0.06)
    assert told > 30


def test_the_reason_is_written() -> None:
    cell = find(np.full(14, 0.4), scatter=0)
    (written,) = json.loads(PhaseReport((cell,)).to_json())["cells"]
    assert written["evidence"]["reason"] == cell.why != ""


HUMP = [0.26, 0.24, 0.22, 0.22, 0.22, 0.26, 0.32, 0.32, 0.41, 0.45, 0.35, 0.14, 0.15, 0.13]
LATE = [0.25, 0.25, 0.25, 0.25, 0.25, 0.27, 0.33, 0.40, 0.50, 0.48, 0.30, 0.15, 0.10, 0.10]


def test_a_curve_that_rises_before_it_falls_is_not_constant() -> None:
    """Whose bend is taken for noise: what it varies by is told, and a fall begins at its top."""
    samples = np.random.default_rng(0).uniform(0.5, 1.5, (1, 300))
    cell = detect_curve(log_steps(14), np.array(HUMP)[:, None] * samples / samples.mean())
    assert cell.phases == ()
    assert cell.why.startswith("varies by 0.32, but falls from the first step to the minimum by only 0.13")
    cell = detect_curve(log_steps(14), np.array(LATE)[:, None] * samples / samples.mean())
    assert cell.phases_text() == "constant 0-16, decrease 128-2048"
    assert cell.phases[1].change == pytest.approx(-0.4)
