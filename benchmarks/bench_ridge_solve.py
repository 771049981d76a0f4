"""ridge_solve against cholesky_ex and cholesky_solve of the matrix as it is."""

from __future__ import annotations

import pytest
import torch

CASES = {
    "digits-64-p74": (64, 74, torch.float32),
    "digits-256-p74": (256, 74, torch.float32),
    "digits-1024-p74": (1024, 74, torch.float32),
    "vgg-512-p3082": (512, 3082, torch.float32),
    "vgg-512-p3082-f64": (512, 3082, torch.float64),
    "wide-4096-p3082": (4096, 3082, torch.float32),
}


@pytest.mark.parametrize("case", CASES)
def test_ridge_solve(measure, gemm_rate, kernels, device, case, who):
    d, p, dtype = CASES[case]
    steps = 8 if device == "cuda" else 1
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("the reference, ATen, is what runs there")
    torch.manual_seed(0)
    rows = torch.randn(d + 500, d, device=device)
    gram, cross = (rows.T @ rows).to(dtype), (rows.T @ torch.randn(len(rows), p, device=device)).to(dtype)
    path = len(rows) * torch.logspace(-1, 1, steps, dtype=torch.float64, device=device)
    weights = torch.empty(steps, d, p, dtype=dtype, device=device)
    info = torch.empty(1, steps, dtype=torch.int32, device=device)

    def aten() -> None:
        for step, penalty in enumerate(path.to(dtype)):
            matrix = gram.clone()
            matrix.diagonal().add_(penalty)
            factor, failed = torch.linalg.cholesky_ex(matrix)
            weights[step] = torch.cholesky_solve(cross, factor)
            info[0, step] = failed

    def ours() -> None:
        kernels.ridge_solve([gram], [cross], [path], [weights], [], info)

    side = {"aten": aten, "ours": ours}[who]
    side()
    some = weights[0, :, :64].double()
    miss = gram.double() @ some + path[0] * some - cross[:, :64].double()
    error = (miss.norm() / cross[:, :64].norm()).item()
    measure(f"ridge_solve {case}", side, steps * (d**3 / 3 + 2 * d * d * p), gemm_rate[torch.float32], error)
