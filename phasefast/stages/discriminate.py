"""Linear discriminants: classifiers in closed form that mask no class, from the decoders of one-hot columns.

The largest of one-hot predictions misses classes that lie between others (Hastie, Tibshirani & Friedman 2009, section
4.2), the more the more classes there are to so many features. Penalised discriminant analysis (Hastie, Buja &
Tibshirani 1995) needs no more than these predictions: with class shares p, D = diag(p) and predictions P of centred
one-hot columns Y [n, k] by ridge regression, the eigenvectors t of D^-1 Y'P / n are the optimal scores of classes, P t
their discriminant variates, and the eigenvalues a their squared correlations. A row with predictions x is of class j
with a log-posterior, up to a constant, of

    sum_l t_jl (x t_l) / (1 - a_l) - 1/2 sum_l a_l t_jl^2 / (1 - a_l) + log p_j,

which is linear discriminant analysis where the penalty is 0. With sums M = Y'X of centred features [n, d] and the
decoder's weights W [d, k], Y'P = M W has a rank of min(d, k) at most, in the span of W'. Where a is 0, t t' / (1 - a)
adds up to D^-1: no [k, k] matrix is needed for more classes than features. For fewer, S = D^-1/2 M W D^-1/2 has the
same eigenvalues, and the sums over l are (I - S)^-1, between D^-1/2, and (I - S)^-1 - I: a Cholesky factor in place of
eigenvectors.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..algebra.dense import wide_rows
from ..common.timeline import stage
from ..data.target_matrix import TargetMatrix
from ..types import Activations, Decoder

# Share of a variate's variance within classes, where it is less: rounding decides what it is.
_LEAST = {torch.float32: 1e-5, torch.float64: 1e-10}
_NEVER = -1e18  # score of a class without fit rows; its square is a float32 number


@stage("scores")
def discriminants(cell: Activations, decoder: Decoder, targets: TargetMatrix, balanced: bool = False) -> Decoder:
    """The decoder with the scores of classes in the place of their one-hot columns' predictions.

    Args:
        balanced: as if all classes were as frequent: without log p_j.
    """
    weights, offset = decoder.weights.clone(), decoder.offset.clone()
    for block in (fit.block for fit in decoder.fits if fit.block.kind == "classes"):
        columns, shares = slice(block.start, block.stop), targets.mean[block.start : block.stop]
        sums = _class_sums(cell, targets.fit_classes[block.name], len(shares))
        least = _LEAST[decoder.weights.dtype]
        own, constant = _scores(decoder.weights[:, columns].double(), sums, shares, least)
        constant -= shares.log().nan_to_num(neginf=0.0) if balanced else 0.0
        weights[:, columns] = own.to(weights.dtype)
        offset[columns] = (constant - cell.mean @ own).to(offset.dtype)
    return replace(decoder, weights=weights, offset=offset)


def _class_sums(cell: Activations, classes: Tensor, count: int) -> Tensor:
    """Y'X / n [k, d] of the one-hot columns Y [n, k] of classes [n] and centred rows X [n, d]."""
    sums = torch.zeros(count, cell.fit.shape[1], dtype=torch.float64, device=cell.fit.device)
    for place, rows in wide_rows(cell.fit, 1):
        sums.index_add_(0, classes[place], rows - cell.mean)
    return sums / len(cell.fit)


def _scores(weights: Tensor, sums: Tensor, shares: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Weights [d, k] of centred features, and what is added [k], that give the scores of classes.

    Args:
        weights: [d, k] of one-hot columns. sums: as ``_class_sums`` gives them. shares: [k] of the classes.
        least: share of a variate's variance that is within classes at least.
    """
    there = shares > 0
    roots = torch.where(there, shares, 1).sqrt()
    scaled = weights / roots
    if len(shares) <= len(weights) and (found := _of_few(scaled, sums / roots[:, None], least)) is not None:
        inverse, gains = found
        constant = torch.log(roots.square()) - gains / (2 * roots.square())
        return scaled @ (inverse / roots), torch.where(there, constant, _NEVER)
    basis = torch.linalg.qr(scaled.mT).Q  # [k, min(k, d)]
    products = (basis.mT @ (sums / roots[:, None])) @ (scaled @ basis)
    correlations, vectors = torch.linalg.eigh((products + products.mT) / 2)
    correlations, optimal = correlations.clamp(0, 1 - least), (basis @ vectors) / roots[:, None]
    gains = correlations / (1 - correlations)
    constant = torch.log(roots.square()) - (optimal.square() @ gains) / 2
    return scaled / roots + ((weights @ optimal) * gains) @ optimal.mT, torch.where(there, constant, _NEVER)


def _of_few(scaled: Tensor, sums: Tensor, least: float) -> tuple[Tensor, Tensor] | None:
    """(I - S)^-1 [k, k], and the diagonal [k] of that less I; None where variates have less variance within classes.

    Args:
        scaled: [d, k] weights over the roots of the shares. sums: [k, d], over these too.
    """
    products = sums @ scaled
    within = (products + products.mT).div_(-2)
    within.diagonal().add_(1 - least)
    if bool(torch.linalg.cholesky_ex(within).info):
        return None
    within.diagonal().add_(least)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(within).L)
    return inverse, inverse.diagonal() - 1
