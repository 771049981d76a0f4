"""Decoders become scores: errors and hits on held-out and fit rows, and the model's own loss and accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from ..scores import MODEL_LAYER
from ..types import Activations, BlockFit, Decoder, Score, TargetBlock, TargetMatrix


def evaluate(cell: Activations, decoder: Decoder, targets: TargetMatrix, fit_scores: bool = True) -> list[Score]:
    """``mse`` and ``fvu`` of regression targets, ``accuracy`` of classes, on the held-out rows and the fit rows.

    ``mse`` is per element; ``fvu`` is the split's squared error over its squared deviation from the fit mean.
    Held-out ``fvu`` and ``accuracy`` carry one value per sample.
    """
    place = {block.name: index for index, block in enumerate(targets.blocks)}
    errors, hits = _residual(cell.heldout, decoder, targets.heldout, decoder.fits)
    scores: list[Score] = []
    for index, fit in enumerate(decoder.fits):
        deviation = targets.deviation["heldout"][place[fit.block.name]]
        scores += _block_scores(decoder, fit, "heldout", errors[index], hits[index], deviation)
    if not fit_scores:
        return scores
    direct = [fit for fit in decoder.fits if fit.block.kind == "classes" or fit.fit_error is None]
    errors, hits = _residual(cell.fit, decoder, targets.fit, direct)
    for fit in decoder.fits:
        deviation = targets.deviation["fit"][place[fit.block.name]]
        if fit in direct:
            row = direct.index(fit)
            scores += _block_scores(decoder, fit, "fit", errors[row], hits[row], deviation)
        else:
            assert fit.fit_error is not None
            total = torch.tensor([fit.fit_error], dtype=torch.float64)
            scores += _block_scores(decoder, fit, "fit", total, None, deviation, rows=len(cell.fit))
    return scores


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


def _residual(rows: Tensor, decoder: Decoder, targets: Tensor, fits: Sequence[BlockFit]) -> tuple[Tensor, Tensor]:
    """Squared errors [k, m] float64 and hits [k, m] bool of the blocks of ``fits``."""
    blocks = [fit.block for fit in fits]
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


def _block_scores(
    decoder: Decoder,
    fit: BlockFit,
    split: str,
    errors: Tensor,
    hits: Tensor | None,
    deviation: float,
    rows: int | None = None,
) -> list[Score]:
    rows = len(errors) if rows is None else rows
    total = float(errors.sum())
    fvu = total / deviation if deviation > 0 else math.nan

    def score(metric: str, value: float, samples: Tensor | None = None) -> Score:
        kept = samples.float().cpu() if samples is not None and split == "heldout" else None
        name, dim = decoder.layer.name, decoder.layer.dim
        return Score(name, dim, fit.block.name, split, metric, value, rows, fit, decoder.weights.dtype, kept)

    if fit.block.kind == "classes" and hits is not None:
        return [score("accuracy", float(hits.double().mean()), hits)]
    per_sample = errors * rows / deviation if deviation > 0 else torch.full_like(errors, math.nan)
    return [score("mse", total / (rows * fit.block.width)), score("fvu", fvu, per_sample)]
