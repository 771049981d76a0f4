"""Storage, sums in float64 and triangular factors, against plain torch in float64."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from phasefast import ops
from phasefast.algebra.dense import (
    Factor,
    aligned_empty,
    converted_rows,
    empty,
    inner,
    invert_lower,
    left_product,
    product,
    row_chunk,
    substitute,
    wide_rows,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("rows", "cols"), [(0, 5), (3, 0), (1, 1), (7, 130), (5, 1024), (33, 8192), (3000, 3000)])
def test_rows_are_aligned_and_not_pages_apart(rows: int, cols: int, dtype: torch.dtype) -> None:
    matrix = aligned_empty(rows, cols, dtype, CPU)
    assert matrix.shape == (rows, cols)
    assert matrix.dtype == dtype
    step = matrix.stride(0) * dtype.itemsize
    assert step % 64 == 0
    assert cols == 0 or step % 4096
    assert matrix.stride(0) >= cols
    matrix.fill_(1)
    assert float(matrix.double().sum()) == rows * cols


def test_large_storage_lives_as_long_as_its_last_view() -> None:
    whole = empty((3, 1 << 21), torch.float32, CPU)
    assert whole.untyped_storage().nbytes() == 3 << 23
    part = whole.zero_()[1:, 7:]
    part += 1
    del whole
    gc.collect()
    others = [empty((3, 1 << 21), torch.float32, CPU).fill_(9) for _ in range(3)]
    assert bool((part == 1).all())
    assert all(bool((other == 9).all()) for other in others)


@pytest.mark.parametrize("rows", [0, 1, 40, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_in_float64(rows: int, dtype: torch.dtype) -> None:
    a, b = torch.randn(rows, 900).to(dtype), torch.randn(rows, 2 * 900).to(dtype)[:, ::2]
    right, left = torch.randn(900, 3, dtype=torch.float64), torch.randn(2, rows, dtype=torch.float64)
    close = {"rtol": 1e-12, "atol": 1e-10}
    assert float(inner(a, b)) == pytest.approx(float((a.double() * b.double()).sum()), rel=1e-9, abs=1e-9)
    torch.testing.assert_close(product(b, right), b.double() @ right, **close)
    torch.testing.assert_close(left_product(left, b), left @ b.double(), **close)
    seen = torch.full((rows, 900), torch.nan, dtype=torch.float64)
    for place, some in wide_rows(b, 7):
        seen[place] = some
    assert torch.equal(seen, b.double())


def test_few_rows_at_a_time_where_what_is_beside_them_is_wide() -> None:
    matrix = torch.randn(5000, 4)
    parts = [place.stop - place.start for place, _ in wide_rows(matrix, 1 << 16)]
    assert sum(parts) == 5000
    assert max(parts) * (1 << 16) * 8 <= 1 << 26
    assert [place for place, _ in wide_rows(matrix, 64)] == [slice(0, 5000)]


@pytest.mark.parametrize("rows", [0, 1, 5000, 8192])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_converted_some_at_a_time_or_all_taken_where_none_is(rows: int, dtype: torch.dtype) -> None:
    matrices = [torch.randn(rows, 3), torch.randn(rows, 2)]
    sizes = []
    for place, some in converted_rows(matrices, dtype):
        sizes.append(place.stop - place.start)
        for matrix, part in zip(matrices, some, strict=True):
            assert part.dtype == dtype
            assert torch.equal(part, matrix[place].to(dtype))
    assert max(sizes, default=0) == (rows if dtype == torch.float32 else min(rows, 4096))
    assert sum(sizes) == rows
    wide = torch.zeros(4096, 1 << 16, dtype=torch.bfloat16)
    assert max(len(part) for _, (part,) in converted_rows([wide], dtype)) == 512
    assert all(len(part) <= 100 for _, (part, _) in converted_rows(matrices, dtype, 100))
    mixed = [matrices[0], matrices[1].double()]
    assert all(len(part) <= 4096 for _, (part, _) in converted_rows(mixed, torch.float32))


def test_wide_matrices_are_still_taken_many_rows_at_a_time() -> None:
    assert row_chunk(1 << 30, CPU) == 16
    assert row_chunk(0, CPU) > 16


@pytest.mark.parametrize("d", [1, 7, 255, 256, 257, 700, 1100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [13, 300])
def test_triangular_factors(d: int, dtype: torch.dtype, columns: int) -> None:
    a = torch.randn(2 * d + 5, d, dtype=torch.float64)
    factor = torch.linalg.cholesky(a.mT @ a + torch.eye(d)).to(dtype)
    rhs = torch.randn(d, columns, dtype=torch.float64)
    before = rhs.clone()
    half = torch.linalg.solve_triangular(factor.double(), rhs, upper=False)
    expected = torch.cholesky_solve(rhs, factor.double())
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    for given in (rhs, rhs.mT.contiguous().mT):
        found = substitute(factor, given), substitute(factor, given, back=False)
        for own, exact in zip(found, (expected, half), strict=True):
            torch.testing.assert_close(own.double(), exact, rtol=tolerance, atol=tolerance)
    assert torch.equal(rhs, before)
    assert substitute(factor, rhs[:, :0]).shape == (d, 0)
    for stored in (factor.clone(), aligned_empty(d, d, dtype, CPU).copy_(factor)):
        inverse = invert_lower(stored)
        assert inverse.data_ptr() == stored.data_ptr()
        assert float((factor.double() @ inverse.double()).sub(torch.eye(d)).abs().max()) < tolerance
        assert torch.equal(inverse, inverse.tril())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_traces_of_inverses(dtype: torch.dtype) -> None:
    lower = (torch.randn(40, 40, dtype=torch.float64) + 20 * torch.eye(40)).tril()
    inverse = (lower @ lower.mT).inverse()
    expected = torch.stack([inverse.trace(), inverse.square().sum()])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(Factor(lower.to(dtype)).inverse_traces(), expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("columns", [13, 300])
def test_matrices_are_freed_at_once(columns: int) -> None:
    factor, rhs = torch.eye(1100), torch.randn(1100, columns)
    places = [weakref.ref(factor), weakref.ref(rhs)]
    gc.collect()
    gc.disable()
    try:
        substitute(factor, rhs)
        invert_lower(factor)
        del factor, rhs
        assert [place() for place in places] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("d", [1024, 1100, 2048, 3000])
def test_factors_of_a_gpu_that_multiplies_fast(monkeypatch: pytest.MonkeyPatch, d: int) -> None:
    monkeypatch.setattr(ops, "float32_is_fast", lambda device: True)
    a = torch.randn(d + 50, d, dtype=torch.float64)
    matrix = a.mT @ a + torch.eye(d)
    lower = torch.linalg.cholesky(matrix)
    stored = aligned_empty(d, d, torch.float32, CPU).copy_(lower)
    rhs = torch.randn(d, 7, dtype=torch.float64)
    factor = Factor(stored)
    copy = factor.clone()

    def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
        return float((found.double() - expected).norm() / expected.norm()) < 2e-4

    assert close(factor.solve(rhs), torch.cholesky_solve(rhs, lower))
    assert close(factor.halve(rhs), torch.linalg.solve_triangular(lower, rhs, upper=False))
    inverse = matrix.inverse()
    assert close(factor.inverse_traces(), torch.stack([inverse.trace(), inverse.square().sum()]))
    root = factor.inverse_root
    assert root.data_ptr() == stored.data_ptr()
    assert torch.equal(root, root.tril())
    assert close(root, lower.inverse())
    monkeypatch.setattr(ops, "float32_is_fast", lambda device: False)  # an inverse that is there serves anywhere
    assert close(factor.solve(rhs), torch.cholesky_solve(rhs, lower))
    assert close(factor.halve(rhs), torch.linalg.solve_triangular(lower, rhs, upper=False))
    assert close(factor.inverse_traces(), torch.stack([inverse.trace(), inverse.square().sum()]))
    assert close(copy.halve(rhs), torch.linalg.solve_triangular(lower, rhs, upper=False))
    assert torch.equal(factor.clone().inverse_root, root)
