"""Decoders become scores: errors and hits on held-out and fit rows, and the model's own loss and accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import ops
from ..components import interval
from ..scores import MODEL_LAYER
from ..types import Activations, BlockFit, Bounds, Decoder, Score, TargetBlock, TargetMatrix


def evaluate(cell: Activations, decoder: Decoder, targets: TargetMatrix, fit_scores: bool = True) -> list[Score]:
    """``mse`` and ``fvu`` of regression targets, ``accuracy`` of classes, on the held-out rows and the fit rows.

    ``mse`` is per element; ``fvu`` is the split's squared error over its squared deviation from the fit mean.
    Held-out ``fvu`` and ``accuracy`` carry one value per sample.
    """
    place = {block.name: index for index, block in enumerate(targets.blocks)}
    errors, hits = (
        own.cpu() for own in _residual(cell.heldout, decoder, targets.heldout, [f.block for f in decoder.fits])
    )
    scores: list[Score] = []
    for index, fit in enumerate(decoder.fits):
        split = _Split("heldout", cell.heldout, targets.heldout, targets, place[fit.block.name])
        scores += _block_scores(decoder, fit, split, errors[index], hits[index])
    if not fit_scores:
        return scores
    direct = [fit for fit in decoder.fits if fit.block.kind == "classes" or fit.fit_error is None]
    errors, hits = (own.cpu() for own in _residual(cell.fit, decoder, targets.fit, [fit.block for fit in direct]))
    for fit in decoder.fits:
        split = _Split("fit", cell.fit, targets.fit, targets, place[fit.block.name])
        if fit in direct:
            row = direct.index(fit)
            scores += _block_scores(decoder, fit, split, errors[row], hits[row])
        else:
            assert fit.fit_error is not None
            scores += _block_scores(decoder, fit, split, torch.tensor([fit.fit_error], dtype=torch.float64), None)
    return scores


def squared_errors(
    cell: Activations, decoder: Decoder, targets: TargetMatrix, scores: Sequence[Score]
) -> dict[str, list[float]]:
    """Squared errors over all rows and columns, per split and target, classes' one-hot columns too.

    Args:
        scores: what ``evaluate`` says of both splits.
    """
    widths = {fit.block.name: fit.block.width for fit in decoder.fits}
    known = {(s.target, s.split): s.value * s.n * widths[s.target] for s in scores if s.metric == "mse"}
    classes = [fit.block for fit in decoder.fits if fit.block.kind == "classes"]
    for split, rows, columns in (("fit", cell.fit, targets.fit), ("heldout", cell.heldout, targets.heldout)):
        errors = _residual(rows, decoder, columns, classes)[0].sum(1).tolist()
        known |= {(block.name, split): error for block, error in zip(classes, errors, strict=True)}
    return {split: [known[name, split] for name in widths] for split in ("fit", "heldout")}


def evaluate_model(outputs: dict[str, Tensor | None], labels: dict[str, Tensor | None], name: str) -> list[Score]:
    """Cross-entropy ``loss`` and ``accuracy`` of the model's own outputs [rows, classes], layer ``"model"``.

    Args:
        name: of the label target. Splits without outputs or labels give no scores.
    """
    scores = []
    for split, logits in outputs.items():
        expected = labels[split]
        if logits is None or expected is None:
            continue
        expected = expected.to(logits.device)
        loss = float(torch.nn.functional.cross_entropy(logits.double(), expected))
        hits = logits.argmax(1) == expected
        samples = hits.float().cpu() if split == "heldout" else None
        rows, dim = logits.shape
        scores.append(Score(MODEL_LAYER, dim, name, split, "loss", loss, rows))
        scores.append(
            Score(MODEL_LAYER, dim, name, split, "accuracy", float(hits.double().mean()), rows, samples=samples)
        )
    return scores


@dataclass(frozen=True)
class _Split:
    """One of the two: its rows, the columns of all targets, and the place of one of these among them."""

    name: str
    rows: Tensor
    columns: Tensor
    targets: TargetMatrix
    index: int

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


def _block_scores(decoder: Decoder, fit: BlockFit, split: _Split, errors: Tensor, hits: Tensor | None) -> list[Score]:
    """Args: errors: [rows], or the sum alone."""
    block, rows, deviation = fit.block, len(split.rows), split.deviation
    total, around = float(errors.sum()), None if block.random == 0 else _bounds(decoder, block, split)
    if around is not None:  # an estimate beyond what can be is moved to the end of its interval
        outside = min(around.high, 0.0) + max(around.low, 0.0)
        total, around = total + outside, replace(around, low=around.low - outside, high=around.high - outside)

    def score(metric: str, value: float, unit: float = 1.0, samples: Tensor | None = None) -> Score:
        kept = samples.float() if samples is not None and split.name == "heldout" else None
        bounds = around and replace(around, low=value + around.low * unit, high=value + around.high * unit)
        name, dim, dtype = decoder.layer.name, decoder.layer.dim, decoder.weights.dtype
        return Score(name, dim, block.name, split.name, metric, value, rows, fit, dtype, kept, bounds)

    if block.kind == "classes" and hits is not None:
        return [score("accuracy", float(hits.double().mean()), samples=hits)]
    elements, share = rows * block.width, 1 / deviation if deviation > 0 else math.nan
    return [score("mse", total / elements, 1 / elements), score("fvu", total * share, share, errors * (rows * share))]


def _bounds(decoder: Decoder, block: TargetBlock, split: _Split) -> Bounds:
    """An interval for what the components leave out, as distances from the estimate by random columns."""
    first = block.stop - block.random
    singles = [replace(block, start=first + i, stop=first + i + 1) for i in range(block.random)]
    losses = _residual(split.rows, decoder, split.columns, singles)[0].sum(1)
    low, high = interval(losses)
    if split.name == "fit":  # no decoder does worse on its fit rows than the mean
        low, high = min(low, split.dropped), min(high, split.dropped)
    estimate, label = float(losses.sum()), f"{first - block.start} of {block.width} components"
    return Bounds(label, low - estimate, high - estimate, split.dropped / split.deviation)
