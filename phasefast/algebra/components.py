"""Wide targets by their leading principal components: fewer columns, and an interval for what the others add to errors.

A decoder is linear in its targets, so the squared error of all columns is that of the projections on the components and
that of the rest. Random combinations of the rest have its squared error for their mean (Hutchinson 1990).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..common.distributions import chi_square
from .dense import inner, product

RANDOM_COLUMNS = 64  # combinations that stand for the rest
_MORE, _ITERATIONS = 8, 3  # Halko, Martinsson & Tropp 2011, section 4.5: a little more than is asked for, and again
_SEED = 0  # the same columns for all cells of a sweep, and for its later parts
_CAUTION = 1.25  # a variance that so few squares are found to have is often too small


def columns_with_components(width: int, count: int | None) -> int:
    """How many columns stand for the ``width`` of a target: all, where ``count`` components would not save any."""
    return width if count is None or count + RANDOM_COLUMNS >= width else count + RANDOM_COLUMNS


def project(fit: Tensor, heldout: Tensor, count: int) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Projections of targets on their leading components, and random combinations of what these leave out.

    Args:
        fit: [n, p], columns of zero mean. heldout: [m, p], less the same means.
        count: of the components, fewer than p.

    Returns:
        [n, count + RANDOM_COLUMNS] and [m, ...] float64, and the squares that the components leave out of each split.
    """
    generator = torch.Generator().manual_seed(_SEED)  # the global one is the training's
    # Independent of each other: combinations that the components were found from would miss part of the rest.
    start, rest = (
        torch.randn(fit.shape[1], columns, generator=generator, dtype=torch.float64, device="cpu").to(fit.device)
        for columns in (count + _MORE, RANDOM_COLUMNS)
    )
    basis = _leading(fit, start)[:, :count]
    for _ in range(2):  # twice is enough for orthogonality to rounding (Parlett 1998, section 6.9)
        rest = rest - basis @ (basis.mT @ rest)
    directions = torch.cat([basis, rest / RANDOM_COLUMNS**0.5], 1)
    parts = {"fit": product(fit, directions), "heldout": product(heldout, directions)}
    left = {}
    for (split, part), whole in zip(parts.items(), (fit, heldout), strict=True):
        left[split] = max(float(inner(whole, whole)) - float(part[:, :count].square().sum()), 0.0)
    return parts["fit"], parts["heldout"], left


def _leading(matrix: Tensor, start: Tensor) -> Tensor:
    """Orthonormal [p, c] that nearly span the leading right singular vectors of [n, p], in their order; float64.

    Any orthonormal directions give a right answer, these the narrowest interval.
    """
    basis = torch.linalg.qr(start).Q
    for _ in range(_ITERATIONS):
        images = matrix @ basis.to(matrix.dtype)
        basis = torch.linalg.qr((matrix.mT @ images).double()).Q
    images = product(matrix, basis)
    vectors = torch.linalg.eigh(images.mT @ images).eigenvectors
    leading: Tensor = basis @ vectors.flip(1)
    return leading


def interval(losses: np.ndarray) -> tuple[float, float]:
    """95 % interval for the squared error of what the components leave out, from that of its random combinations [c].

    Each is a weighted sum of squares of normal numbers, told by its mean and variance as a multiple of chi-square
    (Satterthwaite 1946). One weight alone spreads most.
    """
    total, count = float(losses.sum()), len(losses)
    if not total > 0:
        return total, total
    variance = _CAUTION * count * float(losses.var(ddof=1))
    freedom = max(2 * total**2 / max(variance, math.ulp(0.0)), count)
    low, high = (chi_square(share, freedom) for share in (0.025, 0.975))
    return total * freedom / high, total * freedom / low
