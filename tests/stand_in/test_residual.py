"""The residual kernel's very source, run on the host, against the reference in float64."""

from __future__ import annotations

import ctypes
import random

import pytest
import torch

from phasefast.ops import reference

CELLS, BLOCKS = 16, 64
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Cell(ctypes.Structure):
    """ResidualCell of csrc/cuda/residual_kernel.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("rows", "weights", "offset", "errors", "hits")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("row", "weight", "offset", "error", "hit")),
        ("width", ctypes.c_int64),
    )


class Group(ctypes.Structure):
    """ResidualGroup of csrc/cuda/residual_kernel.cuh."""

    _fields_ = (
        ("cells", Cell * CELLS),
        *((name, ctypes.c_int) for name in ("count", "blocks")),
        ("edges", ctypes.c_int64 * (BLOCKS + 1)),
        ("classes", ctypes.c_bool * BLOCKS),
        ("targets", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("target_stride", "samples")),
    )


@pytest.fixture(scope="module")
def kernel(stand_in):
    return stand_in("residual")


def run(kernel, rows, weights, offsets, targets, edges, classes, *, blocks=2, seed=0):
    samples = len(targets)
    group = Group(count=len(rows), blocks=len(classes), samples=samples)
    group.edges[: len(edges)], group.classes[: len(classes)] = edges, classes
    group.targets, group.target_stride = targets.data_ptr(), targets.stride(0)
    errors = [torch.full((len(classes), samples + 2), torch.nan, dtype=torch.float64) for _ in rows]
    hits = [torch.ones(len(classes), samples + 2, dtype=torch.bool) for _ in rows]
    for cell, row, weight, offset, error, hit in zip(group.cells, rows, weights, offsets, errors, hits):
        cell.rows, cell.row_stride, cell.width = row.data_ptr(), row.stride(0), row.shape[1]
        cell.weights, cell.weight_stride = weight.data_ptr(), weight.stride(0)
        cell.offset, cell.offset_stride = offset.data_ptr(), offset.stride(0)
        cell.errors, cell.error_stride = error.data_ptr(), error.stride(0)
        cell.hits, cell.hit_stride = hit.data_ptr(), hit.stride(0)
    assert kernel.residual_run(ctypes.byref(group), KINDS[rows[0].dtype], blocks, ctypes.c_uint64(seed)) == 0
    assert all(error[:, samples:].isnan().all() for error in errors)
    return [error[:, :samples] for error in errors], [hit[:, :samples] for hit in hits]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("case", range(5))
def test_ragged_cells_equal_the_reference(kernel, dtype, case):
    draw = random.Random(10 * case + KINDS[dtype])
    torch.manual_seed(case)
    samples, pad = draw.choice([1, 90, 128, 131]), draw.choice([0, 3])
    sizes = [draw.choice([1, 10, 128, 140]) for _ in range(draw.randint(1, 3))]
    edges = [0]
    for size in sizes:
        edges.append(edges[-1] + size)
    classes = [bool(draw.randint(0, 1)) for _ in sizes]
    widths = [draw.choice([1, 31, 32, 33, 70]) for _ in range(draw.randint(1, 2))]
    rows = [torch.randn(samples, w + pad).to(dtype)[:, :w] for w in widths]
    weights = [torch.randn(w, edges[-1] + pad)[:, pad:] / w**0.5 for w in widths]
    offsets = [torch.randn(edges[-1]) for _ in widths]
    targets = torch.randn(samples, edges[-1] + pad)[:, pad:]
    errors, hits = run(kernel, rows, weights, offsets, targets, edges, classes, seed=case)
    for i, row in enumerate(rows):
        expected, expected_hits = torch.zeros_like(errors[i]), torch.zeros_like(hits[i])
        exact = [row.double()], [weights[i].double()], [offsets[i].double()], targets.double()
        reference.residual(*exact, edges, classes, [expected], [expected_hits])
        torch.testing.assert_close(errors[i], expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(hits[i], expected_hits)


def test_first_largest_counts_and_nan_never_hits(kernel):
    targets = torch.zeros(5, 200)
    targets[:, 150] = 1
    predictions = torch.zeros(5, 200)
    predictions[0, 150] = predictions[1, 151] = 2  # right, wrong
    predictions[2, [150, 160]] = 2  # a tie: the first
    predictions[3, [20, 150]] = 2  # a tie over tiles: the first
    predictions[4, 150], targets[4, 3] = 2, torch.nan
    rows = torch.eye(5)
    errors, hits = run(kernel, [rows], [predictions], [torch.zeros(200)], targets, [0, 200], [True])
    assert hits[0].tolist() == [[True, False, True, False, False]]
    assert errors[0][0, :4].tolist() == [1.0, 5.0, 5.0, 5.0]
    assert errors[0][0, 4].isnan()
    best_of_nothing = torch.full((5, 200), -torch.inf)
    _, hits = run(kernel, [torch.zeros(5, 1)], [torch.zeros(1, 200)], [best_of_nothing[0]], targets, [0, 200], [True])
    assert not hits[0].any()


def test_the_order_of_blocks_and_threads_does_not_matter(kernel):
    rows, weights, targets = torch.randn(300, 40), torch.randn(40, 150), torch.randn(300, 150)
    results = [
        run(kernel, [rows], [weights], [torch.zeros(150)], targets, [0, 140, 150], [False, True], blocks=n, seed=n)
        for n in (1, 2, 5)
    ]
    for errors, hits in results[1:]:
        assert torch.equal(errors[0], results[0][0][0])
        assert torch.equal(hits[0], results[0][1][0])
