"""gram against two products and two additions, both with float64 accumulators."""

from __future__ import annotations

import pytest
import torch

from phasefast import ops

CASES = {
    "digits-1200x64-p74": (1200, 64, 74, torch.float32),
    "digits-1200x256-p74": (1200, 256, 74, torch.float32),
    "digits-1200x1024-p74": (1200, 1024, 74, torch.float32),
    "vgg-20000x512-p3082": (20000, 512, 3082, torch.float32),
    "wide-4000x4096-p3082": (4000, 4096, 3082, torch.float32),
    "vgg-20000x512-p74-bf16": (20000, 512, 74, torch.bfloat16),
}


@pytest.mark.parametrize("case", CASES)
def test_gram(measure, gemm_rate, case, who):
    n, d, p, dtype = CASES[case]
    torch.manual_seed(0)
    rows, targets = torch.randn(n, d).relu().to(dtype), torch.randn(n, p)
    gram, cross = torch.zeros(d, d, dtype=torch.float64), torch.zeros(d, p, dtype=torch.float64)

    def aten() -> None:
        wide = rows.float()
        gram.add_(wide.T @ wide)
        cross.add_(wide.T @ targets)

    def ours() -> None:
        ops.gram([rows], targets, [gram], [cross])

    side = {"aten": aten, "ours": ours}[who]
    side()
    some = min(d, 64)
    exact = rows.double().T @ rows[:, :some].double()
    lower = torch.ones_like(exact).tril().bool()
    error = ((gram[:, :some] - exact)[lower].norm() / exact[lower].norm()).item()
    measure(f"gram {case}", side, (n * d * d + 2 * n * d * p) / gemm_rate, error)
