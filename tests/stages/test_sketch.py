"""Sketched features against their definition, and what is said of the exact decoder against ridge in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from phasefast.algebra.systems import Penalties, PenaltyChoice
from phasefast.data.target_matrix import TargetMatrix
from phasefast.data.target_types import Function, Input
from phasefast.stages.reduce import reduce_features
from phasefast.stages.sketch import Measured, measure, sketch_features
from phasefast.stages.solve import solve
from phasefast.stages.statistics import accumulate
from phasefast.stages.targets import build_targets
from phasefast.types import Activations, Decoder
from tests.oracle import captured

CPU = torch.device("cpu")
SPECTRA = ("flat", "slow", "steep", "low rank", "floor", "constant columns", "relu")
Errors = dict[str, list[float]]


def make(kind: str, seed: int, p: int, n: int = 0, d: int = 0, noise: float = 0.3) -> tuple[Activations, TargetMatrix]:
    """A cell of that spectrum, and p target columns of falling size that depend on it, beside noise."""
    g = torch.Generator().manual_seed(seed)
    n = n or int(torch.randint(100, 240, (1,), generator=g))
    d, m = d or (n // 2, n, 2 * n, 5 * n)[seed % 4], 60
    order = torch.arange(1, d + 1)
    size = {"slow": order**-0.5, "steep": order**-1.0, "floor": torch.where(order < 12, 1, 0.1)}.get(kind, order**0.0)
    x = torch.randn(n + m, d, generator=g) * size
    if kind == "low rank":
        x[:, 10:] = 0
    a = x @ torch.randn(d, d, generator=g) / d**0.5
    if kind == "relu":
        a = a.relu()
    elif kind == "constant columns":
        a[:, ::3] = 0.7
    falling = torch.arange(1, p + 1) ** -0.5
    t = x @ torch.randn(d, p, generator=g) * falling
    t = t / t.std() + noise * torch.randn(n + m, p, generator=g)
    if kind == "constant columns" and p > 1:
        t[:, 1] = 2
    folds = tuple(n * i // 3 for i in range(4))
    return captured(a[:n], a[n:], folds), build_targets([Input()], (t[:n], None), (t[n:], None), folds, CPU)


def errors_of(cell: Activations, targets: TargetMatrix, decoder: Decoder) -> Errors:
    """Squared errors per split and target, in float64."""
    found: Errors = {}
    for split, rows, columns in (("fit", cell.fit, targets.fit), ("heldout", cell.heldout, targets.heldout)):
        squares = (
            (columns.double() - rows.double() @ decoder.weights.double() - decoder.offset.double()).square().sum(0)
        )
        found[split] = [float(squares[block.start : block.stop].sum()) for block in targets.blocks]
    return found


def exact_errors(cell: Activations, targets: TargetMatrix, penalties: list[float]) -> Errors:
    """Those of the ridge decoder of all features, each target with its absolute penalty."""
    a, t = cell.fit.double(), targets.fit.double()
    mean, center = a.mean(0), t.mean(0)
    u, s, v = torch.linalg.svd(a - mean, full_matrices=False)
    found: Errors = {"fit": [], "heldout": []}
    for block, penalty in zip(targets.blocks, penalties, strict=True):
        own = slice(block.start, block.stop)
        weights = v.mT @ ((s / (s**2 + penalty))[:, None] * (u.mT @ (t - center)[:, own]))
        for split, rows, columns in (("fit", cell.fit, targets.fit), ("heldout", cell.heldout, targets.heldout)):
            miss = columns[:, own].double() - center[own] - (rows.double() - mean) @ weights
            found[split].append(float(miss.square().sum()))
    return found


def decoded(
    cell: Activations, targets: TargetMatrix, size: int, alpha: float, indices: tuple[int, ...] = (0,)
) -> tuple[Activations, Decoder, Errors]:
    """The sketched cell, its decoder and its errors; ``indices``: the targets' penalties, decades from alpha."""
    sketched = sketch_features(cell, targets.folds, size)
    if sketched.fit.shape[1] > len(sketched.fit):
        sketched = reduce_features(sketched, targets.folds)
    (statistics,) = accumulate([sketched], targets, torch.float64, with_folds=False)
    choice = PenaltyChoice(tuple(torch.tensor([index]) for index in indices))
    decoder = solve(sketched, statistics, targets, Penalties((alpha, 10 * alpha)), choice, 1e-5)()
    return sketched, decoder, errors_of(sketched, targets, decoder)


def covered(measured: Measured, truth: Errors, index: int = 0) -> list[bool]:
    ends = measured.fit, measured.heldout
    values = truth["fit"][index], truth["heldout"][index]
    return [low <= value <= high for (low, high), value in zip(ends, values, strict=True)]


@pytest.mark.parametrize(("n", "d", "size"), [(1, 9, 1), (5, 40, 3), (300, 130, 60), (700, 257, 256), (20, 1000, 77)])
def test_a_sketch_is_a_sparse_combination_that_keeps_inner_products_in_the_mean(n: int, d: int, size: int) -> None:
    rows = torch.randn(n + 7, d, dtype=torch.float64)
    cell = captured(rows[:n], rows[n:], (0, n // 2, n))
    found = sketch_features(cell, (0, n // 2, n), size)
    count, eye = min(8, size), torch.eye(d).double()
    mix = sketch_features(replace(cell, fit=eye, sums=eye.sum(0, keepdim=True)), (0, d), size).fit
    mix = mix.sign() / count**0.5  # up to a scale
    assert (mix != 0).sum(1).tolist() == [count] * d
    assert int((mix != 0).any(0).sum()) == size
    beside = (mix @ mix.mT).fill_diagonal_(0)
    assert abs(float(beside.mean())) < 4 / (d * size**0.5)
    plain = cell.fit @ mix
    before, after = ((x - x.mean(0)).square().sum() for x in (cell.fit, plain))
    scale = (before / after) ** 0.5 if n > 1 else 1.0
    for got, own in ((found.fit, cell.fit), (found.heldout, cell.heldout)):
        torch.testing.assert_close(got, scale * own @ mix, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.sums, torch.stack([part.sum(0) for part in found.fit.split([n // 2, n - n // 2])]))
    assert (found.layer, found.route) == (cell.layer, cell.route)


def test_a_sketch_is_float32_of_bfloat16_rows_and_no_wider_than_the_cell() -> None:
    cell, _ = make("slow", 0, 3)
    found = sketch_features(replace(cell, fit=cell.fit.bfloat16()), (0, len(cell.fit)), 20)
    assert found.fit.dtype == torch.float32
    assert torch.equal(found.fit, sketch_features(replace(cell, fit=cell.fit.bfloat16()), (0, len(cell.fit)), 20).fit)
    assert sketch_features(cell, (0, len(cell.fit)), cell.fit.shape[1]) is cell


@pytest.mark.parametrize("kind", SPECTRA)
def test_few_columns_are_told_without_a_sample(kind: str) -> None:
    answers = 0
    for seed, alpha in enumerate((1e-4, 1e-2, 0.1, 1.0, 1.0, 10.0)):
        cell, targets = make(kind, seed, (1, 5, 16)[seed % 3])
        sketched, decoder, errors = decoded(cell, targets, cell.fit.shape[1] // 4, alpha)
        truth = exact_errors(cell, targets, [decoder.fits[0].penalty])
        (measured,) = measure(cell, sketched, decoder.fits, targets, errors)
        if measured is not None:
            answers += 1
            assert all(covered(measured, truth))
            for (low, high), split in ((measured.fit, "fit"), (measured.heldout, "heldout")):
                assert high - low <= 0.021 * errors[split][0]
    assert answers >= 4


def test_many_columns_are_told_from_a_sample() -> None:
    hits, widths, near = [], [], 0
    for seed in range(42):
        alpha = 10.0 ** (seed % 8 - 6)
        cell, targets = make(SPECTRA[seed % 7], seed, (40, 150)[seed % 2], noise=(0.05, 1.0)[seed % 3 > 0])
        sketched, decoder, errors = decoded(cell, targets, cell.fit.shape[1] // (2, 4, 8)[seed % 3], alpha)
        truth = exact_errors(cell, targets, [decoder.fits[0].penalty])
        (measured,) = measure(cell, sketched, decoder.fits, targets, errors)
        close = abs(errors["heldout"][0] / truth["heldout"][0] - 1) < 0.2
        near += close
        if measured is not None:
            hits += covered(measured, truth)
            widths += [(measured.heldout[1] - measured.heldout[0]) / errors["heldout"][0]] * close
    assert sum(hits) >= 0.95 * len(hits)
    assert sorted(widths)[len(widths) // 2] < 0.15
    assert len(widths) >= 0.85 * near > 10


@pytest.mark.parametrize("seed", range(3))
def test_targets_with_penalties_of_their_own(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    cell, _ = make("steep", seed, 3, n=150, d=400)
    inputs = torch.cat([cell.fit, cell.heldout]) @ torch.randn(400, 50, generator=g) + torch.randn(210, 50, generator=g)
    columns = [Function(lambda x: x[:, :4].square() + 3, name="few"), Function(lambda x: x, name="many")]

    def both(x: Tensor) -> tuple[Tensor, None]:
        return x, None

    targets = build_targets(columns, both(inputs[:150]), both(inputs[150:]), (0, 150), CPU)
    sketched, decoder, errors = decoded(cell, targets, 100, 0.1, (1, 0))
    assert decoder.fits[0].penalty == pytest.approx(10 * decoder.fits[1].penalty)
    truth = exact_errors(cell, targets, [fit.penalty for fit in decoder.fits])
    found = measure(cell, sketched, decoder.fits, targets, errors)
    for index, measured in enumerate(found):
        assert measured is not None
        assert all(covered(measured, truth, index))
    (alone,) = measure(cell, sketched, decoder.fits[1:], targets, {split: errors[split][1:] for split in errors})
    assert alone == found[1]


def test_more_combinations_tell_more() -> None:
    cell, targets = make("slow", 2, 200, n=200, d=400)
    sketched, decoder, errors = decoded(cell, targets, 100, 1.0)
    widths = []
    for columns in (8, 16, 32, 64, 200):
        (measured,) = measure(cell, sketched, decoder.fits, targets, errors, columns)
        assert measured is not None
        widths.append(measured.heldout[1] - measured.heldout[0])
    assert widths[0] > widths[2] > widths[3]


@pytest.mark.parametrize("p", [5, 60])
def test_what_has_not_converged_is_not_told(p: int) -> None:
    """A weak penalty with as many features as rows, and a sketch that lacks most of their directions."""
    cell, targets = make("flat", 1, p, n=600, d=600)
    sketched, decoder, errors = decoded(cell, targets, 75, 1e-6)
    assert measure(cell, sketched, decoder.fits, targets, errors) == [None]


def test_what_cannot_be_told_is_not() -> None:
    cell, targets = make("slow", 0, 20)
    sketched, decoder, errors = decoded(cell, targets, 40, 1.0)
    arguments = cell, sketched, decoder.fits
    assert measure(*arguments, targets, errors)[0] is not None
    assert measure(*arguments, replace(targets, per_column=True), errors) == [None]
    assert measure(*arguments, targets, errors | {"heldout": [math.nan]}) == [None]
    for penalty in (0.0, math.inf, math.nan):
        fits = [replace(decoder.fits[0], penalty=penalty)]
        assert measure(cell, sketched, fits, targets, errors) == [None]


def test_features_that_tell_nothing_leave_the_deviation() -> None:
    cell, targets = make("slow", 1, 30, n=100, d=50)
    nothing = replace(cell, fit=torch.zeros_like(cell.fit), heldout=torch.zeros_like(cell.heldout), sums=0 * cell.sums)
    sketched, decoder, _ = decoded(cell, targets, 20, 1.0)
    empty = replace(sketched, fit=0 * sketched.fit, heldout=0 * sketched.heldout, sums=0 * sketched.sums)
    errors = {split: list(values) for split, values in targets.deviation.items()}
    (measured,) = measure(nothing, empty, decoder.fits, targets, errors)
    assert measured is not None
    assert covered(measured, errors) == [True, True]
