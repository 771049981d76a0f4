"""Penalties by generalised cross-validation, against hat matrices in float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from phasefast.algebra import scanning
from phasefast.algebra.dense import Factor
from phasefast.algebra.systems import DEFAULT_ALPHAS, Penalties, PenaltyChoice
from phasefast.data.target_types import Input
from phasefast.decoding import Method, decode
from phasefast.stages import gcv
from phasefast.stages.gcv import select_by_gcv
from phasefast.stages.reduce import reduce_features
from phasefast.stages.select import select_by_leave_one_out
from phasefast.stages.solve import solve
from phasefast.stages.statistics import accumulate
from phasefast.stages.targets import build_targets
from tests.oracle import captured
from tests.penalties import chosen, curve, make

CPU = torch.device("cpu")
F32, F64 = torch.float32, torch.float64


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


@pytest.mark.parametrize("start", range(9))
@pytest.mark.parametrize(("pairs", "dtype"), [(True, F32), (False, F32), (False, F64)])
def test_wherever_the_search_starts_it_ends_at_the_same(
    monkeypatch, start: int, pairs: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(scanning, "SMALL", 0)
    monkeypatch.setattr(scanning, "paired", lambda dim: pairs)
    decades = DEFAULT_ALPHAS[::2]
    for seed, noise in itertools.product(range(3), (0.1, 3.0, 100.0)):
        cell, targets, _ = make(seed, 150, 60, noise)
        first = PenaltyChoice((torch.tensor([start]), torch.tensor([8 - start])))
        found = [chosen(cell, targets, decades, dtype, start=given).indices for given in (None, first)]
        assert found[0] == found[1]


@pytest.mark.parametrize("start", range(len(DEFAULT_ALPHAS)))
@pytest.mark.parametrize(("pairs", "dtype"), [(True, F32), (False, F32), (False, F64)])
def test_wherever_the_search_starts_between_decades_it_ends_as_well(
    monkeypatch, start: int, pairs: bool, dtype: torch.dtype
) -> None:
    """The same penalty, but where two next to each other differ by less than float32's slopes tell."""
    monkeypatch.setattr(scanning, "SMALL", 0)
    monkeypatch.setattr(scanning, "paired", lambda dim: pairs)
    monkeypatch.setattr(gcv, "TIE", 0.0)
    for seed, noise in itertools.product(range(3), (0.1, 3.0, 100.0)):
        cell, targets, columns = make(seed, 150, 60, noise)
        errors = curve(cell, columns, DEFAULT_ALPHAS).sum(1)
        first = PenaltyChoice((torch.tensor([start]), torch.tensor([len(DEFAULT_ALPHAS) - 1 - start])))
        found = [chosen(cell, targets, DEFAULT_ALPHAS, dtype, start=given).indices for given in (None, first)]
        (one, own), (other, again) = found
        flat = 1e-3 if dtype == F32 else 0.0  # slopes that rounding may make
        assert errors[int(one)] == pytest.approx(errors[int(other)], rel=flat)
        assert own == again


@pytest.mark.parametrize("few", [2, 6])
@pytest.mark.parametrize(("pairs", "dtype"), [(True, F32), (False, F32), (False, F64)])
def test_a_search_leaves_plateaus(monkeypatch: pytest.MonkeyPatch, few: int, pairs: bool, dtype: torch.dtype) -> None:
    """As above a few strong directions that tell nothing of a target, where errors hardly change with the penalty."""
    monkeypatch.setattr(scanning, "SMALL", 0)
    monkeypatch.setattr(scanning, "paired", lambda dim: pairs)
    last, count, found = len(DEFAULT_ALPHAS) - 1, 0, 0
    for seed, strong in itertools.product(range(4), (30.0, 100.0)):
        g = torch.Generator().manual_seed(seed)
        latent = torch.randn(150, 12, generator=g)
        columns = latent[:, 7:8] + 2 * torch.randn(150, 1, generator=g)
        latent[:, :few] *= strong
        rows = latent @ torch.randn(12, 60, generator=g)
        cell, values = captured(rows, rows[:9], (0, 150)), ((columns, None), (columns[:9], None))
        targets = build_targets([Input()], *values, (0, 150), CPU)
        errors = curve(cell, columns, DEFAULT_ALPHAS).sum(1)
        if errors[last] < 1.05 * errors.min():
            continue
        for start in (last // 2, last - 1, last):
            count += 1
            first = PenaltyChoice((torch.tensor([start]),))
            choice = chosen(cell, targets, DEFAULT_ALPHAS, dtype, start=first)
            found += choice.reliable  # others are chosen in float64
            assert not choice.reliable or errors[int(choice.indices[0])] <= (1 + 2 * gcv.TIE) * errors.min()
    assert count >= 18
    assert found == count if dtype == F64 else found >= 0.7 * count


@pytest.mark.parametrize(("tie", "most"), [(0.0, 14), (0.005, 20)])
def test_few_penalties_of_a_fine_grid_are_tried(monkeypatch: pytest.MonkeyPatch, tie: float, most: int) -> None:
    monkeypatch.setattr(scanning, "SMALL", 0)
    monkeypatch.setattr(gcv, "TIE", tie)
    tried: list[int] = []
    factor_path = scanning.factor_path
    monkeypatch.setattr(scanning, "factor_path", lambda s, r, p: tried.append(len(p)) or factor_path(s, r, p))
    cell, targets, columns = make(3, 200, 30)
    fine = tuple(float(a) for a in np.logspace(-5, 1, 97))
    choice = chosen(cell, targets, fine, F64)
    errors = curve(cell, columns, fine).sum(1)
    tied = [index for index in range(int(errors.argmin()), len(fine)) if errors[index] <= errors.min() * (1 + tie)]
    assert int(choice.indices[0]) == tied[-1]
    assert sum(tried) <= most


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
@pytest.mark.parametrize(("d", "start"), [(680, 8), (900, 8), (680, 16)])
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
        best, *_ = gcv._searched(scan, torch.tensor([start, start]), Penalties().stride)
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
