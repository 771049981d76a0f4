"""Phase detection: known curves, curves without phases, calibration under noise, bad input, the written form."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from phasefast.errors import ArgumentError, DataError, LayerError
from phasefast.phases.detect import detect_curve, detect_phases
from phasefast.phases.phase_report import PhaseReport
from phasefast.results.scores import Scores
from tests.curves import QUICK, draw, find, kinds, log_steps

CIFAR_STEPS = [0, 2, 8, 16, 32, 64, 256, 1024, 4096]
CIFAR_SUMS = [46.707, 46.552, 46.305, 45.622, 44.377, 43.476, 41.920, 40.324, 40.539, 41.717, 41.121, 44.299]
CIFAR_SUMS += [48.690, 54.745, 57.762, 60.003, 62.179]
DIGITS = [0.359, 0.360, 0.360, 0.359, 0.344, 0.307, 0.291, 0.297, 0.318, 0.345, 0.370, 0.394, 0.415, 0.431]
THEORY = [0.998, 0.999, 0.996, 0.985, 0.938, 0.798, 0.557, 0.357, 0.265, 0.233, 0.230, 0.249]
THEORY += [0.280, 0.307, 0.321, 0.344]
THEORY_CLEAN = [0.996, 0.993, 0.986, 0.970, 0.930, 0.830, 0.660, 0.450, 0.290, 0.200, 0.165, 0.153, 0.146, 0.142, 0.136]
RECOMPUTED = [0.587, 0.589, 0.600, 0.590, 0.560, 0.517, 0.520, 0.576, 0.696]
RUNNING = [0.452, 0.490, 0.515, 0.536, 0.545, 0.517, 0.520, 0.576, 0.697]


def valley(rng: np.random.Generator, size: int) -> tuple[np.ndarray, int, int]:
    """A plateau, a fall and a rise of random place and depth, with the indices of the plateau's end and the minimum."""
    end = int(rng.integers(2, 6))
    low = end + int(rng.integers(2, 5))
    depth = rng.uniform(0.1, 0.5)
    curve = np.ones(size)
    curve[end : low + 1] = np.linspace(1, 1 - depth, low - end + 1)
    curve[low:] = np.linspace(1 - depth, 1 - depth + depth * rng.uniform(0.5, 1.5), size - low)
    return 0.6 * curve, end, low


@pytest.mark.parametrize("seed", range(4))
def test_digits(seed: int) -> None:
    cell = find(DIGITS, seed=seed)
    assert kinds(cell) == "cdi"
    constant, decrease, increase = cell.phases
    assert constant.start_step == 0
    assert constant.end_step == decrease.start_step
    assert constant.end_step in (4, 8)
    assert decrease.end_step == increase.start_step == cell.minimum_step
    assert cell.minimum_step in (32, 64)
    assert increase.end_step == 4096
    assert decrease.change == pytest.approx(0.291 - 0.357, abs=0.01)
    assert increase.change == pytest.approx(0.431 - 0.291, abs=0.01)
    assert all(phase.ci[0] < phase.change < phase.ci[1] for phase in cell.phases)
    assert cell.stop_window is not None
    assert cell.stop_window[0] <= cell.minimum_step <= cell.stop_window[1] <= 128


@pytest.mark.parametrize("seed", range(4))
def test_cifar_with_batch_statistics_stops_in_a_window(seed: int) -> None:
    cell = find(np.array(CIFAR_SUMS) / 79, [0] + [2**i for i in range(1, 17)], seed=seed, m=2000)
    assert kinds(cell) == "cdi"
    assert cell.phases[0].end_step in (4, 8, 16)
    assert cell.minimum_step in (128, 256)
    assert cell.minimum_ci[0] <= cell.minimum_step <= cell.minimum_ci[1]
    assert cell.stop_window is not None
    assert cell.stop_window[0] <= 128
    assert cell.stop_window[1] == 1024


@pytest.mark.parametrize("seed", range(4))
def test_recomputed_statistics_show_three_phases_and_running_ones_do_not(seed: int) -> None:
    recomputed = find(RECOMPUTED, CIFAR_STEPS, seed=seed, m=2000)
    assert kinds(recomputed) == "cdi"
    assert recomputed.minimum_step in (64, 256)
    running = find(RUNNING, CIFAR_STEPS, seed=seed, m=2000)
    assert kinds(running) == "i"
    assert running.stop_window is None


@pytest.mark.parametrize("seed", range(4))
def test_theory(seed: int) -> None:
    cell = find(THEORY, seed=seed)
    assert kinds(cell) == "cdi"
    assert cell.minimum_step in (256, 512)
    clean = find(THEORY_CLEAN, seed=seed)
    assert kinds(clean) == "cd"
    assert not clean.phase("increase")
    assert clean.stop_window is not None
    assert clean.stop_window[1] == clean.evidence["steps"][-1]


@pytest.mark.parametrize("count", [4, 5, 9, 14])
def test_identical_rows_are_constant(count: int) -> None:
    samples = np.repeat(np.random.default_rng(0).gamma(2, 0.2, (1, 300)), count, axis=0)
    cell = detect_curve(log_steps(count), samples)
    assert kinds(cell) == "c"
    assert (cell.phases[0].start_step, cell.phases[0].end_step) == (0, log_steps(count)[-1])
    assert cell.phases[0].change == 0
    assert cell.phases[0].ci == (0, 0)
    assert cell.stop_window is None


@pytest.mark.parametrize("seed", range(5))
def test_flat_and_tiny_curves_are_constant(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert kinds(find(np.full(14, 0.4), seed=seed)) == "c"
    assert kinds(find(np.linspace(0.400, 0.394, 14), seed=seed, scatter=0)) == "c"
    assert kinds(find(1e-4 * rng.uniform(0.8, 1.2, 14), seed=seed)) == "c"
    assert kinds(find(1e-4 * np.linspace(1.2, 0.8, 14), seed=seed)) == "c"


@pytest.mark.parametrize("scatter", [0.0, 0.5])
def test_noise_between_steps_is_not_a_change(scatter: float) -> None:
    rng = np.random.default_rng(7)
    false = Counter(
        kinds(find(0.4 + 0.03 * rng.normal(size=12), seed=seed, m=50, scatter=scatter, **QUICK)) for seed in range(200)
    )
    assert 200 - false["c"] - false[""] <= 6, false
    assert false[""] <= 20, false


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (np.linspace(1, 0.5, 14), "d"),
        (np.linspace(0.5, 1, 14), "i"),
        (0.5 + 0.5 * np.exp(-np.arange(14) / 2), "d"),
        (1 - 0.5 / (1 + np.exp(7 - np.arange(14))), "cd"),
        (0.5 + 0.5 / (1 + np.exp(7 - np.arange(14))), "ci"),
        (1 - 0.5 * np.exp(-np.arange(14) / 2), "i"),
    ],
)
def test_monotone_curves(curve: np.ndarray, expected: str) -> None:
    cell = find(curve, scatter=0.01)
    assert kinds(cell) == expected
    assert (cell.stop_window is None) == ("d" not in expected)
    if "d" in expected:
        assert cell.stop_window is not None
        assert cell.stop_window[1] == log_steps(14)[-1]


def test_a_levelling_fall_rarely_gets_an_increase() -> None:
    rng = np.random.default_rng(3)
    fall = 0.5 + 0.5 * np.exp(-np.arange(14) / 2)
    found = Counter(kinds(find(fall + 0.01 * rng.normal(size=14), seed=s, m=50, **QUICK)) for s in range(100))
    assert found["d"] >= 94, found


def test_a_steep_valley_is_not_taken_for_scatter() -> None:
    steep = [0.707, 0.702, 0.637, 0.495, 0.401, 0.380, 0.405, 0.433, 0.435, 0.436, 0.436]
    assert kinds(find(steep, scatter=0.005)) == "di"


@pytest.mark.parametrize("size", [7, 9, 12, 16, 25])
def test_a_steep_fall_that_scatters_rarely_gets_an_increase(size: int) -> None:
    rng, place, found = np.random.default_rng(size), np.linspace(0, 1, size), Counter[str]()
    for seed in range(100):
        steep = 0.3 + 0.5 / (1 + np.exp((place - rng.uniform(0.3, 0.6)) * rng.uniform(10, 25)))
        fall = steep if seed % 2 else 0.3 + 0.5 * np.exp(-rng.uniform(2, 5) * place)
        scattered = fall + rng.choice([0.005, 0.015]) * rng.normal(size=size)
        cell = find(scattered, np.arange(size), seed, m=50, scatter=0.02, **QUICK)
        found["i" in kinds(cell)] += 1
        increase = cell.phase("increase")
        assert increase is None or increase.start_step >= cell.minimum_step
        if increase is None and cell.stop_window is not None:
            assert cell.stop_window[1] == size - 1
    assert found[True] <= 5, found


def test_an_increase_never_begins_before_the_minimum() -> None:
    rng = np.random.default_rng(0)
    for seed in range(200):
        flat = np.concatenate([np.full(6, 0.5), 0.5 - 0.012 * rng.random(3), 0.5 + 0.012 * np.arange(1, 5)])
        cell = find(flat, np.arange(13), seed, m=50, scatter=0.005, **QUICK)
        increase = cell.phase("increase")
        assert increase is None or increase.start_step >= cell.minimum_step


def test_valleys_are_found_where_they_are() -> None:
    rng = np.random.default_rng(5)
    errors = []
    for seed in range(150):
        curve, end, low = valley(rng, 14)
        noise = 0.05 * (curve[0] - curve.min())
        cell = detect_curve(np.arange(14), draw(curve + noise * rng.normal(size=14), seed, 200, 0.02), **QUICK)
        if kinds(cell) == "cdi":
            errors.append((abs(cell.phases[0].end_step - end), abs(cell.minimum_step - low)))
    assert len(errors) >= 0.95 * 150
    assert np.mean(np.max(errors, axis=1) <= 1) >= 0.95


def test_intervals_cover_the_change_and_the_minimum() -> None:
    truth = np.array(DIGITS)
    covered, minimum, runs = 0, 0, 200
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        samples = truth[:, None] * (rng.gamma(4, 0.25, (1, 200)) + 0.3 * rng.normal(size=(14, 200)))
        cell = detect_curve(np.arange(14), samples, seed=seed, replicates=400, rules=QUICK["rules"])
        increase = cell.phase("increase")
        assert increase is not None
        low, high = increase.ci
        covered += low <= truth[increase.end_step] - truth[increase.start_step] <= high
        minimum += cell.minimum_ci[0] <= 6 <= cell.minimum_ci[1]
    assert 0.90 <= covered / runs <= 0.99
    assert minimum / runs >= 0.90


def test_many_samples_give_the_same_interval_in_groups() -> None:
    samples = draw(DIGITS, m=20_000)
    cell = detect_curve(log_steps(14), samples)
    increase = cell.phases[-1]
    last, low = (int(np.flatnonzero(log_steps(14) == step)[0]) for step in (increase.end_step, increase.start_step))
    spread = (samples[last] - samples[low]).std() / np.sqrt(20_000)
    assert increase.ci[1] - increase.ci[0] == pytest.approx(2 * 1.96 * spread, rel=0.15)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([0.4, 0.3], ""), ([0.4, 0.4, 0.4], ""), ([0.4, 0.3, 0.35], ""),
        ([0.4, 0.4, 0.4, 0.4], "c"), ([0.4, 0.37, 0.33, 0.3], "d"), ([0.3, 0.33, 0.37, 0.4], "i"),
        ([0.4, 0.35, 0.3, 0.35], "di"), ([0.36, 0.36, 0.29, 0.35, 0.42], "di"),
        ([0.36, 0.36, 0.36, 0.29, 0.42], "cdi"), ([0.36, 0.36, 0.36, 0.36, 0.42], "ci"),
        ([0.602, 0.601, 0.6, 0.5, 0.3, 0.4, 0.5], "cdi"), ([0.6, 0.5, 0.4, 0.3, 0.35, 0.4, 0.45], "di"),
    ],
)  # fmt: skip
def test_few_steps(curve: list[float], expected: str) -> None:
    cell = find(curve, scatter=0.005)
    assert kinds(cell) == expected
    assert ("show changes from step to step" in cell.why) is (len(curve) < 4)
    assert len(curve) >= 4 or cell.stop_window is None
    assert cell.evidence["order_p"] is None


def test_a_hump_is_neither_constant_nor_a_phase() -> None:
    assert kinds(find(0.3 + 0.2 * np.sin(np.linspace(0, np.pi, 14)), scatter=0.005)) == ""


def test_a_rise_before_the_decrease_is_no_phase_but_told() -> None:
    curve = [0.40, 0.46, 0.52, 0.56, 0.50, 0.42, 0.34, 0.28, 0.25, 0.29, 0.34, 0.40]
    cell = find(curve, np.arange(12), scatter=0.005)
    assert kinds(cell) == "di"
    assert [(p.start_step, p.end_step) for p in cell.phases] == [(3, 8), (8, 11)]
    assert cell.evidence["early_rise"] == [0, 3]
    assert cell.stop_window == (7, 8)  # 0.29 is within a quarter of what falls from the top, not from 0.40
    told = f"Rises before the decrease, which no phase names: {cell.layer} 0-3."
    assert [told in str(PhaseReport((each,))) for each in (cell, find(DIGITS))] == [True, False]


def test_one_odd_checkpoint_does_not_move_the_valley() -> None:
    curve = np.array(DIGITS)
    curve[11] = 0.28
    assert find(curve).minimum_step in (32, 64)


def test_same_seed_same_answer_whatever_the_order_of_steps() -> None:
    samples, order = draw(DIGITS), np.random.default_rng(0).permutation(14)
    first = detect_curve(log_steps(14), samples, seed=3)
    assert detect_curve(log_steps(14), samples, seed=3) == first
    assert detect_curve(log_steps(14)[order], samples[order], seed=3) == first
    assert detect_curve(log_steps(14), samples, seed=4).phases[-1].ci != first.phases[-1].ci


def rows(step: int, values: np.ndarray, **columns: Any) -> dict[str, Any]:
    """One row of a table of scores."""
    row = {"run": "a", "step": step, "dim": 8, "split": "heldout", "n": len(values), "value": float(values.mean())}
    return {**row, "samples": values.astype(np.float32).tolist(), **columns}


@pytest.fixture
def scores() -> Scores:
    """Digits-like input FVU at two layers, a label accuracy at one, and the model's own accuracy."""
    rng = np.random.default_rng(0)
    fvu, steps = draw(DIGITS, m=300), log_steps(14)
    right = (rng.uniform(size=300) < np.linspace(0.1, 0.9, 14)[:, None]).astype(float)
    table = []
    for step, loss, hit in zip(steps.tolist(), fvu, right):
        table += [rows(step, loss, layer=layer, target="input", metric="fvu") for layer in ("conv1", "conv2")]
        table += [rows(step, loss, layer="conv2", target="input", metric="mse")]
        table += [rows(step, loss, layer="conv2", target="label", metric="fvu")]
        table += [rows(step, hit, layer="conv2", target="label", metric="accuracy")]
        table += [rows(step, hit, layer="model", target="label", metric="accuracy")]
    return Scores.from_rows(table)


def test_every_probed_cell_is_reported(scores: Scores) -> None:
    report = detect_phases(scores)
    assert [(cell.layer, cell.target, cell.metric) for cell in report] == [
        ("conv1", "input", "fvu"),
        ("conv2", "input", "fvu"),
        ("conv2", "label", "error"),
    ]
    assert kinds(report.cell("conv1")) == kinds(report.cell("conv2")) == "cdi"
    label = report.cell("conv2", "label")
    assert kinds(label) == "d"
    assert label.phases[0].change == pytest.approx(-0.8, abs=0.1)
    assert [(c.layer, c.target) for c in detect_phases(scores, layers=["*2"], targets=["in*"])] == [("conv2", "input")]


def test_written_form(scores: Scores) -> None:
    written = json.loads(detect_phases(scores).to_json())
    assert list(written) == ["cells", "best", "failed"]
    for cell in written["cells"]:
        assert list(cell) == [
            *(
                "layer",
                "target",
                "metric",
                "phases",
                "minimum_step",
                "minimum_ci",
                "stop_window",
                "evidence",
                "stop_open",
            )
        ]
        for phase in cell["phases"]:
            assert list(phase) == ["kind", "start_step", "end_step", "change", "ci"]
            assert all(isinstance(phase[key], int) for key in ("start_step", "end_step"))
            assert [type(bound) for bound in (phase["change"], *phase["ci"])] == [float] * 3
        assert all(isinstance(step, int) for step in (cell["minimum_step"], *cell["minimum_ci"], *cell["stop_window"]))
        assert cell["evidence"]["samples"] == 300
        assert set(cell["evidence"]["loss"]) == {"first", "minimum", "last"}


def test_patterns_that_match_nothing(scores: Scores) -> None:
    with pytest.raises(LayerError, match=r"'fc\*' matches nothing.*conv1"):
        detect_phases(scores, layers=["fc*"])
    with pytest.raises(ArgumentError, match=r"'colour' matches nothing.*input"):
        detect_phases(scores, targets=["colour"])


def test_scores_that_cannot_be_analysed(scores: Scores) -> None:
    with pytest.raises(DataError, match="no phases to detect"):
        detect_phases(Scores.from_rows([]))
    with pytest.raises(DataError, match=r"layer 'conv1'.*at least 2 steps"):
        detect_phases(scores.filter(step=0))
    with pytest.raises(DataError, match=r"of one run, got those of \['a', 'other'\]"):
        detect_phases(Scores.concat([scores, scores.with_column("run", "other")]))
    with pytest.raises(DataError, match=r"layer 'conv1'.*step 0 occurs more than once"):
        detect_phases(Scores.concat([scores, scores.with_column("config_hash", "other")]))
    bare = [rows(step, np.ones(2), layer="a", target="input", metric="fvu", samples=None) for step in (0, 1)]
    with pytest.raises(DataError, match="no per-sample 'fvu' is stored for layer 'a'"):
        detect_phases(Scores.from_rows(bare))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_named(bad: float) -> None:
    samples = draw(DIGITS)
    samples[5, 7] = bad
    with pytest.raises(DataError, match=r"layer 'fc'.*step 16 is not finite in 1 of 600"):
        detect_curve(log_steps(14), samples, layer="fc")


@pytest.mark.parametrize(
    ("steps", "shape", "message"),
    [
        ([0], (1, 9), "at least 2 steps"),
        ([0, 1], (2, 1), "2 steps and 1 samples"),
        ([0, 1], (3, 9), "expected steps"),
        ([0, 1], (2,), "expected steps"),
        ([0, 0.5], (2, 9), "whole numbers"),
        ([4, 0, 4], (3, 9), "step 4 occurs more than once"),
    ],
)
def test_bad_curves(steps: list[float], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        detect_curve(np.array(steps), np.ones(shape))


@pytest.mark.parametrize("options", [{"confidence": 0.0}, {"confidence": 1.0}, {"replicates": 10}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match="expected a confidence between 0 and 1"):
        detect_curve(np.arange(3), np.ones((3, 9)), **options)
