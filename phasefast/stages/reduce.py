"""Smaller cells with the same answer: the dual route, and the fit rows that a penalty is chosen on."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from ..algebra.choosing import sketch_of
from ..algebra.isometry import coordinates
from ..algebra.systems import fold_sums
from ..common.timeline import stage
from ..data.target_matrix import TargetMatrix
from ..types import Activations

_PLACES = 5


@stage("coordinates")
def reduce_features(cell: Activations, folds: tuple[int, ...]) -> Activations:
    """The cell with n features instead of its own, which have the same decoders' predictions; itself where that fails.

    Args:
        folds: k + 1 row offsets of the folds of the fit rows.
    """
    found = _of_one_point(cell) or coordinates(cell.fit, cell.heldout)
    if found is None:
        return cell
    fit, heldout = found
    return replace(cell, fit=fit, heldout=heldout.contiguous(), sums=fold_sums(fit, folds), route="dual")


def _of_one_point(cell: Activations) -> tuple[Tensor, Tensor] | None:
    """Coordinates of rows that are all the same, as of a dead layer: zeros, as differences count; None of others."""
    if not torch.equal(cell.fit[0], cell.fit[-1]) or not bool((cell.fit == cell.fit[:1]).all()):
        return None
    fit, heldout = (
        cell.fit.new_zeros(len(own), len(cell.fit), dtype=torch.float64) for own in (cell.fit, cell.heldout)
    )
    return fit, heldout


def subset(cell: Activations, targets: TargetMatrix, rows: int) -> tuple[Activations, TargetMatrix]:
    """A smaller cell of the same shape: about ``rows`` fit rows, a like share of the features, the sketched targets.

    The best penalty relative to the Gram matrix depends much on the ratio of features to rows, so this is kept. The
    fit rows are taken from several places, since tensors may be given in any order, the same for all cells.
    """
    edges = [len(cell.fit) * i // _PLACES for i in range(_PLACES + 1)]
    kept = [range(start, start + (stop - start) * rows // len(cell.fit)) for start, stop in itertools.pairwise(edges)]
    dim = cell.fit.shape[1]
    order = torch.randperm(dim, generator=torch.Generator().manual_seed(0), device="cpu").to(cell.fit.device)
    features = order[: max(dim * rows // len(cell.fit), 1)]

    def take(matrix: Tensor) -> Tensor:
        return torch.cat([matrix[part.start : part.stop] for part in kept])

    fit, columns = take(cell.fit)[:, features], take(targets.sketch.fit)
    folds = 0, len(fit)
    sketch = sketch_of(targets.sketch.blocks, columns, folds)
    share = len(fit) / len(cell.fit)
    smaller = replace(
        targets,
        blocks=sketch.blocks,
        folds=folds,
        fit=columns,
        heldout=columns[:0],
        sums=sketch.sums,
        deviation={"fit": tuple(share * value for value in targets.deviation["fit"])},
        sketch=sketch,
    )
    layer, heldout = (
        replace(cell.layer, dim=max(cell.layer.dim * len(features) // dim, 1)),
        cell.heldout[:0, : len(features)],
    )
    return replace(cell, layer=layer, fit=fit, heldout=heldout, sums=fold_sums(fit, folds)), smaller
