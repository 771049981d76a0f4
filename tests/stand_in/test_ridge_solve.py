"""The ridge_solve kernels' very source, run on the host, against the reference in float64."""

from __future__ import annotations

import ctypes

import pytest
import torch

from phasefast.ops import reference

CELLS, TILE = 16, 128
STRIDES = ("gram_row", "gram_col", "cross_row", "cross_col", "penalty_stride", "weight_stride", "weight_batch")


class SolveCell(ctypes.Structure):
    """SolveCell of csrc/cuda/ridge_solve_kernel.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("gram", "cross", "penalties", "weights", "factors_out")),
        *((name, ctypes.c_void_p) for name in ("factor", "inverse", "solution", "root", "info")),
        *((name, ctypes.c_int64) for name in (*STRIDES, "out_stride", "out_batch", "info_stride", "width", "cols")),
        ("steps", ctypes.c_int),
    )


class SolveGroup(ctypes.Structure):
    """SolveGroup of csrc/cuda/ridge_solve_kernel.cuh."""

    _fields_ = (("cells", SolveCell * CELLS), ("count", ctypes.c_int))


@pytest.fixture(scope="module")
def kernel(stand_in):
    return stand_in("ridge_solve")


def solve(kernel, *systems, seed=0):
    """Weights, factors and info of each system (gram, cross, penalties)."""
    group, kept = SolveGroup(count=len(systems)), []
    for cell, (gram, cross, penalties) in zip(group.cells, systems):
        steps, (d, p) = len(penalties), cross.shape
        shapes = {
            "weights": (steps, d, p), "factors_out": (steps, d, d), "factor": (steps, d, d),
            "inverse": (steps, -(-d // TILE), TILE, TILE), "solution": (steps, d, p), "root": (steps, d),
        }  # fmt: skip
        tensors = {name: torch.full(shape, torch.nan) for name, shape in shapes.items()}
        tensors["info"] = torch.full((steps,), -1, dtype=torch.int32)
        cell.width, cell.cols, cell.steps = d, p, steps
        cell.gram_row, cell.gram_col, cell.cross_row, cell.cross_col = *gram.stride(), *cross.stride()
        cell.penalty_stride = penalties.stride(0)
        cell.weight_stride, cell.weight_batch, cell.out_stride, cell.out_batch, cell.info_stride = p, d * p, d, d * d, 1
        kept.append(tensors | {"gram": gram, "cross": cross, "penalties": penalties})
        for name, tensor in kept[-1].items():
            setattr(cell, name, tensor.data_ptr())
    assert kernel.ridge_solve_run(ctypes.byref(group), ctypes.c_uint64(seed)) == 0
    return [(tensors["weights"], tensors["factors_out"], tensors["info"]) for tensors in kept]


def exact(gram, cross, penalties):
    steps, (d, p) = len(penalties), cross.shape
    weights, factors = torch.empty(steps, d, p).double(), torch.empty(steps, d, d).double()
    info = torch.empty(1, steps, dtype=torch.int32)
    reference.ridge_solve([gram.double()], [cross.double()], [penalties], [weights], [factors], info)
    return weights, factors, info[0]


@pytest.mark.parametrize(("d", "p"), [(1, 1), (7, 3), (128, 5), (129, 130), (200, 1), (270, 9)])
def test_solutions_and_factors_equal_float64(kernel, d, p):
    torch.manual_seed(d)
    rows = torch.randn(2 * d + 5, d) * torch.logspace(-3, 3, d)  # equilibration has something to do
    gram, cross = rows.T @ rows, rows.T @ torch.randn(len(rows), p)
    penalties = torch.tensor([1e-3, 1.0, 100.0], dtype=torch.float64)
    lower = gram.tril() + torch.full_like(gram, torch.nan).triu(1)  # only the lower triangle has a meaning
    got = solve(kernel, (lower, cross.T.contiguous().T, penalties), seed=d)[0]
    for ours, theirs in zip(got[:2], exact(gram, cross, penalties)[:2]):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-4, atol=2e-5 * float(theirs.abs().max()))
    assert got[2].tolist() == [0, 0, 0]


def test_dead_columns_get_zero_weights(kernel):
    rows = torch.randn(300, 150)
    rows[:, [0, 40, 149]] = 0
    gram, cross = rows.T @ rows, rows.T @ torch.randn(300, 4)
    penalties = torch.tensor([0.0], dtype=torch.float64)
    weights, factors, info = solve(kernel, (gram, cross, penalties))[0]
    expected, expected_factors, _ = exact(gram, cross, penalties)
    assert info.tolist() == [0]
    assert (weights[0, [0, 40, 149]] == 0).all()
    torch.testing.assert_close(weights.double(), expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(factors.double(), expected_factors, rtol=1e-3, atol=1e-4)


def test_cells_of_different_sizes_go_together(kernel):
    systems = []
    for d, p, penalties in ((130, 3, [1.0]), (5, 130, [0.5, 2.0]), (260, 1, [1.0, 3.0])):
        rows = torch.randn(2 * d, d)
        systems.append((rows.T @ rows, rows.T @ torch.randn(2 * d, p), torch.tensor(penalties, dtype=torch.float64)))
    for got, system in zip(solve(kernel, *systems), systems):
        assert not got[2].any()
        for ours, theirs in zip(got[:2], exact(*system)[:2]):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("bad", [0, 5, 140])
def test_an_indefinite_matrix_is_reported_and_its_results_are_nan(kernel, bad):
    gram = torch.eye(150)
    gram[bad, bad] = -1
    penalties = torch.tensor([0.5, 2.0], dtype=torch.float64)
    weights, factors, info = solve(kernel, (gram, torch.ones(150, 2), penalties))[0]
    assert info.tolist() == [bad + 1, 0]
    assert weights[0].isnan().all()
    assert factors[0].isnan().all()
    torch.testing.assert_close(weights[1], torch.ones(150, 2) / (gram.diagonal() + 2)[:, None])


def test_the_order_of_blocks_and_threads_does_not_matter(kernel):
    rows = torch.randn(300, 140)
    system = rows.T @ rows, rows.T @ torch.randn(300, 3), torch.tensor([1.0, 2.0], dtype=torch.float64)
    results = [solve(kernel, system, seed=seed)[0] for seed in range(3)]
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))
