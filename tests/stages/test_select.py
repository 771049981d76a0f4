"""Choosing penalties: leave-one-out and folds, also per column, against plain loops over scikit-learn's Ridge."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from phasefast.algebra.systems import DEFAULT_ALPHAS, Penalties
from phasefast.data.target_matrix import TargetMatrix
from phasefast.data.target_types import Input, Label
from phasefast.decoding import Method, decode
from phasefast.stages import select
from phasefast.stages.evaluate import evaluate
from phasefast.stages.reduce import subset
from phasefast.stages.select import select_by_folds, select_by_leave_one_out
from phasefast.stages.statistics import accumulate
from phasefast.stages.targets import build_targets
from phasefast.types import Activations
from tests.oracle import captured, mean_diagonal, ridge_heldout_error

CPU = torch.device("cpu")
ALPHAS = (1e-4, 1e-2, 0.1, 1.0, 10.0)


def make(seed: int, n: int, d: int, per_column: bool = False) -> tuple[Activations, TargetMatrix, torch.Tensor]:
    """A cell with columns that are explained to different degrees, its targets, and the fit columns."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n + 40, d, generator=g) @ torch.diag(torch.logspace(0, -2, d))
    t = a @ torch.randn(d, 6, generator=g) + torch.randn(n + 40, 6, generator=g) * torch.logspace(-2, 1, 6)
    labels = (t[:, 0] > 0).long()
    folds = tuple(n * i // 5 for i in range(6))
    splits = (t[:n], labels[:n]), (t[n:], labels[n:])
    targets = build_targets([Input(), Label(2)], *splits, folds, CPU, per_column)
    return captured(a[:n], a[n:], folds), targets, t[:n]


def leave_one_out(cell: Activations, columns: torch.Tensor, rows: int) -> np.ndarray:
    """Squared errors [L, p] summed over the first rows, each predicted by Ridge on all others; absolute penalties."""
    a, t, total = cell.fit.double().numpy(), columns.double().numpy(), []
    for alpha in ALPHAS:
        error = np.zeros(t.shape[1])
        for i in range(rows):
            model = Ridge(alpha=alpha * mean_diagonal(cell.fit), solver="cholesky")
            model.fit(np.delete(a, i, 0), np.delete(t, i, 0))
            error += (model.predict(a[i : i + 1])[0] - t[i]) ** 2
        total.append(error)
    return np.stack(total)


@pytest.mark.parametrize(("dtype", "eigen"), [(torch.float32, False), (torch.float64, False), (torch.float64, True)])
@pytest.mark.parametrize("per_column", [False, True])
def test_folds_solved_together_choose_the_same(
    monkeypatch: pytest.MonkeyPatch, per_column: bool, dtype: torch.dtype, eigen: bool
) -> None:
    cell, targets, _ = make(3, 90, 30, per_column)
    (statistics,) = accumulate([cell], targets, dtype)
    choices = []
    for together in (1, 5):
        monkeypatch.setattr(select, "_folds_at_once", lambda *_, together=together: together)
        choices.append(select_by_folds(cell, statistics, targets, Penalties(ALPHAS), eigen))
    assert all(torch.equal(a, b) for a, b in zip(choices[0].indices, choices[1].indices, strict=True))
    assert choices[0].reliable == choices[1].reliable


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize(("seed", "d"), [(0, 7), (1, 20), (2, 60)])
def test_leave_one_out_is_what_leaving_out_gives(seed: int, d: int, per_column: bool) -> None:
    cell, targets, columns = make(seed, 45, d, per_column)
    (statistics,) = accumulate([cell], targets, torch.float64, with_folds=False)
    choice = select_by_leave_one_out(cell, statistics, targets, Penalties(ALPHAS))
    errors = leave_one_out(cell, columns, 45)
    best = errors.argmin(0) if per_column else [errors.sum(1).argmin()]
    assert choice.indices[0].tolist() == list(best)
    assert len(choice.indices[1]) == 1


def wide(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [75, d] of more features than the 35 fit rows, of uneven sizes, and two columns that they explain."""
    g = torch.Generator().manual_seed(seed)
    d = 40 + 20 * (seed % 10)
    sizes = torch.randn(d, generator=g).mul(2).exp()
    a = torch.randn(75, d, generator=g) @ torch.randn(d, d, generator=g) * sizes
    a /= a.std()
    t = a @ torch.randn(d, 2, generator=g)
    return a, t / t.std() + (0.001, 0.03, 0.3)[seed % 3] * torch.randn(75, 2, generator=g)


@functools.cache
def best_left_out(seed: int) -> float:
    """The default penalty of least leave-one-out error of ``wide``, each row predicted from a decoder of the others."""
    a, t = (own[:35].double().numpy() for own in wide(seed))
    error = np.zeros(len(DEFAULT_ALPHAS))
    path = np.array(DEFAULT_ALPHAS) * mean_diagonal(wide(seed)[0][:35])
    for i in range(35):
        rest, columns = np.delete(a, i, 0), np.delete(t, i, 0)
        left, sizes, right = np.linalg.svd(rest - rest.mean(0), full_matrices=False)
        own, explained = (a[i] - rest.mean(0)) @ right.T, left.T @ (columns - columns.mean(0))
        for index, penalty in enumerate(path):
            predicted = columns.mean(0) + own * (sizes / (sizes**2 + penalty)) @ explained
            error[index] += ((predicted - t[i]) ** 2).sum()
    return DEFAULT_ALPHAS[int(error.argmin())]


@pytest.mark.parametrize("route", [None, "eigen", "primal", "dual"])
@pytest.mark.parametrize("precision", ["exact", "fast", "double"])
def test_leave_one_out_of_wide_cells_knows_what_leverages_leave(route: str | None, precision: str) -> None:
    found = []
    for seed in range(24):
        a, t = wide(seed)
        targets = build_targets([Input()], (t[:35], None), (t[35:], None), (0, 35), CPU)
        method = Method(Penalties(), precision, route, selection="loo")
        ((_, decoder),) = decode([captured(a[:35], a[35:], (0, 35))], targets, method)
        found.append(decoder.fits[0].alpha)
    assert found == [best_left_out(seed) for seed in range(24)]


def test_a_sample_keeps_the_ratio_of_features_to_rows() -> None:
    cell, targets, _ = make(0, 200, 30)
    part, smaller = subset(cell, targets, 50)
    assert part.fit.shape == (50, 7)
    assert part.layer.dim == 7
    assert smaller.folds == (0, 50)
    assert torch.equal(smaller.fit, targets.sketch.fit[[*range(10), *range(40, 50), *range(80, 90), *range(120, 130),
                                                        *range(160, 170)]])  # fmt: skip
    torch.testing.assert_close(part.sums.sum(0), part.fit.double().sum(0))


@pytest.mark.parametrize("precision", ["exact", "double"])
def test_each_column_is_decoded_with_its_own_penalty(precision: str) -> None:
    cell, targets, columns = make(1, 120, 25, per_column=True)
    ((rows, decoder),) = decode([cell], targets, Method(Penalties(ALPHAS), precision, selection="folds"))
    scores = evaluate(rows, decoder, targets)()
    chosen, total = [], 0.0
    for j in range(columns.shape[1]):
        heldout = targets.heldout[:, j : j + 1] + columns[:, j].double().mean().float()
        errors = []
        for alpha in ALPHAS:
            error = 0.0
            for start, stop in itertools.pairwise(targets.folds):
                rest = torch.cat([torch.arange(start), torch.arange(stop, 120)])
                t = columns[:, j : j + 1]
                error += ridge_heldout_error(cell.fit[rest], cell.fit[start:stop], t[rest], t[start:stop], alpha)
            errors.append(error)
        chosen.append(ALPHAS[int(np.argmin(errors))])
        total += ridge_heldout_error(cell.fit, cell.heldout, columns[:, j : j + 1], heldout, chosen[-1])
    assert len(set(chosen)) > 1
    assert decoder.fits[0].alpha == pytest.approx(np.exp(np.log(chosen).mean()), rel=1e-9)
    got = next(score.value for score in scores if (score.split, score.metric) == ("heldout", "mse"))
    assert got == pytest.approx(total / targets.heldout[:, :6].numel(), rel=1e-5)
    fit = next(score.value for score in scores if (score.split, score.metric) == ("fit", "mse"))
    prediction = cell.fit.double() @ decoder.weights[:, :6].double() + decoder.offset[:6].double()
    assert fit == pytest.approx(float((prediction - targets.fit[:, :6]).square().mean()), rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"selection": "gcv"}, {"selection": "loo"}, {"splits": "heldout"}, {"selection": "loo", "route": "dual"}],
)
def test_options_give_nearly_the_error_of_cross_validation(options: dict[str, str]) -> None:
    cell, targets, _ = make(5, 100, 140)
    values = []
    for given in ({"selection": "folds"}, options):
        found = []
        for rows, decoder in decode([cell], targets, Method(Penalties(ALPHAS), **given)):
            found += evaluate(rows, decoder, targets, given.get("splits") != "heldout")()
        assert {score.split for score in found} == ({"heldout"} if "splits" in given else {"fit", "heldout"})
        values.append(next(s.value for s in found if (s.target, s.split, s.metric) == ("input", "heldout", "fvu")))
    assert values[1] == pytest.approx(values[0], rel=0.05)
