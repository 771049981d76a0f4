from __future__ import annotations

import pytest
import torch
from torch import Tensor

from phasefast import ops
from phasefast.errors import ArgumentError
from phasefast.ops import reference

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def system(d: int, p: int, dtype: torch.dtype, n: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """A Gram matrix [d, d] with columns of very different scale, its lower triangle over NaN, and a cross [d, p]."""
    rows = torch.randn(n or 3 * d + 5, d, dtype=torch.float64) * torch.logspace(-3, 3, d, dtype=torch.float64)
    gram = (rows.T @ rows).to(dtype)
    lower = gram.tril() + torch.triu(torch.full_like(gram, torch.nan), 1)
    return gram, lower, (rows.T @ torch.randn(len(rows), p, dtype=torch.float64)).to(dtype)


def outputs(cells: list[tuple[int, int]], steps: int, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Poisoned weights, factors and info."""
    weights = [torch.full((steps, d, p), 7.0, dtype=dtype) for d, p in cells]
    factors = [torch.full((steps, d, d), 7.0, dtype=dtype) for d, _ in cells]
    return weights, factors, torch.full((len(cells), steps), -7, dtype=torch.int32)


def assert_solved(gram: Tensor, cross: Tensor, penalty: float, weight: Tensor, factor: Tensor | None) -> None:
    """Small backward error of the scaled normal equations, and factor factor' = gram + penalty I."""
    matrix = gram.double() + penalty * torch.eye(len(gram), dtype=torch.float64)
    root = matrix.diagonal().sqrt()
    step = 2e-6 if weight.dtype == torch.float32 else 1e-14
    scaled, solution = matrix / root[:, None] / root[None, :], weight.double() * root[:, None]
    miss = (scaled @ solution - cross.double() / root[:, None]).norm()
    assert miss <= step * len(gram) ** 0.5 * scaled.norm() * solution.norm()
    if factor is not None:
        back = factor.double() @ factor.double().T / root[:, None] / root[None, :]
        assert (back - scaled).norm() <= step * len(gram) ** 0.5 * scaled.norm()
        assert torch.equal(factor, factor.tril())


@BOTH
@pytest.mark.parametrize(
    ("d", "p"), [(1, 1), (2, 5), (8, 16), (17, 33), (127, 3), (128, 300), (129, 7), (300, 1), (390, 521), (780, 20)]
)
def test_solves_along_a_path(impl, d, p, dtype):
    gram, lower, cross = system(d, p, dtype)
    path = torch.tensor([0.0, 1e-2, 1e5], dtype=torch.float64)
    weights, factors, info = outputs([(d, p)], 3, dtype)
    impl.ridge_solve([lower], [cross], [path], weights, factors, info)
    assert (info == 0).all()
    for step, penalty in enumerate(path.tolist()):
        assert_solved(gram, cross, penalty, weights[0][step], factors[0][step])


@BOTH
@pytest.mark.parametrize("d", [1, 130, 300])
def test_factors_in_rows_that_are_apart(impl, dtype, d):
    gram, lower, cross = system(d, 3, dtype)
    weights, _, info = outputs([(d, 3)], 1, dtype)
    wide = torch.full((1, d, d + 16), torch.nan, dtype=dtype)
    impl.ridge_solve([lower], [cross], [torch.ones(1, dtype=torch.float64)], weights, [wide[:, :, :d]], info)
    assert (info == 0).all()
    assert_solved(gram, cross, 1.0, weights[0][0], wide[0, :, :d])
    assert wide[:, :, d:].isnan().all()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 4])
def test_systems_of_any_size_on_any_number_of_threads(threads, steps):
    """Small ones go straight from registers, by one thread each; how large these may be depends on the others."""
    torch.set_num_threads(threads)
    path = torch.logspace(-1, 1, steps, dtype=torch.float64)
    for d, p in [
        *((int(d), int(p)) for d, p in zip(torch.randint(1, 200, (12,)), torch.randint(1, 80, (12,)))),
        (900, 40),
    ]:
        gram, lower, cross = system(d, p, torch.float32)
        weights, factors, info = outputs([(d, p)], steps, torch.float32)
        ops.ridge_solve([lower], [cross], [path], weights, factors, info)
        assert (info == 0).all()
        for step, penalty in enumerate(path.tolist()):
            assert_solved(gram, cross, penalty, weights[0][step], factors[0][step])


@BOTH
def test_ragged_cells_without_factors(impl, dtype):
    sizes = [(5, 4), (200, 9), (1, 2), (0, 3), (6, 0)]
    systems = [system(d, p, dtype) for d, p in sizes]
    weights, _, info = outputs(sizes, 2, dtype)
    paths = [torch.tensor([1.0, float(i)], dtype=torch.float64) for i in range(5)]
    impl.ridge_solve([s[1] for s in systems], [s[2] for s in systems], paths, weights, [], info)
    assert (info == 0).all()
    for (gram, _, cross), path, weight in zip(systems, paths, weights):
        for step, penalty in enumerate(path.tolist()):
            if cross.numel():
                assert_solved(gram, cross, penalty, weight[step], None)


@BOTH
def test_dead_columns_get_zero_weights(impl, dtype):
    gram, lower, cross = system(150, 6, dtype)
    dead = [0, 77, 149]
    for tensor in (gram, lower):
        tensor[dead] = 0
        tensor[:, dead] = 0
    weights, factors, info = outputs([(150, 6)], 1, dtype)
    impl.ridge_solve([lower], [cross], [torch.zeros(1, dtype=torch.float64)], weights, factors, info)
    assert info.item() == 0
    assert (weights[0][0, dead] == 0).all()
    assert (factors[0][0, dead] == torch.eye(150, dtype=dtype)[dead]).all()
    alive = [i for i in range(150) if i not in dead]
    assert_solved(gram[alive][:, alive], cross[alive], 0.0, weights[0][0, alive], None)


@BOTH
@pytest.mark.parametrize("where", [0, 5, 127, 128, 200, 299])
def test_first_bad_minor_is_reported_and_other_cells_are_solved(impl, where, dtype):
    gram, lower, cross = system(300, 4, dtype)
    bad = torch.eye(300, dtype=dtype)
    bad[where, where] = -1.0
    path = torch.tensor([0.0, 3.0], dtype=torch.float64)
    weights, factors, info = outputs([(300, 4)] * 2, 2, dtype)
    impl.ridge_solve([bad, lower], [cross, cross], [path, path], weights, factors, info)
    assert info.tolist() == [[where + 1, 0], [0, 0]]
    assert weights[0][0].isnan().all()
    assert factors[0][0].isnan().all()
    assert_solved(bad, cross, 3.0, weights[0][1], factors[0][1])
    assert_solved(gram, cross, 0.0, weights[1][0], factors[1][0])


def test_rank_deficient_matrix_is_not_solved_silently(impl):
    d = 200
    ones = torch.ones(d, d, dtype=torch.float64)
    weights, _, info = outputs([(d, 2)], 1, torch.float64)
    ones[150, 149] = ones[149, 150] = 2.0
    impl.ridge_solve(
        [ones], [torch.ones(d, 2, dtype=torch.float64)], [torch.zeros(1, dtype=torch.float64)], weights, [], info
    )
    assert info.item() > 0
    assert weights[0].isnan().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_gram_is_reported(impl, value):
    _, lower, cross = system(140, 2, torch.float32)
    lower[130, 130] = value
    weights, _, info = outputs([(140, 2)], 1, torch.float32)
    impl.ridge_solve([lower], [cross], [torch.ones(1, dtype=torch.float64)], weights, [], info)
    assert info.item() == 131
    assert weights[0].isnan().all()


def test_views(impl):
    gram, lower, cross = system(40, 6, torch.float32)
    big = torch.zeros(2, 40, 10)
    info = torch.full((1, 4), -7, dtype=torch.int32)[:, ::2]
    path = torch.tensor([1.0, 9.0, 2.0], dtype=torch.float64)[::2]
    upper_stored = lower.T.contiguous().T
    impl.ridge_solve([upper_stored], [cross.T.contiguous().T], [path], [big[:, :, 2:8]], [], info)
    assert info.tolist() == [[0, 0]]
    for step, penalty in enumerate((1.0, 2.0)):
        assert_solved(gram, cross, penalty, big[step, :, 2:8], None)
    assert (big[:, :, :2] == 0).all()
    assert (big[:, :, 8:] == 0).all()


def test_repeats_are_bit_identical_and_agree_with_the_reference():
    _, lower, cross = system(260, 300, torch.float32)
    path = [torch.ones(1, dtype=torch.float64)]
    results = []
    for implementation in (ops, ops, reference):
        weights, _, info = outputs([(260, 300)], 1, torch.float32)
        implementation.ridge_solve([lower], [cross], path, weights, [], info)
        results.append(weights[0][0])
    assert torch.equal(results[0], results[1])
    assert (results[0] - results[2]).norm() < 1e-4 * results[2].norm()


def test_no_cells(impl):
    impl.ridge_solve([], [], [], [], [], torch.zeros(0, 3, dtype=torch.int32))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("grams", [torch.eye(3)[:2]], r"grams\[0\] has shape \[2, 3\], expected \[2, 2\]"),
        ("grams", [torch.eye(3).half()], r"grams\[0\] has dtype"),
        ("crosses", [torch.ones(3, 2, dtype=torch.float64)], r"crosses\[0\] has dtype"),
        ("crosses", [torch.ones(4, 2)], r"crosses\[0\] has shape \[4, 2\], expected \[3,"),
        ("penalties", [torch.ones(1)], r"penalties\[0\] has dtype"),
        ("penalties", [torch.ones(2, dtype=torch.float64)], r"penalties\[0\] has shape \[2\], expected \[1\]"),
        ("weights", [torch.ones(3, 2)], r"weights\[0\] has shape \[3, 2\], expected \[1, 3, 2\]"),
        ("weights", [torch.ones(1, 2, 3).mT], r"weights\[0\] has strides"),
        ("weights", [], "weights has 0 entries, expected 1"),
        ("factors", [torch.ones(1, 3, 2)], r"factors\[0\] has shape \[1, 3, 2\], expected \[1, 3, 3\]"),
        ("info", torch.ones(1, 1), "info has dtype"),
        ("info", torch.ones(2, 1, dtype=torch.int32), r"info has shape \[2, 1\], expected \[1,"),
    ],
)
def test_bad_arguments_are_named(monkeypatch, name, value, message):
    given = {
        "grams": [torch.eye(3)],
        "crosses": [torch.ones(3, 2)],
        "penalties": [torch.ones(1, dtype=torch.float64)],
        "weights": [torch.zeros(1, 3, 2)],
        "factors": [],
        "info": torch.zeros(1, 1, dtype=torch.int32),
    }
    given[name] = value
    with pytest.raises(ArgumentError, match=message):
        ops.ridge_solve(**given)
    monkeypatch.setattr("phasefast.ops._extension.compiled", lambda op: None)
    with pytest.raises(ArgumentError, match=message):
        ops.ridge_solve(**given)
