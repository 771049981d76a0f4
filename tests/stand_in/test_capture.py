"""The capture kernels' very source, run on the host, against the reference."""

from __future__ import annotations

import ctypes
import itertools

import pytest
import torch

from phasefast.ops import reference
from tests.ops.test_capture import SHAPES, layouts, pooled

MERGED = 4
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
PLAIN, TRANSPOSED, POOLED, PACKED = range(4)


class Captured(ctypes.Structure):
    """Captured of csrc/cuda/capture_cell.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("activations", "shift", "rows", "sums", "squares", "partial")),
        *((name, ctypes.c_int64) for name in ("samples", "sample_stride", "width")),
        *((name, ctypes.c_int64 * MERGED) for name in ("sizes", "strides")),
        *((name, ctypes.c_int) for name in ("pool", "splits")),
    )


@pytest.fixture(scope="module")
def kernel(stand_in):
    return stand_in("capture")


def prepared(kernel, x, pool, splits=1):
    """The cell of an activation without its addresses, and the way that it goes."""
    width = x[0].numel() if not pool else x.shape[1] * pool ** (x.dim() - 2)
    cell = Captured(samples=len(x), sample_stride=x.stride(0), width=width, pool=pool, splits=splits)
    dims = x.dim() - 1
    sizes, strides = (ctypes.c_int64 * dims)(*x.shape[1:]), (ctypes.c_int64 * dims)(*x.stride()[1:])
    return cell, kernel.capture_prepare(ctypes.byref(cell), sizes, strides, dims)


def run(kernel, x, cell, shift, dtype=torch.float32, *, blocks=3, seed=0):
    """Rows, sums and squares, the latter two on top of 1 and 2."""
    rows = torch.full((len(x), cell.width), torch.nan, dtype=dtype)
    sums, squares = (torch.full((cell.width,), start, dtype=torch.float64) for start in (1.0, 2.0))
    partial = torch.full((cell.splits, 2, cell.width), torch.nan, dtype=torch.float64)
    for name, tensor in (("activations", x), ("shift", shift), ("rows", rows), ("sums", sums)):
        setattr(cell, name, tensor.data_ptr())
    cell.squares, cell.partial = squares.data_ptr(), partial.data_ptr()
    kinds = KINDS[x.dtype], KINDS[dtype]
    assert kernel.capture_run(ctypes.byref(cell), *kinds, blocks, ctypes.c_uint64(seed)) == 0
    torch.testing.assert_close(sums, 1 + rows.double().sum(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(squares, 2 + rows.double().square().sum(0), rtol=1e-12, atol=1e-12)
    return rows, sums, squares


def check(kernel, x, pool, dtype=torch.float32, *, splits=1, blocks=3, seed=0):
    """Runs the kernel if it takes the layout, compares it with the reference, and returns the way taken."""
    cell, way = prepared(kernel, x, pool, splits)
    if way < 0:
        return way
    shift = torch.randn(cell.width)
    ours, *_ = run(kernel, x, cell, shift, dtype, blocks=blocks, seed=seed)
    theirs = torch.full_like(ours, torch.nan)
    reference.capture([x], [shift], [pool], [theirs], *([torch.zeros(cell.width, dtype=torch.float64)] for _ in "ab"))
    results = ours.double(), theirs.double()
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


# Ragged, large, overlapping, fewer places than bins, one to three dimensions, batches that are no multiples of four.
WINDOWS = [
    ((5, 3, 56, 56), 1, 2, 3),
    ((9, 4, 14, 14), 2, 3, 14),
    ((6, 37, 7, 7), 1, 2, 3, 4),
    ((4, 3, 17, 70), 1, 2, 3),
    ((7, 2, 1001), 1, 3, 7),
    ((1, 3, 9, 11, 13), 1, 2, 3),
    ((8, 5, 33, 2), 1, 2, 5),
    ((3, 37, 20, 9), 1, 2, 4),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("shape", "pools"), [(shape, pools) for shape, *pools in WINDOWS], ids=str)
def test_means_are_exact_and_the_same_in_any_order(kernel, shape, pools, seed):
    torch.manual_seed(seed)
    padded = torch.full([size + 2 for size in shape], torch.nan)  # of which no NaN may come in
    padded[(slice(1, -1),) * len(shape)] = torch.randn(shape)
    for x, pool in itertools.product((*layouts(shape).values(), padded[(slice(1, -1),) * len(shape)]), pools):
        cell, _ = prepared(kernel, x, pool, splits=1 + (seed + pool) % 3)
        shift = torch.randn(cell.width)
        first, other = (run(kernel, x, cell, shift, blocks=1 + i, seed=seed + i) for i in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, other))
        error = (first[0].double() - (pooled(x, pool) - shift.double())).abs()
        assert (error <= 5e-7 * (pooled(x.abs(), pool) + shift.abs().double())).all()


@pytest.mark.parametrize(
    ("shape", "pool", "lanes", "last"),
    [
        ((2, 3, 56, 56), 2, 32, 4),
        ((2, 3, 14, 14), 1, 16, 4),
        ((2, 3, 14, 14), 2, 8, 4),
        ((2048, 2048, 14, 14), 2, 8, 1),
        ((2, 3, 7, 7), 2, 4, 1),
        ((2, 3, 4, 4), 2, 2, 1),
        ((2, 3, 1001), 7, 16, 4),
        ((2, 3, 5, 1), 3, 1, 1),
    ],
)
def test_lanes_share_large_windows(kernel, shape, pool, lanes, last):
    x = torch.empty(shape, device="meta")
    for layout, expected in ((x, lanes), (x.movedim(1, -1).contiguous().movedim(-1, 1), -last)):
        cell, way = prepared(kernel, layout, pool)
        assert way == POOLED
        assert kernel.capture_lanes(ctypes.byref(cell)) == expected


def test_means_of_single_values_are_no_means(kernel):
    torch.manual_seed(0)
    x = torch.randn(5, 40, 3, 3)
    assert check(kernel, x, 3) == PACKED
    assert check(kernel, x.to(memory_format=torch.channels_last), 3) == TRANSPOSED


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


def test_splits_of_means(kernel):
    for shape, pool, count in (((256, 256, 56, 56), 2, 17), ((256, 64, 16, 16), 1, 64), ((256, 64, 16, 16), 4, 32)):
        cell, _ = prepared(kernel, torch.empty(shape, device="meta"), pool)
        assert kernel.capture_split_count(ctypes.byref(cell), 132) == count


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
