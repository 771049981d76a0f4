"""What the options that approximate save, and how far they are from the exact errors, for layers of one checkpoint."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from sweeps import STAGES, Run
from timing import Size, seconds

from phasefast.engine import Engine
from phasefast.scoring import score_cells
from phasefast.types import Activations, Score

EXACT = "exact"


def section(size: Size, repeats: int, file: str | None, weights: str | None) -> dict[str, Any]:
    """Per layer and way: seconds in turn, held-out error of the input, its interval, what the components leave out."""
    smoke = size == Size.SMOKE
    n, m = (300, 60) if smoke else (10_000, 2_000)
    components, sketch = (8, 256) if smoke else (256, 2048)
    run = Run(n, m, 1, stages=STAGES[-2:] if smoke else STAGES, file=file, weights=weights)
    run.model.load_state_dict(run.checkpoints[0])
    ways = {EXACT: {}, "components": {"target_components": components}, "sketch": {"layer_sketch": sketch}}
    preparing, engines = {}, {}
    for way, options in ways.items():
        start = time.perf_counter()
        engines[way] = Engine(run.model, run.probe_set, layers=run.stages, batchnorm="running", **options)
        preparing[way] = time.perf_counter() - start
    layers = []
    for cell in engines[EXACT].activations():
        there = [way for way in ways if way != "sketch" or cell.layer.dim > sketch]
        found: dict[str, Score] = {}

        def measure(way: str, cell: Activations = cell, found: dict[str, Score] = found) -> None:
            engine = engines[way]
            scores = score_cells([cell], engine.targets, engine.method)
            wanted = ("input", "heldout", "fvu")
            found[way] = next(each for each in scores if (each.target, each.split, each.metric) == wanted)

        taken: dict[str, list[float]] = {way: [] for way in there}
        for repeat in range(1 if smoke else max(repeats - 1, 1)):
            for way in there if repeat % 2 == 0 else there[::-1]:
                taken[way].append(seconds(lambda way=way: measure(way)))
        records = {way: _record(found[way], taken[way], taken[EXACT]) for way in there}
        layers.append({"layer": cell.layer.name, "dim": cell.layer.dim, "ways": records})
    shape = {"n": n, "m": m, "p": run.images[0].numel(), "components": components, "sketch": sketch}
    return {**shape, "weights": "random" if weights is None else "trained", "preparing": preparing, "layers": layers}


def _record(score: Score, taken: list[float], exact: list[float]) -> dict[str, Any]:
    record = {"seconds": taken, "speedup": median(a / b for a, b in zip(exact, taken, strict=True))}
    record |= {"value": score.value, "alpha": score.fit.alpha, "approximation": None}
    if score.bounds is not None:
        record |= {name: getattr(score.bounds, name) for name in ("approximation", "low", "high")}
        record["dropped"] = score.bounds.dropped if score.bounds.dropped == score.bounds.dropped else None
    return record
