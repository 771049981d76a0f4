"""Targets by their leading components: the exact loss lies in the interval, whatever the route."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import phasefast as pf
from phasefast.algebra import components as components_module
from phasefast.algebra.components import RANDOM_COLUMNS, columns_with_components, interval, project
from phasefast.algebra.systems import Penalties
from phasefast.data.target_matrix import TargetMatrix
from phasefast.data.target_types import Input, Label
from phasefast.decoding import Method, decode
from phasefast.errors import ArgumentError, StoreError
from phasefast.planning import plan
from phasefast.stages.evaluate import evaluate
from phasefast.stages.targets import build_targets
from phasefast.types import Activations, Score
from tests.oracle import captured

CPU = torch.device("cpu")
FOLDS = (0, 40, 80, 120)


def make(seed: int, p: int = 150, decay: float = 1.0, d: int = 30, noise: float = 0.1) -> tuple[Activations, ...]:
    """A cell of 120 fit and 60 held-out rows, its targets whose k-th direction has size k^-decay, and their labels."""
    g = torch.Generator().manual_seed(seed)
    n, m = FOLDS[-1], 60
    basis = torch.linalg.qr(torch.randn(p, p, generator=g)).Q
    latent = torch.randn(n + m, p, generator=g) * torch.arange(1, p + 1) ** -decay
    t = latent @ basis + noise * torch.randn(n + m, p, generator=g) / p
    a = latent @ torch.randn(p, d, generator=g) + 0.3 * torch.randn(n + m, d, generator=g)
    labels = torch.randint(0, 3, (n + m,), generator=g)
    return captured(a[:n], a[n:], FOLDS), ((t[:n], labels[:n]), (t[n:], labels[n:]))


def scores(cell: Activations, targets: TargetMatrix, alphas=(1e-3,), **how) -> dict[tuple[str, str], Score]:
    """The input's ``mse`` and ``fvu``, by split and metric."""
    method = Method(Penalties(alphas), "double", **how)
    both = how.get("splits", "both") == "both"
    found = [s for rows, decoder in decode([cell], targets, method) for s in evaluate(rows, decoder, targets, both)()]
    return {(s.split, s.metric): s for s in found if s.target == "input"}


def both_ways(seed: int, components: int, alphas=(1e-3,), how=None, **made):
    """Scores with components, and of all columns."""
    cell, splits = make(seed, **made)
    kinds = [Input(), Label(3)]
    some = build_targets(kinds, *splits, FOLDS, CPU, components=components)
    return scores(cell, some, alphas, **(how or {})), scores(cell, build_targets(kinds, *splits, FOLDS, CPU), alphas)


def test_the_exact_loss_lies_in_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = {"fit": 0, "heldout": 0}
    cases = 0
    for seed in range(40):
        monkeypatch.setattr(components_module, "_SEED", seed)
        for decay, components in ((0.2, 5), (1.0, 3), (2.0, 10), (1.0, 40)):
            got, exact = both_ways(
                seed, components, (1e-5, 1e-2, 1.0)[seed % 3 :][:1], decay=decay, d=(10, 60, 115)[seed % 3]
            )
            cases += 1
            for split in inside:
                score, bounds = got[split, "fvu"], got[split, "fvu"].bounds
                assert bounds.low <= score.value <= bounds.high or split == "fit"
                assert bounds.high - bounds.low <= 0.8 * (score.value + bounds.dropped)
                inside[split] += bounds.low <= exact[split, "fvu"].value <= bounds.high
    assert min(inside.values()) >= 0.93 * cases


@pytest.mark.parametrize("seed", range(5))
def test_estimates_have_the_exact_loss_for_their_mean_and_labels_stay_as_they_are(seed: int) -> None:
    got, exact = both_ways(seed, 20)
    for key, score in got.items():
        assert score.value == pytest.approx(exact[key].value, rel=0.15)
        assert score.bounds.approximation == "20 of 150 components"
        assert exact[key].bounds is None
        other = got[key[0], "mse" if key[1] == "fvu" else "fvu"]
        assert other.value / other.bounds.low == pytest.approx(score.value / score.bounds.low)
    assert float(got["heldout", "fvu"].samples.double().mean()) == pytest.approx(got["heldout", "fvu"].value, rel=1e-6)


@pytest.mark.parametrize(
    "how", [{"route": "dual"}, {"route": "eigen"}, {"route": "target-free", "splits": "heldout"}, {"selection": "loo"}]
)
def test_all_routes_give_the_same_estimate(how: dict[str, str]) -> None:
    alphas = (1e-3,) if "route" in how else (1e-4, 1e-2, 1.0)
    cell, splits = make(3, d=200)
    targets = build_targets([Input()], *splits, FOLDS, CPU, components=20)
    plain, other = scores(cell, targets, alphas, route="primal"), scores(cell, targets, alphas, **how)
    for key, score in other.items():
        if "route" in how:
            assert score.value == pytest.approx(plain[key].value, rel=1e-9)
            assert (score.bounds.low, score.bounds.high) == pytest.approx(
                (plain[key].bounds.low, plain[key].bounds.high), rel=1e-9
            )
        else:
            assert score.bounds.low < score.value < score.bounds.high


def test_the_penalty_is_the_one_of_the_whole_target() -> None:
    for seed in range(4):
        got, exact = both_ways(seed, 10, (1e-5, 1e-3, 1e-1, 1.0))
        assert got["heldout", "fvu"].fit.alpha == exact["heldout", "fvu"].fit.alpha


def test_targets_that_are_all_in_their_components_are_exact() -> None:
    got, exact = both_ways(0, 150 - RANDOM_COLUMNS)
    assert got["heldout", "fvu"].bounds is None
    assert got["heldout", "fvu"].value == exact["heldout", "fvu"].value
    cell, splits = make(1)
    low_rank = [(t[:, :4] @ torch.ones(4, 150).triu(), labels) for t, labels in splits]
    found = scores(cell, build_targets([Input()], *low_rank, FOLDS, CPU, components=12))
    plain = scores(cell, build_targets([Input()], *low_rank, FOLDS, CPU))
    for key, score in found.items():
        assert score.value == pytest.approx(plain[key].value, rel=1e-5)
        assert score.bounds.high - score.bounds.low < 1e-9 * score.value
        assert score.bounds.dropped < 1e-9


def test_targets_wider_than_the_rows() -> None:
    inside = 0
    for seed in range(12):
        got, exact = both_ways(seed, 20, p=500)
        assert got["heldout", "mse"].bounds.approximation == "20 of 500 components"
        bounds = got["heldout", "mse"].bounds
        inside += bounds.low <= exact["heldout", "mse"].value <= bounds.high
        # n + 1 columns are fewer, and exact.
        row_space, _ = both_ways(seed, 100, p=500)
        assert row_space["heldout", "mse"].bounds is None
    assert inside >= 10


@pytest.mark.parametrize(("n", "p", "count"), [(50, 90, 7), (30, 200, 40), (90, 90, 20)])
def test_projections_keep_all_squares_in_the_mean(n: int, p: int, count: int) -> None:
    g = torch.Generator().manual_seed(n)
    fit = torch.randn(n, p, generator=g) * torch.arange(1, p + 1) ** -0.5
    heldout = torch.randn(20, p, generator=g) * torch.arange(1, p + 1) ** -0.5
    before = torch.get_rng_state()
    of_fit, of_heldout, left = project(fit - fit.mean(0), heldout - fit.mean(0), count)
    assert torch.equal(before, torch.get_rng_state())
    for split, part, whole in (("fit", of_fit, fit), ("heldout", of_heldout, heldout)):
        assert part.shape == (len(whole), count + RANDOM_COLUMNS)
        low, high = interval(part[:, count:].square().sum(0).numpy())
        assert 0.9 * low <= left[split] + 1e-9 <= 1.1 * high + 1e-8  # a draw may miss by a little
    best = torch.linalg.svdvals((fit - fit.mean(0)).double())[:count].square().sum()
    assert float(of_fit[:, :count].square().sum()) == pytest.approx(float(best), rel=0.02)


def test_intervals_cover_a_single_direction_and_many() -> None:
    g = torch.Generator().manual_seed(0)
    for weights in (torch.ones(1), torch.ones(400), torch.arange(1, 60) ** -1.0):
        losses = torch.randn(500, RANDOM_COLUMNS, len(weights), generator=g).square() @ weights / RANDOM_COLUMNS
        found = [interval(each.double().numpy()) for each in losses]
        inside = sum(low <= float(weights.sum()) <= high for low, high in found)
        assert 0.93 <= inside / len(found) <= 0.98
    assert interval(np.zeros(RANDOM_COLUMNS)) == (0.0, 0.0)


def test_columns_are_only_replaced_by_fewer() -> None:
    assert columns_with_components(3072, None) == 3072
    assert columns_with_components(3072, 256) == 256 + RANDOM_COLUMNS
    assert columns_with_components(300, 256) == 300


def test_probe_labels_what_it_estimated(tmp_path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 20), nn.ReLU(), nn.Linear(20, 3))
    images, labels = torch.randn(300, 3, 8, 8).cumsum(3), torch.randint(0, 3, (300,))
    probe_set = pf.ProbeSet.from_tensors(images[:200], labels[:200], images[200:], labels[200:])
    sweep = {"out": tmp_path / "run", "layers": "1"}
    some = pf.sweep(model, {0: model.state_dict()}, probe_set, target_components=100, **sweep)
    exact = pf.probe(model, probe_set, layers="1")
    estimates = [row for row in pf.read_scores(tmp_path / "run").to_arrow().to_pylist() if row["low"] is not None]
    assert estimates
    assert all(row["low"] <= row["value"] <= row["high"] for row in estimates)
    assert pf.read_scores(tmp_path / "run").filter(layer="1", target="input").values_of("approximation") == [
        "100 of 192 components"
    ]
    (row,) = some.filter(layer="1", target="input", metric="fvu", split="heldout").to_arrow().to_pylist()
    assert row["low"] <= exact.value(layer="1", target="input", metric="fvu", split="heldout") <= row["high"]
    assert 0 < row["dropped"] < 0.5
    label = {"layer": "1", "target": "label", "metric": "accuracy", "split": "heldout"}
    assert some.value(**label) == exact.value(**label)
    assert exact.values_of("approximation") == ["none"]
    with pytest.raises(StoreError, match="another configuration"):
        pf.sweep(model, {0: model.state_dict()}, probe_set, **sweep)


def test_options_that_cannot_be() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    probe_set = pf.ProbeSet.from_tensors(torch.randn(20, 4), None, torch.randn(9, 4), None)
    for given in ({"target_components": 0}, {"target_components": 2.5}, {"target_components": True}):
        with pytest.raises(ArgumentError, match="target_components: expected an integer >= 1"):
            pf.probe(model, probe_set, **given)
    with pytest.raises(ArgumentError, match="target_components: penalty_per='column' allows no approximation"):
        pf.probe(model, probe_set, target_components=3, penalty_per="column")


def test_the_plan_counts_fewer_columns() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 20))
    whole, some, row_space = (
        plan(model, (3, 8, 8), n, 100, alphas=[1e-3], target_components=count)[-1].cost.flops
        for n, count in ((1000, None), (1000, 30), (90, 30))
    )
    assert some < 0.8 * whole
    assert row_space == plan(model, (3, 8, 8), 90, 100, alphas=[1e-3])[-1].cost.flops


def test_what_is_left_out_is_estimated_without_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """The random columns know nothing of how the components were found, on either split."""
    ratios = {"fit": [], "heldout": []}
    for count in range(4, 64):
        monkeypatch.setattr(components_module, "_SEED", 1000 + count)
        g = torch.Generator().manual_seed(count)
        rows = torch.randn(150, 160, generator=g) * torch.arange(1, 161) ** -0.3
        fit, heldout = rows[:100] - rows[:100].mean(0), rows[100:] - rows[:100].mean(0)
        *parts, left = project(fit, heldout, count)
        for split, part in zip(ratios, parts, strict=True):
            ratios[split].append(float(part[:, count:].square().sum()) / left[split])
    for found in ratios.values():
        assert torch.tensor(found).mean() == pytest.approx(1, abs=0.015)
