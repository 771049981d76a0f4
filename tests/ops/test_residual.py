from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from phasefast import ops
from phasefast.errors import ArgumentError
from phasefast.ops import reference

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def outputs(k: int, m: int, cells: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    """Poisoned errors and hits."""
    return [torch.full((k, m), torch.nan, dtype=torch.float64) for _ in range(cells)], [
        torch.ones(k, m, dtype=torch.bool) for _ in range(cells)
    ]


def assert_scored(rows, weight, offset, targets, blocks, classes, error, hit) -> None:
    """Against float64; a hit may differ only where the two largest predictions are as good as equal."""
    prediction = rows.double() @ weight.double() + offset.double()
    magnitude = rows.double().abs() @ weight.double().abs() + offset.double().abs()
    step = 1e-13 if weight.dtype == rows.dtype == torch.float64 else 1e-5
    for j, (start, stop) in enumerate(pairwise(blocks)):
        guess, truth = prediction[:, start:stop], targets[:, start:stop].double()
        miss = guess - truth
        slack = step * (magnitude[:, start:stop] + truth.abs())
        bound = (2 * miss.abs() * slack + slack**2).sum(1) + 1e-13 * miss.square().sum(1)
        assert ((error[j] - miss.square().sum(1)).abs() <= bound).all()
        if not classes[j]:
            assert not hit[j].any()
            continue
        top = guess.topk(min(2, stop - start), 1).values
        clear = (
            top[:, 0] - top[:, -1] > 2 * slack.amax(1) if stop - start > 1 else torch.ones(len(rows), dtype=torch.bool)
        )
        assert clear.float().mean() > 0.9
        assert torch.equal(hit[j][clear], (guess.argmax(1) == truth.argmax(1))[clear])


@pytest.mark.parametrize("rows_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("other", [torch.float32, torch.float64], ids=str)
def test_matches_float64(impl, rows_dtype, dtype, other):
    cases = [
        (1, 1, [0, 1], [True]),
        (33, 7, [0, 5, 15], [False, True]),
        (70, 20, [0, 600, 600, 1100, 1103], [False, False, True, True]),
    ]
    for m, d, blocks, classes in cases:
        p = blocks[-1]
        rows, weight = torch.randn(m, d).to(rows_dtype), torch.randn(d, p, dtype=dtype)
        offset, targets = torch.randn(p, dtype=other), torch.randn(m, p, dtype=other)
        errors, hits = outputs(len(classes), m)
        impl.residual([rows], [weight], [offset], targets, blocks, classes, errors, hits)
        assert_scored(rows, weight, offset, targets, blocks, classes, errors[0], hits[0])


def test_many_rows_ragged_cells_and_columns_left_out(impl):
    m, p = 1111, 90
    targets = torch.randn(m, p)
    blocks, classes = [7, 20, 60, 83], [True, False, True]
    rows = [torch.randn(m, d) for d in (3, 140, 1)]
    weights = [torch.randn(row.shape[1], p) for row in rows]
    offsets = [torch.randn(p) for _ in rows]
    for tensor in (*weights, *offsets):
        tensor[..., :7] = torch.nan  # columns that belong to no block are not looked at
    errors, hits = outputs(3, m, 3)
    impl.residual(rows, weights, offsets, targets, blocks, classes, errors, hits)
    for cell in zip(rows, weights, offsets, errors, hits):
        assert_scored(cell[0], cell[1].nan_to_num(), cell[2].nan_to_num(), targets, blocks, classes, cell[3], cell[4])


def test_strides(impl):
    m, d, p = 40, 9, 30
    for rows in (torch.randn(d, m).T, torch.randn(m, 2 * d)[:, ::2], torch.randn(1, d).expand(m, d)):
        for weight in (torch.randn(p, d).T, torch.randn(d, 2 * p)[:, ::2]):
            targets, offset = torch.randn(p, m).T, torch.randn(2 * p)[::2]
            errors, hits = (
                torch.full((2, m + 5), torch.nan, dtype=torch.float64),
                torch.ones(2, m + 5, dtype=torch.bool),
            )
            part = (slice(None), slice(5, None))
            impl.residual([rows], [weight], [offset], targets, [0, 10, p], [True, False], [errors[part]], [hits[part]])
            assert_scored(rows, weight, offset, targets, [0, 10, p], [True, False], errors[part], hits[part])
            assert errors[:, :5].isnan().all()
            assert hits[:, :5].all()


def test_first_of_equal_maxima_wins(impl):
    rows = torch.ones(4, 1)
    weight = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    targets = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0], [0, 5, 5, 0], [5, 5, 0, 0]])
    errors, hits = outputs(1, 4)
    impl.residual([rows], [weight], [torch.zeros(4)], targets, [0, 4], [True], errors, hits)
    assert hits[0].tolist() == [[True, False, True, False]]


@pytest.mark.parametrize("where", ["rows", "targets"])
def test_nan_is_an_error_and_never_a_hit(impl, where):
    rows, targets = torch.eye(3), torch.eye(3)
    {"rows": rows, "targets": targets}[where][0, 0] = torch.nan
    errors, hits = outputs(1, 3)
    impl.residual([rows], [torch.eye(3)], [torch.zeros(3)], targets, [0, 3], [True], errors, hits)
    assert hits[0].tolist() == [[False, True, True]]
    assert errors[0].isnan().tolist() == [[True, False, False]]


def test_infinite_prediction(impl):
    rows = torch.tensor([[torch.inf], [-torch.inf]])
    errors, hits = outputs(1, 2)
    impl.residual(
        [rows],
        [torch.tensor([[1.0, 2.0]])],
        [torch.zeros(2)],
        torch.tensor([[1.0, 0], [1, 0]]),
        [0, 2],
        [True],
        errors,
        hits,
    )
    assert (errors[0] == torch.inf).all()
    assert hits[0].tolist() == [[True, True]]


def test_empty(impl):
    impl.residual([], [], [], torch.zeros(3, 2), [0, 2], [False], [], [])
    errors, hits = outputs(1, 0)
    impl.residual(
        [torch.zeros(0, 4)], [torch.zeros(4, 2)], [torch.zeros(2)], torch.zeros(0, 2), [0, 2], [False], errors, hits
    )
    errors, hits = outputs(1, 3)
    impl.residual(
        [torch.zeros(3, 0)], [torch.zeros(0, 2)], [torch.ones(2)], torch.zeros(3, 2), [0, 2], [False], errors, hits
    )
    assert errors[0].tolist() == [[2.0, 2.0, 2.0]]
    errors, hits = outputs(0, 3)
    impl.residual([torch.zeros(3, 1)], [torch.zeros(1, 2)], [torch.ones(2)], torch.zeros(3, 2), [0], [], errors, hits)


def test_the_reference_takes_some_rows_at_a_time(monkeypatch):
    given = [torch.randn(90, 8)], [torch.randn(8, 7)], [torch.randn(7)], torch.randn(90, 7), [0, 4, 7], [False, True]
    found = []
    for at_once in (1 << 25, 100):
        monkeypatch.setattr(reference, "_AT_ONCE", at_once)
        errors, hits = outputs(2, 90)
        reference.residual(*given, errors, hits)
        found.append((errors[0], hits[0]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=0)
    assert torch.equal(found[0][1], found[1][1])


def test_repeats_are_bit_identical_and_agree_with_the_reference():
    rows, weight, offset, targets = torch.randn(900, 64), torch.randn(64, 700), torch.randn(700), torch.randn(900, 700)
    results = []
    for implementation in (ops, ops, reference):
        errors, hits = outputs(2, 900)
        implementation.residual([rows], [weight], [offset], targets, [0, 600, 700], [False, True], errors, hits)
        results.append((errors[0], hits[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][0], results[2][0], rtol=1e-5, atol=0)
    assert (results[0][1] == results[2][1]).float().mean() > 0.999


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rows", [torch.zeros(4, 3)], r"rows\[0\] has shape \[4, 3\], expected \[5,"),
        ("weights", [torch.zeros(3, 7)], r"weights\[0\] has shape \[3, 7\], expected \[3, 6\]"),
        ("weights", [torch.zeros(3, 6).half()], r"weights\[0\] has dtype"),
        ("offsets", [torch.zeros(5)], r"offsets\[0\] has shape \[5\], expected \[6\]"),
        ("targets", torch.zeros(5, 6).bfloat16(), "targets has dtype"),
        ("blocks", [0, 2], "blocks has 2 entries, expected 3"),
        ("blocks", [0, 4, 2], r"blocks is \[0, 4, 2\]"),
        ("blocks", [0, 4, 7], r"blocks is \[0, 4, 7\], expected edges that ascend from 0 to at most 6"),
        ("blocks", [-1, 4, 6], r"blocks is \[-1, 4, 6\]"),
        ("blocks", [0, 6, 6], r"blocks\[1\] holds classes but no column"),
        ("errors", [torch.zeros(2, 5)], r"errors\[0\] has dtype"),
        ("errors", [torch.zeros(5, 2, dtype=torch.float64).T], r"errors\[0\] has strides"),
        ("hits", [torch.zeros(2, 5)], r"hits\[0\] has dtype"),
        ("hits", [], "hits has 0 entries, expected 1"),
    ],
)
def test_bad_arguments_are_named(monkeypatch, name, value, message):
    errors, hits = outputs(2, 5)
    given = {
        "rows": [torch.zeros(5, 3)],
        "weights": [torch.zeros(3, 6)],
        "offsets": [torch.zeros(6)],
        "targets": torch.zeros(5, 6),
        "blocks": [0, 4, 6],
        "classes": [False, True],
        "errors": errors,
        "hits": hits,
    }
    given[name] = value
    with pytest.raises(ArgumentError, match=message):
        ops.residual(**given)
    monkeypatch.setattr("phasefast.ops._extension.compiled", lambda op: None)
    with pytest.raises(ArgumentError, match=message):
        ops.residual(**given)
