"""Checkpoints of VGG-8 on a GPU, against the honest loop and the forward passes alone; on the CPU: compare.py."""

from __future__ import annotations

from statistics import mean

import pytest
import torch
from opponents import CLASSES, honest
from sweeps import ALPHA, SAMPLE, STAGES, Run

import phasefast as pf
from phasefast.planning import plan

N, M, CHECKPOINTS = 50_000, 10_000, 17


@pytest.fixture(scope="module")
def run(device: str) -> Run:
    return Run(N, M, CHECKPOINTS, batch=2048, device=device)


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("who", ["ours", "aten", "forward"])
def test_sweep(measure, gemm_rate, device, run, precision, who, tmp_path):
    targets = run.targets()

    def ours() -> float:
        options = {"layers": STAGES, "alphas": ALPHA, "batchnorm": "running", "precision": precision, "device": device}
        scores = pf.sweep(run.model, run.checkpoints, run.probe_set, out=tmp_path / "out", overwrite=True, **options)
        last = scores.filter(step=CHECKPOINTS - 1, target="input", metric="fvu", split="heldout")
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
    side = {"ours": ours, "aten": theirs, "forward": forward}[who]
    measure(f"sweep vgg8 {precision}", side, work, rate, who=who, rounds=2)  # of so many checkpoints each
