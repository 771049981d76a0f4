"""The arithmetic of the Hopper gram kernel, run on the host: layouts, descriptors, turns, splits."""

from __future__ import annotations

import ctypes
import itertools
import random
from typing import NamedTuple

import pytest


class Shape(NamedTuple):
    """Shape of csrc/cuda/gram_sm90_layout.cuh."""

    height: int
    width: int
    depth: int
    slots: int
    blocks: int
    parts: int
    box_bytes: int
    left: int
    right: int
    slot_bytes: int
    bytes: int


@pytest.fixture(scope="module")
def kernel(stand_in):
    library = stand_in("gram_sm90")
    library.describe_box.restype = ctypes.c_uint64
    library.describe_box.argtypes = [ctypes.c_uint32, ctypes.c_int]
    library.split_count.argtypes = [ctypes.c_int64, ctypes.c_int64, *[ctypes.c_int] * 4]
    return library


@pytest.fixture(params=[0, 1], ids=["whole", "split"])
def which(request):
    return request.param


def shape_of(kernel, which):
    out = (ctypes.c_int * len(Shape._fields))()
    kernel.shape(which, out)
    return Shape(*out)


def test_panels_fill_a_slot_without_overlap(kernel, which):
    shape = shape_of(kernel, which)
    places = [kernel.left_place(which, *at) for at in itertools.product(range(shape.parts), range(shape.left))]
    places += [kernel.right_place(which, *at) for at in itertools.product(range(shape.parts), range(shape.right))]
    assert sorted(places) == list(range(0, shape.slot_bytes, shape.box_bytes))
    assert all(place % 1024 == 0 for place in places)  # where the swizzle begins anew
    assert kernel.stage_bytes(which, shape.parts, shape.parts) == shape.slot_bytes
    assert shape.bytes <= 227 * 1024
    assert shape.height == 128 * shape.blocks == 64 * shape.left * shape.blocks
    assert shape.width == 64 * shape.right


def test_a_swizzled_box_loses_no_value(kernel, which):
    shape = shape_of(kernel, which)
    places = [kernel.swizzled_place(row, col) for row in range(shape.depth) for col in range(64)]
    assert sorted(places) == list(range(0, shape.box_bytes, 2))


def test_descriptors_find_every_value_where_the_copies_put_it(kernel, which):
    """The canonical layout of a factor whose first dimension is dense, 128-byte swizzle (PTX ISA; CUTLASS's table)."""
    shape = shape_of(kernel, which)
    base = 5 * 1024
    for part, first in ((0, 0), (shape.parts - 1, 16)):
        code = kernel.describe_box(base + kernel.right_place(which, part, 0), shape.box_bytes) + (first * 128 >> 4)
        start, leading, stride = ((code >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
        assert code >> 62 == 1  # 128-byte swizzle
        for k, col in itertools.product(range(16), range(shape.width)):
            linear = start + col // 64 * leading + k // 8 * stride + k % 8 * 128 + col % 64 * 2
            found = linear ^ (linear >> 7 & 7) << 4  # bits 4 to 6 by bits 7 to 9
            box = kernel.right_place(which, part, col // 64)
            assert found == base + box + kernel.swizzled_place(first + k, col % 64)


def test_turns_go_round_the_slots_and_flip_the_parity(kernel):
    out = (ctypes.c_int * 40)()
    kernel.turns(20, out)
    assert [out[2 * i] for i in range(20)] == [i % 4 for i in range(20)]
    assert [out[2 * i + 1] for i in range(20)] == [i // 4 % 2 for i in range(20)]


def test_splits_leave_few_clusters_idle(kernel):
    draw = random.Random(0)
    for _ in range(500):
        tiles, samples, clusters = draw.randint(1, 3000), draw.randint(1, 60_000), draw.choice([54, 66, 132])
        splits = kernel.split_count(tiles, samples, 256, 128, 32, clusters)
        stages = -(-samples // 32)
        assert 1 <= splits <= 16
        assert splits == 1 or stages // splits >= 8
        assert splits == 1 or tiles * splits * 256 * 128 <= 2**27

        def time(count, tiles=tiles, stages=stages, clusters=clusters):
            return -(-tiles * count // clusters) * (-(-stages // count) + 8)

        assert time(splits) <= time(1)
    assert kernel.split_count(1, 50_000, 256, 128, 32, 66) == 16
    assert kernel.split_count(66, 50_000, 256, 128, 32, 66) == 1
