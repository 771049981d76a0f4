"""The capture kernels' very source, run on the host, against the reference."""

from __future__ import annotations

import ctypes
import itertools

import pytest
import torch

from phasefast.ops import reference
from tests.ops.test_capture import SHAPES, layouts

MERGED = 4
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
PLAIN, TRANSPOSED, POOLED, PACKED = range(4)


class Captured(ctypes.Structure):
    """Captured of csrc/cuda/capture_kernel.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("activations", "shift", "rows", "sums", "squares", "partial")),
        *((name, ctypes.c_int64) for name in ("samples", "sample_stride", "width")),
        *((name, ctypes.c_int64 * MERGED) for name in ("sizes", "strides")),
        *((name, ctypes.c_int) for name in ("pool", "splits")),
    )


@pytest.fixture(scope="module")
def kernel(stand_in):
    return stand_in("capture")


def check(kernel, x, pool, dtype=torch.float32, *, splits=1, blocks=3, seed=0):
    """Runs the kernel if it takes the layout, compares it with the reference, and returns the way taken."""
    width = x[0].numel() if not pool else x.shape[1] * pool ** (x.dim() - 2)
    shift = torch.randn(width)
    results = []
    cell = Captured(samples=len(x), sample_stride=x.stride(0), width=width, pool=pool, splits=splits)
    dims = x.dim() - 1
    sizes, strides = (ctypes.c_int64 * dims)(*x.shape[1:]), (ctypes.c_int64 * dims)(*x.stride()[1:])
    way = kernel.capture_prepare(ctypes.byref(cell), sizes, strides, dims)
    if way < 0:
        return way
    for ours in (True, False):
        rows = torch.full((len(x), width), torch.nan, dtype=dtype)
        sums, squares = torch.ones(width, dtype=torch.float64), torch.full((width,), 2.0, dtype=torch.float64)
        if ours:
            partial = torch.full((splits, 2, width), torch.nan, dtype=torch.float64)
            for name, tensor in (("activations", x), ("shift", shift), ("rows", rows), ("sums", sums)):
                setattr(cell, name, tensor.data_ptr())
            cell.squares, cell.partial = squares.data_ptr(), partial.data_ptr()
            kinds = KINDS[x.dtype], KINDS[dtype]
            assert kernel.capture_run(ctypes.byref(cell), *kinds, blocks, ctypes.c_uint64(seed)) == 0
            torch.testing.assert_close(sums, 1 + rows.double().sum(0), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(squares, 2 + rows.double().square().sum(0), rtol=1e-12, atol=1e-12)
        else:
            reference.capture([x], [shift], [pool], [rows], [sums], [squares])
        results.append(rows.double())
    step = {torch.float32: 2**-22, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(*results, rtol=step, atol=1e-6 if dtype == torch.float32 else step)
    if not pool:
        assert torch.equal(*results)
    return way


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_layout_and_pool(kernel, shape):
    torch.manual_seed(0)
    ways = {}
    for (name, x), pool in itertools.product(layouts(shape).items(), (0, 2) if 3 <= len(shape) <= 5 else (0,)):
        ways[name, pool] = check(kernel, x, pool, splits=1 + len(shape) % 3, seed=pool)
    assert ways["contiguous", 0] == (PACKED if x[0].numel() % 4 == 0 else PLAIN)
    if len(shape) == 4:
        assert ways["channels_last", 0] == TRANSPOSED
        assert ways["channels_last", 2] == POOLED


@pytest.mark.parametrize("given", KINDS)
@pytest.mark.parametrize("stored", KINDS)
def test_sixteen_bit_floats(kernel, given, stored):
    torch.manual_seed(0)
    x = torch.randn(9, 40, 3, 3).to(given)
    for layout, way in ((x, PACKED), (x.to(memory_format=torch.channels_last), TRANSPOSED)):
        assert check(kernel, layout, 0, stored, splits=2) == way
        assert check(kernel, layout, 2, stored) == POOLED


@pytest.mark.parametrize("width", [4, 60, 1024, 1028, 2056])
@pytest.mark.parametrize("splits", [1, 3, 70])
def test_features_side_by_side(kernel, width, splits):
    torch.manual_seed(width)
    x = torch.randn(150, width + 4)
    assert check(kernel, x[:, :width], 0, splits=splits) == PACKED
    assert check(kernel, x[:, 4:].bfloat16(), 0, torch.bfloat16, splits=splits) == PACKED
    assert check(kernel, torch.randn(150, 3, width)[:, 1], 0, splits=splits) == PACKED
    assert check(kernel, torch.randn(150, 3, 4, width)[:, :, ::2], 0, torch.float16, splits=splits) == PACKED
    assert check(kernel, torch.randn(150, width + 1)[:, :width], 0, splits=splits) == PLAIN


def split_count(kernel, width, samples):
    cell = Captured(samples=samples, sample_stride=width, width=width)
    assert kernel.capture_prepare(ctypes.byref(cell), (ctypes.c_int64 * 1)(width), (ctypes.c_int64 * 1)(1), 1) >= 0
    return kernel.capture_split_count(ctypes.byref(cell), 132)


def test_splits_fill_the_device_and_no_more(kernel):
    assert split_count(kernel, 513, 256) == 32
    assert split_count(kernel, 10**6 + 1, 256) == 1
    assert split_count(kernel, 10, 3) == 1
    assert split_count(kernel, 64, 40_000) == 40_000 // 128  # sixteen lanes
    assert split_count(kernel, 4096, 40_000) == 132
