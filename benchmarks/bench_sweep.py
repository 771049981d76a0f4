"""Checkpoints of VGG-8 and of ResNet-50 on a GPU, against forward passes alone and, for VGG-8, the honest loop.

On the CPU: compare.py.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from opponents import CLASSES, honest
from stages import stage_seconds
from sweeps import ALPHA, SAMPLE, STAGES, Run

import phasefast as pf
from phasefast.planning import plan

N, M, CHECKPOINTS, PROFILED = 50_000, 10_000, 17, 3


@pytest.fixture(scope="module")
def run(device: str) -> Run:
    return Run(N, M, CHECKPOINTS, batch=2048, device=device)


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("who", ["ours", "ours, choosing", "aten", "forward"])
def test_sweep(benchmark, measure, gemm_rate, device, run, precision, who, tmp_path):
    targets = run.targets()

    def ours(alphas: float | None = ALPHA, count: int = CHECKPOINTS) -> float:
        options = {"layers": STAGES, "alphas": alphas, "batchnorm": "running", "precision": precision, "device": device}
        checkpoints = {step: run.checkpoints[step] for step in range(count)}
        scores = pf.sweep(run.model, checkpoints, run.probe_set, out=tmp_path / "out", overwrite=True, **options)
        last = scores.filter(step=count - 1, target="input", metric="fvu", split="heldout")
        return mean(last.value(layer=stage) for stage in STAGES)

    def theirs() -> float:
        for step in run.checkpoints:
            errors = [honest(data, [ALPHA], fast=precision == "fast") for _, data in run.cells(step, targets)]
        return mean(errors)

    def forward() -> float:
        for step in run.checkpoints:
            run.rows(step)
        return float("nan")

    planned = plan(run.model, SAMPLE, N, M, classes=CLASSES, layers=STAGES, alphas=[ALPHA], device=device)
    work = CHECKPOINTS * sum(layer.cost.flops for layer in planned)
    rate = gemm_rate[torch.bfloat16 if precision == "fast" else torch.float32]
    side = {"ours": ours, "ours, choosing": partial(ours, None), "aten": theirs, "forward": forward}[who]
    measure(f"sweep vgg8 {precision}", side, work, rate, who=who, rounds=2)  # of so many checkpoints each
    if who.startswith("ours"):
        benchmark.extra_info.update(profiled=PROFILED, stages=stage_seconds(partial(side, count=PROFILED), device))


# Sixteen blocks of 1,024 to 8,192 pooled features, 150,528 target columns: held-out errors without their weights.
RESNET = {"layers": "layer?.?", "pool": 2, "targets": pf.Input(), "alphas": ALPHA, "splits": "heldout"}
PIXELS, IMAGES, UNSEEN, STEPS, BATCH = 224, 8_000, 2_000, 2, 256


class ResNet:
    """Random checkpoints of torchvision's ResNet-50 and smooth images, kept where the model is."""

    def __init__(self, n: int, m: int, pixels: int, checkpoints: int, device: str) -> None:
        models = pytest.importorskip("torchvision.models")
        torch.manual_seed(0)
        coarse = torch.randn(n + m, 3, pixels // 16, pixels // 16, device=device)
        self.images = torch.nn.functional.interpolate(coarse, size=pixels, mode="bilinear")
        self.probe_set = pf.ProbeSet.from_tensors(self.images[:n], None, self.images[n:], None)
        self.model = models.resnet50(num_classes=10).to(device).eval()
        self.checkpoints = {step: models.resnet50(num_classes=10).state_dict() for step in range(checkpoints)}

    def sweep(self, out: Path, **options: Any) -> float:
        """Held-out error of the input, mean over the blocks of the last checkpoint."""
        scores = pf.sweep(self.model, self.checkpoints, self.probe_set, out=out, overwrite=True, **RESNET, **options)
        last = scores.filter(step=len(self.checkpoints) - 1, metric="fvu", split="heldout")
        return mean(last.value(layer=layer) for layer in last.layers)

    @torch.no_grad()
    def forward(self) -> float:
        """Forward passes and nothing else."""
        for state in self.checkpoints.values():
            self.model.load_state_dict(state)
            for batch in self.images.split(BATCH):
                self.model(batch)
        return float("nan")


@pytest.fixture(scope="module")
def resnet(device: str) -> ResNet:
    return ResNet(IMAGES, UNSEEN, PIXELS, STEPS, device)


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("who", ["ours", "forward"])
def test_resnet(measure, gemm_rate, device, resnet, who, tmp_path):
    options = {"batchnorm": "running", "device": device, "batch_size": BATCH}
    side = {"ours": lambda: resnet.sweep(tmp_path / "out", **options), "forward": resnet.forward}[who]
    sizes = (3, PIXELS, PIXELS), IMAGES, UNSEEN
    how = {"layers": RESNET["layers"], "pool": RESNET["pool"], "alphas": [ALPHA], "splits": RESNET["splits"]}
    planned = plan(resnet.model, *sizes, device=device, **how)
    work = STEPS * sum(layer.cost.flops for layer in planned)
    measure("sweep resnet50", side, work, gemm_rate[torch.float32], who=who, rounds=2)
