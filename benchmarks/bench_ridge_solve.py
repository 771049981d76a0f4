"""ridge_solve against cholesky_ex and cholesky_solve of the matrix as it is."""

from __future__ import annotations

import pytest
import torch

from phasefast import ops

CASES = {
    "digits-64-p74": (64, 74, torch.float32),
    "digits-256-p74": (256, 74, torch.float32),
    "digits-1024-p74": (1024, 74, torch.float32),
    "vgg-512-p3082": (512, 3082, torch.float32),
    "vgg-512-p3082-f64": (512, 3082, torch.float64),
    "wide-4096-p3082": (4096, 3082, torch.float32),
}


@pytest.mark.parametrize("case", CASES)
def test_ridge_solve(measure, gemm_rate, device, case, who):
    if device == "cuda":
        pytest.skip("the reference, ATen, is what runs there")
    d, p, dtype = CASES[case]
    torch.manual_seed(0)
    rows = torch.randn(d + 500, d)
    gram, cross = (rows.T @ rows).to(dtype), (rows.T @ torch.randn(len(rows), p)).to(dtype)
    penalty = torch.tensor([0.1 * len(rows)], dtype=torch.float64)
    weights, info = torch.empty(1, d, p, dtype=dtype), torch.empty(1, 1, dtype=torch.int32)

    def aten() -> None:
        matrix = gram.clone()
        matrix.diagonal().add_(penalty.to(dtype))
        factor, failed = torch.linalg.cholesky_ex(matrix)
        weights[0] = torch.cholesky_solve(cross, factor)
        info[0, 0] = failed

    def ours() -> None:
        ops.ridge_solve([gram], [cross], [penalty], [weights], [], info)

    side = {"aten": aten, "ours": ours}[who]
    side()
    some = weights[0, :, :64].double()
    miss = gram.double() @ some + penalty * some - cross[:, :64].double()
    error = (miss.norm() / cross[:, :64].norm()).item()
    measure(f"ridge_solve {case}", side, (d**3 / 3 + 2 * d * d * p) / gemm_rate[torch.float32], error)
