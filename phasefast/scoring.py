"""Captured cells become scores, and rows of tables: wide layers are decoded from a sketch where that was asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from .data.target_matrix import TargetMatrix
from .data.token_rows import Units
from .decoding import Method, decode
from .metrics import FVU
from .stages.discriminate import discriminants
from .stages.evaluate import evaluate, squared_errors
from .stages.sketch import measure, sketch_features
from .types import Activations, Bounds, Decoder, Score

_FREE = 0.7  # of the degrees of freedom a sketch has: decoders that take more miss much of what it lacks
_FAR = 0.25  # of a sketched error: where the exact one may be farther away, the sketch is of no use


def score_cells(cells: list[Activations], targets: TargetMatrix, method: Method) -> Iterator[Score]:
    """The scores of captured cells, in their order.

    Args:
        cells: emptied, so that rows that are not needed any more make room.
    """
    both, size = method.splits == "both", method.layer_sketch
    if size is None:
        begun = deque[Callable[[], list[Score]]]()
        for cell, decoder in decode(cells, targets, method):
            begun.append(evaluate(cell, classifier(cell, decoder, targets, method), targets, both, method.balanced))
            if len(begun) > cell.fit.is_cuda:  # a GPU goes on with the next one while the host reads
                yield from begun.popleft()()
            del cell, decoder
        for read in begun:
            yield from read()
        return
    # A sketch is measured by its errors on both splits.
    route = None if method.route == "target-free" else method.route
    on_both, exactly = replace(method, splits="both", route=route), replace(method, layer_sketch=None)
    while cells:
        found = _sketched(cells[0], size, targets, on_both) if cells[0].fit.shape[1] > size else None
        alone = [cells.pop(0)]  # and nothing else keeps its rows
        yield from (each for each in found or score_cells(alone, targets, exactly) if both or each.split == "heldout")


def classifier(cell: Activations, decoder: Decoder, targets: TargetMatrix, method: Method) -> Decoder:
    """The decoder whose largest prediction is scored as accuracy."""
    return discriminants(cell, decoder, targets, method.balanced) if method.discriminates else decoder


def _sketched(whole: Activations, size: int, targets: TargetMatrix, method: Method) -> list[Score] | None:
    """Scores of a cell decoded from a sketch, with bounds for the exact ones; None where these are far, or unknown."""
    sketch = sketch_features(whole, targets.folds, size)
    ((cell, decoder),) = decode([sketch], targets, method)
    room = _FREE * min(size, len(whole.fit) - 1)
    if not all(fit.dof <= room for fit in decoder.fits):
        return None
    evaluated = evaluate(cell, classifier(cell, decoder, targets, method), targets, balanced=method.balanced)()
    errors = squared_errors(cell, decoder, targets, evaluated)
    ends = []
    for index, found in enumerate(measure(whole, cell, decoder.fits, targets, errors)):
        if found is None:
            return None
        ends.append({"fit": found.fit, "heldout": found.heldout})
        for split, (low, high) in ends[-1].items():
            error = errors[split][index]
            if max(high - error, error - low) > _FAR * error:
                return None
    label = f"sketch of {size} of {whole.fit.shape[1]} features"
    places = {fit.block.name: index for index, fit in enumerate(decoder.fits)}
    scores = []
    for each in evaluated:
        index = places[each.target]
        low, high = ends[index][each.split]
        wholes = targets.wholes(index, each.split, each.n)
        if each.metric not in wholes:  # squared errors do not tell accuracies
            scores.append(replace(each, bounds=Bounds(label)))
            continue
        unit = 1 / wholes[each.metric]
        # The sketch's own error is mostly above the exact one: curves would jump where a layer is decoded exactly.
        middle = (low + high) / 2 * unit
        samples = each.samples if each.samples is None or each.value == 0 else each.samples * (middle / each.value)
        scores.append(replace(each, value=middle, samples=samples, bounds=Bounds(label, low * unit, high * unit)))
    return scores


def row_of(score: Score, targets: TargetMatrix, units: Units) -> dict[str, Any]:
    """What a score is in a table, but for what all scores of a measurement have in common."""
    row: dict[str, Any] = {
        "layer": score.layer,
        "dim": score.dim,
        "target": score.target,
        "split": score.split,
        "metric": score.metric,
        "value": score.value,
        "n": score.n,
        "baseline": targets.baselines.get((score.target, score.split, score.metric)),
    }
    if score.fit is not None:
        for name in ("alpha", "route", "jitter", "rank", "dof", "condition", "error_estimate"):
            row[name] = getattr(score.fit, name)
        row["dtype"] = str(score.dtype).removeprefix("torch.")
    if score.samples is not None:
        known = torch.from_numpy(targets.baseline_samples[score.target]) if score.metric == FVU else score.weights
        samples, constant = units.by_sample(score.samples, known)
        row |= {"samples": samples.numpy(), "baseline_samples": None if constant is None else constant.numpy()}
    if score.bounds is not None:
        row |= {name: value for name, value in asdict(score.bounds).items() if value == value}  # NaN is not
    return row
