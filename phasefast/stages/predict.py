"""What a decoder predicts for single held-out rows, in the columns in which the target was given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..algebra.dense import left_product, product
from ..data.target_matrix import TargetMatrix
from ..types import Activations, Decoder, TargetBlock


def predict(
    cell: Activations, decoder: Decoder, targets: TargetMatrix, rows: Sequence[int], fit: Tensor, mean: Tensor
) -> Tensor:
    """Predictions [s, p] float64 of a regression target, the only one of ``targets``.

    Args:
        rows: which held-out rows.
        fit: [n, p] the target's columns on the fit rows, as they were given. mean: [p] theirs, float64.
    """
    (block,) = targets.blocks
    held = torch.stack([cell.heldout[row] for row in rows])
    found = product(held, decoder.weights.double()) + decoder.offset
    return in_given_columns(found, block, targets, fit, mean) + mean


def in_given_columns(found: Tensor, block: TargetBlock, targets: TargetMatrix, fit: Tensor, mean: Tensor) -> Tensor:
    """Combinations [s, p] of a regression target's columns less their means, of those [s, c] of what stands for them.

    Args:
        found: float64. fit, mean: as for ``predict``.
    """
    if found.shape[1] == block.width:
        return found.to(mean.device)
    # Of coordinates L, with T = L Q for the centred targets T [n, p]: h L stands for h T.
    factor = targets.fit[:, block.start : block.start + len(fit)].double()
    shares: Tensor = torch.linalg.solve_triangular(factor.mT, found[:, : len(fit)].mT, upper=True).mT  # [s, n]
    shares = shares.to(fit.device)
    return left_product(shares, fit) - shares.sum(1, keepdim=True) * mean
