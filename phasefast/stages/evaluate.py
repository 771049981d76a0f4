"""Decoders become scores: errors and hits on held-out and fit rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..algebra.components import interval
from ..common.fetching import later
from ..common.timeline import stage, staged
from ..data.target_matrix import TargetMatrix
from ..metrics import BALANCED_ACCURACY, FVU, MSE, accuracy_by
from ..types import Activations, BlockFit, Bounds, Decoder, Score, TargetBlock


@stage("scores")
def evaluate(
    cell: Activations, decoder: Decoder, targets: TargetMatrix, fit_scores: bool = True, balanced: bool = False
) -> Callable[[], list[Score]]:
    """``mse`` and ``fvu`` of regression targets, ``accuracy`` of classes, on the held-out rows and the fit rows.

    ``mse`` is per element; ``fvu`` is the split's squared error over its squared deviation from the fit mean.
    Held-out ``fvu`` and ``accuracy`` carry one value per sample.

    Args:
        balanced: ``balanced_accuracy`` instead, the mean over classes of the share that is right of each.

    Returns:
        What gives them: it waits for a GPU, which has all the work by then.
    """
    fits = decoder.fits
    errors, hits = _residual(cell.heldout, decoder, targets.heldout, [fit.block for fit in fits])
    direct = [fit for fit in fits if fit_scores and (fit.block.kind == "classes" or fit.fit_error is None)]
    fit_errors, fit_hits = _residual(cell.fit, decoder, targets.fit, [fit.block for fit in direct])
    splits = [("heldout", cell.heldout, targets.heldout)] + fit_scores * [("fit", cell.fit, targets.fit)]
    random = [(fit.block, split) for fit in fits if fit.block.random for split in splits]
    losses = [_random_losses(decoder, block, rows, columns) for block, (_, rows, columns) in random]
    if balanced:
        hits, fit_hits = _weighted(hits, fits, targets, "heldout"), _weighted(fit_hits, direct, targets, "fit")
    accuracy = accuracy_by(balanced)
    fetch = later(errors, hits, fit_errors.sum(1), fit_hits.double().mean(1), *losses)

    def read() -> list[Score]:
        errors, hits, totals, shares, *losses = fetch()
        of_random = {(block.name, split): own for (block, (split, *_)), own in zip(random, losses, strict=True)}
        place = {block.name: index for index, block in enumerate(targets.blocks)}
        scores: list[Score] = []
        for fit, own, right in zip(fits, errors, hits, strict=True):
            split = _Split("heldout", len(cell.heldout), targets, place[fit.block.name], of_random)
            samples = torch.from_numpy(right if fit.block.kind == "classes" else own)
            scores += _block_scores(decoder, fit, split, float(own.sum()), (accuracy, float(right.mean())), samples)
        measured = {fit.block.name: both for fit, *both in zip(direct, totals.tolist(), shares.tolist(), strict=True)}
        for fit in fits if fit_scores else ():
            split = _Split("fit", len(cell.fit), targets, place[fit.block.name], of_random)
            if (found := measured.get(fit.block.name)) is None:
                assert fit.fit_error is not None
                found = [fit.fit_error, math.nan]
            total, share = found
            scores += _block_scores(decoder, fit, split, total, (accuracy, share))
        return scores

    return staged("scores", read)


def squared_errors(
    cell: Activations, decoder: Decoder, targets: TargetMatrix, scores: Sequence[Score]
) -> dict[str, list[float]]:
    """Squared errors over all rows and columns, per split and target, classes' one-hot columns too.

    Args:
        scores: what ``evaluate`` says of both splits.
    """
    widths = {fit.block.name: fit.block.width for fit in decoder.fits}
    known = {(s.target, s.split): s.value * s.n * widths[s.target] for s in scores if s.metric == MSE}
    classes = [fit.block for fit in decoder.fits if fit.block.kind == "classes"]
    for split, rows, columns in (("fit", cell.fit, targets.fit), ("heldout", cell.heldout, targets.heldout)):
        errors = _residual(rows, decoder, columns, classes)[0].sum(1).tolist()
        known |= {(block.name, split): error for block, error in zip(classes, errors, strict=True)}
    return {split: [known[name, split] for name in widths] for split in ("fit", "heldout")}


@dataclass(frozen=True)
class _Split:
    """One of the two: how many rows it has, and the place of a target among all of them.

    Attributes:
        losses: by target and split, the squared errors of random columns.
    """

    name: str
    rows: int
    targets: TargetMatrix
    index: int
    losses: Mapping[tuple[str, str], np.ndarray]

    @property
    def deviation(self) -> float:
        return self.targets.deviation[self.name][self.index]

    @property
    def dropped(self) -> float:
        return self.targets.dropped[self.name][self.index]


def _residual(rows: Tensor, decoder: Decoder, targets: Tensor, blocks: Sequence[TargetBlock]) -> tuple[Tensor, Tensor]:
    """Squared errors [k, m] float64 and hits [k, m] bool of some blocks of columns."""
    errors = torch.empty(len(blocks), len(rows), dtype=torch.float64, device=rows.device)
    hits = torch.empty(len(blocks), len(rows), dtype=torch.bool, device=rows.device)
    if blocks:
        edges = [0]
        for block in blocks:
            edges.append(edges[-1] + block.stop - block.start)
        weights, offset, targets = (_columns(matrix, blocks) for matrix in (decoder.weights, decoder.offset, targets))
        classes = [block.kind == "classes" for block in blocks]
        ops.residual([rows], [weights], [offset], targets, edges, classes, [errors], [hits])
    return errors, hits


def _columns(matrix: Tensor, blocks: Sequence[TargetBlock]) -> Tensor:
    parts = [matrix[..., block.start : block.stop] for block in blocks]
    if sum(part.shape[-1] for part in parts) == matrix.shape[-1]:
        return matrix
    return torch.cat(parts, -1)


def _weighted(hits: Tensor, fits: Sequence[BlockFit], targets: TargetMatrix, split: str) -> Tensor:
    """Hits [k, m] times what each row counts where all classes count alike."""
    found = hits.double()
    for own, fit in zip(found, fits, strict=True):
        if (weights := targets.class_weights.get((fit.block.name, split))) is not None:
            own *= weights
    return found


def _block_scores(
    decoder: Decoder,
    fit: BlockFit,
    split: _Split,
    total: float,
    accuracy: tuple[str, float],
    samples: Tensor | None = None,
) -> list[Score]:
    """Args: total: of squared errors. accuracy: its name and value. samples: squared errors, or hits by row."""
    block, rows = fit.block, split.rows
    around = None if block.random == 0 else _bounds(block, split)
    if around is not None:  # an estimate beyond what can be is moved to the end of its interval
        outside = min(around.high, 0.0) + max(around.low, 0.0)
        total, around = total + outside, replace(around, low=around.low - outside, high=around.high - outside)

    def score(metric: str, value: float, unit: float = 1.0, samples: Tensor | None = None) -> Score:
        kept = None if samples is None else samples.float()
        weights = split.targets.sample_weights[block.name] if kept is not None and metric == BALANCED_ACCURACY else None
        bounds = around and replace(around, low=value + around.low * unit, high=value + around.high * unit)
        name, dim, dtype = decoder.layer.name, decoder.layer.dim, decoder.weights.dtype
        return Score(name, dim, block.name, split.name, metric, value, rows, fit, dtype, kept, bounds, weights)

    if block.kind == "classes":
        return [score(*accuracy, samples=samples)]
    whole = split.targets.wholes(split.index, split.name, rows)
    elements, share = whole[MSE], 1 / whole[FVU] if whole[FVU] > 0 else math.nan
    samples = None if samples is None else samples * (rows * share)
    return [score(MSE, total / elements, 1 / elements), score(FVU, total * share, share, samples)]


def _random_losses(decoder: Decoder, block: TargetBlock, rows: Tensor, columns: Tensor) -> Tensor:
    """Squared errors of each of a target's random columns."""
    first = block.stop - block.random
    singles = [replace(block, start=first + i, stop=first + i + 1) for i in range(block.random)]
    return _residual(rows, decoder, columns, singles)[0].sum(1)


def _bounds(block: TargetBlock, split: _Split) -> Bounds:
    """An interval for what the components leave out, as distances from the estimate by random columns."""
    losses = split.losses[block.name, split.name]
    low, high = interval(losses)
    if split.name == "fit":  # no decoder does worse on its fit rows than the mean
        low, high = min(low, split.dropped), min(high, split.dropped)
    estimate, label = float(losses.sum()), f"{block.stop - block.random - block.start} of {block.width} components"
    return Bounds(label, low - estimate, high - estimate, split.dropped / split.deviation)
