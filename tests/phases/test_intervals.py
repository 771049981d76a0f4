"""Intervals of changes in FVU, whose unit other held-out samples would have changed too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import phasefast as pf
from phasefast.errors import DataError
from phasefast.phases.bootstrap import bootstrap, draw
from phasefast.phases.detect import detect_curve
from phasefast.results.scores import Scores
from tests.conftest import SmallNet
from tests.curves import QUICK


def measured(seed: int, proportional: bool, m: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """FVU [13, m] of samples of unequal contrast, from .6 down to .3 and up to .45; and their deviations [m]."""
    rng = np.random.default_rng(seed)
    loss = np.interp(np.linspace(0, 1, 13), [0, 0.25, 0.5, 1], [0.6, 0.6, 0.3, 0.45])[:, None]
    contrast = np.exp(rng.normal(size=m) - 0.5)
    errors = loss * (contrast if proportional else 1) * np.exp(0.05 * rng.normal(size=(13, m)))
    return errors / contrast.mean(), contrast / contrast.mean()


@pytest.mark.parametrize("proportional", [False, True], ids=["noise", "contrast"])
def test_intervals_of_fvu_hold_the_change_of_all_possible_samples(proportional: bool) -> None:
    shares = []
    for unit in (True, False):
        held = []
        for seed in range(60):
            samples, deviations = measured(seed, proportional)
            cell = detect_curve(np.arange(13), samples, baseline_samples=deviations if unit else None, **QUICK)
            rise = cell.phase("increase")
            assert rise is not None
            low, high = rise.ci
            held.append(low <= 0.15 * np.exp(0.00125) <= high)
        shares.append(np.mean(held))
    assert shares[0] >= 0.8
    # By the errors alone: far too narrow where they do not depend on the contrast, else far too wide.
    assert shares[1] == 1 if proportional else shares[1] < 0.5


@pytest.mark.parametrize("few", [2, 3, 5, 10, 30])
def test_intervals_of_few_samples_hold_the_change_as_often_as_of_many(few: int) -> None:
    held = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        own = np.linspace(0.6, 0.2, 9)[:, None] * (1 + 0.1 * rng.normal(size=few))
        cell = detect_curve(np.arange(9), own + 0.001 * rng.normal(size=(9, few)), **QUICK)
        fall = cell.phase("decrease")
        held.append(fall is None or fall.ci[0] <= -0.4 <= fall.ci[1])
    assert np.mean(held) >= 0.9


@pytest.mark.parametrize("metric", ["fvu", "error", "cross-entropy"])
def test_small_losses_and_means_of_groups_are_no_single_samples(metric: str) -> None:
    rng = np.random.default_rng(0)
    shape = np.interp(np.arange(12), [0, 3, 7, 11], [0.3, 0.3, 0.2, 0.2])[:, None]
    for losses in (0.01 * shape * rng.gamma(4, 0.25, 200), rng.binomial(100, shape, (12, 10)) / 100):
        cell = detect_curve(np.arange(12), losses, metric=metric, **QUICK)
        assert cell == replace(detect_curve(np.arange(12), losses, **QUICK), metric=metric)
        assert cell.phase("decrease") is not None


def test_where_the_minimum_lies_is_not_drawn_by_chance() -> None:
    right = np.random.default_rng(0).random((12, 500)) < np.linspace(0.5, 1.2, 12)[:, None]
    assert right[9:].all()
    cell = detect_curve(np.arange(12), (~right).astype(float), **QUICK)
    assert cell.minimum_ci[1] <= 9


@pytest.mark.parametrize("few", [2, 5, 8])
def test_shares_that_are_wrong_stay_shares(few: int) -> None:
    wrong = np.concatenate([np.ones((6, few)), np.zeros((6, few))])
    wrong[5, 0] = 0
    both = bootstrap(wrong, np.ones(few), (draws := draw(0, few, 400, True)), 0.95, draws.rng)
    assert (both[0].min(), both[0].max()) == (0, 1)
    assert (both[1][:, 0] > both[1][:, 11]).all()  # also where no sample was drawn


def test_samples_that_count_differently_are_right_or_wrong_too() -> None:
    counts = np.array([0.5, 0.5, 2.0, 1.0, 1.0])
    losses = np.concatenate([np.ones((6, 5)), np.zeros((6, 5))]) * counts
    cell = detect_curve(np.arange(12), losses, baseline_samples=counts, metric="balanced_error")
    assert all(phase.ci[1] - phase.ci[0] > 0.1 for phase in cell.phases)
    dead = detect_curve(np.arange(12), np.tile(counts, (12, 1)), baseline_samples=counts)
    assert [phase.ci for phase in dead.phases] == [(0, 0)]
    twice = detect_curve(np.arange(12), 2 * losses, baseline_samples=2 * np.ones(5), metric="loss")
    assert all(phase.ci[0] <= phase.change <= phase.ci[1] for phase in twice.phases)
    assert twice.phase("decrease") is not None


@pytest.mark.parametrize("metric", ["fvu", "error"])
def test_samples_that_are_all_right_by_chance_give_no_certain_change(metric: str) -> None:
    right = np.concatenate([np.ones((6, 3)), np.zeros((6, 3))])
    assert not detect_curve(np.arange(12), right, metric=metric).phases
    held, widths = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        hard = np.where(np.arange(12) < 6, 0.9, 0.1)[:, None]
        wrong = (rng.random(8) + 0.1 * rng.uniform(-1, 1, (12, 8))).clip(0, 1) < hard
        cell = detect_curve(np.arange(12), wrong.astype(float), metric=metric, **QUICK)
        if (fall := cell.phase("decrease")) is not None:
            held.append(fall.ci[0] <= -0.8 <= fall.ci[1])
            widths.append(fall.ci[1] - fall.ci[0])
    assert len(held) > 80
    assert min(widths) > 0.1
    assert np.mean(held) >= 0.9


def test_replicates_of_the_unit_itself_are_one() -> None:
    _, unit = measured(0, False, 2500)
    found, _ = bootstrap(np.stack([unit, 3 * unit]), unit, (draws := draw(0, 2500, 50)), 0.95, draws.rng)
    np.testing.assert_allclose(found, np.tile([1.0, 3.0], (50, 1)))


def test_scores_keep_the_unit(net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    steps = {step: {name: tensor.clone() for name, tensor in net.state_dict().items()} for step in (0, 1)}
    for tensor in steps[1].values():
        tensor += 0.3 * torch.randn(tensor.shape) if tensor.is_floating_point() else 0
    scores = pf.sweep(net, steps, probe_set, out=tmp_path, layers=["conv", "hidden"])
    inputs = probe_set.heldout_inputs.flatten(1).double() - probe_set.fit_inputs.flatten(1).double().mean(0)
    expected = inputs.square().sum(1) / inputs.square().sum(1).mean()
    for found in (scores, pf.read_scores(tmp_path)):
        unit = found.baseline_samples("hidden", "input", "fvu")
        np.testing.assert_allclose(unit, expected, rtol=1e-5)
        assert found.baseline_samples("hidden", "label", "accuracy") is None
        assert "baseline_samples" not in found.to_pandas().columns
    cell = pf.detect_phases(scores, layers="hidden", targets="input").cells[0]
    rows = scores.to_arrow().drop_columns(["baseline_samples"]).to_pylist()
    again = pf.detect_phases(Scores.from_rows(rows), layers="hidden", targets="input").cells[0]
    assert [phase.kind for phase in again.phases] == [phase.kind for phase in cell.phases]


def test_units_of_few_samples_give_finite_intervals_in_any_unit() -> None:
    samples, unit = np.linspace([1.0] * 5, [0.5] * 5, 9), np.array([0, 0, 0, 0, 5.0])
    found = [detect_curve(np.arange(9), samples, baseline_samples=unit * scale) for scale in (1, 7)]
    assert np.isfinite([phase.ci for phase in found[0].phases]).all()
    assert found[0].phases == found[1].phases


@pytest.mark.parametrize("unit", [np.ones(9), -np.ones(20), np.zeros(20), np.full(20, np.nan), np.full(20, np.inf)])
def test_units_that_are_none_are_refused(unit: np.ndarray) -> None:
    with pytest.raises(DataError, match="baseline_samples"):
        detect_curve(np.arange(3), np.ones((3, 20)), baseline_samples=unit)
