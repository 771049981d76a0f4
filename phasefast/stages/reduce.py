"""The dual route: a cell with more features than fit rows becomes one with as many features as fit rows."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from ..isometry import coordinates
from ..types import Activations


def reduce_features(cell: Activations, folds: tuple[int, ...]) -> Activations:
    """The cell with n features instead of d > n, which have the same decoders' predictions; itself where that fails.

    Args:
        folds: k + 1 row offsets of the folds of the fit rows.
    """
    found = coordinates(cell.fit, cell.heldout)
    if found is None:
        return cell
    fit, heldout = found
    sums = torch.stack([fit[start:stop].sum(0) for start, stop in itertools.pairwise(folds)])
    return replace(cell, fit=fit, heldout=heldout.contiguous(), sums=sums, route="dual")
