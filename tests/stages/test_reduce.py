"""Fewer columns, the same numbers: the dual route and coordinates of wide targets against the plain way."""

from __future__ import annotations

import itertools

import pytest
import torch

from phasefast import engine
from phasefast.engine import decode
from phasefast.isometry import coordinates
from phasefast.stages import targets as target_stage
from phasefast.stages.evaluate import evaluate
from phasefast.stages.plan import Cost, Problem, cell_cost
from phasefast.stages.solve import Penalties
from phasefast.stages.targets import Input, Label, build_targets
from phasefast.types import Activations, Route, TargetMatrix
from tests.oracle import captured

CPU = torch.device("cpu")
KINDS = ("plain", "relu", "dead columns", "low rank", "equal rows", "offset", "mixed scales")


def make(kind: str, seed: int, p: int) -> tuple[Activations, TargetMatrix, int]:
    """A cell with more features than fit rows, and p target columns; the number of its rows."""
    g = torch.Generator().manual_seed(seed)
    n, m = (int(torch.randint(low, high, (1,), generator=g)) for low, high in ((20, 150), (5, 80)))
    d = n + int(torch.randint(1, 200, (1,), generator=g))
    latent = torch.randn(n + m, d, generator=g)
    a = latent @ torch.randn(d, d, generator=g) / d**0.5
    t = latent[:, :8] @ torch.randn(8, p, generator=g) + 0.3 * torch.randn(n + m, p, generator=g)
    if kind == "relu":
        a = a.relu()
    elif kind == "dead columns":
        a[:, ::2] = 0.7
    elif kind == "low rank":
        a = a[:, :10] @ torch.randn(10, d, generator=g)
    elif kind == "equal rows":
        a[1::2] = a[: (n + m) // 2 * 2 : 2][: len(a[1::2])]
    elif kind == "offset":
        a += 100
    elif kind == "mixed scales":
        a[:, 0] *= 1e3
    folds = tuple(n * i // 5 for i in range(6))
    labels = torch.randint(0, 3, (n + m,), generator=g)
    splits = (t[:n], labels[:n]), (t[n:], labels[n:])
    return captured(a[:n], a[n:], folds), build_targets([Input(), Label(3)], *splits, folds, CPU), n


def scores(cell: Activations, targets: TargetMatrix, alphas: tuple[float, ...], precision: str) -> dict[str, float]:
    ((rows, decoder),) = decode([cell], targets, Penalties(alphas), precision)
    found = evaluate(rows, decoder, targets)
    values = {f"{score.target} {score.split} {score.metric}": score.value for score in found}
    assert all(fit.route.startswith(rows.route) for fit in decoder.fits)
    fits = {f"{fit.block.name} alpha": fit.alpha for fit in decoder.fits}
    dofs = {f"{fit.block.name} dof": fit.dof for fit in decoder.fits}
    samples = {f"{score.target} {score.metric}": score.samples for score in found if score.samples is not None}
    firsts = {f"{name} {i}": float(value) for name, parts in samples.items() for i, value in enumerate(parts[:5])}
    return values | fits | (firsts | dofs if precision == "double" else {})  # these have float32's rounding


def forced(monkeypatch: pytest.MonkeyPatch, route: Route) -> None:
    monkeypatch.setattr(engine, "cell_cost", lambda *_: Cost(route, 0, 0))


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("kind", KINDS)
def test_the_dual_route_gives_the_numbers_of_the_primal_one(monkeypatch, kind: str, seed: int) -> None:
    cell, targets, _ = make(kind, 100 * seed + KINDS.index(kind), p=9)
    for alphas in ((1e-3,), (1e-4, 1e-2, 1.0)):
        forced(monkeypatch, "dual")
        dual = {precision: scores(cell, targets, alphas, precision) for precision in ("exact", "double")}
        forced(monkeypatch, "primal")
        expected = scores(cell, targets, alphas, "double")
        assert dual["double"] == pytest.approx(expected, rel=1e-8, abs=1e-10)
        totals = {name: expected[name] for name in dual["exact"]}
        assert dual["exact"] == pytest.approx(totals, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_targets_wider_than_the_rows_give_the_same_scores(monkeypatch, seed: int) -> None:
    cell, narrow, _ = make("relu", seed, p=700)
    with monkeypatch.context() as patch:
        patch.setattr(target_stage, "coordinates", lambda *_: None)
        _, wide, n = make("relu", seed, p=700)
    assert narrow.fit.shape[1] == n + len(cell.heldout) + 3
    assert wide.fit.shape[1] == 703
    got, expected = (scores(cell, targets, (1e-2,), "double") for targets in (narrow, wide))
    assert got == pytest.approx(expected, rel=2e-6, abs=1e-7)


def test_coordinates_keep_lengths_and_angles() -> None:
    rows, others = torch.randn(30, 2500).double(), torch.randn(7, 2500).double()
    factor, projected = coordinates(rows, others)
    torch.testing.assert_close(factor @ factor.mT, rows @ rows.mT, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(projected @ factor.mT, others @ rows.mT, rtol=1e-12, atol=1e-9)
    assert coordinates(torch.full((3, 5), torch.nan), others[:, :5].float()) is None


def test_the_route_of_fewer_operations_is_taken() -> None:
    problem = Problem(2000, 500, 3082, 74, 5, 8)
    routes = [cell_cost(dim, problem).route for dim in (100, 2000, 2400, 8192, 65536)]
    assert routes == ["primal", "primal", "dual", "dual", "dual"]
    for small, large in itertools.pairwise(cell_cost(dim, problem).flops for dim in (100, 1000, 8192, 65536)):
        assert small < large
    zero = Problem(2000, 500, 3082, 74, 5, 8, zero=True)
    assert cell_cost(65536, zero).route == "primal"
