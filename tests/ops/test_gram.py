from __future__ import annotations

import pytest
import torch
from torch import Tensor

from phasefast import ops
from phasefast.errors import ArgumentError
from phasefast.ops import reference

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def accumulators(d: int, p: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Accumulators that hold something; the strict upper triangle of the gram holds NaN."""
    gram = torch.tril(torch.randn(d, d, dtype=dtype)) + torch.triu(torch.full((d, d), torch.nan, dtype=dtype), 1)
    return gram, torch.randn(d, p, dtype=dtype)


def assert_sums(rows: Tensor, targets: Tensor, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> None:
    """after = before + products, to the accuracy of the narrower of product and accumulator."""
    wide, aim = rows.double(), targets.double()
    if rows.dtype != torch.float64:
        aim = targets.float().double()
    double = rows.dtype == torch.float64 and before[0].dtype == torch.float64
    step = 1e-14 if double else 2e-6
    for got, start, left, right in zip(after, before, (wide, wide), (wide, aim)):
        expected = start.double() + left.T @ right
        scale = start.double().abs().nan_to_num(0) + left.abs().T @ right.abs()
        lower = torch.ones_like(expected, dtype=torch.bool)
        if got is after[0]:
            lower = lower.tril()
        assert ((got.double() - expected).abs() <= step * (scale + 1e-30))[lower].all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("accumulator", [torch.float32, torch.float64], ids=str)
def test_matches_float64(impl, dtype, accumulator):
    for n, d, p in ((1, 1, 1), (50, 3, 7), (37, 130, 5), (200, 257, 600), (64, 600, 3)):
        rows = torch.randn(n, d).relu().to(dtype)
        targets = torch.randn(n, p)
        before = accumulators(d, p, accumulator)
        after = tuple(tensor.clone() for tensor in before)
        impl.gram([rows], targets, [after[0]], [after[1]])
        assert_sums(rows, targets, before, after)


def test_many_cells_of_different_width_against_the_same_targets(impl):
    targets = torch.randn(90, 11)
    rows = [torch.randn(90, d) for d in (1, 40, 300, 0)]
    before = [accumulators(row.shape[1], 11, torch.float64) for row in rows]
    after = [tuple(tensor.clone() for tensor in pair) for pair in before]
    impl.gram(rows, targets, [pair[0] for pair in after], [pair[1] for pair in after])
    for row, start, end in zip(rows, before, after):
        assert_sums(row, targets, start, end)


@pytest.mark.parametrize("targets_dtype", [torch.float32, torch.float64], ids=str)
def test_strides_and_views(impl, targets_dtype):
    n, d, p = 70, 45, 13
    wide = torch.zeros(d, 3 * p, dtype=torch.float64)
    for rows in (
        torch.randn(d, n).T,
        torch.randn(n, 2 * d)[:, ::2],
        torch.randn(1, d).expand(n, d),
        torch.randn(2 * n, d)[::2],
    ):
        for targets in (torch.randn(p, n, dtype=targets_dtype).T, torch.randn(n, 2 * p, dtype=targets_dtype)[:, ::2]):
            for source in (rows, rows.bfloat16()):
                gram, cross = accumulators(d, p, torch.float64)
                part = wide[:, p : 2 * p].copy_(cross)
                before = (gram.clone(), cross.clone())
                impl.gram([source], targets, [gram], [part])
                assert_sums(source, targets, before, (gram, part))
                assert (wide[:, :p] == 0).all()
                assert (wide[:, 2 * p :] == 0).all()


@pytest.mark.parametrize(("d", "p"), [(256, 2065), (257, 1), (2064, 2064), (2065, 4130), (2400, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_more_columns_than_one_product_takes(d, p, dtype):
    rows, targets = torch.randn(11, d, dtype=dtype), torch.randn(11, p)
    gram, cross = accumulators(d, p, torch.float64)
    before = (gram.clone(), cross.clone())
    ops.gram([rows], targets, [gram], [cross])
    assert_sums(rows, targets, before, (gram, cross))


def test_every_4096_rows_are_promoted():
    n = 10_000
    rows, targets = torch.randn(n, 5), torch.randn(n, 2)
    whole, parts = ([torch.zeros(5, 5, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.float64)] for _ in range(2))
    ops.gram([rows], targets, [whole[0]], [whole[1]])
    for start in range(0, n, 4096):
        ops.gram([rows[start : start + 4096]], targets[start : start + 4096], [parts[0]], [parts[1]])
    assert torch.equal(whole[0].tril(), parts[0].tril())
    assert torch.equal(whole[1], parts[1])


def test_chunks_add_up_to_the_whole(impl):
    rows, targets = torch.randn(4500, 20), torch.randn(4500, 6)
    whole, parts = accumulators(20, 6, torch.float64), accumulators(20, 6, torch.float64)
    for tensor in (*whole, *parts):
        tensor.zero_()
    impl.gram([rows], targets, [whole[0]], [whole[1]])
    for start in (0, 1000, 3000):
        part = slice(start, {0: 1000, 1000: 3000, 3000: 4500}[start])
        impl.gram([rows[part]], targets[part], [parts[0]], [parts[1]])
    torch.testing.assert_close(whole[0].tril(), parts[0].tril(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(whole[1], parts[1], rtol=1e-5, atol=1e-3)


def test_cross_products_alone(impl):
    rows, targets = [torch.randn(70, 9), torch.randn(70, 2)], torch.randn(70, 600)
    crosses = [torch.ones(9, 600, dtype=torch.float64), torch.ones(2, 600, dtype=torch.float64)]
    impl.gram(rows, targets, [], crosses)
    for row, cross in zip(rows, crosses):
        torch.testing.assert_close(cross, 1 + row.double().T @ targets.double(), rtol=1e-5, atol=1e-4)


def test_repeats_are_bit_identical():
    rows, targets = torch.randn(900, 300), torch.randn(900, 700)
    results = []
    for _ in range(3):
        gram, cross = torch.zeros(300, 300), torch.zeros(300, 700)
        ops.gram([rows], targets, [gram], [cross])
        results.append((gram.tril(), cross))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


def test_agrees_with_the_reference():
    rows, targets = torch.randn(500, 260), torch.randn(500, 30)
    results = []
    for implementation in (ops, reference):
        gram, cross = torch.zeros(260, 260, dtype=torch.float64), torch.zeros(260, 30, dtype=torch.float64)
        implementation.gram([rows], targets, [gram], [cross])
        results.append((gram.tril(), cross))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_empty(impl):
    impl.gram([], torch.zeros(5, 2), [], [])
    gram, cross = torch.ones(3, 3), torch.ones(3, 2)
    impl.gram([torch.zeros(0, 3)], torch.zeros(0, 2), [gram], [cross])
    assert (gram.tril() == torch.ones(3, 3).tril()).all()
    assert (cross == 1).all()
    impl.gram([torch.ones(4, 3)], torch.zeros(4, 0), [gram], [torch.zeros(3, 0)])
    assert (gram.tril() == 5 * torch.ones(3, 3).tril()).all()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rows", [torch.zeros(4, 3)], r"rows\[0\] has shape \[4, 3\], expected \[5,"),
        ("rows", [torch.zeros(5)], r"rows\[0\] has shape \[5\]"),
        ("rows", [torch.zeros(5, 3, dtype=torch.int64)], r"rows\[0\] has dtype"),
        ("targets", torch.zeros(5, 2).half(), "targets has dtype"),
        ("targets", torch.zeros(5), r"targets has shape \[5\]"),
        ("grams", [torch.zeros(3, 4)], r"grams\[0\] has shape \[3, 4\], expected \[3, 3\]"),
        ("grams", [torch.zeros(3, 3).bfloat16()], r"grams\[0\] has dtype"),
        ("grams", [torch.zeros(3, 6)[:, ::2]], r"grams\[0\] has strides"),
        ("grams", [torch.zeros(3, 3)] * 2, "grams has 2 entries, expected 1"),
        ("crosses", [torch.zeros(2, 3).T], r"crosses\[0\] has strides"),
        ("crosses", [torch.zeros(3, 1)], r"crosses\[0\] has shape \[3, 1\], expected \[3, 2\]"),
        ("crosses", [torch.zeros(1, 2).expand(3, 2)], r"crosses\[0\] has strides"),
    ],
)
def test_bad_arguments_are_named(monkeypatch, name, value, message):
    given = {
        "rows": [torch.ones(5, 3)],
        "targets": torch.ones(5, 2),
        "grams": [torch.zeros(3, 3)],
        "crosses": [torch.zeros(3, 2)],
    }
    given[name] = value
    with pytest.raises(ArgumentError, match=message):
        ops.gram(**given)
    monkeypatch.setattr("phasefast.ops._extension.compiled", lambda op: None)
    with pytest.raises(ArgumentError, match=message):
        ops.gram(**given)
    if name == "crosses":
        assert (given["grams"][0] == 0).all()
