"""Fewer columns, the same numbers: every route, and coordinates of wide targets, against the plain way."""

from __future__ import annotations

import itertools

import pytest
import torch

from phasefast.algebra.isometry import coordinates
from phasefast.algebra.systems import DEFAULT_ALPHAS, Penalties
from phasefast.data.target_matrix import TargetMatrix
from phasefast.data.target_types import Input, Label
from phasefast.decoding import Method, decode
from phasefast.errors import ArgumentError, SolveError
from phasefast.stages import targets as target_stage
from phasefast.stages.evaluate import evaluate
from phasefast.stages.plan import ForcedRoute, Problem, Selection, fitting_cost, routes
from phasefast.stages.targets import build_targets
from phasefast.types import Activations
from tests.oracle import captured

CPU = torch.device("cpu")
KINDS = ("plain", "relu", "dead columns", "low rank", "equal rows", "offset", "mixed scales")


def make(kind: str, seed: int, p: int, wide: bool = True) -> tuple[Activations, TargetMatrix, int]:
    """A cell with more features than fit rows, or fewer, and p target columns; the number of its fit rows."""
    g = torch.Generator().manual_seed(seed)
    n, m = (int(torch.randint(low, high, (1,), generator=g)) for low, high in ((20, 150), (5, 80)))
    d = n + int(torch.randint(1, 200, (1,), generator=g)) if wide else int(torch.randint(2, n, (1,), generator=g))
    latent = torch.randn(n + m, d, generator=g)
    a = latent @ torch.randn(d, d, generator=g) / d**0.5
    t = latent[:, :8] @ torch.randn(min(d, 8), p, generator=g) + 0.3 * torch.randn(n + m, p, generator=g)
    if kind == "relu":
        a = a.relu()
    elif kind == "dead columns":
        a[:, ::2] = 0.7
    elif kind == "low rank":
        a = a[:, :10] @ torch.randn(min(d, 10), d, generator=g)
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


def scores(
    cell: Activations,
    targets: TargetMatrix,
    alphas: tuple[float, ...],
    precision: str = "double",
    route: ForcedRoute | None = None,
    splits: str = "both",
) -> dict[str, float]:
    """All that a route gives, by name; in double precision dof and some samples too."""
    method = Method(Penalties(alphas), precision, route, splits=splits)
    name = method.cost(cell, targets).route
    values: dict[str, float] = {}
    for rows, decoder in decode([cell], targets, method):
        found = evaluate(rows, decoder, targets, splits == "both")()
        assert all(fit.route.startswith((name, "primal")) for fit in decoder.fits)
        values |= {f"{score.target} {score.split} {score.metric}": score.value for score in found}
        values |= {f"{fit.block.name} alpha": fit.alpha for fit in decoder.fits}
        if precision == "double":  # these have float32's rounding otherwise
            values |= {f"{fit.block.name} dof": fit.dof for fit in decoder.fits}
            for score in found:
                parts = () if score.samples is None else score.samples[:5]
                values |= {f"{score.target} {score.metric} {i}": float(value) for i, value in enumerate(parts)}
    return values


@pytest.mark.parametrize("route", ["dual", "eigen", "target-free"])
@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("kind", KINDS)
def test_every_route_gives_the_numbers_of_the_primal_one(kind: str, seed: int, route: ForcedRoute) -> None:
    wide = seed % 3 > 0
    cell, targets, _ = make(kind, 100 * seed + KINDS.index(kind), p=9, wide=wide)
    splits = "heldout" if route == "target-free" else "both"
    for alphas in ((1e-3,), (1e-4, 1e-2, 1.0)):
        expected = scores(cell, targets, alphas, "double", "primal")
        double = scores(cell, targets, alphas, "double", route, splits)
        assert double == pytest.approx({name: expected[name] for name in double}, rel=1e-8, abs=1e-10)
        exact = scores(cell, targets, alphas, "exact", route, splits)
        assert exact == pytest.approx({name: expected[name] for name in exact}, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("splits", ["both", "heldout"])
def test_targets_wider_than_the_rows_give_the_same_scores(monkeypatch, seed: int, splits: str) -> None:
    cell, narrow, n = make("relu", seed, p=700)
    with monkeypatch.context() as patch:
        patch.setattr(target_stage, "coordinates", lambda *_: None)
        _, wide, _ = make("relu", seed, p=700)
    assert narrow.fit.shape[1] == n + 1 + 3
    assert wide.fit.shape[1] == 703
    got, expected = (scores(cell, targets, (1e-2,), splits=splits) for targets in (narrow, wide))
    assert got == pytest.approx(expected, rel=2e-6, abs=1e-7)


def test_routes_that_cannot_give_what_is_asked_say_so() -> None:
    cell, targets, _ = make("plain", 0, p=9)
    for route, alphas, words in (
        ("dual", (0.0,), "alphas > 0"),
        ("eigen", (0.0, 1.0), "alphas > 0"),
        ("target-free", (1.0,), "splits='heldout'"),
    ):
        with pytest.raises(ArgumentError, match=words):
            Method(Penalties(alphas), route=route).cost(cell, targets)


def test_coordinates_keep_lengths_and_angles() -> None:
    rows, others = torch.randn(30, 2500).double(), torch.randn(7, 2500).double()
    factor, projected = coordinates(rows, others)
    torch.testing.assert_close(factor @ factor.mT, rows @ rows.mT, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(projected @ factor.mT, others @ rows.mT, rtol=1e-12, atol=1e-9)
    assert coordinates(torch.full((3, 5), torch.nan), others[:, :5].float()) is None


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [8, 3000])
@pytest.mark.parametrize("route", [None, "primal", "eigen"])
@pytest.mark.parametrize("selection", ["gcv", "loo", "folds"])
def test_of_rows_that_are_all_alike_nothing_is_decomposed(
    monkeypatch: pytest.MonkeyPatch,
    value: bool,
    dtype: torch.dtype,
    d: int,
    route: ForcedRoute | None,
    selection: Selection,
) -> None:
    """Which would take a minute for each wide layer that is dead."""
    if route and d > 8:
        d = 500
    _, targets, n = make("plain", 1, 5)
    decomposed: list[int] = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda a, **how: decomposed.append(len(a)) or eigh(a, **how))
    for alphas in ((1e-3,), DEFAULT_ALPHAS):
        row = torch.rand(d, dtype=dtype) if value else torch.zeros(d, dtype=dtype)
        cell = captured(row.expand(n, -1), row.expand(len(targets.heldout), -1), targets.folds)
        method = Method(Penalties(alphas), route=route, selection=selection)
        ((used, decoder),) = decode([cell], targets, method)
        assert not decoder.weights.any()
        assert {fit.rank for fit in decoder.fits} == {0}
        found = [
            each.value for each in evaluate(used, decoder, targets)() if (each.metric, each.split) == ("fvu", "fit")
        ]
        assert found == [pytest.approx(1.0)]
    assert sum(decomposed) == 0


def test_the_route_of_least_work_is_taken() -> None:
    problem = Problem(2000, 500, 3082, 74, 5, 8, selection="gcv")
    taken = [routes(dim, problem)[0].route for dim in (100, 2000, 3000, 8192, 65536)]
    assert taken == ["primal", "primal", "dual", "dual", "dual"]
    for small, large in itertools.pairwise(routes(dim, problem)[0].flops for dim in (100, 1000, 8192, 65536)):
        assert small < large
    zero = Problem(2000, 500, 3082, 74, 5, 8, zero=True, selection="gcv")
    assert routes(65536, zero)[0].route == "primal"
    weak = Problem(2000, 500, 3082, 74, 5, 8, weak=True, selection="gcv")
    assert routes(8192, weak)[0].route == "primal"
    assert fitting_cost(8192, weak, 10**12).route == "primal"
    assert fitting_cost(65536, weak, 4 * 10**9).route == "dual"  # where nothing else fits
    heldout = Problem(8000, 2000, 8011, 74, 1, 1, fit_scores=False)
    assert routes(4096, heldout)[0].route == "primal-target-free"
    # Many penalties, all of them tried: one eigendecomposition instead of a factor for each.
    many = routes(100, Problem(400, 100, 50, 50, 5, 300, selection="folds"))
    assert many[0].route == "primal-eigen"


@pytest.mark.parametrize("selection", ["gcv", "loo", "folds"])
@pytest.mark.parametrize("route", [None, "primal", "eigen"])
def test_rows_that_overflow_are_told_on_every_route(route: ForcedRoute | None, selection: Selection) -> None:
    _, targets, n = make("plain", 1, 5)
    rows = torch.randn(n + len(targets.heldout), 8, dtype=torch.float64) * 1e200
    cell = captured(rows[:n], rows[n:], targets.folds)
    with pytest.raises(SolveError, match=r"overflows float64|has no eigendecomposition"):
        list(decode([cell], targets, Method(Penalties(DEFAULT_ALPHAS), route=route, selection=selection)))
