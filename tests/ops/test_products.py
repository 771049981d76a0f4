"""gram and residual at sizes where operands are packed, by each kind of product that there is, against float64."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from phasefast import ops
from phasefast.ops import _extension

ROOT = Path(__file__).parents[2]
SPLIT = 0.6 * 2.0**-17  # standard deviation of what two bfloat16 parts leave out of a product
ROUNDING = 1e-6  # of float32 sums, of the sum of magnitudes
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16

if not _extension.available():
    pytest.skip("the compiled ops are not there", allow_module_level=True)
CHOICE = _extension.build_info()["products"]


def use(kind: str) -> bool:
    """Multiply that way from now on; False where the processor cannot."""
    try:
        importlib.import_module("phasefast._C").use_products(kind)
    except ValueError:
        return False
    return True


KINDS = [kind for kind in ("blas", "avx2", "avx512", "amx") if use(kind)]
use(CHOICE)


@pytest.fixture(params=[kind for kind in KINDS if kind != "blas"], autouse=True)
def kind(request):
    assert use(request.param)
    yield request.param
    use(CHOICE)


def slack(left: Tensor, right: Tensor, *, alike: bool = False) -> Tensor:
    """Bound on the error of left @ right: float32's own rounding, and of two parts six standard deviations.

    Args:
        alike: the sum is of the same numbers again and again, whose errors add up.
    """
    spread = (left.double().square() @ right.double().square()).sqrt()
    magnitude = left.double().abs() @ right.double().abs()
    lost = SPLIT if _extension.build_info()["products"] == "amx" else 0.0
    rounding = 256 * 2.0**-25 if alike else ROUNDING  # of a span, all to the same side
    return 6 * lost * (magnitude if alike else spread) + rounding * magnitude


def check_gram(rows: Tensor, targets: Tensor, accumulator: torch.dtype = F64) -> None:
    """Both sums against float64; nothing around the accumulators is touched."""
    d, p = rows.shape[1], targets.shape[1]
    frames = [torch.full((d + 2, size + 5), 3.0, dtype=accumulator) for size in (d, p)]
    gram, cross = (frame[1:-1, 2:-3] for frame in frames)
    gram.copy_(torch.ones(d, d).tril() + torch.full((d, d), torch.nan).triu(1))
    ops.gram([rows], targets, [gram], [cross])
    wide, aim = rows.double(), targets.to(BF16 if targets.dtype == BF16 else F32).double()
    floor = 1e-6 if accumulator == F32 else 1e-12
    for got, start, right in ((gram.tril(), 1.0, wide), (cross, 3.0, aim)):
        expected = start + wide.T @ right
        miss = (got.double() - expected).abs()
        alike = 0 in (*rows.stride(), *targets.stride())
        fits = miss <= slack(wide.T, right, alike=alike) + floor * (start + expected.abs())
        assert (fits if got is cross else fits | ~torch.ones_like(fits).tril()).all()
    for frame in frames:
        frame[1:-1, 2:-3] = 3.0
        assert (frame == 3.0).all()


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("accumulator", [F32, F64], ids=str)
def test_gram_of_ragged_shapes(dtype, accumulator):
    shapes = [
        (8500, 70, 40),
        (512, 64, 1),
        (513, 65, 33),
        (801, 97, 300),
        (4500, 98, 257),
        (520, 1100, 70),
        (1023, 211, 0),
    ]
    for n, d, p in shapes:
        rows = torch.randn(n, d).relu().to(dtype)
        for targets in (torch.randn(n, p), torch.randn(n, p).to(BF16), torch.randn(n, p, dtype=F64)):
            check_gram(rows, targets, accumulator)


def test_gram_of_views():
    n, d, p = 600, 75, 50
    for rows in (
        torch.randn(d, n).T,
        torch.randn(n, 2 * d)[:, ::2],
        torch.randn(2 * n, d)[::2],
        torch.randn(1, d).expand(n, d),
        torch.randn(n, 1).expand(n, d),
        torch.randn(n + 1, d + 3)[1:, 3:],
    ):
        for targets in (torch.randn(p, n).T, torch.randn(n, 2 * p)[:, 1::2], torch.randn(n, 1).expand(n, p)):
            for source in (rows, rows.bfloat16()):
                check_gram(source, targets)


def test_gram_of_columns_of_very_different_size():
    rows = torch.randn(800, 96) * torch.logspace(-12, 12, 96)
    targets = torch.randn(800, 40) * torch.logspace(12, -12, 40)
    check_gram(rows, targets)
    check_gram(rows.bfloat16(), targets)
    few = torch.zeros(800, 96)
    few[::400] = torch.randn(2, 96)
    check_gram(few, targets)


def test_gram_of_two_parts_has_no_negative_eigenvalue():
    rows = torch.randn(2000, 20) @ torch.randn(20, 300)
    rows = rows.relu() - 0.7  # most columns hold the same number most of the time, whose parts do not average out
    gram = torch.zeros(300, 300, dtype=F64)
    ops.gram([rows], torch.zeros(2000, 0), [gram], [torch.zeros(300, 0)])
    symmetric = gram.tril() + gram.tril(-1).T
    scale = torch.linalg.eigvalsh(rows.double().T @ rows.double())
    assert torch.linalg.eigvalsh(symmetric)[0] >= scale[0] - 1e-6 * scale[-1] / 20


def test_rounding_does_not_grow_with_the_number_of_rows():
    """One sum of 4,096 rows in a row rounds to 1.6e-5 of the Gram matrix, sums of spans to a tenth of that."""
    rows = torch.randn(4096, 20) @ torch.randn(20, 128) + 0.1 * torch.randn(4096, 128)
    gram, cross = torch.zeros(128, 128, dtype=F64), torch.zeros(128, 128, dtype=F64)
    ops.gram([rows], rows, [gram], [cross])
    expected = rows.double().T @ rows.double()
    assert (cross - expected).norm() < 4e-6 * expected.norm()
    assert (gram - expected).tril().norm() < 4e-6 * expected.tril().norm()


def test_bfloat16_products_are_exact():
    rows, targets = torch.randint(-8, 9, (4096, 70)).to(BF16), torch.randint(-8, 9, (4096, 40)).to(BF16)
    gram, cross = torch.zeros(70, 70, dtype=F64), torch.zeros(70, 40, dtype=F64)
    ops.gram([rows], targets, [gram], [cross])
    assert torch.equal(gram.tril(), (rows.double().T @ rows.double()).tril())
    assert torch.equal(cross, rows.double().T @ targets.double())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3.4e38])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_gram_of_what_is_not_finite(bad, dtype, kind):
    if bad == 3.4e38 and kind != "amx":
        pytest.skip("no infinity but as bfloat16")
    rows, targets = torch.randn(600, 70), torch.randn(600, 40)
    rows[5, 3], targets[7, 2] = bad, bad
    gram, cross = torch.zeros(70, 70, dtype=F64), torch.zeros(70, 40, dtype=F64)
    ops.gram([rows.to(dtype)], targets, [gram], [cross])
    assert not gram[3, :4].isfinite().any()
    assert not gram[3:, 3].isfinite().any()
    assert not cross[3].isfinite().any()
    assert not cross[:, 2].isfinite().any()
    gram[3], gram[:, 3], cross[3], cross[:, 2] = 0, 0, 0, 0
    assert gram.tril().isfinite().all()
    assert cross.isfinite().all()


def test_a_second_chunk_is_added_to_the_first():
    rows, targets = torch.randn(8500, 70), torch.randn(8500, 40)
    sums = []
    for edges in ([0, 8500], [0, 8192, 8500]):
        gram, cross = torch.zeros(70, 70, dtype=F64), torch.zeros(70, 40, dtype=F64)
        for start, stop in pairwise(edges):
            ops.gram([rows[start:stop]], targets[start:stop], [gram], [cross])
        sums.append((gram.tril(), cross))
    # The rest alone is too short to be packed, so float32 rounding is all that may differ.
    assert all((a - b).norm() <= 1e-6 * b.norm() for a, b in zip(*sums))


@pytest.mark.parametrize(("d", "p"), [(300, 700), (64, 3), (1100, 5), (70, 2100)])
def test_results_do_not_depend_on_the_threads(d, p):
    """The more threads, the smaller the panels."""
    rows, targets, offset = torch.randn(900, d), torch.randn(900, p), torch.randn(p)
    weight = torch.randn(d, p)
    results = []
    for threads in (1, 2, 16, 3, 1):
        torch.set_num_threads(threads)
        gram, cross = torch.zeros(d, d), torch.zeros(d, p)
        ops.gram([rows], targets, [gram], [cross])
        errors, hits = outputs(2, 900)
        ops.residual([rows], [weight], [offset], targets, [0, p * 6 // 7, p], [False, True], [errors], [hits])
        results.append((gram.tril(), cross, errors, hits))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("way", KINDS)
def test_systems_are_solved_alike_in_vectors_and_by_blas(way):
    """Whichever the kind of products picks for small systems."""
    assert use(way)
    for d, p in ((5, 3), (64, 40), (129, 7), (400, 33)):
        rows = torch.randn(2 * d, d, dtype=F64)
        gram, cross = rows.T @ rows, torch.randn(d, p, dtype=F64)
        path = torch.tensor([0.5, 50.0], dtype=F64)
        weights, factors = torch.full((2, d, p), torch.nan), torch.full((2, d, d), torch.nan)
        info = torch.full((1, 2), -1, dtype=torch.int32)
        ops.ridge_solve([gram.float()], [cross.float()], [path], [weights], [factors], info)
        assert (info == 0).all()
        for found, factor, penalty in zip(weights, factors, path):
            matrix = gram + penalty * torch.eye(d, dtype=F64)
            exact = torch.linalg.solve(matrix, cross)
            assert (found - exact).norm() <= 1e-4 * exact.norm()
            assert (factor.double() @ factor.double().T - matrix).norm() <= 1e-5 * matrix.norm()


def outputs(k: int, m: int) -> tuple[Tensor, Tensor]:
    """Poisoned errors and hits."""
    return torch.full((k, m), torch.nan, dtype=F64), torch.ones(k, m, dtype=torch.bool)


def check_residual(rows: Tensor, weight: Tensor, offset: Tensor, targets: Tensor, blocks: list[int]) -> None:
    """All but the last block against float64, the last one's hits too."""
    classes = [False] * (len(blocks) - 2) + [True]
    errors, hits = outputs(len(classes), len(rows))
    ops.residual([rows], [weight], [offset], targets, blocks, classes, [errors], [hits])
    guess = rows.double() @ weight.double() + offset.double()
    bound = slack(rows, weight) + 1e-6 * (guess.abs() + offset.double().abs())
    miss = guess - targets.double()
    for j, (start, stop) in enumerate(pairwise(blocks)):
        part, slip = miss[:, start:stop], bound[:, start:stop]
        limit = (2 * part.abs() * slip + slip.square()).sum(1) + 1e-13
        assert ((errors[j] - part.square().sum(1)).abs() <= limit).all()
    assert not hits[:-1].any()
    last = slice(blocks[-2], blocks[-1])
    top = guess[:, last].topk(2, 1).values
    clear = top[:, 0] - top[:, 1] > 2 * bound[:, last].amax(1)
    assert clear.float().mean() > 0.9
    expected = guess[:, last].argmax(1) == targets[:, last].argmax(1)
    assert torch.equal(hits[-1][clear], expected[clear])


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("other", [F32, F64], ids=str)
def test_residual_of_ragged_shapes(dtype, other):
    for m, d, blocks in (
        (256, 64, [0, 60, 70]),
        (801, 300, [0, 500, 500, 1100, 1103]),
        (999, 97, [7, 40, 75]),
        (2100, 130, [3, 515, 1030, 1040]),
    ):
        p = blocks[-1] + 2
        rows, weight = torch.randn(m, d).to(dtype), torch.randn(d, p)
        check_residual(rows, weight, torch.randn(p, dtype=other), torch.randn(m, p, dtype=other), blocks)


def test_residual_of_views():
    m, d, p = 400, 70, 90
    for rows in (torch.randn(d, m).T, torch.randn(m, 2 * d)[:, ::2], torch.randn(m, d + 1)[:, 1:]):
        for weight in (torch.randn(p, d).T, torch.randn(d, 2 * p)[:, ::2], torch.randn(d, p + 1)[:, 1:]):
            for source in (rows, rows.bfloat16()):
                check_residual(source, weight, torch.randn(2 * p)[::2], torch.randn(p, m).T, [0, 50, p])


@pytest.mark.parametrize("accuracy", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 0.0])
def test_small_errors_are_those_of_float32_products(accuracy):
    rows, weight = torch.randn(700, 128), torch.randn(128, 600)
    exact = rows.double() @ weight.double()
    targets = exact + accuracy * exact.std() * torch.randn(700, 600, dtype=F64)
    errors, hits = outputs(2, 700)
    ops.residual([rows], [weight], [torch.zeros(600)], targets, [0, 590, 600], [False, True], [errors], [hits])
    miss = (exact - targets.float()).square()
    magnitude = (rows.abs() @ weight.abs()).double().square()
    for got, part in zip(errors, (slice(590), slice(590, 600))):
        bias = 1e-14 * magnitude[:, part].sum()  # of float32: 128 roundings, squared
        assert abs(got.sum() - miss[:, part].sum()) <= 2e-5 * miss[:, part].sum() + bias


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_residual_of_what_is_not_finite(bad):
    rows, weight, targets = torch.randn(600, 64), torch.randn(64, 100), torch.randn(600, 100)
    rows[5, 3], targets[300, 7] = bad, torch.nan
    errors, hits = outputs(2, 600)
    ops.residual([rows], [weight], [torch.zeros(100)], targets, [0, 50, 100], [True, False], [errors], [hits])
    rest = torch.arange(600) != 5
    assert not errors[:, 5].isfinite().any()
    assert errors[0, 300].isnan()
    assert errors[1, rest].isfinite().all()
    assert not hits[0, 300]


CODE = """
import sys, torch
from phasefast import build_info, ops
rows, targets, weight = torch.load(sys.argv[1])
gram, cross = torch.zeros(100, 100, dtype=torch.float64), torch.zeros(100, 80, dtype=torch.float64)
ops.gram([rows], targets, [gram], [cross])
errors, hits = torch.zeros(1, 900, dtype=torch.float64), torch.zeros(1, 900, dtype=torch.bool)
ops.residual([rows], [weight], [torch.zeros(80)], targets, [0, 80], [True], [errors], [hits])
torch.save((build_info()["products"], gram.tril(), cross, errors, hits), sys.argv[2])
"""


def test_a_switch_tells_which_products(tmp_path, kind):
    torch.save((torch.randn(900, 100), torch.randn(900, 80), torch.randn(100, 80)), tmp_path / "given")
    rows, targets, weight = torch.load(tmp_path / "given")
    exact = (rows.double().T @ rows.double()).tril(), rows.double().T @ targets.double()
    exact += ((rows.double() @ weight.double() - targets.double()).square().sum(1)[None],)
    results = []
    for wanted in ("blas", kind):
        paths = [str(tmp_path / "given"), str(tmp_path / wanted)]
        env = {**os.environ, "PHASEFAST_PRODUCTS": wanted}
        subprocess.run([sys.executable, "-W", "error", "-c", CODE, *paths], cwd=ROOT, env=env, check=True, timeout=120)
        taken, *found = torch.load(tmp_path / wanted)
        assert taken == wanted
        limit = 1e-5 if wanted == "amx" else 5e-7
        assert all((a - b).norm() < limit * b.norm() for a, b in zip(found, exact, strict=False))
        results.append(found)
    assert not torch.equal(results[0][1], results[1][1])
    assert (results[0][3] == results[1][3]).float().mean() > 0.99


def test_bfloat16_is_fast_where_there_are_tiles_or_pairs(kind):
    pairs = "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    assert ops.bfloat16_is_fast(torch.device("cpu")) == (kind == "amx" or (kind == "avx512" and pairs))
    assert ops.bfloat16_is_fast(torch.device("cuda"))
