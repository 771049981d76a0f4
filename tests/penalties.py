"""Cells whose penalties are chosen, and their errors of generalised cross-validation from hat matrices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from phasefast.algebra.systems import Penalties, PenaltyChoice
from phasefast.data.target_matrix import TargetMatrix
from phasefast.data.target_types import Input, Label
from phasefast.stages.gcv import select_by_gcv
from phasefast.stages.statistics import accumulate
from phasefast.stages.targets import build_targets
from phasefast.types import Activations
from tests.oracle import captured, mean_diagonal, rows64

CPU = torch.device("cpu")


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


def hats(
    cell: Activations, columns: torch.Tensor, alphas: tuple[float, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Residuals [n, p] and the diagonal [n] of the hat matrix, by penalty."""
    a, t = rows64(cell.fit), columns.double().numpy()
    a, t = a - a.mean(0), t - t.mean(0)
    for alpha in alphas:
        penalty = alpha * mean_diagonal(cell.fit)
        hat = a @ np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T)
        yield t - hat @ t, np.diag(hat)


def curve(cell: Activations, columns: torch.Tensor, alphas: tuple[float, ...]) -> np.ndarray:
    """Generalised cross-validation errors [L, p] from hat matrices."""
    n = len(cell.fit)
    return np.stack([(miss**2).sum(0) / (n - 1 - taken.sum()) ** 2 for miss, taken in hats(cell, columns, alphas)])


def chosen(
    cell: Activations, targets: TargetMatrix, alphas: tuple[float, ...], dtype: torch.dtype, **how
) -> PenaltyChoice:
    (statistics,) = accumulate([cell], targets, dtype, with_folds=False)
    return select_by_gcv(cell, statistics, targets, Penalties(alphas), **how)
