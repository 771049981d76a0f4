"""residual against a stored prediction, its squared differences and two arg-maxes."""

from __future__ import annotations

import pytest
import torch

CASES = {
    "digits-600x64-p74": (600, 64, 74),
    "digits-600x256-p74": (600, 256, 74),
    "digits-600x1024-p74": (600, 1024, 74),
    "vgg-10000x512-p3082": (10000, 512, 3082),
    "wide-2000x4096-p3082": (2000, 4096, 3082),
}


@pytest.mark.parametrize("case", CASES)
def test_residual(measure, gemm_rate, kernels, device, case, who):
    m, d, p = CASES[case]
    m *= 16 if device == "cuda" else 1
    torch.manual_seed(0)
    rows, weight, offset, targets = (torch.randn(shape, device=device) for shape in ((m, d), (d, p), (p,), (m, p)))
    cut = p - 10
    errors, hits = (torch.empty(2, m, dtype=dtype, device=device) for dtype in (torch.float64, torch.bool))

    def aten() -> None:
        prediction = torch.addmm(offset, rows, weight)
        squared = (prediction - targets).square_()
        errors[0] = squared[:, :cut].sum(1, dtype=torch.float64)
        errors[1] = squared[:, cut:].sum(1, dtype=torch.float64)
        hits[0] = False
        hits[1] = prediction[:, cut:].argmax(1) == targets[:, cut:].argmax(1)

    def ours() -> None:
        kernels.residual([rows], [weight], [offset], targets, [0, cut, p], [False, True], [errors], [hits])

    side = {"aten": aten, "ours": ours}[who]
    side()
    some = (rows[:200].double() @ weight.double() + offset - targets[:200]).square()
    exact = torch.stack([some[:, :cut].sum(1), some[:, cut:].sum(1)])
    error = ((errors[:, :200] - exact).norm() / exact.norm()).item()
    measure(f"residual {case}", side, 2 * m * d * p, gemm_rate[torch.float32], error)
