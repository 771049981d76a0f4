"""Taking numbers apart into float16, the very source that runs on Hopper, run on the host."""

from __future__ import annotations

import ctypes
import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
EPS = 2.0**-22  # of a number as the sum of two parts


@pytest.fixture(scope="module")
def kernel(stand_in):
    library = stand_in("halves")
    library.scale.argtypes = [ctypes.c_uint32, ctypes.c_void_p]
    library.scale_back.argtypes = [ctypes.c_float, ctypes.c_uint32, ctypes.c_uint32]
    library.scale_back.restype = ctypes.c_float
    return library


def scale(kernel, largest: float) -> tuple[float, float]:
    out = np.zeros(2, np.float32)
    kernel.scale(int(np.float32(largest).view(np.uint32)), out.ctypes.data)
    return float(out[0]), float(out[1])


def apart(kernel, matrix: Tensor, turned: Tensor | None = None, blocks: int = 3, seed: int = 0):
    """The largest of all columns as float32, and parts [part, row, padded column]."""
    rows, cols = matrix.shape
    stride = -(-cols // 8) * 8
    largest = torch.zeros(cols, dtype=torch.int32)
    count = 2 if matrix.dtype == torch.float32 else 1
    parts = torch.full((count, rows, stride), torch.nan, dtype=torch.float16)
    sizes = (ctypes.c_int64(value) for value in (matrix.stride(0), rows, cols))
    code = kernel.halves_run(
        KINDS[matrix.dtype],
        ctypes.c_void_p(matrix.data_ptr()),
        *sizes,
        ctypes.c_void_p(0 if turned is None else turned.data_ptr()),
        ctypes.c_void_p(largest.data_ptr()),
        ctypes.c_void_p(parts.data_ptr()),
        ctypes.c_int64(stride),
        blocks,
        ctypes.c_uint64(seed),
    )
    assert code == 0
    return largest.view(torch.float32), parts


def test_scales_are_powers_of_two_that_keep_the_largest_in_range(kernel):
    draw = random.Random(0)
    sizes = [
        2.0**-149,
        2.0**-126,
        2.0**-112,
        1.0,
        65504.0,
        3e38,
        *(draw.uniform(1, 2) * 2.0**e for e in range(-120, 127)),
    ]
    for size in sizes:
        by, back = scale(kernel, size)
        assert by * back == 1
        assert math.frexp(by)[0] == math.frexp(back)[0] == 0.5
        assert by * size < 2**15
        assert by * size >= 2**14 or size < 2.0**-112
    assert scale(kernel, 0.0)[0] < math.inf


@pytest.mark.parametrize("exponents", [(100, -100), (-100, 100), (126, -120), (3, 4), (-126, 2), (-60, -60)])
def test_sums_are_scaled_back_without_leaving_float32_on_the_way(kernel, exponents):
    row, col = (int(np.float32(1.5 * 2.0**e).view(np.uint32)) for e in exponents)
    total = 65536 * 2.0**28
    backs = [scale(kernel, 1.5 * 2.0**e)[1] for e in exponents]
    assert kernel.scale_back(total, row, col) == float(np.float32(total * backs[0] * backs[1]))


@pytest.mark.parametrize("dtype", list(KINDS))
@pytest.mark.parametrize("seed", range(6))
def test_parts_add_up_to_the_numbers(kernel, dtype, seed):
    draw = random.Random(seed)
    rows, cols, spare = draw.choice([1, 7, 65, 300]), draw.choice([1, 8, 33, 257, 600]), draw.choice([0, 3, 8])
    torch.manual_seed(seed)
    sizes = 10.0 ** torch.empty(cols).uniform_(-20, 15) if dtype != torch.float16 else torch.ones(cols)
    wide = (torch.randn(rows, cols + spare) * torch.cat([sizes, torch.ones(spare)])).to(dtype)
    wide[:, cols // 2] = 0
    matrix = wide[:, :cols]
    largest, parts = apart(kernel, matrix, blocks=draw.randint(1, 5), seed=seed)
    assert torch.equal(largest, matrix.float().abs().amax(0))
    assert not parts[:, :, cols:].any()
    by = torch.tensor([scale(kernel, size)[0] for size in largest.tolist()], dtype=torch.float64)
    error = (parts[:, :, :cols].double().sum(0) - matrix.double() * by).abs()
    floor = 2.0**-25  # half of float16's smallest step: 2^-39 of the column's largest
    assert (error <= (EPS / 2 if dtype == torch.float32 else 0) * matrix.double().abs() * by + floor).all()
    if dtype == torch.float32:
        assert (parts[1].float().abs() <= parts[0].float().abs() * 2.0**-10 + floor).all()


def test_rows_are_scaled_back_first(kernel):
    torch.manual_seed(0)
    features = 10.0 ** torch.empty(40).uniform_(-6, 6)
    weights = torch.randn(40, 21) / features[:, None]
    largest, parts = apart(kernel, weights, turned=features.clone().view(torch.int32))
    back = torch.tensor([scale(kernel, size)[1] for size in features.tolist()], dtype=torch.float64)
    turned = weights.double() * back[:, None]
    assert torch.equal(largest.double(), turned.abs().amax(0))
    by = torch.tensor([scale(kernel, size)[0] for size in largest.tolist()], dtype=torch.float64)
    error = (parts[:, :, :21].double().sum(0) - turned * by).abs()
    assert (error <= EPS / 2 * turned.abs() * by + 2.0**-25).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so_and_where_it_is(kernel, bad):
    matrix = 1e-4 * torch.randn(30, 10)
    matrix[17, 4] = bad
    largest, parts = apart(kernel, matrix)
    assert float(largest[4]) == float(torch.cat([matrix[:17, 4], matrix[18:, 4]]).abs().max())  # of numbers
    total = parts.float().sum(0)[:, :10]
    assert not total[17, 4].isfinite()
    total[17, 4] = 0
    assert total.isfinite().all()


@pytest.mark.parametrize("widths", [(300, 40), (33, 129)])
def test_three_products_of_parts_have_the_accuracy_of_float32(kernel, widths):
    torch.manual_seed(1)
    left, right = (torch.randn(500, width).relu() * 10.0 ** torch.empty(width).uniform_(-3, 3) for width in widths)
    pairs = []
    for matrix in (left, right):
        largest, parts = apart(kernel, matrix)
        back = torch.tensor([scale(kernel, size)[1] for size in largest.tolist()], dtype=torch.float64)
        pairs.append(parts[:, :, : matrix.shape[1]].double() * back)
    (a, a_rest), (b, b_rest) = pairs
    found = a.mT @ b + a.mT @ b_rest + a_rest.mT @ b
    exact = left.double().mT @ right.double()
    bound = left.double().norm(dim=0)[:, None] * right.double().norm(dim=0)
    assert float(((found - exact).abs() / bound).max()) < 2.0**-22
