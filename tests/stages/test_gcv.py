"""Penalties by generalised cross-validation, against hat matrices in float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import phasefast as pf
from phasefast.algebra import scanning
from phasefast.algebra.dense import Factor
from phasefast.algebra.systems import DEFAULT_ALPHAS, Penalties, PenaltyChoice
from phasefast.data.target_types import Input, Label
from phasefast.decoding import Method, decode
from phasefast.stages import gcv
from phasefast.stages.gcv import select_by_gcv
from phasefast.stages.reduce import reduce_features
from phasefast.stages.select import select_by_leave_one_out
from phasefast.stages.solve import solve
from phasefast.stages.statistics import accumulate
from phasefast.stages.targets import build_targets
from phasefast.types import Activations, TargetMatrix
from tests.oracle import captured, mean_diagonal, rows64

CPU = torch.device("cpu")
F32, F64 = torch.float32, torch.float64


def make(
    seed: int, n: int, d: int, noise: float = 1.0, per_column: bool = False
) -> tuple[Activations, TargetMatrix, torch.Tensor]:
    """A cell of features of falling size, its targets, and the fit columns: 6 explained to different degrees."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, d, generator=g) @ torch.diag(torch.logspace(0, -2, d)) + 3.0
    t = a @ torch.randn(d, 6, generator=g) + noise * torch.randn(n, 6, generator=g) * torch.logspace(-2, 1, 6)
    labels = (t[:, 0] > t[:, 0].median()).long()
    splits = (t, labels), (t[:9], labels[:9])
    targets = build_targets([Input(), Label(2)], *splits, (0, n), CPU, per_column)
    return captured(a, a[:9], (0, n)), targets, t


def curve(cell: Activations, columns: torch.Tensor, alphas: tuple[float, ...]) -> np.ndarray:
    """Generalised cross-validation errors [L, p] from hat matrices."""
    a, t, found = rows64(cell.fit), columns.double().numpy(), []
    a, t = a - a.mean(0), t - t.mean(0)
    for alpha in alphas:
        penalty = alpha * mean_diagonal(cell.fit)
        hat = a @ np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T)
        left = len(a) - 1 - np.trace(hat)
        found.append(((t - hat @ t) ** 2).sum(0) / left**2)
    return np.stack(found)


def chosen(
    cell: Activations, targets: TargetMatrix, alphas: tuple[float, ...], dtype: torch.dtype, **how
) -> PenaltyChoice:
    (statistics,) = accumulate([cell], targets, dtype, with_folds=False)
    return select_by_gcv(cell, statistics, targets, Penalties(alphas), **how)


@pytest.mark.parametrize("small", [True, False], ids=["all", "few"])
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("n", "d"), [(300, 12), (300, 40), (150, 120), (90, 200)])
def test_the_least_error_is_chosen(monkeypatch, n: int, d: int, dtype: torch.dtype, small: bool) -> None:
    monkeypatch.setattr(scanning, "SMALL", 256 if small else 0)
    monkeypatch.setattr(gcv, "TIE", 0.0)
    monkeypatch.setattr(gcv, "DOUBTFUL", gcv.MISLED)  # few rows may be left out with less error at a stronger penalty
    reliable = 0
    for seed, noise in itertools.product(range(4), (0.1, 1.0, 10.0)):
        cell, targets, columns = make(seed, n, d, noise)
        errors = curve(cell, columns, DEFAULT_ALPHAS).sum(1)
        cell = reduce_features(cell, (0, n)) if d > n else cell
        choice = chosen(cell, targets, DEFAULT_ALPHAS, dtype)
        reliable += choice.reliable
        if choice.reliable:
            assert errors[int(choice.indices[0])] <= errors.min() * (1.0001 if small and dtype == F64 else 1.01)
    assert reliable == 12 if dtype == F64 else reliable >= 8


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("n", "d"), [(270, 540), (270, 1080), (400, 390), (300, 2700)])
def test_features_of_equal_size_and_few_degrees_of_freedom(n: int, d: int, dtype: torch.dtype) -> None:
    """Errors are all but flat below the least one: a slope that is not exact leads astray."""
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        a = torch.randn(n, d, generator=g)
        t = a[:, :20] @ torch.randn(20, 5, generator=g) + 6 * torch.randn(n, 5, generator=g)
        targets = build_targets([Input()], (t, None), (t[:9], None), (0, n), CPU)
        cell = captured(a, a[:9], (0, n))
        errors = curve(cell, t, DEFAULT_ALPHAS).sum(1)
        cell = reduce_features(cell, (0, n)) if d > n else cell
        choice = chosen(cell, targets, DEFAULT_ALPHAS, dtype)
        assert errors[int(choice.indices[0])] <= errors.min() * 1.005


@pytest.mark.parametrize("precision", ["exact", "fast", "double"])
@pytest.mark.parametrize("route", ["primal", "dual", "eigen"])
def test_every_precision_and_route_chooses_well(precision: str, route: str) -> None:
    cell, targets, columns = make(6, 200, 90)
    errors = curve(cell, columns, DEFAULT_ALPHAS).sum(1)
    ((_, decoder),) = decode([cell], targets, Method(Penalties(), precision, route))
    assert errors[DEFAULT_ALPHAS.index(decoder.fits[0].alpha)] <= errors.min() * 1.01


@pytest.mark.parametrize(("n", "d", "alphas"), [(20, 1500, (0.0, *DEFAULT_ALPHAS)), (39, 1600, DEFAULT_ALPHAS)])
def test_few_rows_of_many_features_in_primal(n: int, d: int, alphas: tuple[float, ...]) -> None:
    cell, targets, columns = make(7, n, d)
    errors = curve(cell, columns, alphas[1:]).sum(1)
    ((_, decoder),) = decode([cell], targets, Method(Penalties(alphas), "double", "primal"))
    assert errors[alphas.index(decoder.fits[0].alpha) - 1] <= errors.min() * 1.01


def test_a_first_choice_of_a_sample_ends_at_the_same() -> None:
    cell, targets, columns = make(8, 1600, 1500)
    method = Method(Penalties())
    assert method.cost(cell, targets).sample >= 192
    errors = curve(cell, columns, DEFAULT_ALPHAS).sum(1)
    ((_, decoder),) = decode([cell], targets, method)
    assert errors[DEFAULT_ALPHAS.index(decoder.fits[0].alpha)] <= errors.min() * 1.01


def test_layers_that_say_nothing_get_the_strongest(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, targets, _ = make(0, 300, 20)
    dead = captured(torch.full_like(cell.fit, 0.7), torch.full_like(cell.heldout, 0.7), (0, 300))
    for small in (0, 256):
        monkeypatch.setattr(scanning, "SMALL", small)
        for dtype in (F32, F64):
            assert int(chosen(dead, targets, DEFAULT_ALPHAS, dtype).indices[0]) == len(DEFAULT_ALPHAS) - 1


@pytest.mark.parametrize("start", range(len(DEFAULT_ALPHAS)))
@pytest.mark.parametrize(("pairs", "dtype"), [(True, F32), (False, F32), (False, F64)])
def test_wherever_the_search_starts_it_ends_at_the_same(
    monkeypatch, start: int, pairs: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(scanning, "SMALL", 0)
    monkeypatch.setattr(scanning, "paired", lambda dim: pairs)
    for seed, noise in itertools.product(range(3), (0.1, 3.0, 100.0)):
        cell, targets, _ = make(seed, 150, 60, noise)
        first = PenaltyChoice((torch.tensor([start]), torch.tensor([len(DEFAULT_ALPHAS) - 1 - start])))
        found = [chosen(cell, targets, DEFAULT_ALPHAS, dtype, start=given).indices for given in (None, first)]
        assert found[0] == found[1]


def test_few_penalties_of_a_fine_grid_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "SMALL", 0)
    monkeypatch.setattr(gcv, "TIE", 0.0)
    tried: list[int] = []
    factor_path = scanning.factor_path
    monkeypatch.setattr(scanning, "factor_path", lambda s, r, p: tried.append(len(p)) or factor_path(s, r, p))
    cell, targets, columns = make(3, 200, 30)
    fine = tuple(float(a) for a in np.logspace(-5, 1, 97))
    choice = chosen(cell, targets, fine, F64)
    assert int(choice.indices[0]) == int(curve(cell, columns, fine).sum(1).argmin())
    assert sum(tried) <= 2 * 10


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("how", ["gcv", "eigen", "columns"])
def test_the_strongest_of_penalties_that_hardly_differ_is_chosen(monkeypatch, how: str, few: bool) -> None:
    monkeypatch.setattr(scanning, "SMALL", 0 if few else 256)
    monkeypatch.setattr(gcv, "MISLED", np.inf)
    monkeypatch.setattr(gcv, "DOUBTFUL", np.inf)
    moved = 0
    for seed, noise in itertools.product(range(4), (0.1, 1.0, 10.0)):
        cell, targets, columns = make(seed, 300, 40, noise, per_column=how == "columns")
        errors = curve(cell, columns, DEFAULT_ALPHAS)
        errors = errors if how == "columns" else errors.sum(1, keepdims=True)
        choice = chosen(cell, targets, DEFAULT_ALPHAS, F64, eigen=how == "eigen")
        for own, index in zip(errors.T, choice.indices[0].tolist(), strict=True):
            least, limit = int(own.argmin()), own.min() * 1.005
            steadier = next((i for i in range(least, len(own)) if i + 1 == len(own) or own[i + 1] > limit), least)
            # Rounding, or estimated traces, may put an error that is close to the limit on its other side.
            close = abs(own[max(index, steadier)] / limit - 1) < (0.005 if few else 1e-4)
            assert index == steadier or close
            moved += steadier > least
    assert moved > 1


@pytest.mark.parametrize("route", ["primal", "dual", "eigen"])
def test_each_column_gets_its_own(monkeypatch: pytest.MonkeyPatch, route: str) -> None:
    monkeypatch.setattr(gcv, "TIE", 0.0)
    cell, targets, columns = make(1, 120, 150 if route == "dual" else 40, per_column=True)
    best = curve(cell, columns, DEFAULT_ALPHAS).argmin(0)
    cell = reduce_features(cell, (0, 120)) if route == "dual" else cell
    choice = chosen(cell, targets, DEFAULT_ALPHAS, F64, eigen=route == "eigen")
    assert choice.indices[0].tolist() == best.tolist()
    assert len(set(best)) > 1
    assert len(choice.indices[1]) == 1


def test_estimated_traces_choose_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "SMALL", 0)
    monkeypatch.setattr(Factor, "inverse_traces", lambda _: pytest.fail("the trace is known well enough"))
    for seed in range(6):
        cell, targets, columns = make(seed, 900, 100)
        errors = curve(cell, columns, DEFAULT_ALPHAS).sum(1)
        index = int(chosen(cell, targets, DEFAULT_ALPHAS, F32).indices[0])
        assert errors[index] <= errors.min() * 1.005


@pytest.mark.parametrize("noise", [0.03, 300.0])
@pytest.mark.parametrize(("d", "start"), [(680, 4), (900, 4), (680, 8)])
def test_a_search_makes_traces_exact_where_estimates_could_not_tell(
    monkeypatch, d: int, start: int, noise: float
) -> None:
    """As many features as rows: with much noise most degrees of freedom are left, with little hardly any."""
    exact, inverse_traces = [], Factor.inverse_traces
    monkeypatch.setattr(scanning, "SMALL", 0)
    monkeypatch.setattr(Factor, "inverse_traces", lambda own: exact.append(own) or inverse_traces(own))
    for seed in range(2):
        exact.clear()
        cell, targets, columns = make(seed, 700, d, noise)
        errors = curve(cell, columns, DEFAULT_ALPHAS).sum(1)
        cell = reduce_features(cell, (0, 700)) if d > 700 else cell
        (statistics,) = accumulate([cell], targets, F64, with_folds=False)
        scan = scanning.Scan(cell, statistics, targets, Penalties())
        best, _ = gcv._searched(scan, torch.tensor([start, start]), 1)
        assert errors[int(best[0])] <= errors.min() * 1.005
        if scan.exact:  # all of them: none that is known is an estimate
            assert len(exact) >= len(scan._tried) > 1
            expected = torch.as_tensor(errors[list(scan._tried)]) * (len(cell.fit) - 1) ** 2
            found = torch.stack([tried.error[0] for tried in scan._tried.values()])
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        assert scan.exact == (noise < 1)
        assert int(best[0]) in scan.factors


@pytest.mark.parametrize("n", [200, 400])
def test_slopes_are_those_of_the_errors(n: int) -> None:
    cell, targets, _ = make(2, n, 50)
    (statistics,) = accumulate([cell], targets, F64, with_folds=False)
    for alpha in (1e-4, 1e-2, 1.0):
        scan = scanning.Scan(cell, statistics, targets, Penalties((alpha * (1 - 1e-4), alpha, alpha * (1 + 1e-4))))
        scan.make([0, 1, 2])
        below, at, above = (scan._tried[index] for index in range(3))
        torch.testing.assert_close(at.rises, (above.error / below.error).log() / 2e-4, rtol=1e-5, atol=0)


def test_what_float32_cannot_tell_is_left_to_float64() -> None:
    """Rows that explain the targets exactly: the weakest penalties are best, and rounding is all that is left."""
    g = torch.Generator().manual_seed(0)
    a = torch.randn(60, 400, generator=g)
    t = a[:, :5]
    cell = captured(a, a[:9], (0, 60))
    targets = build_targets([Input()], (t, None), (t[:9], None), (0, 60), CPU)
    cell = reduce_features(cell, (0, 60))
    narrow = chosen(cell, targets, DEFAULT_ALPHAS, F32)
    wide = chosen(cell, targets, DEFAULT_ALPHAS, F64)
    assert wide.reliable
    assert narrow.indices == wide.indices or not narrow.reliable


def test_penalties_of_zero_and_features_that_depend_on_each_other() -> None:
    cell, targets, columns = make(4, 200, 20, noise=0.01)
    twice = replace(cell, fit=cell.fit.repeat(1, 2), sums=cell.sums.repeat(1, 2), layer=replace(cell.layer, dim=40))
    alphas = (0.0, 1e-2, 1.0)
    errors = curve(twice, columns, (1e-12, *alphas[1:])).sum(1)
    assert int(errors.argmin()) == 0
    choice = chosen(twice, targets, alphas, F64)
    assert int(choice.indices[0]) == 0
    assert not chosen(twice, targets, alphas, F32).reliable


@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_factors_of_a_choice_give_its_solution(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    penalties, never = Penalties((1e-4, 1e-3, 1e-2, 0.1, 1.0)), float("inf")
    cell, targets, _ = make(3, 400, 90, noise=3.0)
    (statistics,) = accumulate([cell], targets, dtype, with_folds=False)
    for small in (0, 256):
        monkeypatch.setattr(scanning, "SMALL", small)
        choice = select_by_gcv(cell, statistics, targets, penalties)
        assert set(choice.factors) >= set(torch.cat(choice.indices).tolist())
        anew, again = (
            solve(cell, statistics, targets, penalties, given, never)()
            for given in (replace(choice, factors={}), choice)
        )
        tolerance = 1e-9 if dtype == F64 else 1e-3
        torch.testing.assert_close(again.weights, anew.weights, rtol=tolerance, atol=tolerance)
        for one, other in zip(again.fits, anew.fits, strict=True):
            assert one.dof == pytest.approx(other.dof, rel=1e-4 if dtype == F32 else 1e-9)
            assert one.alpha == other.alpha


def test_it_is_close_to_leaving_rows_out() -> None:
    cell, targets, columns = make(5, 400, 60)
    (statistics,) = accumulate([cell], targets, F64, with_folds=False)
    fine = Penalties(tuple(float(a) for a in np.logspace(-4, 1, 21)))
    errors = curve(cell, columns, fine.alphas).sum(1)
    by_rows, by_traces = (
        int(f(cell, statistics, targets, fine).indices[0]) for f in (select_by_leave_one_out, select_by_gcv)
    )
    assert abs(by_rows - by_traces) <= 2
    assert errors[by_rows] <= errors[by_traces] * 1.01


def uneven(
    seed: int, n: int, d: int, spread: float = 1.2, power: float = 1.5
) -> tuple[Activations, TargetMatrix, torch.Tensor]:
    """Rows of very different size, of which the large ones are explained worst: their leverage hides that."""
    g = torch.Generator().manual_seed(seed)
    size = torch.exp(spread * torch.randn(n, 1, generator=g))
    a = size * torch.randn(n, d, generator=g) * torch.logspace(0, -1.5, d)
    t = 0.3 * a @ torch.randn(d, 8, generator=g) + 0.3 * size**power * torch.randn(n, 8, generator=g)
    targets = build_targets([Input()], (t, None), (t[:9], None), (0, n), CPU)
    return captured(a, a[:9], (0, n)), targets, t


def left_out(cell: Activations, columns: torch.Tensor, alphas: tuple[float, ...]) -> np.ndarray:
    """Leave-one-out errors [L] from hat matrices."""
    a, t, found = rows64(cell.fit), columns.double().numpy(), []
    a, t = a - a.mean(0), t - t.mean(0)
    for alpha in alphas:
        penalty = alpha * mean_diagonal(cell.fit)
        hat = a @ np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T)
        found.append((((t - hat @ t) / (1 - 1 / len(a) - np.diag(hat))[:, None]) ** 2).sum())
    return np.array(found)


@pytest.mark.parametrize("way", ["all", "few", "eigen", "in turn"])
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("n", "d"), [(300, 60), (500, 200), (90, 150)])
def test_rows_are_left_out_where_their_leverage_misleads(monkeypatch, n: int, d: int, dtype: torch.dtype, way: str):
    monkeypatch.setattr(scanning, "SMALL", 256 if way == "all" else 0)
    monkeypatch.setattr(scanning, "FEW", 16 if way == "in turn" else 4)
    better = 0
    for seed in range(6):
        cell, targets, columns = uneven(seed, n, d)
        general, truth = curve(cell, columns, DEFAULT_ALPHAS).sum(1), left_out(cell, columns, DEFAULT_ALPHAS)
        misled = int(general.argmin())
        assert truth[misled] > 3 * general[misled] * (n - 1) ** 2
        cell = reduce_features(cell, (0, n)) if d > n else cell
        choice = chosen(cell, targets, DEFAULT_ALPHAS, dtype, eigen=way == "eigen")
        found = int(choice.indices[0])
        if choice.reliable:
            assert truth[found] <= 1.001 * truth.min()
            better += truth[found] < 0.95 * truth[misled]
        if way != "eigen":
            assert set(choice.factors) == {found}
    assert better >= (3 if dtype == F64 else 0)


@pytest.mark.parametrize("way", ["all", "few", "eigen", "in turn"])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_rows_that_mislead_a_little_are_left_out_where_a_stronger_penalty_is_better(
    monkeypatch, dtype: torch.dtype, way: str
) -> None:
    monkeypatch.setattr(scanning, "SMALL", 256 if way == "all" else 0)
    monkeypatch.setattr(scanning, "FEW", 16 if way == "in turn" else 4)
    worse = 0
    for seed in range(8):
        cell, targets, columns = uneven(seed, 300, 60, spread=0.3, power=2.0)
        general, truth = curve(cell, columns, DEFAULT_ALPHAS).sum(1), left_out(cell, columns, DEFAULT_ALPHAS)
        misled = int(general.argmin())
        assert gcv.DOUBTFUL < truth[misled] / (general[misled] * 299**2) < gcv.MISLED
        found = int(chosen(cell, targets, DEFAULT_ALPHAS, dtype, eigen=way == "eigen").indices[0])
        assert truth[found] <= 1.01 * truth.min()
        worse += truth[misled] > 1.02 * truth.min()
    assert worse >= 4


@pytest.mark.parametrize("way", ["all", "eigen", "in turn"])
def test_few_rows_that_lie_far_out_are_found(monkeypatch, way: str) -> None:
    """Six of a thousand, which are not among evenly spaced ones, as a rule."""
    monkeypatch.setattr(scanning, "SMALL", 512 if way == "all" else 0)
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        a, far = torch.randn(1000, 300, generator=g), torch.randperm(1000, generator=g)[:6]
        a[far] *= 30
        t = torch.tanh(a @ torch.randn(300, 3, generator=g) / 300**0.5) + 0.1 * torch.randn(1000, 3, generator=g)
        targets = build_targets([Input()], (t, None), (t[:9], None), (0, 1000), CPU)
        cell = captured(a, a[:9], (0, 1000))
        general, truth = curve(cell, t, DEFAULT_ALPHAS).sum(1), left_out(cell, t, DEFAULT_ALPHAS)
        assert truth[int(general.argmin())] > 1.5 * truth.min()
        found = int(chosen(cell, targets, DEFAULT_ALPHAS, F64, eigen=way == "eigen").indices[0])
        assert truth[found] <= 1.01 * truth.min()


@pytest.mark.parametrize("alphas", [(0.0, 1e-3, 1.0), (1e-17, 1e-16, 1e-15, 1e-3, 0.1)])
def test_rows_are_left_out_of_a_matrix_without_a_factor_too(alphas: tuple[float, ...]) -> None:
    cell, targets, columns = uneven(0, 200, 30)
    again = captured(torch.cat([cell.fit, cell.fit[:, :10]], 1), cell.heldout[:, :1].expand(-1, 40), (0, 200))
    truth = left_out(again, columns, tuple(max(alpha, 1e-13) for alpha in alphas))
    choice = chosen(again, targets, alphas, F64)
    assert truth[int(choice.indices[0])] <= 1.02 * truth.min()


def test_looking_at_some_rows_estimates_what_all_would_tell() -> None:
    cell, targets, columns = uneven(1, 3000, 40)
    (statistics,) = accumulate([cell], targets, F64, with_folds=False)
    scan = scanning.Scan(cell, statistics, targets, Penalties(DEFAULT_ALPHAS))
    scan.all_errors()
    general = curve(cell, columns, DEFAULT_ALPHAS).sum(1) * (len(cell.fit) - 1) ** 2
    for index, exact in enumerate(left_out(cell, columns, DEFAULT_ALPHAS) / general):
        assert float(scan.misled_by(index, 3000)) == pytest.approx(exact, rel=2e-3)
        assert float(scan.misled_by(index, 1000)) == pytest.approx(exact, rel=0.05)
        assert float(scan.misled_by(index, 128)) == pytest.approx(exact, rel=0.2)


def test_even_rows_need_no_factor_but_the_chosen_one(monkeypatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(gcv, "_left_out", lambda *_: calls.append(1))
    for seed, (n, d) in itertools.product(range(3), [(300, 12), (300, 100), (400, 300)]):
        chosen(*make(seed, n, d)[:2], DEFAULT_ALPHAS, F32)
    assert calls == []


def test_what_float32_cannot_check_is_not_taken_where_no_float64_follows() -> None:
    """A wide layer and rows of uneven sizes: float32 cannot tell what a weak penalty leaves of a row."""
    g = torch.Generator().manual_seed(13)
    x, held = (torch.randn(n, 30, generator=g) * torch.exp(2.0 * torch.randn(n, 1, generator=g)) for n in (200, 300))
    model = nn.Sequential(nn.Linear(30, 200, bias=False), nn.ReLU())
    model[0].weight.data = torch.randn(200, 30, generator=g) / 30**0.5
    mix = torch.randn(30, 2, generator=g)
    targets = [pf.Input(), pf.Function(lambda x: torch.sin(x @ mix), name="sin")]
    probe_set = pf.ProbeSet.from_tensors(x, None, held, None)
    for precision in ("fast", "exact"):
        scores = pf.probe(model, probe_set, targets=targets, layers="1", precision=precision)
        assert scores.value(target="sin", metric="fvu", split="heldout") < 1.2
