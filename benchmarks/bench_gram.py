"""gram against two products and two additions: on the CPU with float64 sums, on a GPU cell by cell against cuBLAS."""

from __future__ import annotations

import pytest
import torch

from phasefast import build_info, ops

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


VGG8 = (8192, 4096, 2048, 1024, 512)
CUDA_CASES = {
    "cuda-vgg8-50000-p3082-bf16": (50_000, VGG8, 3082, torch.bfloat16),
    "cuda-vgg8-10000-p3082-f32": (10_000, VGG8, 3082, torch.float32),
    "cuda-17x512-50000-p3082-bf16": (50_000, (512,) * 17, 3082, torch.bfloat16),
}


@pytest.mark.skipif(
    not (torch.cuda.is_available() and build_info().get("cuda")), reason="built without CUDA kernels, or no GPU"
)
@pytest.mark.parametrize("case", CUDA_CASES)
def test_gram_cuda(measure, cuda_gemm_rate, case, who):
    n, widths, p, dtype = CUDA_CASES[case]
    torch.manual_seed(0)
    rows = [torch.randn(n, d, device="cuda").relu().to(dtype) for d in widths]
    targets = torch.randn(n, p, device="cuda").to(dtype)
    grams = [torch.zeros(d, d, device="cuda") for d in widths]
    crosses = [torch.zeros(d, p, device="cuda") for d in widths]
    precision = {"out_dtype": torch.float32} if dtype == torch.bfloat16 else {}

    def aten() -> None:
        for row, gram, cross in zip(rows, grams, crosses, strict=True):
            gram.add_(torch.mm(row.T, row, **precision))
            cross.add_(torch.mm(row.T, targets, **precision))
        torch.cuda.synchronize()

    def ours() -> None:
        torch.ops.phasefast_cuda.gram(rows, targets, grams, crosses)
        torch.cuda.synchronize()

    side = {"aten": aten, "ours": ours}[who]
    side()
    exact = rows[-1].double().T @ rows[-1].double()
    error = ((grams[-1] - exact).tril().norm() / exact.tril().norm()).item()
    work = sum(n * d * d + 2 * n * d * p for d in widths)
    measure(f"gram {case}", side, work / cuda_gemm_rate[dtype], error)
