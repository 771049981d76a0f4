"""Penalties by rows that are left out, where their leverages mislead generalised cross-validation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import phasefast as pf
from phasefast.algebra import scanning
from phasefast.algebra.systems import DEFAULT_ALPHAS, Penalties
from phasefast.data.target_matrix import TargetMatrix
from phasefast.data.target_types import Input
from phasefast.stages import gcv
from phasefast.stages.reduce import reduce_features
from phasefast.stages.statistics import accumulate
from phasefast.stages.targets import build_targets
from phasefast.types import Activations
from tests.oracle import captured
from tests.penalties import chosen, curve, hats, make

CPU = torch.device("cpu")
F32, F64 = torch.float32, torch.float64
DECADES = DEFAULT_ALPHAS[::2]  # so few that the best one is far from that of cross-validation


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
    kept = 1 - 1 / len(cell.fit)
    return np.array([((miss / (kept - h)[:, None]) ** 2).sum() for miss, h in hats(cell, columns, alphas)])


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
        general, truth = curve(cell, columns, DECADES).sum(1), left_out(cell, columns, DECADES)
        misled = int(general.argmin())
        assert gcv.DOUBTFUL < truth[misled] / (general[misled] * 299**2) < gcv.MISLED
        found = int(chosen(cell, targets, DECADES, dtype, eigen=way == "eigen").indices[0])
        assert truth[found] <= 1.01 * truth.min()
        worse += truth[misled] > 1.02 * truth.min()
    assert worse >= 4


def test_penalties_are_compared_until_the_error_has_risen_for_two_decades(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a heavy tail, whose leave-one-out error has two minima, with one and a half decades between."""
    monkeypatch.setattr(scanning, "SMALL", 0)
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((300, 40)) * np.logspace(0, -rng.uniform(0, 3), 40) * rng.standard_t(1.5, (300, 1))
    t = rows @ rng.standard_normal((40, 1))
    t = np.sign(t) * np.abs(t / t.std()) ** 0.5 + 0.3 * rng.standard_normal((300, 1))
    a, columns = (torch.from_numpy(each.astype(np.float32)) for each in (rows, t))
    targets = build_targets([Input()], (columns, None), (columns[:9], None), (0, 300), CPU)
    truth = left_out(cell := captured(a, a[:9], (0, 300)), columns, DEFAULT_ALPHAS)
    assert truth[int(chosen(cell, targets, DEFAULT_ALPHAS, F64).indices[0])] <= 1.01 * truth.min()


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
