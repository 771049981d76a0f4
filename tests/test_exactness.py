"""Numbers where rounding, or the way rows are cut into parts, could spoil them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.algebra.isometry import coordinates
from tests.conftest import SmallNet
from tests.oracle import ridge_heldout_error


class Table(nn.Module):
    """Gives rows [n, d] by their numbers."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)

    def forward(self, ids: Tensor) -> Tensor:
        return self.rows[ids[:, 0]]


def scored(rows: Tensor, values: np.ndarray, n: int, **options: object) -> tuple[pf.Scores, pf.ProbeSet]:
    """Held-out scores of values [n + m, q] decoded from rows [n + m, d], of which n fit."""
    ids = torch.arange(len(rows))[:, None]
    probe_set = pf.ProbeSet.from_tensors(ids[:n], None, ids[n:], None, values={"v": (values[:n], values[n:])})
    found = pf.probe(nn.Sequential(Table(rows)), probe_set, **options)  # type: ignore[arg-type]
    return found.filter(split="heldout", metric="fvu"), probe_set


@pytest.mark.parametrize("n", [3, 6, 8, 12, 30])
def test_row_space_of_centred_targets_keeps_lengths(n: int) -> None:
    """A penalty that leaves nothing but the mean to predict has an FVU of 1, whatever the rounding of the mean is."""
    for seed in range(20):
        torch.manual_seed(seed)
        inputs = torch.randn(n + 20, 2 * n) + 100 * (seed % 2)
        probe_set = pf.ProbeSet.from_tensors(inputs[:n], None, inputs[n:], None)
        scores = pf.probe(nn.Sequential(nn.Linear(2 * n, 4)), probe_set, alphas=[1e12])
        assert scores.value(metric="fvu", split="heldout") == pytest.approx(1, abs=1e-6)


def test_projections_are_never_longer_than_what_is_projected() -> None:
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        rows, others = torch.randn(4, 9, generator=generator), torch.randn(6, 9, generator=generator)
        rows -= rows.mean(0)  # which sums to rounding alone
        found = coordinates(rows, others)
        assert found is not None
        assert (found[1].square().sum(1) <= others.double().square().sum(1) * (1 + 1e-9)).all()


@pytest.mark.parametrize("offset", [0.0, 3e3, 1e5])
def test_fast_rows_keep_what_varies_beside_an_offset(offset: float) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(800, 40))
    values = rows @ rng.normal(size=(40, 3)) + 0.3 * rng.normal(size=(800, 3))
    given = torch.tensor(rows + offset * np.linspace(0.7, 1.3, 40)).float()
    exact, fast = (
        scored(given, values, 600, alphas=[1e-3], precision=precision)[0].value(target="v")
        for precision in ("exact", "fast")
    )
    assert fast == pytest.approx(exact, rel=2e-2)
    assert exact < 0.02


@pytest.mark.parametrize("n", [6, 40, 100, 300])
def test_batches_are_the_same_whether_a_penalty_is_chosen_or_given(n: int) -> None:
    torch.manual_seed(0)
    inputs, model = torch.randn(n + 60, 1, 6, 6), nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.BatchNorm2d(6))
    probe_set = pf.ProbeSet.from_tensors(inputs[:n], None, inputs[n:], None)
    chosen = pf.probe(model, probe_set, layers=["1"], batchnorm="batch").filter(metric="fvu")
    (alpha,) = set(chosen.to_arrow().column("alpha").to_pylist())
    given = pf.probe(model, probe_set, layers=["1"], batchnorm="batch", alphas=[alpha]).filter(metric="fvu")
    for split in ("fit", "heldout"):
        assert chosen.value(split=split) == pytest.approx(given.value(split=split), rel=2e-5, abs=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e5, 1e8])
def test_inputs_of_64_bits_keep_what_varies_beside_an_offset(offset: float) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(300, 5).double()
    model = nn.Sequential(nn.Linear(5, 3)).double()
    probe_set = pf.ProbeSet.from_tensors(inputs[:200] + offset, None, inputs[200:] + offset, None)
    got = pf.probe(model, probe_set, alphas=[1e-3]).value(metric="mse", split="heldout")
    fit, heldout = probe_set.fit_inputs, probe_set.heldout_inputs
    with torch.no_grad():
        error = ridge_heldout_error(model(fit), model(heldout), fit - offset, heldout - offset, 1e-3)
    assert got == pytest.approx(error / heldout.numel(), rel=1e-5)


def test_float64_chooses_where_float32_cannot_rank_the_penalties() -> None:
    """Rows of unequal length: float32 has no leave-one-out error of the weak penalties, among them the best."""
    rng = np.random.default_rng(1021)  # one of few seeds with such rows; the draws that are not used lead to them
    n, d = int(rng.choice([200, 500, 900])), int(rng.choice([100, 300, 450, 700]))
    rng.choice(list("abcde"))
    rows = rng.normal(size=(n + 300, d)) * np.arange(1, d + 1) ** -rng.uniform(0, 2)
    rows *= np.exp(rng.normal(size=(n + 300, 1)) * rng.uniform(0, 2))
    values = rows @ rng.normal(size=(d, 5))
    values /= values.std()
    values = np.tanh(values) * rng.choice([0, 1]) + values * rng.choice([0, 1])
    values = values + 10.0 ** rng.uniform(-4, 1) * rng.normal(size=values.shape)
    given = torch.tensor(rows).float()
    found = {
        name: scored(given, values, n, **options)[0].value(target="v")
        for name, options in {"gcv": {}, "float64": {"precision": "double"}, "loo": {"selection": "loo"}}.items()
    }
    assert found["gcv"] <= 1.2 * min(found.values())


def test_degrees_of_freedom_are_between_none_and_the_rank() -> None:
    rng = np.random.default_rng(0)
    rows = torch.tensor(rng.normal(size=(300, 20)) @ rng.normal(size=(20, 200))).float()
    values = rng.normal(size=(300, 2))
    for alpha in (1e-5, 1.0, 1e8):
        row = scored(rows, values, 250, alphas=[alpha])[0].to_arrow().to_pylist()[0]
        assert 0 <= row["dof"] <= row["rank"]


@pytest.mark.parametrize("route", [None, "primal", "dual"])
@pytest.mark.parametrize(("fit", "features"), [(80, 20), (50, 80)])
def test_ranks_are_of_the_features_whatever_stands_for_them(fit: int, features: int, route: str | None) -> None:
    rng = np.random.default_rng(1)
    rows, values = torch.tensor(rng.normal(size=(fit + 20, features))).float(), rng.normal(size=(fit + 20, 2))
    row = scored(rows, values, fit, alphas=[0.1], route=route)[0].to_arrow().to_pylist()[0]
    assert row["rank"] == min(features, fit - 1)
    assert row["dof"] <= row["rank"]


@pytest.mark.parametrize("selection", ["gcv", "loo"])
def test_dead_features_are_no_part_of_an_eigendecomposition(selection: str) -> None:
    """LAPACK's does not converge where nine of ten features are dead, with two threads not even that of float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 500), nn.ReLU())
    with torch.no_grad():
        model.get_parameter("2.bias")[torch.rand(500) < 0.9] -= 50
    inputs = torch.randn(1300, 30)
    probe_set = pf.ProbeSet.from_tensors(inputs[:1000], None, inputs[1000:], None)
    options: dict = {"penalty_per": "column", "alphas": 10.0 ** np.linspace(-6, 2, 25), "selection": selection}
    found = pf.probe(model, probe_set, layers=["3"], **options)
    assert found.to_arrow().column("route").to_pylist()[0] == "primal-eigen"
    wide = pf.probe(model, probe_set, layers=["3"], precision="double", **options)
    for metric in ("mse", "fvu"):
        value, expected = (each.value(metric=metric, split="heldout") for each in (found, wide))
        assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("selection", ["gcv", "loo", "folds"])
@pytest.mark.parametrize("scale", [1e-40, 1e-24, 1e-22, 1e-12, 1e16, 1e18, 1e30])
def test_the_scale_of_activations_changes_no_penalty(scale: float, selection: str) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 60)) * np.arange(1, 61) ** -0.5
    values = rows @ rng.normal(size=(60, 3)) + rng.normal(size=(500, 3))
    one, other = (
        scored(torch.tensor(rows * factor).float(), values, 300, selection=selection)[0].to_arrow().to_pylist()[0]
        for factor in (1.0, scale)
    )
    assert one["alpha"] == other["alpha"]
    assert one["value"] == pytest.approx(other["value"], rel=1e-4 if scale > 1e-39 else 0.1)  # of denormal numbers


def test_weak_penalties_are_not_for_coordinates_of_rows() -> None:
    rng = np.random.default_rng(0)
    few = rng.normal(size=(50, 1000))
    rows = np.concatenate([few[rng.integers(0, 50, 400)], rng.normal(size=(100, 1000))])
    values = rows[:, :5] + 0.1 * rng.normal(size=(500, 5))
    found = {
        precision: scored(torch.tensor(rows).float(), values, 400, alphas=[1e-12], precision=precision)[0]
        for precision in ("exact", "double")
    }
    assert all(scores.values_of("route")[0].startswith("primal") for scores in found.values())
    assert found["exact"].value(target="v") == pytest.approx(found["double"].value(target="v"), rel=1e-3)


def test_what_rounding_costs_is_told_where_the_factor_is_rounded_too() -> None:
    """Features that hardly vary in most directions: the factor of float32 tells too little of its own error."""
    torch.manual_seed(0)
    inputs = torch.randn(400, 40)
    probe_set = pf.ProbeSet.from_tensors(inputs[:300], None, inputs[300:], None)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(40, 3000), nn.Tanh())
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(torch.logspace(0, -5, 40))
    for alpha in (1e-12, 1e-8, 1e-6, 1e-4):
        exact, wide = (
            pf.probe(model, probe_set, layers=["1"], alphas=[alpha], route="dual", precision=precision)
            .filter(metric="fvu", split="heldout")
            .to_arrow()
            for precision in ("exact", "double")
        )
        value, expected = (table.column("value")[0].as_py() for table in (exact, wide))
        assert abs(value / expected - 1) <= 10 * exact.column("error_estimate")[0].as_py() + 1e-6
    options: dict = {"layers": ["1"], "splits": "heldout", "route": "target-free"}
    for alpha in (1e-9, 1e-6):
        exact, wide = (
            pf.probe(model, probe_set, alphas=[alpha], precision=precision, **options).filter(metric="fvu").to_arrow()
            for precision in ("exact", "double")
        )
        value, expected = (table.column("value")[0].as_py() for table in (exact, wide))
        assert abs(value / expected - 1) <= 10 * exact.column("error_estimate")[0].as_py() + 1e-6


def test_baselines_are_what_a_constant_scores(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    table = pf.probe(net, probe_set, layers=["hidden"]).to_pandas()
    assert probe_set.fit_labels is not None
    assert probe_set.heldout_labels is not None
    frequent = probe_set.fit_labels.mode().values
    share = float((probe_set.heldout_labels == frequent).double().mean())
    known = {
        "accuracy": share,
        "fvu": 1.0,
        "mse": float((probe_set.heldout_inputs - probe_set.fit_inputs.mean(0)).square().mean()),
    }
    for row in table[(table["split"] == "heldout") & (table["metric"] != "loss")].itertuples():
        assert row.baseline == pytest.approx(known[row.metric], rel=1e-5)
