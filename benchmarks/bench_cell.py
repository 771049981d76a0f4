"""One cell, from captured activations to scores, against what people use instead; ours chooses and certifies too."""

from __future__ import annotations

import pytest
import torch
from opponents import OPPONENTS, SLOW, Data, synthetic

from phasefast.engine import FOLDS, decode
from phasefast.stages.evaluate import evaluate
from phasefast.stages.solve import Penalties
from phasefast.stages.targets import Input, build_targets
from phasefast.types import Activations, Layer, TargetMatrix

ONE, TEN = (1e-3,), tuple(10.0**k for k in range(-6, 4))
# Rows, held-out rows and features of one VGG-8 layer; the input has 3,072 values.
SIZES = {"cpu": (20_000, 5_000, 512), "cuda": (50_000, 10_000, 512)}
WHO = [
    *(("1 penalty", who) for who in ("ours", "ours-fast", "aten", "lstsq", "adam")),
    *(("10 penalties", who) for who in ("ours", "aten", "scikit-learn", "himalaya")),
]


@pytest.fixture(scope="module")
def data(device: str) -> Data:
    return synthetic(*SIZES[device], 3072, device)


@pytest.fixture(scope="module")
def targets(data: Data, device: str) -> dict[int, TargetMatrix]:
    """What all cells of a sweep share, by the number of penalties: folds are only needed to choose one."""
    n = len(data.fit)
    splits = (data.fit_targets, None), (data.heldout_targets, None)
    folds = {1: [0, n], 10: [n * i // FOLDS for i in range(FOLDS + 1)]}
    return {count: build_targets([Input()], *splits, edges, torch.device(device)) for count, edges in folds.items()}


@pytest.mark.parametrize(("path", "who"), WHO, ids=["-".join(pair).replace(" ", "-") for pair in WHO])
def test_cell(measure, gemm_rate, device, data, targets, path, who):
    if who == "scikit-learn" and device == "cuda":
        pytest.skip("it runs on the CPU alone")
    if who in ("scikit-learn", "himalaya"):
        pytest.importorskip({"scikit-learn": "sklearn"}.get(who, who))
    alphas = ONE if path == "1 penalty" else TEN
    n, m, d, p = len(data.fit), len(data.heldout), data.fit.shape[1], data.fit_targets.shape[1]
    precision = "fast" if who == "ours-fast" else "exact"
    stored = torch.bfloat16 if precision == "fast" and device == "cuda" else torch.float32
    shift = data.fit.mean(0)
    fit, heldout = (data.fit - shift).to(stored), (data.heldout - shift).to(stored)

    def ours() -> float:
        shared = targets[len(alphas)]
        edges = zip(shared.folds, shared.folds[1:], strict=False)
        sums = torch.stack([fit[start:stop].sum(0, dtype=torch.float64) for start, stop in edges])
        cell = Activations(Layer("layer", "layer", 0, d), fit, heldout, shift, sums)
        ((cell, decoder),) = decode([cell], shared, Penalties(alphas), precision)
        scores = evaluate(cell, decoder, shared)
        return next(score.value for score in scores if (score.split, score.metric) == ("heldout", "fvu"))

    def theirs() -> float:
        return OPPONENTS[who](data, alphas) / float(data.heldout_targets.double().square().sum())

    work = n * d * (d + 2 * p) + d**3 / 3 + 2 * d * d * p + 2 * m * d * p
    side = ours if who.startswith("ours") else theirs
    measure(f"cell {path}", side, work, gemm_rate[torch.float32], who=who, rounds=1 if who in SLOW else None)
