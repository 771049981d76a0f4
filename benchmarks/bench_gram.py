"""gram against two products and two additions: on the CPU with float64 sums, on a GPU cell by cell against cuBLAS."""

from __future__ import annotations

import itertools

import pytest
import torch

MORE_OPPONENTS = ["syrk"]  # the symmetric half in block columns
VGG8 = (8192, 4096, 2048, 1024, 512)
# n rows, widths of the cells, p target columns, type of the rows.
CASES = {
    "cpu": {
        "digits-1200x64-p74": (1200, (64,), 74, torch.float32),
        "digits-1200x256-p74": (1200, (256,), 74, torch.float32),
        "digits-1200x1024-p74": (1200, (1024,), 74, torch.float32),
        "vgg-20000x512-p3082": (20000, (512,), 3082, torch.float32),
        "wide-4000x4096-p3082": (4000, (4096,), 3082, torch.float32),
        "vgg-20000x512-p74-bf16": (20000, (512,), 74, torch.bfloat16),
    },
    "cuda": {
        "vgg8-50000-p3082-bf16": (50_000, VGG8, 3082, torch.bfloat16),
        "vgg8-10000-p3082-f32": (10_000, VGG8, 3082, torch.float32),
        "vgg8-50000-p3082-f32": (50_000, VGG8, 3082, torch.float32),
        "17x512-50000-p3082-bf16": (50_000, (512,) * 17, 3082, torch.bfloat16),
    },
}


@pytest.mark.parametrize("case", sorted({case for cases in CASES.values() for case in cases}))
def test_gram(measure, gemm_rate, kernels, device, case, who):
    if case not in CASES[device]:
        pytest.skip(f"not a case of the {device}")
    n, widths, p, dtype = CASES[device][case]
    on_gpu = device == "cuda"
    torch.manual_seed(0)
    rows = [torch.randn(n, d, device=device).relu().to(dtype) for d in widths]
    targets = torch.randn(n, p, device=device).to(dtype if on_gpu else torch.float32)
    sums = torch.float32 if on_gpu else torch.float64
    grams = [torch.zeros(d, d, dtype=sums, device=device) for d in widths]
    crosses = [torch.zeros(d, p, dtype=sums, device=device) for d in widths]
    wide = {"out_dtype": torch.float32} if on_gpu and dtype == torch.bfloat16 else {}

    def aten() -> None:
        for row, gram, cross in zip(rows, grams, crosses, strict=True):
            factor = row if on_gpu else row.float()
            gram.add_(torch.mm(factor.T, factor, **wide))
            cross.add_(torch.mm(factor.T, targets, **wide))

    def syrk() -> None:
        for row, gram, cross in zip(rows, grams, crosses, strict=True):
            factor = row if on_gpu else row.float()
            edges = [factor.shape[1] * i // 8 for i in range(9)]
            for start, stop in itertools.pairwise(edges):
                gram[start:, start:stop].add_(torch.mm(factor[:, start:].T, factor[:, start:stop], **wide))
            cross.add_(torch.mm(factor.T, targets, **wide))

    def ours() -> None:
        kernels.gram(rows, targets, grams, crosses)

    side = {"aten": aten, "syrk": syrk, "ours": ours}[who]
    side()
    some = min(widths[0], 64)
    exact = rows[0].double().T @ rows[0][:, :some].double()
    lower = torch.ones_like(exact).tril().bool()
    error = ((grams[0][:, :some] - exact)[lower].norm() / exact[lower].norm()).item()
    work = sum(n * d * d + 2 * n * d * p for d in widths)
    measure(f"gram {case}", side, work, gemm_rate[dtype if on_gpu else torch.float32], error)
