from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from phasefast import ops
from phasefast.errors import ArgumentError
from phasefast.ops import reference

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
STEP = {torch.float32: 2**-23, torch.float64: 2**-52, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def buffers(b: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Poisoned rows, and sums that already hold something."""
    rows = torch.full((b, d), torch.nan, dtype=dtype)
    return rows, torch.ones(d, dtype=torch.float64), torch.full((d,), 2.0, dtype=torch.float64)


def pooled(x: Tensor, k: int) -> Tensor:
    """[b, d] float64, bin by bin as adaptive means are defined."""
    x = x.double()
    if not k:
        return x.flatten(1)
    bins = [[slice(i * s // k, -(-(i + 1) * s // k)) for i in range(k)] for s in x.shape[2:]]
    means = [x[(slice(None), slice(None), *cut)].flatten(2).mean(2) for cut in itertools.product(*bins)]
    return torch.stack(means, 2).flatten(1)


def layouts(shape: tuple[int, ...]) -> dict[str, Tensor]:
    """One random activation in several memory layouts."""
    x = torch.randn(shape)
    order = torch.randperm(len(shape)).tolist()
    out = {
        "contiguous": x,
        "permuted": x.permute(order).contiguous().permute([order.index(i) for i in range(len(shape))]),
        "sliced": torch.randn([2 * s for s in shape])[tuple(slice(1, 2 * s, 2) for s in shape)],
        "reversed": x.permute(tuple(reversed(range(len(shape)))))
        .contiguous()
        .permute(tuple(reversed(range(len(shape))))),
        "expanded": torch.randn(1, *shape[1:]).expand(shape),
    }
    if len(shape) == 4:
        out["channels_last"] = x.to(memory_format=torch.channels_last)
    if len(shape) == 5:
        out["channels_last_3d"] = x.to(memory_format=torch.channels_last_3d)
    return out


SHAPES = [
    (1, 1),
    (7, 33),
    (130, 17),
    (3, 2100),
    (6, 5, 9),
    (9, 70, 6, 5),
    (4, 33, 17, 19),
    (3, 4, 5, 6, 7),
    (2, 3, 2, 2, 3, 2),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64_for_any_layout_and_pool(impl, shape):
    for name, x in layouts(shape).items():
        for pool in (0, 1, 2, 3) if 3 <= len(shape) <= 5 else (0,):
            expected = pooled(x, pool)
            shift = torch.randn(expected.shape[1])
            rows, sums, squares = buffers(*expected.shape)
            impl.capture([x], [shift], [pool], [rows], [sums], [squares])
            expected = expected - shift.double()
            torch.testing.assert_close(rows.double(), expected, rtol=1e-6, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
            torch.testing.assert_close(sums, 1 + rows.double().sum(0), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(squares, 2 + rows.double().square().sum(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("source", FLOATS, ids=str)
@pytest.mark.parametrize("stored", FLOATS, ids=str)
def test_every_pair_of_dtypes(impl, source, stored):
    for shape, pool in (((37, 300), 0), ((5, 24, 6, 7), 0), ((5, 24, 6, 7), 2)):
        x = (100 * torch.randn(shape)).to(source)
        x = x.to(memory_format=torch.channels_last) if pool else x
        expected = pooled(x, pool)
        shift = torch.randn(expected.shape[1])
        rows, sums, squares = buffers(*expected.shape, stored)
        impl.capture([x], [shift], [pool], [rows], [sums], [squares])
        step = max(STEP[stored], 0 if source == torch.float64 else STEP[torch.float32])
        error = (rows.double() - (expected - shift.double())).abs()
        assert (error <= step * (2 * pooled(x.abs(), pool) + shift.abs().double() + 1e-2)).all()
        torch.testing.assert_close(sums, 1 + rows.double().sum(0), rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(squares, 2 + rows.double().square().sum(0), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_rounding_is_that_of_torch_bit_by_bit(dtype):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    every = bits.view(dtype)[None]
    wide = torch.randint(-(2**31), 2**31 - 1, (1, 20000), dtype=torch.int64).to(torch.int32).view(torch.float32)
    ties = every.float().view(torch.int32).add(1 << (15 if dtype == torch.bfloat16 else 12)).view(torch.float32)
    for x, stored in ((every, torch.float32), (wide, dtype), (ties, dtype), (torch.randn(1, 9999) * 1e-7, dtype)):
        rows, sums, squares = buffers(*x.shape, stored)
        ops.capture([x], [torch.zeros(x.shape[1])], [0], [rows], [sums], [squares])
        expected = x.to(stored)
        assert torch.equal(rows.isnan(), expected.isnan())
        assert torch.equal(rows.nan_to_num(0.5), expected.nan_to_num(0.5))


def test_bits_do_not_depend_on_threads_or_repeats():
    xs = [
        torch.randn(300, 700),
        torch.randn(60, 40, 9, 9),
        torch.randn(60, 40, 9, 9).to(memory_format=torch.channels_last),
    ]
    pools = [0, 2, 0]
    results = []
    for threads in (1, 2, 2, 1):
        torch.set_num_threads(threads)
        widths = [pooled(x[:1], pool).shape[1] for x, pool in zip(xs, pools)]
        out = [buffers(x.shape[0], width) for x, width in zip(xs, widths)]
        ops.capture(xs, [torch.full((w,), 0.1) for w in widths], pools, *map(list, zip(*out)))
        results.append([tensor for cell in out for tensor in cell])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 3, 4, 4)], ids=str)
def test_empty_batches_and_features(impl, shape):
    width = torch.Size(shape[1:]).numel()
    rows, sums, squares = buffers(shape[0], width)
    impl.capture([torch.empty(shape)], [torch.zeros(width)], [0], [rows], [sums], [squares])
    assert (sums == 1).all()
    assert (squares == 2).all()


def test_no_cells(impl):
    impl.capture([], [], [], [], [], [])


def test_activation_that_requires_grad():
    x = torch.randn(5, 3, requires_grad=True)
    rows, sums, squares = buffers(5, 3)
    ops.capture([x], [torch.zeros(3)], [0], [rows], [sums], [squares])
    assert torch.equal(rows, x.detach())


def arguments() -> dict[str, list]:
    rows, sums, squares = buffers(4, 12)
    return {
        "activations": [torch.randn(4, 3, 2, 2)],
        "shifts": [torch.zeros(12)],
        "pools": [0],
        "rows": [rows],
        "sums": [sums],
        "squares": [squares],
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("activations", torch.randn(4), r"activations\[0\] has shape \[4\]"),
        ("activations", torch.ones(4, 12, dtype=torch.int32), r"activations\[0\] has dtype"),
        ("shifts", torch.zeros(11), r"shifts\[0\] has shape \[11\], expected \[12\]"),
        ("shifts", torch.zeros(12, dtype=torch.float64), r"shifts\[0\] has dtype"),
        ("pools", 7, r"shifts\[0\] has shape \[12\], expected \[147\]"),
        ("pools", -1, r"pools\[0\] is -1"),
        ("rows", torch.zeros(3, 12), r"rows\[0\] has shape \[3, 12\], expected \[4, 12\]"),
        ("rows", torch.zeros(12, 4).T, r"rows\[0\]"),
        ("sums", torch.zeros(12), r"sums\[0\] has dtype"),
        ("squares", torch.zeros(24, dtype=torch.float64)[::2], r"squares\[0\] has strides"),
    ],
)
def test_bad_arguments_are_named(monkeypatch, name, value, message):
    for use_reference in (False, True):
        if use_reference:
            monkeypatch.setattr("phasefast.ops._extension.compiled", lambda op: None)
        given = arguments() | {name: [value]}
        with pytest.raises(ArgumentError, match=message):
            ops.capture(**given)
        if name != "rows":
            assert given["rows"][0].isnan().all(), "written before the refusal"


def test_lists_of_different_lengths():
    with pytest.raises(ArgumentError, match="shifts has 0 entries, expected 1"):
        ops.capture(**(arguments() | {"shifts": []}))


def test_pooling_needs_space():
    given = arguments() | {"activations": [torch.randn(4, 12)], "pools": [2]}
    with pytest.raises(ArgumentError, match=r"activations\[0\] has shape \[4, 12\], expected 3 to 5 dimensions"):
        ops.capture(**given)


def test_agrees_with_the_reference_on_non_finite_values():
    x = torch.randn(6, 4)
    x[1, 2], x[3, 0] = torch.nan, torch.inf
    results = []
    for implementation in (ops, reference):
        out = buffers(6, 4)
        implementation.capture([x], [torch.ones(4)], [0], *([tensor] for tensor in out))
        results.append(out)
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, equal_nan=True)
