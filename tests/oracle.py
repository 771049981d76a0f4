"""Oracles for the decoders: scikit-learn's Ridge in float64, and cells made of given activations."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from phasefast import ops
from phasefast.types import Activations, Layer


def captured(fit: Tensor, heldout: Tensor, folds: tuple[int, ...] | None = None, batch: int = 64) -> Activations:
    """What the capture stage makes of these activations [n, ...] and [m, ...], batch by batch."""
    dim = fit[0].numel()
    dtype = torch.float64 if fit.dtype == torch.float64 else torch.float32
    rows = [torch.empty(len(x), dim, dtype=dtype) for x in (fit, heldout)]
    edges = folds or (0, len(fit))
    sums = torch.zeros(len(edges) - 1, dim, dtype=torch.float64)
    shift = fit[:batch].double().flatten(1).mean(0).float()
    for x, row, splits in ((fit, rows[0], edges), (heldout, rows[1], (0, len(heldout)))):
        for fold, (start, stop) in enumerate(itertools.pairwise(splits)):
            for i in range(start, stop, batch):
                part = slice(i, min(i + batch, stop))
                total = sums[fold] if x is fit else torch.zeros(dim, dtype=torch.float64)
                ops.capture([x[part]], [shift], [0], [row[part]], [total], [torch.zeros_like(total)])
    return Activations(Layer("cell", "cell", 0, dim), rows[0], rows[1], shift, sums)


def rows64(x: Tensor) -> np.ndarray:
    """Activations as the float64 rows that scikit-learn sees."""
    return x.double().flatten(1).numpy()


def mean_diagonal(fit: Tensor) -> float:
    """Mean diagonal of the centred Gram matrix, in float64."""
    rows = rows64(fit)
    return float(((rows - rows.mean(0)) ** 2).sum(0).mean())


def ridge_heldout_error(fit: Tensor, heldout: Tensor, t_fit: Tensor, t_heldout: Tensor, alpha: float) -> float:
    """Held-out squared error of scikit-learn's Ridge with penalty alpha times the mean diagonal."""
    a, b = rows64(fit), rows64(heldout)
    # Ridge centres by itself; doing it first spares it the cancellation that large offsets would cost.
    mean = a.mean(0)
    model = Ridge(alpha=alpha * mean_diagonal(fit), solver="svd").fit(a - mean, t_fit.double().numpy())
    prediction = model.predict(b - mean).reshape(len(b), -1)
    return float(((prediction - t_heldout.double().numpy()) ** 2).sum())
