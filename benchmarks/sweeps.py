"""Checkpoints of VGG-8, stages of 8192 to 512 features, against the honest loop and the forward passes alone."""

from __future__ import annotations

import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import mean
from typing import Any

import torch
from opponents import CLASSES, Data, honest, oracle, with_labels
from timing import OURS, Side, Size, floor, in_turn, products, seconds
from torch import Tensor, nn

import phasefast as pf
from phasefast.algebra.systems import DEFAULT_ALPHAS
from phasefast.checkpoints import order_checkpoints, read_state_dict
from phasefast.engine import Engine
from phasefast.experiments.datasets import load
from phasefast.experiments.models import make_model
from phasefast.planning import plan
from phasefast.scoring import score_cells
from phasefast.types import Activations

STAGES = [f"stage{i}" for i in range(1, 6)]
SAMPLE = (3, 32, 32)
ALPHA = 1e-3
_WIDEST_ORACLE = 2048  # wider layers would take float64 minutes


class Run:
    """A model, images and checkpoints; random weights cost what others do but for the search for their penalty.

    Args:
        file: an ``.npz`` of CIFAR-10 images (see ``phasefast.experiments.datasets``), or made-up smooth ones.
        weights: a folder of state dicts; the last ``checkpoints`` of them by step are taken instead of random ones.
    """

    def __init__(
        self,
        n: int,
        m: int,
        checkpoints: int,
        *,
        batch: int = 256,
        device: str = "cpu",
        stages: Sequence[str] = STAGES,
        file: str | None = None,
        weights: str | None = None,
    ) -> None:
        self.n, self.m, self.batch, self.device, self.stages = n, m, batch, device, stages
        torch.manual_seed(0)
        if file is None:
            smooth = nn.functional.interpolate(torch.randn(n + m, 3, 8, 8), size=32, mode="bilinear")
            self.images = smooth + 0.1 * torch.randn(n + m, *SAMPLE)
            self.labels = torch.randint(0, CLASSES, (n + m,))
        else:
            data = load("cifar10", file=file)
            self.images = torch.cat([data.fit_inputs[:n], data.heldout_inputs[:m]])
            self.labels = torch.cat([data.fit_labels[:n], data.heldout_labels[:m]])
        parts = [(self.images[part], self.labels[part]) for part in (slice(n), slice(n, None))]
        self.probe_set = pf.ProbeSet.from_tensors(*parts[0], *parts[1])
        self.model = make_model("vgg8", SAMPLE, CLASSES).to(device)
        self._there = self.images.to(device)
        if weights is None:
            self.checkpoints = {step: self._fresh() for step in range(checkpoints)}
        else:
            found = list(order_checkpoints(weights).values())[-checkpoints:]
            self.checkpoints = {step: read_state_dict(path) for step, path in enumerate(found)}
        self.model.eval()

    @torch.no_grad()
    def _fresh(self) -> dict[str, Tensor]:
        """Random weights, with BatchNorm statistics of a batch: without them activations all but vanish with depth."""
        model = make_model("vgg8", SAMPLE, CLASSES)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        model(self.images[:256])
        return {name: value.to(self.device) for name, value in model.state_dict().items()}

    @torch.no_grad()
    def rows(self, step: int) -> dict[str, Tensor]:
        """The rows of all stages: forward passes and nothing else."""
        self.model.load_state_dict(self.checkpoints[step])
        parts: dict[str, list[Tensor]] = {stage: [] for stage in self.stages}
        for batch in self._there.split(self.batch):
            for name, module in self.model.named_children():
                batch = module(batch)
                if name in parts:
                    parts[name].append(batch.flatten(1))
        return {name: torch.cat(rows) for name, rows in parts.items()}

    def targets(self) -> tuple[Tensor, Tensor]:
        """What the opponents decode."""
        return with_labels(self._there.flatten(1), self.labels.to(self.device), self.n)

    @torch.no_grad()
    def cells(self, step: int, targets: tuple[Tensor, Tensor]) -> Iterator[tuple[str, Data]]:
        """What the opponents get, stage by stage."""
        for name, rows in self.rows(step).items():
            yield name, Data(rows[: self.n], rows[self.n :], *targets, self.images[0].numel())


def section(size: Size, checkpoints: int, file: str | None, weights: str | None) -> dict[str, Any]:
    """Every checkpoint is a repeat: ours with the default penalties and certificates, the loop with one penalty."""
    smoke = size == Size.SMOKE
    n, m = (300, 60) if smoke else (10_000, 2_000)
    run = Run(n, m, checkpoints, stages=STAGES[-2:] if smoke else STAGES, file=file, weights=weights)
    targets, step = run.targets(), 0
    latest: dict[str, float] = {}

    def start(repeat: int) -> None:
        nonlocal step
        step = repeat

    def aten() -> float:
        latest.update((name, honest(data, [ALPHA])) for name, data in run.cells(step, targets))
        return mean(latest.values())

    def forward() -> None:
        run.rows(step)

    with tempfile.TemporaryDirectory() as out:
        options = {"layers": run.stages, "batchnorm": "running", "out": out, "on_error": "raise"}
        begin = time.perf_counter()
        tracker = pf.PhaseTracker(run.model, run.probe_set, **options)
        preparing = time.perf_counter() - begin
        given = pf.PhaseTracker(run.model, run.probe_set, **options | {"out": f"{out}/given", "alphas": [ALPHA]})

        def ours(by: pf.PhaseTracker = tracker) -> float:
            run.model.load_state_dict(run.checkpoints[step])
            chosen = by.step(step, force=True).filter(target="input", metric="fvu", split="heldout")
            return mean(chosen.value(layer=stage) for stage in run.stages)

        beside = products(2, 256) if smoke else products(8)
        sides = [
            *beside,
            Side(OURS, ours),
            Side("ours, one penalty", partial(ours, given)),
            Side("aten, one penalty", aten),
            Side("forward passes alone", forward),
        ]
        measured = in_turn(sides, checkpoints, start, warm=False)
        records = measured[len(beside) :]
    rows = tracker.scores.filter(step=step, target="input", metric="fvu", split="heldout").to_arrow().to_pylist()
    layers = [{name: row[name] for name in ("layer", "dim", "route", "dtype", "alpha", "value")} for row in rows]
    for layer, (name, data) in zip(layers, run.cells(step, targets), strict=True):
        if layer["dim"] <= _WIDEST_ORACLE:
            exact = oracle(data, [layer["alpha"], ALPHA])
            layer["difference"] = {OURS: layer["value"] / exact[0] - 1, "aten": latest[name] / exact[1] - 1}
    planned = plan(run.model, SAMPLE, n, m, classes=CLASSES, layers=run.stages)
    bound = floor([layer.cost for layer in planned], beside, measured, records[-1]["seconds"])
    shape = {"n": n, "m": m, "d": [layer["dim"] for layer in layers], "p": targets[0].shape[1]}
    shape |= {"penalties": len(DEFAULT_ALPHAS), "checkpoints": checkpoints, "images": "CIFAR-10" if file else "made up"}
    shape |= {"weights": "random" if weights is None else "trained"}
    return {"case": "vgg8", **shape, "preparing": preparing, "sides": records, "floor": bound, "layers": layers}


def inputs(size: Size, repeats: int) -> dict[str, Any]:
    """The same layer above images of two sizes: what decoding takes once the targets are prepared."""
    smoke = size == Size.SMOKE
    n, m, width = (60, 20, 16) if smoke else (2_000, 500, 1_024)
    torch.manual_seed(0)
    images = torch.randn(n + m, *SAMPLE)
    measured = []
    for pixels in (32, 64 if smoke else 224):
        pictures = nn.functional.interpolate(images, size=pixels, mode="bilinear")
        layers = {"pool": nn.AdaptiveAvgPool2d(8), "flat": nn.Flatten(), "wide": nn.Linear(192, width)}
        model = nn.Sequential(OrderedDict(layers))
        probe_set = pf.ProbeSet.from_tensors(pictures[:n], None, pictures[n:], None)
        del pictures
        begin = time.perf_counter()
        engine = Engine(model, probe_set, layers="wide")
        record = {"size": pixels, "preparing": time.perf_counter() - begin, "seconds": []}
        begin = time.perf_counter()
        rows = engine.activations()
        record["capture"] = time.perf_counter() - begin
        measured.append((record, engine, rows))
        _decode(engine, rows)
    for _ in range(repeats):
        for record, engine, rows in measured:
            record["seconds"].append(seconds(partial(_decode, engine, rows)))
    small, large = (record for record, _, _ in measured)
    ratios = [b / a for a, b in zip(small["seconds"], large["seconds"], strict=True)]
    return {"n": n, "m": m, "d": width, "penalties": len(DEFAULT_ALPHAS), "sizes": [small, large], "ratios": ratios}


def _decode(engine: Engine, rows: Sequence[Activations]) -> None:
    list(score_cells(list(rows), engine.targets, engine.method))
