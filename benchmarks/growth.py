"""How the time grows with each size, and what the planner expects of it."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from routing import made_up, penalties
from timing import Size, product_rate, seconds
from torch import nn

import phasefast as pf
from phasefast.planning import plan

# What varies, and the sizes that stay.
AXES: dict[str, tuple[Sequence[int], dict[str, int]]] = {
    "rows": ((1000, 2000, 4000, 8000, 16000, 32000), {"d": 256, "p": 512, "penalties": 8}),
    "features": ((128, 256, 512, 1024, 2048, 4096, 8192), {"n": 1000, "p": 512, "penalties": 1}),
    "targets": ((64, 256, 1024, 4096, 16384, 65536), {"n": 1000, "d": 256, "penalties": 8}),
    "layers": ((1, 2, 4, 8, 16), {"n": 2000, "d": 256, "p": 512, "penalties": 8}),
    "checkpoints": ((1, 2, 4, 8, 16, 32), {"n": 2000, "d": 256, "penalties": 8}),
    "penalties": ((2, 4, 8, 16, 32, 64), {"n": 2000, "d": 256, "p": 512}),
}
_SHORT = {"rows": "n", "features": "d", "targets": "p"}
_SMOKE = {"rows": (40, 80), "features": (8, 16, 64), "targets": (8, 64), "layers": (1, 2), "checkpoints": (1, 2)}
_SMOKE_SIZES = {"n": 40, "d": 16, "p": 8, "penalties": 2}


def section(size: Size, repeats: int) -> dict[str, Any]:
    """Per axis: sizes, seconds, planned work, and the exponents of the best seconds and of the work."""
    rates = [product_rate(torch.float32)]
    axes = {}
    for axis, (values, fixed) in AXES.items():
        if size == Size.QUICK:  # half of the time goes into the largest
            values = values[:-1]
        elif size == Size.SMOKE:
            values, fixed = _SMOKE.get(axis, (2, 3)), {key: min(fixed[key], _SMOKE_SIZES[key]) for key in fixed}
        points = [_point({**fixed, _SHORT.get(axis, axis): value}) for value in values]
        taken: list[list[float]] = [[] for _ in points]
        for run, _, _ in points:
            run()
        for _ in range(repeats):
            for (run, _, _), own in zip(points, taken, strict=True):
                own.append(seconds(run))
        work, routes = [point[1] for point in points], [point[2] for point in points]
        axes[axis] = {"values": list(values), "fixed": fixed, "seconds": taken, "work": work, "routes": routes}
        axes[axis]["exponent"] = exponent(values, [min(own) for own in taken])
        axes[axis]["planned"] = exponent(values, work)
        rates.append(product_rate(torch.float32, repeats=2))
    return {"rates": rates, "axes": axes}


def exponent(sizes: Sequence[float], taken: Sequence[float]) -> float:
    """Slope of the logarithms on the upper half of the sizes, by least squares."""
    half = len(sizes) // 2 if len(sizes) > 2 else 0
    x, y = ([math.log(value) for value in values[half:]] for values in (sizes, taken))
    centre, level = sum(x) / len(x), sum(y) / len(y)
    squares = sum((a - centre) ** 2 for a in x)
    return sum((a - centre) * (b - level) for a, b in zip(x, y, strict=True)) / squares


def _point(size: dict[str, int]) -> tuple[Callable[[], Any], float, str]:
    """What is timed, its planned work in operations of large float32 products, and its route."""
    alphas = penalties(size["penalties"])
    if "checkpoints" in size:
        return _checkpoints(size["n"], size["d"], size["checkpoints"], alphas)
    cell = made_up(size["n"], size["d"], size["p"], alphas, torch.Generator().manual_seed(0))
    cost, layers = cell.costs()[0], size.get("layers", 1)
    return lambda: cell.scores(layers=layers), layers * cost.work, cost.route


def _checkpoints(n: int, d: int, count: int, alphas: list[float]) -> tuple[Callable[[], Any], float, str]:
    """A sweep over a small network, from checkpoints in memory to stored scores."""
    torch.manual_seed(0)
    sample, m = (3, 12, 12), n // 4
    models = [nn.Sequential(nn.Flatten(), nn.Linear(math.prod(sample), d), nn.ReLU()) for _ in range(count)]
    images = torch.randn(n + m, *sample)
    probe_set = pf.ProbeSet.from_tensors(images[:n], None, images[n:], None)
    states = {step: model.state_dict() for step, model in enumerate(models)}
    model = copy.deepcopy(models[0])
    (planned,) = plan(model, sample, n, m, layers="2", alphas=alphas)

    def run() -> None:
        with tempfile.TemporaryDirectory() as out, contextlib.redirect_stderr(io.StringIO()):  # no progress
            pf.sweep(model, states, probe_set, out=out, layers="2", alphas=alphas)

    return run, count * planned.cost.work, planned.cost.route
