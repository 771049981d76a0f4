"""The exact loss against a Monte Carlo decoder, its limits, the flow's gradient, and the statement on the grid."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from phasefast import cli
from phasefast.errors import ArgumentError, StoreError
from phasefast.experiments import theory
from phasefast.experiments.theory import AttributeData, gradient_flow, phases, reconstruction_loss


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    rng = np.random.default_rng(seed)
    d, c = int(rng.integers(2, 9)), int(rng.integers(1, 6))
    mix = rng.standard_normal((d, d)) * 2.0 ** rng.uniform(-2, 2, d)
    return mix @ mix.T, rng.standard_normal((c, d)) * 2.0 ** rng.uniform(-3, 3), float(2.0 ** rng.uniform(-6, 4))


@pytest.mark.parametrize("seed", range(50))
def test_closed_form_equals_a_monte_carlo_decoder(seed: int) -> None:
    covariance, weights, noise = random_case(seed)
    rng = np.random.default_rng(1000 + seed)
    x = rng.multivariate_normal(np.zeros(len(covariance)), covariance, 400_000, method="cholesky")
    z = x @ weights.T + np.sqrt(noise) * rng.standard_normal((len(x), len(weights)))
    fit, held = slice(0, 200_000), slice(200_000, None)
    decoder = np.linalg.solve(z[fit].T @ z[fit], z[fit].T @ x[fit])  # noise makes it well conditioned
    sampled = ((x[held] - z[held] @ decoder) ** 2).sum() / (x[held] ** 2).sum()
    assert reconstruction_loss(covariance, weights, noise) == pytest.approx(sampled, rel=0.01, abs=1e-3)


@pytest.mark.parametrize("seed", range(10))
def test_closed_form_is_the_formula_and_has_its_limits(seed: int) -> None:
    covariance, weights, noise = random_case(seed)
    total = np.trace(covariance)
    inner = weights @ covariance @ weights.T + noise * np.eye(len(weights))
    captured = np.trace(covariance @ weights.T @ np.linalg.solve(inner, weights @ covariance))
    assert reconstruction_loss(covariance, weights, noise) == pytest.approx(1 - captured / total, abs=1e-9)
    assert reconstruction_loss(covariance, 0 * weights, noise) == 1
    assert reconstruction_loss(covariance, weights, 1e12) == pytest.approx(1, abs=1e-6)
    root = np.linalg.cholesky(covariance)
    q = np.linalg.qr((weights @ root).T)[0]
    projected = 1 - (np.linalg.norm(root @ q) ** 2) / total
    assert reconstruction_loss(covariance, weights, 0) == pytest.approx(projected, abs=1e-9)
    doubled = np.vstack([weights, weights])
    assert reconstruction_loss(covariance, doubled, 0) == pytest.approx(projected, abs=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_growth_alone_only_helps(seed: int) -> None:
    covariance, weights, noise = random_case(seed)
    losses = [reconstruction_loss(covariance, c * weights, noise) for c in (0.1, 0.5, 1, 3, 10, 1e6)]
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(losses))
    assert losses[-1] >= reconstruction_loss(covariance, weights, 0) - 1e-9


def test_gradient_is_that_of_autograd() -> None:
    x, labels, _ = AttributeData(samples=60).draw(3)
    weights = np.random.default_rng(0).standard_normal((4, x.shape[1]))
    w = torch.tensor(weights, requires_grad=True)
    torch.nn.functional.cross_entropy(torch.tensor(x) @ w.mT, torch.tensor(labels)).backward()
    assert w.grad is not None
    np.testing.assert_allclose(theory.softmax_gradient(weights, x, labels), -w.grad.numpy(), atol=1e-12)


def test_flow_grows_along_the_class_means_first_and_repeats() -> None:
    x, labels, _ = AttributeData().draw(0)
    flow = gradient_flow(x, labels, seed=1, last=64)
    assert list(flow) == [0, 1, 2, 4, 8, 16, 32, 64]
    means = np.stack([x[labels == c].mean(0) for c in range(4)]) - x.mean(0)
    grown = flow[4] - flow[0]
    assert (grown * means).sum() / np.linalg.norm(grown) / np.linalg.norm(means) > 0.99
    again = gradient_flow(x, labels, seed=1, last=64)
    assert all(np.array_equal(flow[step], again[step]) for step in flow)


def test_data_has_the_shares_asked_for() -> None:
    data = AttributeData(rho=0.2, input_noise=0, samples=40_000)
    x, labels, deviating = data.draw(0)
    assert deviating.mean() == pytest.approx(0.2, abs=0.01)
    own = x.reshape(-1, 4, 3)[np.arange(len(x)), labels]
    assert own[~deviating].mean() == pytest.approx(0.9, abs=0.01)
    assert (own[deviating].sum(1) == 1).all()
    assert set(np.unique(x)) == {0.0, 1.0}


def test_phases_of_exact_curves() -> None:
    steps = [0, 1, 2, 4, 8, 16]
    assert phases(steps, [1, 1, 0.99, 0.5, 0.4, 0.6]) == {"constant": (0, 2), "decrease": (2, 8), "increase": (8, 16)}
    assert phases(steps, [1, 0.9, 0.8, 0.5, 0.4, 0.4]) == {"constant": None, "decrease": (0, 8), "increase": None}
    assert phases(steps, [1] * 6) == {"constant": (0, 16), "decrease": None, "increase": None}


def test_deviating_samples_make_the_third_phase() -> None:
    without, some = (theory.curve(AttributeData(rho=rho), noise=0.1) for rho in (0.0, 0.2))
    assert without["phases"]["increase"] is None
    assert all(some["phases"].values())
    assert some["deviating_share"][-1] > 2 * some["deviating_share"][0]
    assert some["accuracy"][-1] >= some["accuracy"][0]


def test_statement_on_a_part_of_the_grid(tmp_path: Path) -> None:
    grid = {"rho": (0.0, 0.3), "frequency": (0.9,), "noise": (0.01, 0.1, 1.0)}
    found = theory.run_theory(tmp_path, grid, seeds=(0,))
    assert len(found["rows"]) == 6
    assert all(row["holds"] for row in found["rows"])
    assert {row["increase_predicted"] for row in found["rows"]} == {True, False, None}
    assert len(json.loads((tmp_path / "theory.json").read_text())["rows"]) == 6


@pytest.mark.slow
def test_statement_on_the_whole_grid() -> None:
    rows = theory.check_statement()
    assert len(rows) == 270
    assert [row for row in rows if not row["holds"]] == []


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = {"rho": (0.0, 0.2), "frequency": (1.0,), "noise": (0.1, 1.0)}
    monkeypatch.setattr(cli.experiments, "run_theory", lambda out: theory.run_theory(out, grid, seeds=(0,)))
    result = CliRunner().invoke(cli.app, ["theory", "--out", str(tmp_path)], catch_exceptions=False)
    assert "holds at 4 of 4 points" in result.output
    assert (tmp_path / "theory.png").stat().st_size > 10_000


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="noise >= 0"):
        reconstruction_loss(np.eye(3), np.ones((2, 3)), -1)
    with pytest.raises(ArgumentError, match=r"\(2, 4\)"):
        reconstruction_loss(np.eye(3), np.ones((2, 4)), 1)
    with pytest.raises(ArgumentError, match="positive trace"):
        reconstruction_loss(np.zeros((3, 3)), np.ones((2, 3)), 1)
    with pytest.raises(ArgumentError, match="rho"):
        AttributeData(rho=1.5)
    with pytest.raises(ArgumentError, match="2 classes"):
        AttributeData(classes=1)
    with pytest.raises(ArgumentError, match="labels"):
        gradient_flow(np.ones((5, 3)), np.zeros(4, dtype=int))
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"theory\.json"):
        theory.run_theory(tmp_path / "file", {"rho": (0.0,), "frequency": (1.0,), "noise": (0.1,)}, seeds=(0,))
