"""Where values and steps lie: linear or log, what is cut out, ticks, and names that are moved apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from phasefast.report.curves import Curve, Look
from phasefast.report.panel import spread
from phasefast.report.scales import LETTER, StepAxis, ValueAxis, accuracy_axis, fvu_axis

from .synthetic import log2_steps

HEIGHT = 3.3


def curve(values: Sequence[float]) -> Curve:
    found = np.asarray(values, dtype=float)
    return Curve(np.arange(len(found)), found, *np.zeros((2, len(found)), dtype=bool), Look("a", "black"))


def axis(*curves: Sequence[float]) -> ValueAxis:
    return fvu_axis([curve(values) for values in curves], HEIGHT)


def inches(found: ValueAxis, low: float, high: float) -> float:
    return float(np.diff(found.at(np.array([low, high])))[0]) * HEIGHT


def test_step_axis_is_log2_with_zero_one_octave_below() -> None:
    axis = StepAxis(np.array([0, 1, 2, 4, 8]))
    assert [axis.at(step) for step in (0, 1, 2, 4, 8)] == [-1, 0, 1, 2, 3]
    assert StepAxis(np.array([0, 1024])).at(0) == 9
    assert StepAxis(np.array(log2_steps(14))).ticks(6.5)[::-1] == log2_steps(14)
    crowded = StepAxis(np.arange(0, 100_001, 5000)).ticks(6.5)
    assert crowded[0] == 100_000
    assert 3 < len(crowded) < 15


@pytest.mark.parametrize(
    ("steps", "linear"),
    [
        (log2_steps(14), False),
        ([0, 1, 2, 4, 8, 12, 20, 40], False),
        ([0, 7], False),
        ([5], False),
        ([0], False),
        (range(30), True),
        (range(1000, 1500, 10), True),  # within one octave
        (range(1, 101), True),
        (range(0, 100_001, 5000), True),
        ([300, 304, 308, 316, 332, *range(364, 600, 32), 600], True),
        ([*log2_steps(12), *range(3000, 20_000, 1000)], False),
    ],
)
def test_the_axis_is_the_one_on_which_steps_lie_more_evenly(steps: Sequence[int], linear: bool) -> None:
    for own in (np.array(steps), np.array(steps)[::-1]):
        assert StepAxis(own).is_linear is linear
    axis = StepAxis(np.array(steps))
    places = [axis.at(step) for step in steps]
    assert places == sorted(places)
    assert (places == [*steps]) == linear or len(steps) == 1
    low, high = axis.limits
    assert low < places[0]
    assert high > places[-1]


@pytest.mark.parametrize(
    ("steps", "ticks"),
    [
        (range(1, 101), range(5, 101, 5)),
        (range(0, 40_001, 1000), range(0, 40_001, 5000)),
        (range(8), range(8)),
        (range(0, 1000, 9), [*range(0, 901, 90), 999]),
    ],
)
def test_ticks_of_a_linear_axis_are_round_numbers(steps: Sequence[int], ticks: Sequence[int]) -> None:
    assert StepAxis(np.array(steps)).ticks(6.5)[::-1] == [*ticks]


@pytest.mark.parametrize("seed", range(20))
def test_ticks_are_probed_steps_with_room_of_which_the_last_is_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = np.unique(rng.integers(0, rng.integers(5, 10**6), rng.integers(2, 60)))
    axis = StepAxis(steps)
    ticks = axis.ticks(6.5)
    assert {*ticks} <= {*steps.tolist()}
    assert ticks[0] == steps[-1]
    inch = (axis.limits[1] - axis.limits[0]) / 6.5
    gaps = [axis.at(right) - axis.at(left) for right, left in pairwise(ticks)]
    assert all(gap >= LETTER * (len(str(left)) + 1.5) * inch for gap, left in zip(gaps, ticks[1:], strict=True))


@pytest.mark.parametrize(("low", "log"), [(0.021, False), (0.019, True)])
def test_layers_that_differ_by_more_than_twenty_need_a_log_axis(low: float, log: bool) -> None:
    assert axis([0.4] * 5, [low] * 5).log is log
    assert axis([0.4, 0.4, low / 100], [low] * 3).log is log  # single steps do not decide it


def test_one_layer_is_linear_however_far_it_falls() -> None:
    assert not axis([1, 0.1, 0.01, 0.001]).log


def test_far_outliers_are_cut_but_a_bad_layer_is_not() -> None:
    usual = np.array([0.3, 0.4, 0.5])
    for values, top in ((usual, 0.52), (usual * 1e-6, 0.52e-6), ([0.3, 0.4, 900], 1.25), ([40, 50, 60], 62.4)):
        assert axis(values).ends[1] == pytest.approx(top)


def test_a_bad_layer_is_shown_whole_among_good_ones() -> None:
    good = [[0.3, 0.32, 0.4]] * 6
    assert axis(*good, [1.5, 2.5, 4]).ends[1] == pytest.approx(4.16)
    # On a log axis a late rise is no outlier, a step that is far off its own curve is.
    assert axis(*good, [0.01] * 3, [0.5, 0.5, 4]).shown[1] == pytest.approx(4.16)
    assert axis(*good, [0.01, 0.01, 900]).shown[1] == 1.25


@pytest.mark.parametrize("values", [([-1e-9, -2e-9], [-2e-9, -1e-9]), ([0.0, 0.0],), ([-0.1, 0.4, 0.4],)])
def test_errors_that_rounding_made_negative_lie_on_the_axis(values: Sequence[Sequence[float]]) -> None:
    found = axis(*values)
    assert not found.log
    bottom, top = found.ends
    assert bottom < min(map(min, values))
    assert max(map(max, values)) < top


def test_accuracies_reach_one() -> None:
    assert accuracy_axis([curve([0.4, 0.9])]).ends == pytest.approx((0.3634, 1.01))


def test_empty_parts_are_cut_out_and_equal_ratios_stay_equally_high() -> None:
    found = axis([0.36, 0.29, 0.43], [0.105, 0.093, 0.099], [0.0019, 0.0018, 0.0018])
    assert found.log
    assert len(found.cuts) == 2
    heights = [inches(found, low, high) for low, high in ((0.3, 0.315), (0.095, 0.09975), (0.0018, 0.00189))]
    assert heights == pytest.approx([heights[0]] * 3)
    assert heights[0] > 0.05  # on a whole axis of 3.3 inches it would be 0.03
    for place in found.cuts:
        value = float(found.value(np.array(place)))
        assert 0.0019 < value < 0.093 or 0.105 < value < 0.29
    assert (np.diff(found.places) >= 0).all()
    assert found.places[[0, -1]].tolist() == [0, 1]


def test_nothing_is_cut_out_that_a_curve_goes_through() -> None:
    found = axis([0.5, 0.1, 0.001], [0.002, 0.002], [0.3, 0.3])
    assert found.log
    assert found.cuts == []


def test_flat_layers_are_not_blown_up() -> None:
    found = axis([0.4, 0.4008], [0.001, 0.001])
    assert 0.005 < inches(found, 0.4, 0.4008) < 0.01


def test_values_are_found_again_at_their_places() -> None:
    for found in (axis([0.3, 0.5]), axis([0.3, 0.5], [0.002, 0.003]), axis(*np.geomspace(1e-3, 0.4, 9)[:, None])):
        for low, high in found.pieces or [found.ends]:
            values = np.linspace(low, high, 5)
            assert found.value(found.at(values)) == pytest.approx(values)
        assert found.at(np.array([-1e9, 1e9])).tolist() == [0, 1]


@pytest.mark.parametrize(
    "levels", [(0.4, 0.001), (0.4, 0.1, 0.02, 0.0019), tuple(np.geomspace(1e-3, 0.4, 12)), (0.47, 0.0123), (7, 0.03)]
)
def test_every_piece_has_ticks_that_do_not_touch(levels: Sequence[float]) -> None:
    found = axis(*([level, 0.9 * level] for level in levels))
    ticks = np.array(found.ticks(HEIGHT))
    assert all(any(low <= tick <= high for tick in ticks) for low, high in found.pieces)
    assert (np.diff(found.at(np.sort(ticks))) * HEIGHT > 0.2).all()
    assert all(float(f"{tick:.1e}") == tick for tick in ticks)


def test_ticks_of_a_whole_log_axis_are_the_usual_ones() -> None:
    found = axis(*([level, 0.9 * level] for level in np.geomspace(1e-3, 0.4, 12)))
    assert found.cuts == []
    assert found.ticks(HEIGHT) == [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2]


def test_zero_and_what_is_below_four_decades_lie_at_a_floor() -> None:
    found = axis([0.4, 0.5], [0, 0], [-1e-9, 2e-9])
    assert found.log
    assert found.shown == (5e-5, 0.52)
    assert 0 < found.at(np.array([5e-5]))[0] < 0.1
    assert 5e-5 in found.ticks(HEIGHT)


@pytest.mark.parametrize(
    ("wanted", "gap"), [([0.5], 0.1), ([0.0] * 10, 0.1), ([1.0] * 5, 0.1), ([0.2, 0.21, 0.8], 0.05)]
)
def test_names_are_moved_apart_as_little_as_needed(wanted: list[float], gap: float) -> None:
    places = spread(np.array(wanted), gap)
    assert (np.diff(places) >= gap - 1e-12).all()
    assert places.min() >= 0
    assert places.max() <= 1 + 1e-12
    if len(wanted) == 3:
        assert places == pytest.approx([0.18, 0.23, 0.8])


def test_what_changes_little_is_drawn_over_the_whole_axis() -> None:
    bottom, top = axis([0.99, 0.93, 0.97], [0.96, 0.95, 0.95]).ends
    assert 0.92 < bottom < 0.93 < 0.99 < top < 1
    bottom, top = axis([0.5, 0.5, 0.5001]).ends
    assert 0.45 < bottom < 0.5 < top < 0.55
    assert accuracy_axis([curve([0.2, 0.4])]).ends == pytest.approx((0.18728, 0.412))
