"""What a solution says of its own rounding, against float64; and factors that are used again."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from phasefast.algebra import certificates
from phasefast.algebra.systems import Penalties, PenaltyChoice, fold_sums
from phasefast.data.target_matrix import TargetMatrix
from phasefast.data.target_types import Input, Label
from phasefast.stages import solve as solve_stage
from phasefast.stages.evaluate import evaluate
from phasefast.stages.reduce import reduce_features
from phasefast.stages.solve import _corrected, solve, solve_target_free
from phasefast.stages.statistics import accumulate
from phasefast.stages.targets import build_targets
from phasefast.types import Activations, Decoder
from tests.oracle import captured

CPU = torch.device("cpu")
F64 = torch.float64
NEVER = float("inf")


def make(seed: int, p: int, noise: float = 0.1) -> tuple[Activations, TargetMatrix]:
    """Features of steeply falling size, which float32 finds hard, and targets that they explain well."""
    g = torch.Generator().manual_seed(seed)
    n, m, d = 500, 120, 90
    a = torch.randn(n + m, d, generator=g) @ torch.diag(torch.logspace(0, -2.5, d)) @ torch.randn(d, d, generator=g)
    t = a @ torch.randn(d, p, generator=g) + noise * torch.randn(n + m, p, generator=g)
    labels = (t[:, 0] > 0).long()
    folds = tuple(n * i // 5 for i in range(6))
    splits = (t[:n], labels[:n]), (t[n:], labels[n:])
    return captured(a[:n], a[n:], folds), build_targets([Input(), Label(2)], *splits, folds, CPU)


def decoder_of(
    cell: Activations, targets: TargetMatrix, alpha: float, dtype: torch.dtype, tolerance: float = NEVER
) -> Decoder:
    (statistics,) = accumulate([cell], targets, dtype, with_folds=False)
    return solve(cell, statistics, targets, Penalties((alpha,)), PenaltyChoice.first(targets), tolerance)()


def mse(cell: Activations, decoder: Decoder, targets: TargetMatrix) -> dict[str, float]:
    direct = replace(decoder, fits=tuple(replace(fit, fit_error=None) for fit in decoder.fits))
    return {score.split: score.value for score in evaluate(cell, direct, targets)() if score.metric == "mse"}


def off(cell: Activations, decoder: Decoder, exact: Decoder, targets: TargetMatrix) -> float:
    """Relative error of a decoder's squared errors, the larger of both splits'; of tiny ones relative to a floor."""
    block, truth = targets.blocks[0], mse(cell, exact, targets)
    floor = 1e-3 * targets.deviation["fit"][0] / (block.width * len(cell.fit))
    return max(abs(value - truth[k]) / max(truth[k], floor) for k, value in mse(cell, decoder, targets).items())


def by_combinations(
    cell: Activations, targets: TargetMatrix, alpha: float, dtype: torch.dtype, tolerance: float = NEVER
) -> tuple[Decoder, float]:
    """The decoder without weights of the targets, and its held-out error, evaluated in float64."""
    (statistics,) = accumulate([cell], targets, dtype, with_folds=False, with_cross=False)
    arguments = cell, statistics, targets, Penalties((alpha,)), PenaltyChoice.first(targets)
    ((rows, decoder),) = solve_target_free(*arguments, tolerance)
    wide = replace(decoder, weights=decoder.weights.double(), offset=decoder.offset.double())
    return decoder, evaluate(replace(rows, heldout=rows.heldout.double()), wide, targets, fit_scores=False)()[0].value


@pytest.mark.parametrize("alpha", [1e-6, 1e-4, 1e-2])
@pytest.mark.parametrize("p", [5, 300])
def test_rounding_is_estimated_on_both_splits(p: int, alpha: float) -> None:
    """To first order where the columns are few; else from random combinations of them, which may overrate it."""
    for seed in range(8):
        cell, targets = make(seed, p)
        rough, exact = (decoder_of(cell, targets, alpha, dtype) for dtype in (torch.float32, torch.float64))
        error, estimate = off(cell, rough, exact, targets), rough.fits[0].error_estimate
        assert error <= 3 * estimate + 1e-6  # of the scoring itself, in float32
        assert exact.fits[0].error_estimate < 1e-9
        if p == 5 and alpha == 1e-2:  # for weaker penalties the factor that corrects is rough itself
            assert estimate <= 3 * error + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [1e-3, 0.1, 10.0])
def test_a_fit_error_without_a_pass_over_the_rows_is_exact_or_absent(noise: float, dtype: torch.dtype) -> None:
    given = 0
    for seed, p in ((0, 5), (1, 300), (2, 80)):
        cell, targets = make(seed, p, noise)
        decoder = decoder_of(cell, targets, 1e-3, dtype)
        wide = replace(decoder, weights=decoder.weights.double(), offset=decoder.offset.double())
        direct = mse(cell, wide, targets)["fit"] * len(cell.fit) * p
        if (found := decoder.fits[0].fit_error) is not None:
            given += 1
            assert found == pytest.approx(direct, rel=1e-5)
    assert given == 3 or (dtype == torch.float32 and noise < 1)


def test_what_a_fit_error_without_a_pass_lacks_is_in_the_estimate() -> None:
    """Solutions that are nearly exact, of targets that are nearly explained: sums that cancel are off the most."""
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        a, folds = torch.randn(1500, 150, generator=g).relu(), (0, 1200)
        t = a[:, :32] @ torch.randn(32, 400, generator=g) + 1.0 * torch.randn(1500, 400, generator=g)
        cell = captured(a[:1200], a[1200:], folds)
        targets = build_targets([Input()], (t[:1200], None), (t[1200:], None), folds, CPU)
        decoder = decoder_of(cell, targets, 1e-2, torch.float32)
        wide = replace(decoder, weights=decoder.weights.double(), offset=decoder.offset.double())
        found, direct = decoder.fits[0].fit_error, mse(cell, wide, targets)["fit"] * 1200 * 400
        assert found is not None
        assert abs(found / direct - 1) <= 4 * decoder.fits[0].error_estimate


def test_moments_that_are_cut_off_are_seen_and_put_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by tensor cores, which do not round sums: all of them are a little too small."""
    g = torch.Generator().manual_seed(0)
    a = torch.randn(1500, 60, generator=g)
    t = a @ torch.randn(60, 400, generator=g) + 3.0 * torch.randn(1500, 400, generator=g)
    cell = captured(a[:1200], a[1200:], (0, 1200))
    targets = build_targets([Input()], (t[:1200], None), (t[1200:], None), (0, 1200), CPU)
    (statistics,) = accumulate([cell], targets, torch.float32, with_folds=False)
    total = statistics.total
    short = replace(total, gram=total.gram * (1 - 1e-5), cross=total.cross * (1 - 1e-5))
    arguments = targets, Penalties((1e-2,)), PenaltyChoice.first(targets), NEVER
    decoder = solve(cell, replace(statistics, total=short), *arguments)()
    found, direct = decoder.fits[0].fit_error, mse(cell, decoder, targets)["fit"] * 1200 * 400
    assert found == pytest.approx(direct, rel=1e-5)
    monkeypatch.setattr(certificates, "_CHANCE", NEVER)
    assert solve(cell, replace(statistics, total=short), *arguments)().fits[0].fit_error is None  # too far off


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_with_penalties_of_their_own_are_certified_alike(dtype: torch.dtype) -> None:
    """Few of a wide target's columns are looked at themselves, many by their share of the random combinations."""
    cell, _ = make(4, 5)
    g = torch.Generator().manual_seed(4)
    t = cell.fit @ torch.randn(90, 200, generator=g) + 3 * torch.randn(500, 200, generator=g)
    splits = (t, None), (cell.heldout @ torch.randn(90, 200, generator=g), None)
    targets = build_targets([Input()], *splits, (0, 500), CPU, per_column=True)
    (statistics,) = accumulate([cell], targets, dtype, with_folds=False)
    indices = torch.zeros(200, dtype=torch.int64)
    indices[:20], indices[20:70] = 2, 1
    decoder = solve(cell, statistics, targets, Penalties((1e-3, 1e-2, 0.1)), PenaltyChoice((indices,)), NEVER)()
    direct = mse(cell, decoder, targets)["fit"] * 500 * 200
    assert decoder.fits[0].fit_error == pytest.approx(direct, rel=1e-5)


@pytest.mark.parametrize("alpha", [1e-5, 1e-4])
@pytest.mark.parametrize("p", [5, 300])
def test_refinement_in_float32_takes_most_of_the_rounding_away(p: int, alpha: float) -> None:
    before, after = [], []
    for seed in range(4):
        cell, targets = make(seed, p)
        rough, exact = (decoder_of(cell, targets, alpha, dtype) for dtype in (torch.float32, torch.float64))
        found = decoder_of(cell, targets, alpha, torch.float32, rough.fits[0].error_estimate / 2)
        assert found.fits[0].route.endswith("-refined")
        assert found.weights.dtype == torch.float32
        for decoder, errors in ((rough, before), (found, after)):
            wide = replace(decoder, weights=decoder.weights.double(), offset=decoder.offset.double())
            errors.append(off(cell, wide, exact, targets))
        assert after[-1] <= 3 * found.fits[0].error_estimate + 1e-6
    assert sum(after) < sum(before) / 8


@pytest.mark.parametrize("alpha", [1e-5, 1e-4])
@pytest.mark.parametrize("wide", [False, True])
def test_combinations_of_rows_are_refined_in_float32(monkeypatch: pytest.MonkeyPatch, wide: bool, alpha: float) -> None:
    monkeypatch.setattr(solve_stage, "_STRIP", 50)
    monkeypatch.setattr(solve_stage, "_MISSES", 120)
    before, after = [], []
    for seed in range(4):
        cell, targets = make(seed, 30)
        cell = replace(cell, fit=cell.fit + 1.0, heldout=cell.heldout + 1.0)  # as rows are kept whose mean is small
        cell = replace(cell, sums=fold_sums(cell.fit, targets.folds))
        if wide:
            fit, folds, kept = cell.fit[:60], (0, 60), targets.fit[:60]
            checks = tuple(replace(check, fit=check.fit[:60]) for check in targets.checks)
            targets = replace(targets, fit=kept, folds=folds, sums=fold_sums(kept, folds), checks=checks)
            cell = reduce_features(replace(cell, fit=fit, sums=fold_sums(fit, folds)), folds)
        assert cell.route == ("dual" if wide else "primal")
        rough = by_combinations(cell, targets, alpha, torch.float32)
        found = by_combinations(cell, targets, alpha, torch.float32, rough[0].error_estimate / 2)
        truth = by_combinations(cell, targets, alpha, F64)[1]
        assert found[0].fits[0].route == f"{cell.route}-target-free-refined"
        for (_, value), errors in ((rough, before), (found, after)):
            errors.append(abs(value / truth - 1))
        assert after[-1] <= 3 * found[0].error_estimate + 1e-7
    assert sum(after) < sum(before) / 8


def test_few_columns_are_refined_in_float64_where_float32_does_not_do() -> None:
    cell, targets = make(0, 5)
    decoder = decoder_of(cell, targets, 1e-4, torch.float32, 1e-6)
    truth = mse(cell, decoder_of(cell, targets, 1e-4, torch.float64), targets)
    assert decoder.weights.dtype == torch.float64
    assert mse(cell, decoder, targets) == pytest.approx(truth, rel=1e-7)


def test_a_solution_too_far_off_for_a_step_is_left_to_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    refined: list[int] = []

    def corrected(*given: Any) -> torch.Tensor:
        refined.append(given[3].index)
        return _corrected(*given)

    monkeypatch.setattr("phasefast.stages.solve._corrected", corrected)
    cell, targets = make(0, 300, noise=1e-3)
    decoder = decoder_of(cell, targets, 1e-6, torch.float32, 1e-5)
    assert decoder.fits[0].error_estimate > 0.1
    assert 0 not in refined


@pytest.mark.parametrize("order", [(0, 2), (2, 0)])
def test_targets_are_certified_in_any_order_of_their_penalties(order: tuple[int, int]) -> None:
    cell, targets = make(0, 30)
    choice = PenaltyChoice(tuple(torch.full((1,), index) for index in order))
    found = []
    for dtype in (torch.float32, F64):
        (statistics,) = accumulate([cell], targets, dtype, with_folds=False)
        decoder = solve(cell, statistics, targets, Penalties((1e-3, 1e-2, 1.0)), choice, NEVER)()
        found.append(decoder)
        assert [fit.block.name for fit in decoder.fits] == ["input", "label"]
        direct = mse(cell, decoder, targets)["fit"] * 500 * 30
        if dtype == F64 or decoder.fits[0].fit_error is not None:
            assert decoder.fits[0].fit_error == pytest.approx(direct, rel=1e-4 if dtype == torch.float32 else 1e-9)
        assert decoder.error_estimate < (1e-3 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_columns_of_which_some_are_refined_further(seed: int) -> None:
    """Those of a penalty of their own: few that may get float64 weights beside many that do not."""
    cell, _ = make(seed, 5)
    g = torch.Generator().manual_seed(seed)
    weights = torch.randn(90, 80, generator=g)
    fit, heldout = (rows @ weights + torch.randn(len(rows), 80, generator=g) for rows in (cell.fit, cell.heldout))
    targets = build_targets([Input()], (fit, None), (heldout, None), (0, 500), CPU, per_column=True)
    (statistics,) = accumulate([cell], targets, torch.float32, with_folds=False)
    choice = PenaltyChoice((torch.randint(0, 3, (80,), generator=g),))
    decoder = solve(cell, statistics, targets, Penalties((1e-4, 1e-3, 1e-2)), choice, 1e-7)()
    (exact,) = accumulate([cell], targets, torch.float64, with_folds=False)
    truth = solve(cell, exact, targets, Penalties((1e-4, 1e-3, 1e-2)), choice, NEVER)()
    assert "refined" in decoder.fits[0].route
    assert off(cell, decoder, truth, targets) <= 3 * decoder.fits[0].error_estimate + 1e-6


@pytest.mark.parametrize("alpha", [1e-5, 1e-3])
@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("route", ["primal", "dual"])
def test_what_rounded_rows_do_is_estimated(route: str, noise: float, alpha: float) -> None:
    folds = (0, 250, 500)
    for seed in range(3):
        cell, targets = make(seed, 30, noise)
        fit, heldout = cell.fit.bfloat16(), cell.heldout.bfloat16()
        narrow = replace(cell, fit=fit, heldout=heldout, sums=fold_sums(fit, folds), rounded=True)
        if route == "dual":
            few, some = slice(0, 60), replace(targets, fit=targets.fit[:60], folds=(0, 60))
            targets = replace(some, sums=some.fit.double().sum(0, keepdim=True))
            cell, narrow = (replace(c, fit=c.fit[few], sums=fold_sums(c.fit[few], (0, 60))) for c in (cell, narrow))
            narrow = reduce_features(narrow, (0, 60))
            assert narrow.route == "dual"
        truth, rough = decoder_of(cell, targets, alpha, F64), decoder_of(narrow, targets, alpha, torch.float32)
        values = [mse(c, d, targets)["heldout"] for c, d in ((narrow, rough), (cell, truth))]
        error, estimate = abs(values[0] / values[1] - 1), rough.fits[0].error_estimate
        chance = 4 * math.sqrt(estimate / len(cell.heldout))  # what is off in predictions meets what they miss
        assert error <= 3 * estimate + chance
        assert estimate <= 5 * error + chance


def test_a_fit_without_error_needs_no_refinement() -> None:
    g = torch.Generator().manual_seed(0)
    a, t = torch.randn(120, 300, generator=g), torch.randn(120, 4, generator=g)
    targets = build_targets([Input()], (t[:100], None), (t[100:], None), (0, 100), CPU)
    decoder = decoder_of(captured(a[:100], a[100:], (0, 100)), targets, 0.0, torch.float64)
    assert decoder.fits[0].error_estimate < 1e-9
    assert "refined" not in decoder.fits[0].route
