"""capture against flatten or adaptive pooling, subtraction, cast and two float64 sums."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

CASES = {
    "linear-256x4096": ((256, 4096), 0, torch.float32, False),
    "linear-256x4096-bf16": ((256, 4096), 0, torch.bfloat16, False),
    "digits-1200x64": ((1200, 64), 0, torch.float32, False),
    "conv-256x64x16x16": ((256, 64, 16, 16), 0, torch.float32, False),
    "conv-channels-last": ((256, 64, 16, 16), 0, torch.float32, True),
    "conv-pool1": ((256, 64, 16, 16), 1, torch.float32, False),
    "conv-pool4": ((256, 64, 16, 16), 4, torch.float32, False),
    "conv-pool4-channels-last": ((256, 64, 16, 16), 4, torch.float32, True),
    "resnet-64x2048x7x7-pool2": ((64, 2048, 7, 7), 2, torch.float32, False),
}


@pytest.mark.parametrize("case", CASES)
def test_capture(measure, copy_rate, kernels, device, case, who):
    shape, pool, dtype, channels_last = CASES[case]
    torch.manual_seed(0)
    samples = shape[0] * (32 if device == "cuda" else 1)
    x = torch.randn(samples, *shape[1:], device=device).to(dtype)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    exact = functional.adaptive_avg_pool2d(x.double(), pool).flatten(1) if pool else x.double().flatten(1)
    shift = torch.randn(exact.shape[1], device=device)
    exact = exact - shift.double()
    rows = torch.empty(exact.shape, dtype=dtype, device=device)
    sums, squares = (torch.zeros(exact.shape[1], dtype=torch.float64, device=device) for _ in range(2))

    def aten() -> None:
        kept = (functional.adaptive_avg_pool2d(x, pool) if pool else x).flatten(1)
        rows.copy_(kept - shift)
        sums.add_(rows.sum(0, dtype=torch.float64))
        squares.add_(rows.double().square().sum(0))

    def ours() -> None:
        kernels.capture([x], [shift], [pool], [rows], [sums], [squares])

    side = {"aten": aten, "ours": ours}[who]
    side()
    error = ((rows.double() - exact).norm() / exact.norm()).item()
    measure(f"capture {case}", side, x.nbytes + rows.nbytes, copy_rate, error)
