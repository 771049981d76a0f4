"""How the Hopper residual kernel cuts its work, run on the host."""

from __future__ import annotations

import ctypes
import itertools
import random

import pytest

TILE = 128


@pytest.fixture(scope="module")
def kernel(stand_in):
    library = stand_in("residual_sm90")
    library.range_count.argtypes = [ctypes.c_int64] * 3
    return library


def test_every_tile_is_met_once_and_classes_lie_in_one_range(kernel):
    draw = random.Random(0)
    for _ in range(1000):
        blocks, ranges = draw.randint(1, 6), draw.randint(1, 8)
        edges = [0, *itertools.accumulate(draw.randint(1, 700) for _ in range(blocks))]
        classes = [draw.random() < 0.5 for _ in range(blocks)]
        out = (ctypes.c_int64 * (2 * ranges * blocks))()
        kernel.cut((ctypes.c_int64 * len(edges))(*edges), (ctypes.c_int * blocks)(*classes), blocks, ranges, out)
        for block in range(blocks):
            start = edges[block] // 8 * 8  # sixteen bytes
            tiles = -(-(edges[block + 1] - start) // TILE)
            own = [(out[2 * at], out[2 * at + 1]) for at in range(block, ranges * blocks, blocks)]
            met = [tile for begin, end in own for tile in range(begin, end)]
            assert met == list(range(tiles))
            if classes[block]:
                assert [end - begin for begin, end in own if end > begin] == [tiles]


def test_ranges_leave_few_clusters_idle(kernel):
    assert kernel.range_count(40, 25, 66) > 1  # 10,000 rows
    assert kernel.range_count(660, 25, 66) == 1
    assert kernel.range_count(1, 1, 66) == 1
    assert kernel.range_count(1, 25, 66) == 7  # eight would not be faster
