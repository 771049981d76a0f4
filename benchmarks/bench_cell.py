"""One cell on a GPU, from captured activations to scores, against what people use instead; on the CPU: compare.py."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from cells import FAST, ONE, TEN
from opponents import OPPONENTS, SLOW, Data, installed, synthetic
from ours import Cell
from timing import OURS

WHO = [
    *(("1 penalty", who) for who in (OURS, FAST, "aten", "lstsq", "adam")),
    *(("10 penalties", who) for who in (OURS, "aten", "himalaya RidgeCV")),
]
ALPHAS = {"1 penalty": ONE, "10 penalties": TEN}


@pytest.fixture(scope="module")
def data(device: str) -> Data:
    """Rows and held-out rows of one VGG-8 layer; the input has 3,072 values."""
    return synthetic(50_000, 10_000, 512, 3072, device)


@pytest.fixture(scope="module")
def prepared(data: Data) -> dict[str, Cell]:
    """Ours, with what all cells of a sweep share, by the penalties."""
    return {path: Cell.of(data, alphas) for path, alphas in ALPHAS.items()}


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize(("path", "who"), WHO, ids=["-".join(pair).replace(" ", "-") for pair in WHO])
def test_cell(measure, gemm_rate, data, prepared, path, who):
    if not who.startswith(OURS) and not installed(who):
        pytest.skip("not installed")
    precision = "fast" if who == FAST else "exact"
    ours = partial(prepared[path].error, precision)
    side = ours if who.startswith(OURS) else partial(OPPONENTS[who], data, ALPHAS[path])
    work = prepared[path].costs()[0].flops
    measure(f"cell {path}", side, work, gemm_rate[torch.float32], who=who, rounds=1 if who in SLOW else None)
