"""Linear discriminants: classifiers in closed form that mask no class, from the decoders of one-hot columns.

The largest of one-hot predictions misses classes that lie between others (Hastie, Tibshirani & Friedman 2009, section
4.2), the more the more classes there are to so many features. Penalised discriminant analysis (Hastie, Buja &
Tibshirani 1995) needs no more than these predictions: with class shares p, D = diag(p) and predictions P of centred
one-hot columns Y by ridge regression, the eigenvectors of D^-1 Y'P / n are the optimal scores t of classes, P t their
discriminant variates, and the eigenvalues a their squared correlations. A row with predictions x is of class j with a
log-posterior, up to a constant, of

    sum_l t_jl (x t_l) / (1 - a_l) - 1/2 sum_l a_l t_jl^2 / (1 - a_l) + log p_j,

which is linear discriminant analysis where the penalty is 0.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..dense import wide_rows
from ..timeline import stage
from ..types import Activations, Decoder, TargetMatrix

_LEAST = 1e-5  # share of a variate's variance within classes: where it is less, rounding decides what it is
_NEVER = -1e18  # score of a class without fit rows; its square is a float32 number


@stage("scores")
def discriminants(cell: Activations, decoder: Decoder, targets: TargetMatrix) -> Decoder:
    """The decoder with the scores of classes in the place of their one-hot columns' predictions."""
    weights, offset = decoder.weights.clone(), decoder.offset.clone()
    for columns in (slice(fit.block.start, fit.block.stop) for fit in decoder.fits if fit.block.kind == "classes"):
        own = decoder.weights[:, columns].double()
        mean = cell.mean @ own
        mix, constant = _scores(*_class_sums(cell.fit, own, mean, targets.fit[:, columns]))
        weights[:, columns] = (own @ mix).to(weights.dtype)
        offset[columns] = (constant - mean @ mix).to(offset.dtype)
    return replace(decoder, weights=weights, offset=offset)


def _class_sums(rows: Tensor, weights: Tensor, mean: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Shares [k] of classes, and Y'P / n [k, k] of one-hot columns Y [n, k] and centred predictions P [n, k]."""
    classes = columns.argmax(1)
    sums = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=rows.device)
    for place, some in wide_rows(rows, len(mean)):
        sums.index_add_(0, classes[place], some @ weights - mean)
    return columns.mean(0, dtype=torch.float64), sums / len(rows)


def _scores(shares: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """What centred predictions are multiplied by [k, k], and what is added [k], to give the scores of classes."""
    there = shares > 0
    roots = torch.where(there, shares, 1).sqrt()
    symmetric = products / roots[:, None] / roots
    correlations, vectors = torch.linalg.eigh((symmetric + symmetric.mT) / 2)
    correlations, optimal = correlations.clamp(0, 1 - _LEAST), vectors / roots[:, None]
    within = 1 - correlations
    constant = torch.log(roots.square()) - (optimal.square() @ (correlations / within)) / 2
    return (optimal / within) @ optimal.mT, torch.where(there, constant, _NEVER)
