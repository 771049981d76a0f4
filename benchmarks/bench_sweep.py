"""A sweep over the five stages of VGG-8 (8192 to 512 features) against the honest loop and the forward passes alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from opponents import Data, honest
from torch import Tensor, nn

import phasefast as pf
from phasefast.experiments.models import make_model

STAGES = [f"stage{i}" for i in range(1, 6)]
WIDTHS = (8192, 4096, 2048, 1024, 512)
# Fit and held-out images, checkpoints, images of a forward batch.
SIZES = {"cpu": (2_000, 500, 2, 256), "cuda": (50_000, 10_000, 17, 2048)}
ALPHA = 1e-3


class Run:
    """A model, images and checkpoints that are random weights: what they cost does not depend on what they learned."""

    def __init__(self, device: str) -> None:
        n, m, count, self.batch = SIZES[device]
        self.device = device
        torch.manual_seed(0)
        self.model = make_model("vgg8", (3, 32, 32), 10).to(device).eval()
        smooth = nn.functional.interpolate(torch.randn(n + m, 3, 8, 8), size=32, mode="bilinear")
        self.images = smooth + 0.1 * torch.randn(n + m, 3, 32, 32)
        self.probe_set = pf.ProbeSet.from_tensors(self.images[:n], None, self.images[n:], None)
        self.checkpoints = {}
        for step in range(count):
            fresh = make_model("vgg8", (3, 32, 32), 10).state_dict()
            self.checkpoints[step] = {name: value.to(device) for name, value in fresh.items()}

    @torch.no_grad()
    def forward(self) -> Iterator[dict[str, Tensor]]:
        """Per checkpoint, the rows of all stages."""
        images = self.images.to(self.device)
        for state in self.checkpoints.values():
            self.model.load_state_dict(state)
            parts: dict[str, list[Tensor]] = {stage: [] for stage in STAGES}
            for batch in images.split(self.batch):
                for name, module in self.model.named_children():
                    batch = module(batch)
                    if name in parts:
                        parts[name].append(batch.flatten(1))
            yield {name: torch.cat(rows) for name, rows in parts.items()}


@pytest.fixture(scope="module")
def trained(device: str) -> Run:
    return Run(device)


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("who", ["ours", "aten", "forward"])
def test_sweep(measure, gemm_rate, device, trained, precision, who, tmp_path):
    if precision == "fast" and device == "cpu":
        pytest.skip("the same as exact there, but for certificates")
    n, m, count, _ = SIZES[device]
    images = trained.images.to(device)
    targets = images.flatten(1) - images[:n].flatten(1).mean(0)
    deviation = float(targets[n:].double().square().sum())

    def ours() -> float:
        options = {"layers": STAGES, "alphas": ALPHA, "batchnorm": "running", "precision": precision, "device": device}
        scores = pf.sweep(
            trained.model, trained.checkpoints, trained.probe_set, out=tmp_path / "out", overwrite=True, **options
        )
        return float(scores.filter(step=count - 1).value(layer="stage5", metric="fvu", split="heldout"))

    @torch.no_grad()
    def theirs() -> float:
        for layers in trained.forward():
            for rows in layers.values():
                data = Data(rows[:n], rows[n:], targets[:n], targets[n:])
                error = honest(data, [ALPHA], fast=precision == "fast")
        return error / deviation

    def forward() -> float:
        for _ in trained.forward():
            pass
        return float("nan")

    work = count * sum(n * d * (d + 2 * 3072) + d**3 / 3 + 2 * d * d * 3072 + 2 * m * d * 3072 for d in WIDTHS)
    rate = gemm_rate[torch.bfloat16 if precision == "fast" else torch.float32]
    side = {"ours": ours, "aten": theirs, "forward": forward}[who]
    measure(f"sweep vgg8 {precision}", side, work, rate, who=who, rounds=1 if device == "cpu" else None)
