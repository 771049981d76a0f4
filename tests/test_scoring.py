"""Wide layers from a sketch: the exact errors lie where the scores say, or the layer is decoded exactly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import phasefast as pf
from phasefast.algebra.systems import Penalties
from phasefast.data.target_matrix import TargetMatrix
from phasefast.data.target_types import Input, Label
from phasefast.decoding import Method
from phasefast.errors import ArgumentError
from phasefast.scoring import score_cells
from phasefast.stages.targets import build_targets
from phasefast.types import Activations, Score
from tests.oracle import captured

CPU = torch.device("cpu")
FOLDS = (0, 100, 200, 300)


def make(seed: int, d: int = 600, rank: int = 12) -> tuple[Activations, TargetMatrix]:
    """300 fit and 80 held-out rows of mostly ``rank`` directions, 40 target columns and 3 classes of the same."""
    g = torch.Generator().manual_seed(seed)
    n = FOLDS[-1]
    latent = torch.randn(n + 80, rank, generator=g)
    a = latent @ torch.randn(rank, d, generator=g) + 0.3 * torch.randn(n + 80, d, generator=g)
    t = latent @ torch.randn(rank, 40, generator=g) + 0.5 * torch.randn(n + 80, 40, generator=g)
    labels = latent[:, :3].argmax(1)
    targets = build_targets([Input(), Label(3)], (t[:n], labels[:n]), (t[n:], labels[n:]), FOLDS, CPU)
    return captured(a[:n], a[n:], FOLDS), targets


def scores(cell: Activations, targets: TargetMatrix, alphas=(1.0,), **how) -> dict[tuple[str, str, str], Score]:
    found = score_cells([cell], targets, Method(Penalties(alphas), **how))
    return {(s.target, s.split, s.metric): s for s in found}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("splits", ["both", "heldout"])
def test_exact_errors_lie_where_the_sketched_scores_say(seed: int, splits: str) -> None:
    cell, targets = make(seed)
    got, exact = scores(cell, targets, splits=splits, layer_sketch=150), scores(cell, targets, splits=splits)
    assert got.keys() == exact.keys()
    for (target, _, metric), one in got.items():
        truth = exact[target, one.split, metric]
        assert one.bounds.approximation == "sketch of 150 of 600 features"
        assert math.isnan(one.bounds.dropped)
        assert one.dim == 600
        if metric == "accuracy":
            assert math.isnan(one.bounds.low)
            assert one.value == pytest.approx(truth.value, abs=0.1)
        else:
            assert one.bounds.low <= truth.value <= one.bounds.high
            assert one.value == pytest.approx((one.bounds.low + one.bounds.high) / 2)
            if metric == "fvu" and one.split == "heldout":
                assert float(one.samples.double().mean()) == pytest.approx(one.value, rel=1e-5)
            assert one.bounds.high - one.bounds.low < 0.25 * one.value
            assert one.value == pytest.approx(truth.value, rel=0.12)


def test_a_penalty_is_chosen_from_the_sketch() -> None:
    cell, targets = make(1)
    alphas = (0.1, 1.0, 10.0)
    got = scores(cell, targets, alphas, layer_sketch=150)["input", "heldout", "fvu"]
    exact = {alpha: scores(cell, targets, (alpha,))["input", "heldout", "fvu"].value for alpha in alphas}
    assert got.bounds.low <= exact[got.fit.alpha] <= got.bounds.high


@pytest.mark.parametrize(("sketch", "alpha"), [(150, 1e-6), (150, 0.0), (600, 1.0), (8, 1.0), (30, 0.3)])
def test_cells_that_a_sketch_cannot_stand_for_are_decoded_exactly(sketch: int, alpha: float) -> None:
    cell, targets = make(2)
    got, exact = scores(cell, targets, (alpha,), layer_sketch=sketch), scores(cell, targets, (alpha,))
    for key, one in got.items():
        assert one.bounds is None
        assert one.value == exact[key].value


def test_probe_sketches_the_wide_layers_only() -> None:
    torch.manual_seed(0)
    mix = nn.Linear(12, 192)
    layers = {"flat": nn.Flatten(), "wide": nn.Linear(192, 400), "narrow": nn.Linear(400, 20)}
    model = nn.Sequential()
    for name, module in layers.items():
        model.add_module(name, module)
    with torch.no_grad():
        images = (mix(torch.randn(400, 12)) + 0.2 * torch.randn(400, 192)).view(400, 3, 8, 8)
    probe_set = pf.ProbeSet.from_tensors(images[:300], None, images[300:], None)
    options = {"layers": ["wide", "narrow"], "alphas": [3.0]}
    some, exact = pf.probe(model, probe_set, layer_sketch=100, **options), pf.probe(model, probe_set, **options)
    of_input = {"target": "input", "metric": "fvu", "split": "heldout"}
    (row,) = some.filter(layer="wide", **of_input).to_arrow().to_pylist()
    assert row["approximation"] == "sketch of 100 of 400 features"
    assert row["low"] <= exact.value(layer="wide", **of_input) <= row["high"]
    assert row["dropped"] is None
    assert some.value(layer="narrow", **of_input) == exact.value(layer="narrow", **of_input)
    assert some.filter(layer="narrow").values_of("approximation") == ["none"]
    assert some.layers == exact.layers


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer_sketch": 0}, "layer_sketch: expected an integer >= 1, got 0"),
        ({"layer_sketch": 10, "penalty_per": "column"}, "layer_sketch: penalty_per='column'"),
        ({"layer_sketch": 10, "target_components": 5}, "leave one of them out"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], words: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    probe_set = pf.ProbeSet.from_tensors(torch.randn(20, 4), None, torch.randn(9, 4), None)
    with pytest.raises(ArgumentError, match=words):
        pf.probe(model, probe_set, **options)
