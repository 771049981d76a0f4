"""Statistics, penalty and solution of a cell against scikit-learn in float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from phasefast.algebra.systems import Penalties
from phasefast.data.target_types import Input, Label
from phasefast.decoding import Method, decode
from phasefast.stages.evaluate import evaluate
from phasefast.stages.statistics import accumulate
from phasefast.stages.targets import build_targets
from phasefast.types import Activations, Layer
from tests.oracle import captured, ridge_heldout_error

CPU = torch.device("cpu")
KINDS = (
    "plain", "wide", "one feature", "dead columns", "duplicated columns", "tiny scale", "huge scale", "mixed scales",
    "offset", "bfloat16", "float16", "strided", "channels last", "one-row batches", "relu",
)  # fmt: skip


def make_cell(kind: str, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Activations and targets of fit and held-out rows, and the batch size they are captured with."""
    g = torch.Generator().manual_seed(seed)
    n, m, p = (int(torch.randint(low, high, (1,), generator=g)) for low, high in ((60, 400), (1, 120), (1, 24)))
    d = {"wide": n + 37, "one feature": 1}.get(kind, int(torch.randint(2, 60, (1,), generator=g)))
    latent = torch.randn(n + m, max(d, p), generator=g)
    a = latent[:, :d] @ (torch.randn(d, d, generator=g) / d**0.5)
    t = latent[:, :p] + 0.3 * torch.randn(n + m, p, generator=g)
    if kind == "dead columns":
        a[:, ::3] = 0.7
    elif kind == "duplicated columns":
        a = torch.cat([a, a, a[:, :1] * 2], 1)
    elif kind in ("tiny scale", "huge scale"):
        a *= 1e-12 if kind == "tiny scale" else 1e12
    elif kind == "mixed scales":
        a[:, 0] *= 1e-12
        a[:, 1] *= 1e12
    elif kind == "offset":
        a += 1e4
    elif kind in ("bfloat16", "float16"):
        a = a.to(getattr(torch, kind))
    elif kind == "strided":
        a = torch.stack([a, a + 1], 2)[:, :, 0]
    elif kind == "channels last":
        a = a.repeat(1, 4).reshape(n + m, d, 2, 2) + 0.1 * torch.randn(n + m, d, 2, 2, generator=g)
        a = a.contiguous(memory_format=torch.channels_last)
    elif kind == "relu":
        a = (a - 0.5).relu()
    batch = 1 if kind == "one-row batches" else 64
    return a[:n], a[n:], t[:n], t[n:], batch


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_heldout_error_matches_scikit_learn(kind: str, seed: int) -> None:
    fit, heldout, t_fit, t_heldout, batch = make_cell(kind, 100 * seed + KINDS.index(kind))
    cell = captured(fit, heldout, batch=batch)
    targets = build_targets([Input()], (t_fit, None), (t_heldout, None), (0, len(fit)), torch.device("cpu"))
    for alpha in (1e-6, 1e-3, 0.1, 3.0):
        ((rows, decoder),) = decode([cell], targets, Method(Penalties((alpha,))))
        got = next(s for s in evaluate(rows, decoder, targets)() if (s.split, s.metric) == ("heldout", "mse"))
        expected = ridge_heldout_error(fit, heldout, t_fit, t_heldout, alpha) / t_heldout.numel()
        assert got.value == pytest.approx(expected, rel=1e-5), (alpha, decoder.fits[0])


@pytest.mark.parametrize("seed", range(12))
def test_chosen_penalties_are_those_of_plain_cross_validation(seed: int) -> None:
    kind = ("plain", "wide", "dead columns", "relu", "offset", "mixed scales")[seed % 6]
    fit, heldout, t_fit, t_heldout, batch = make_cell(kind, 900 + seed)
    n = len(fit)
    labels = [(t[:, 0] > 0.4).long() + (t[:, -1] > 1).long() for t in (t_fit, t_heldout)]
    folds = tuple(n * i // 5 for i in range(6))
    cell = captured(fit, heldout, folds, batch)
    splits = (t_fit, labels[0]), (t_heldout, labels[1])
    targets = build_targets([Input(), Label(3)], *splits, folds, torch.device("cpu"))
    alphas = (1e-6, 1e-4, 1e-2, 0.1, 1.0, 10.0)
    ((_, decoder),) = decode([cell], targets, Method(Penalties(alphas), selection="folds"))
    one_hot = torch.eye(3)[labels[0]]
    for fitted, columns in zip(decoder.fits, (t_fit, one_hot), strict=True):
        errors = []
        for alpha in alphas:
            error = 0.0
            for start, stop in itertools.pairwise(folds):
                rest = torch.cat([torch.arange(start), torch.arange(stop, n)])
                error += ridge_heldout_error(fit[rest], fit[start:stop], columns[rest], columns[start:stop], alpha)
            errors.append(error)
        chosen = alphas.index(fitted.alpha)
        assert errors[chosen] <= min(errors) * (1 + 1e-6), (kind, alphas[chosen], errors)


def test_no_penalty_at_all_can_win_with_more_features_than_rows() -> None:
    g = torch.Generator().manual_seed(0)
    t = torch.randn(150, 5, generator=g)
    a = t @ torch.randn(5, 300, generator=g) + 0.01 * torch.randn(150, 300, generator=g)
    folds = (0, 20, 40, 60, 80, 100)
    cell = captured(a[:100], a[100:], folds)
    targets = build_targets([Input()], (t[:100], None), (t[100:], None), folds, torch.device("cpu"))
    ((_, decoder),) = decode([cell], targets, Method(Penalties((0.0, 10.0)), selection="folds"))
    assert decoder.fits[0].alpha == 0
    assert decoder.fits[0].rank == 99


def test_wide_targets_choose_their_penalty_on_a_sketch() -> None:
    g = torch.Generator().manual_seed(1)
    latent = torch.randn(400, 40, generator=g)
    t = latent @ torch.randn(40, 700, generator=g) + torch.randn(400, 700, generator=g)
    a = latent + 0.5 * torch.randn(400, 40, generator=g)
    folds = (0, 60, 120, 180, 240, 300)
    cell = captured(a[:300], a[300:], folds)
    targets = build_targets([Input()], (t[:300], None), (t[300:], None), folds, torch.device("cpu"))
    assert targets.sketch.fit.shape[1] < 700
    alphas = tuple(10.0**k for k in range(-4, 2))
    ((_, decoder),) = decode([cell], targets, Method(Penalties(alphas)))
    errors = {alpha: ridge_heldout_error(a[:300], a[300:], t[:300], t[300:], alpha) for alpha in alphas}
    assert errors[decoder.fits[0].alpha] <= 1.01 * min(errors.values())


def test_bfloat16_rows_are_multiplied_as_they_are():
    torch.manual_seed(0)
    fit, heldout = torch.randn(90, 12), torch.randn(30, 12)
    targets = build_targets([Input()], (torch.randn(90, 7), None), (torch.randn(30, 7), None), [0, 40, 90], CPU)
    rows = fit.bfloat16()
    sums = torch.stack([rows[:40].double().sum(0), rows[40:].double().sum(0)])
    cell = Activations(Layer("layer", "layer", 0, 12), rows, heldout.bfloat16(), torch.zeros(12), sums)
    (narrow,), (wide,) = (accumulate([cell], targets, dtype) for dtype in (torch.float32, torch.float64))
    exact = rows.double()
    torch.testing.assert_close(narrow.total.gram.tril(), (exact.T @ exact).tril(), rtol=1e-6, atol=1e-5)
    rounded = targets.fit.bfloat16().double()
    for fold in (slice(40), slice(40, 90)):
        rounded[fold] += targets.fit[fold].double().mean(0) - rounded[fold].mean(0)
    torch.testing.assert_close(narrow.total.cross, exact.T @ rounded, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(wide.total.cross, exact.T @ targets.fit.double(), rtol=1e-12, atol=1e-12)
    ((_, decoder),) = decode([cell], targets, Method(Penalties((1e-3, 0.1)), "fast"))
    reference = replace(cell, fit=rows.float(), heldout=heldout.bfloat16().float())
    ((_, exact_decoder),) = decode([reference], targets, Method(Penalties((1e-3, 0.1))))
    ours, theirs = (
        {(score.split, score.metric): score.value for score in evaluate(c, d, targets)()}
        for c, d in ((cell, decoder), (reference, exact_decoder))
    )
    assert ours == pytest.approx(theirs, rel=2e-3)


def test_a_dual_cell_does_not_depend_on_the_cell_before_it() -> None:
    """Coordinates of rows are float64, also where another layer's rows are bfloat16."""
    g = torch.Generator().manual_seed(3)
    t = torch.randn(150, 6, generator=g)
    cells = []
    for width in (20, 300):
        a = t @ torch.randn(6, width, generator=g) + 0.1 * torch.randn(150, width, generator=g)
        cell = captured(a[:100], a[100:])
        cells.append(replace(cell, fit=cell.fit.bfloat16(), heldout=cell.heldout.bfloat16()))
    targets = build_targets([Input()], (t[:100], None), (t[100:], None), (0, 100), torch.device("cpu"))
    method = Method(Penalties((0.1,)), "fast")
    *_, (_, behind) = decode(list(cells), targets, method)
    ((_, alone),) = decode(cells[1:], targets, method)
    assert torch.equal(behind.weights, alone.weights)


@pytest.mark.parametrize("folds", [1, 5])
def test_targets_keep_their_means_as_they_are_rounded(folds: int) -> None:
    """Rows far from zero that vary little in that direction: a constant added to targets would be amplified."""
    g = torch.Generator().manual_seed(5)
    t = 0.3 + 0.1 * torch.randint(0, 3, (300, 8), generator=g)  # few values, whose rounding does not average out
    a = 0.3 * t @ torch.randn(8, 40, generator=g) + 0.01 * torch.randn(300, 40, generator=g)
    rows = (a - a.mean(0) + 1).bfloat16()
    edges = [200 * i // folds for i in range(folds + 1)]
    sums = torch.stack([rows[i:j].double().sum(0) for i, j in itertools.pairwise(edges)])
    cell = Activations(Layer("layer", "layer", 0, 40), rows[:200], rows[200:], torch.zeros(40), sums)
    targets = build_targets([Input()], (t[:200], None), (t[200:], None), edges, CPU)
    alphas = (1e-4, 1e-2, 1.0) if folds > 1 else (1e-4,)
    found = []
    for own, precision in (
        (cell, "fast"),
        (replace(cell, fit=rows[:200].float(), heldout=rows[200:].float()), "exact"),
    ):
        ((of_rows, decoder),) = decode([own], targets, Method(Penalties(alphas), precision))
        value = next(
            s.value for s in evaluate(of_rows, decoder, targets)() if (s.split, s.metric) == ("heldout", "fvu")
        )
        found.append((value, decoder.fits[0].alpha))
    assert found[0][0] == pytest.approx(found[1][0], rel=0.02)
    assert found[0][1] == found[1][1]


def test_a_matrix_without_a_factor_gets_jitter() -> None:
    g = torch.Generator().manual_seed(0)
    a, t = torch.randn(160, 12, generator=g), torch.randn(160, 5, generator=g)
    twice = torch.cat([a, a], 1)  # every feature
    targets = build_targets([Input()], (t[:120], None), (t[120:], None), (0, 120), CPU)
    weights = []
    for rows, alpha in ((twice, 1e-17), (a, 1e-15)):
        method = Method(Penalties((alpha,)), "double")
        ((_, decoder),) = decode([captured(rows[:120], rows[120:], (0, 120))], targets, method)
        weights.append(decoder.weights)
    assert decoder.fits[0].jitter == 0
    torch.testing.assert_close(weights[0][:12] + weights[0][12:], weights[1], rtol=1e-6, atol=1e-8)
