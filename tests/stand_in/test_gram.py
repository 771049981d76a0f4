"""The gram kernel's very source, run on the host, against float64."""

from __future__ import annotations

import ctypes
import random

import pytest
import torch

CELLS, TILE = 16, 128
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Cell(ctypes.Structure):
    """GramCell of csrc/cuda/gram_tiles.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("rows", "gram", "cross")),
        *((name, ctypes.c_int64) for name in ("row_stride", "gram_stride", "cross_stride", "width")),
        *((name, ctypes.c_bool) for name in ("gram_wide", "cross_wide")),
        ("first", ctypes.c_int64),
    )


class Group(ctypes.Structure):
    """GramGroup of csrc/cuda/gram_tiles.cuh."""

    _fields_ = (
        ("cells", Cell * CELLS),
        ("count", ctypes.c_int),
        ("targets", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("target_stride", "cols", "samples", "tiles")),
        ("splits", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("partial", "pace")),
    )


@pytest.fixture(scope="module")
def kernel(stand_in):
    library = stand_in("gram")
    library.gram_count.restype = library.gram_split.restype = ctypes.c_int64
    library.gram_count.argtypes = [ctypes.c_int64, ctypes.c_int64, *[ctypes.c_int] * 3]
    library.gram_split_count.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    library.gram_split.argtypes = [ctypes.c_int64, ctypes.c_int, ctypes.c_int]
    return library


def make_group(kernel, rows, targets, grams, crosses, splits):
    group = Group(count=len(rows), cols=targets.shape[1], samples=len(targets), splits=splits)
    group.targets, group.target_stride = targets.data_ptr(), targets.stride(0)
    for cell, row, gram, cross in zip(group.cells, rows, grams or [None] * len(rows), crosses):
        cell.rows, cell.row_stride, cell.width = row.data_ptr(), row.stride(0), row.shape[1]
        cell.cross, cell.cross_stride, cell.cross_wide = cross.data_ptr(), cross.stride(0), cross.dtype == torch.float64
        if gram is not None:
            cell.gram, cell.gram_stride, cell.gram_wide = gram.data_ptr(), gram.stride(0), gram.dtype == torch.float64
        cell.first = group.tiles
        group.tiles += kernel.gram_count(cell.width, group.cols, gram is not None, TILE, TILE)
    return group


def run(kernel, rows, targets, grams, crosses, *, splits=1, blocks=3, seed=0):
    group = make_group(kernel, rows, targets, grams, crosses, splits)
    partial = torch.full((group.tiles * splits, TILE, TILE), torch.nan) if splits > 1 else torch.empty(0)
    group.partial = partial.data_ptr()
    kinds = KINDS[rows[0].dtype], KINDS[targets.dtype]
    assert kernel.gram_run(ctypes.byref(group), *kinds, blocks, ctypes.c_uint64(seed)) == 0


def check(rows, targets, grams, crosses, tolerance):
    for i, (row, cross) in enumerate(zip(rows, crosses)):
        wide, norm = row.double(), row.double().norm(dim=0)
        assert (cross.double() - wide.T @ targets.double()).abs().max() <= tolerance * (
            norm.max() * targets.double().norm(dim=0).max()
        )
        if grams:
            error = (grams[i].double() - wide.T @ wide).tril().abs()
            assert error.max() <= tolerance * norm.max() ** 2


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("case", range(6))
def test_ragged_cells_equal_float64(kernel, dtype, case):
    draw = random.Random(10 * case + KINDS[dtype])
    torch.manual_seed(case)
    samples, cols = draw.choice([1, 31, 32, 70, 150]), draw.choice([1, 9, 130, 200])
    widths = [draw.choice([1, 7, 64, 127, 128, 129, 200]) for _ in range(draw.randint(1, 3))]
    pad = draw.choice([0, 3, 8])
    rows = [(torch.randn(samples, w + pad) + 0.5).to(dtype)[:, :w] for w in widths]
    targets = torch.randn(samples, cols + pad)[:, pad:]
    wide = [draw.choice([torch.float32, torch.float64]) for _ in widths]
    grams = [torch.zeros(w, w, dtype=d) for w, d in zip(widths, wide)] if case % 3 else []
    crosses = [torch.zeros(w, cols, dtype=d) for w, d in zip(widths, wide)]
    run(kernel, rows, targets, grams, crosses, splits=draw.choice([1, 2, 3]), blocks=draw.choice([1, 5]), seed=case)
    check(rows, targets, grams, crosses, 1e-6)


def test_sums_are_added_and_nothing_else_is_touched(kernel):
    rows, targets = torch.randn(40, 130), torch.randn(40, 3)
    gram, cross = torch.ones(130, 140, dtype=torch.float64), torch.ones(130, 9)
    run(kernel, [rows], targets, [gram[:, :130]], [cross[:, :3]])
    check([rows], targets, [gram[:, :130] - 1], [cross[:, :3] - 1], 1e-6)
    assert (gram[:, 130:] == 1).all()
    assert (cross[:, 3:] == 1).all()
    assert (gram[:128, 128:130] == 1).all()  # a tile above the diagonal


def test_sums_over_many_samples_are_promoted(kernel):
    rows, targets = (torch.rand(5000, 5) + 1).bfloat16(), torch.rand(5000, 2)
    for splits in (1, 2):
        gram, cross = torch.zeros(5, 5, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.float64)
        run(kernel, [rows], targets, [gram], [cross], splits=splits)
        wide = rows.double()
        torch.testing.assert_close(gram.tril(), (wide.T @ wide).tril(), rtol=4e-6, atol=0)


@pytest.mark.parametrize(("samples", "splits"), [(1, 1), (65, 1), (150, 1), (300, 2)])
@pytest.mark.parametrize(("width", "cols"), [(8, 3), (131, 9), (136, 136)])
def test_asynchronous_copies_of_aligned_bfloat16(kernel, samples, splits, width, cols):
    torch.manual_seed(samples)
    rows = torch.full((samples, 144), torch.nan).bfloat16()[:, :width]  # beyond the width nothing may be read
    targets = torch.full((samples, 144), torch.nan).bfloat16()[:, :cols]
    rows.copy_(torch.randn(samples, width))
    targets.copy_(torch.randn(samples, cols))
    gram, cross = torch.zeros(width, width), torch.zeros(width, cols)
    run(kernel, [rows], targets, [gram], [cross], splits=splits, blocks=2, seed=samples)
    check([rows], targets, [gram], [cross], 1e-6)


@pytest.mark.parametrize("dtype", KINDS)
def test_bfloat16_targets_are_exact_inputs(kernel, dtype):
    rows, targets = torch.randn(70, 60).to(dtype), torch.randn(70, 20).bfloat16()
    gram, cross = torch.zeros(60, 60), torch.zeros(60, 20)
    run(kernel, [rows], targets, [gram], [cross])
    check([rows], targets, [gram], [cross], 1e-6)


def test_the_order_of_blocks_and_threads_does_not_matter(kernel):
    rows, targets = torch.randn(100, 150), torch.randn(100, 140)
    results = []
    for seed in range(4):
        gram, cross = torch.zeros(150, 150), torch.zeros(150, 140)
        run(kernel, [rows], targets, [gram], [cross], splits=3, blocks=seed + 1, seed=seed)
        results.append((gram, cross))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


@pytest.mark.parametrize(("height", "wide"), [(TILE, TILE), (256, 128), (256, 256)])
def test_every_tile_is_met_exactly_once(kernel, height, wide):
    draw = random.Random(0)
    for _ in range(1000):
        widths = [draw.randint(1, 700) for _ in range(draw.randint(1, CELLS))]
        cols, with_gram = draw.randint(0, 700), draw.random() < 0.7
        group = Group(count=len(widths), cols=cols)
        expected = set()
        for i, width in enumerate(widths):
            cell = group.cells[i]
            cell.width, cell.first, cell.gram = width, group.tiles, 1 if with_gram else None
            group.tiles += kernel.gram_count(width, cols, int(with_gram), height, wide)
            down, right = range(0, width, height), range(0, width, wide)
            expected |= {(i, r, c, 0) for r in down for c in right if c < r + height and with_gram}
            expected |= {(i, r, c, 1) for r in down for c in range(0, cols, wide)}
        out = torch.empty(group.tiles, 4, dtype=torch.int64)
        kernel.gram_schedule(ctypes.byref(group), height, wide, ctypes.c_void_p(out.data_ptr()))
        got = [tuple(tile) for tile in out.tolist()]
        assert len(got) == len(expected)
        assert set(got) == expected


def test_splits_cover_the_samples_once(kernel):
    draw = random.Random(0)
    for _ in range(300):
        samples, splits = draw.randint(1, 5000), draw.randint(1, 20)
        edges = [kernel.gram_split(samples, splits, split) for split in range(splits + 1)]
        assert edges[0] == 0
        assert edges[-1] == samples
        assert edges == sorted(edges)


def test_splits_fill_the_device_and_no_more(kernel):
    assert kernel.gram_split_count(1, 20000, 132) == 20000 // 256
    assert kernel.gram_split_count(110, 20000, 132) == 3
    assert kernel.gram_split_count(1000, 20000, 132) == 1
    assert kernel.gram_split_count(5, 100, 132) == 1


def test_the_swizzle_loses_no_chunk_and_spreads_what_is_read_together(kernel):
    places = [[kernel.gram_swizzled(sample, chunk) for chunk in range(16)] for sample in range(32)]
    assert sorted(place for row in places for place in row) == list(range(0, 32 * TILE, 8))
    for first in range(0, 32, 8):
        for chunk in range(16):
            banks = {places[sample][chunk] // 8 % 8 for sample in range(first, first + 8)}
            assert len(banks) == 8
