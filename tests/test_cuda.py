"""The same numbers on a GPU as on the CPU."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import phasefast as pf
from phasefast import ops
from phasefast.algebra.dense import Factor, multiplies_fast
from phasefast.checkpoints import state_hash
from phasefast.engine import Engine
from phasefast.ops import reference
from phasefast.stages.statistics import accumulate
from tests.conftest import SmallNet

pytestmark = pytest.mark.cuda


def test_probe_gives_the_numbers_of_the_cpu(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    expected = pf.probe(net, probe_set, layers=["conv", "hidden"], alphas=[0.01], device="cpu")
    got = pf.probe(net, probe_set, layers=["conv", "hidden"], alphas=[0.01], device="cuda")
    assert all(parameter.device.type == "cpu" for parameter in net.parameters())
    for layer in ("conv", "hidden"):
        select = {"layer": layer, "target": "input", "metric": "fvu", "split": "heldout"}
        assert got.value(**select) == pytest.approx(expected.value(**select), rel=1e-4)


def test_fast_is_within_the_rounding_of_bfloat16(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    exact, fast = (
        pf.probe(net, probe_set, layers=["conv", "hidden"], alphas=[0.01], device="cuda", precision=precision)
        for precision in ("exact", "fast")
    )
    for layer in ("conv", "hidden"):
        select = {"layer": layer, "target": "input", "metric": "fvu", "split": "heldout"}
        assert fast.value(**select) == pytest.approx(exact.value(**select), rel=1e-2)


def test_sweep_of_files_equals_probing_each(net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    expected = {}
    for step in range(4):
        with torch.no_grad():
            net.hidden.weight += 0.1 * torch.randn(net.hidden.weight.shape)
        torch.save(net.state_dict(), tmp_path / f"step-{step}.pt")
        expected[step] = pf.probe(net, probe_set, layers="hidden", device="cuda")
    buffers = dict(net.named_buffers())
    swept = pf.sweep(net, tmp_path, probe_set, out=tmp_path / "out", layers="hidden", device="cuda")
    select = {"layer": "hidden", "target": "input", "metric": "fvu", "split": "heldout"}
    for step, scores in expected.items():
        assert swept.filter(step=step).value(**select) == pytest.approx(scores.value(**select), rel=1e-5)
    assert all(parameter.device.type == "cpu" for parameter in net.parameters())
    assert all(buffer is buffers[name] for name, buffer in net.named_buffers())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gram_against_float64(dtype: torch.dtype) -> None:
    rows = torch.randn(500, 70, device="cuda").to(dtype)
    targets = torch.randn(500, 9, device="cuda")
    grams, crosses = torch.zeros(70, 70, device="cuda"), torch.zeros(70, 9, device="cuda")
    ops.gram([rows], targets, [grams], [crosses])
    wide = rows.double()
    assert torch.allclose(grams.tril().double(), (wide.T @ wide).tril(), rtol=1e-4, atol=1e-2)
    assert torch.allclose(crosses.double(), wide.T @ targets.double(), rtol=1e-4, atol=1e-2)


@pytest.fixture
def kernels() -> Any:
    """The kernels themselves, whatever is the default route."""
    if not pf.build_info().get("cuda"):
        pytest.skip("built without CUDA kernels")
    return torch.ops.phasefast_cuda


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("samples", [1, 300])
def test_capture_kernel_is_the_reference(kernels: Any, samples: int, given: torch.dtype, stored: torch.dtype) -> None:
    x = torch.randn(samples, 70, 9, 5, device="cuda").to(given)
    layouts = [x, x.to(memory_format=torch.channels_last), x.permute(0, 3, 2, 1), x[:, ::2]]
    for layout in [*layouts, torch.randn(samples, 3, device="cuda").to(given)]:
        for pool in (0, 2) if layout.dim() == 4 else (0,):
            width = layout.shape[1] * pool**2 if pool else layout[0].numel()
            shift = torch.randn(width, device="cuda")
            results = []
            for op in [kernels.capture] * 3 + [reference.capture]:
                rows = torch.full((samples, width), torch.nan, dtype=stored, device="cuda")
                sums = torch.ones(2, width, dtype=torch.float64, device="cuda")
                op([layout], [shift], [pool], [rows], [sums[0]], [sums[1]])
                results.append((rows, sums))
            assert all(torch.equal(results[0][i], again[i]) for again in results[1:3] for i in range(2))
            for ours, theirs in zip(results[0], results[3], strict=True):
                torch.testing.assert_close(
                    ours,
                    theirs,
                    rtol=1e-2 if stored != torch.float32 else 1e-5,
                    atol=1e-2 * (stored != torch.float32) + 1e-5,
                )


@pytest.mark.parametrize("shape", [(5, 6, 56, 56), (9, 40, 14, 14), (3, 300, 7, 7), (2, 3, 5, 9, 11), (4, 5, 1000)])
@pytest.mark.parametrize("pool", [1, 2, 4])
def test_means_of_large_windows_are_the_reference(kernels: Any, shape: tuple[int, ...], pool: int) -> None:
    x = torch.randn(shape, device="cuda") + 1.0
    layouts = [x, x.to(memory_format=torch.channels_last)] if x.dim() == 4 else [x]
    for layout in layouts:
        width = shape[1] * pool ** (x.dim() - 2)
        results = []
        for op in [kernels.capture] * 10 + [reference.capture]:
            rows = torch.full((shape[0], width), torch.nan, device="cuda")
            sums = torch.zeros(2, width, dtype=torch.float64, device="cuda")
            op([layout], [torch.zeros(width, device="cuda")], [pool], [rows], [sums[0]], [sums[1]])
            results.append(torch.cat([rows.double(), sums]))
        assert all(torch.equal(results[0], again) for again in results[1:10])
        torch.testing.assert_close(results[0], results[10], rtol=1e-5, atol=1e-5)


def test_a_state_on_a_gpu_has_the_hash_that_it_has_on_the_cpu() -> None:
    state = {
        "weight": torch.randn(300, 70),
        "image": torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last),
        "half": torch.randn(9).half(),
        "flags": torch.tensor([True, False]),
        "count": torch.tensor(7),
        "nothing": torch.zeros(0, 4),
    }
    there: dict[str, Any] = {name: value.cuda() for name, value in state.items()}
    assert state_hash(there) == state_hash(state)
    assert state_hash({**there, "count": state["count"]}) == state_hash(state)
    assert state_hash({**there, "count": torch.tensor(8)}) != state_hash(state)


def test_refused_arguments_are_named_with_their_sizes(kernels: Any) -> None:
    rows, targets = torch.zeros(5, 3, device="cuda"), torch.zeros(4, 2, device="cuda")
    crosses = torch.zeros(3, 2, device="cuda")
    with pytest.raises(RuntimeError, match=r"rows\[0\] has shape \[5, 3\], expected \[4, 3\]"):
        kernels.gram([rows], targets, [], [crosses])
    with pytest.raises(RuntimeError, match=r"rows\[0\] has dtype Double, expected"):
        kernels.gram([rows[:4].double()], targets, [], [crosses])


@pytest.mark.parametrize("variant", ["sm90", "sm80"])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("samples", [1, 33, 700, 9001])
def test_gram_kernel_against_float64(
    kernels: Any,
    monkeypatch: pytest.MonkeyPatch,
    samples: int,
    dtype: torch.dtype,
    given: torch.dtype,
    variant: str,
) -> None:
    if (dtype, given) == (torch.float32, torch.bfloat16):
        pytest.skip("refused: the reference takes them")
    monkeypatch.setenv("PHASEFAST_SM90", str(int(variant == "sm90")))
    generator = torch.Generator("cuda").manual_seed(samples)
    widths = [1, 7, 64, 128, 129, 513, 40, *range(2, 15)]  # more cells than one launch takes

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda") + 0.3

    rows = [random(samples, width + 3)[:, :width].to(dtype) for width in widths]
    targets = random(samples, 210).to(given)[:, 5:]
    wide = [torch.float64 if i % 2 else torch.float32 for i in range(len(widths))]
    repeats = []
    for _ in range(10):
        grams = [torch.ones(w, w, dtype=d, device="cuda") for w, d in zip(widths, wide, strict=True)]
        crosses = [torch.ones(w, 205, dtype=d, device="cuda") for w, d in zip(widths, wide, strict=True)]
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            kernels.gram(rows, targets, grams, crosses)
        torch.cuda.synchronize()
        repeats.append([*(g.tril() for g in grams), *crosses])
    assert all(torch.equal(a, b) for other in repeats[1:] for a, b in zip(repeats[0], other, strict=True))
    for row, gram, cross in zip(rows, repeats[0][: len(widths)], repeats[0][len(widths) :], strict=True):
        left, norm = row.double(), row.double().norm(dim=0).max()
        gram_error = (gram - 1 - left.T @ left).tril().abs().max()
        cross_error = (cross - 1 - left.T @ targets.double()).abs().max()
        start = 2**-23  # rounding of the ones that the sums began with
        assert gram_error <= 1e-5 * norm**2 + start
        assert cross_error <= 1e-5 * norm * targets.double().norm(dim=0).max() + start


@pytest.mark.parametrize("variant", ["sm90", "sm80"])
def test_gram_and_residual_kernels_of_columns_of_all_sizes(
    kernels: Any, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    monkeypatch.setenv("PHASEFAST_SM90", str(int(variant == "sm90")))
    generator = torch.Generator("cuda").manual_seed(0)
    n, width, columns = 700, 192, 130
    rows, targets = (torch.randn(n, size, generator=generator, device="cuda") for size in (width, columns))
    sizes = 10.0 ** torch.linspace(-12, 12, width, device="cuda")
    rows, targets = rows * sizes, targets * 1e-6
    rows[3, 5] *= 1e7  # an outlier
    rows[:, 9] = 0
    gram = torch.zeros(width, width, dtype=torch.float64, device="cuda")
    cross = torch.zeros(width, columns, dtype=torch.float64, device="cuda")
    kernels.gram([rows], targets, [gram], [cross])
    wide, norms = rows.double(), rows.double().norm(dim=0).clamp_min(1e-300)
    assert ((gram - wide.T @ wide).tril().abs() / norms / norms[:, None]).max() < 1e-5
    bound = norms[:, None] * targets.double().norm(dim=0)
    assert ((cross - wide.T @ targets.double()).abs() / bound).max() < 1e-5
    weights = torch.randn(width, columns, generator=generator, device="cuda") / sizes[:, None]
    offset, expected = torch.zeros(columns, device="cuda"), torch.randn(n, columns, generator=generator, device="cuda")
    hits = torch.zeros(1, n, dtype=torch.bool, device="cuda")
    for unit in (1.0, 1e-22, 1e20):  # squares of the last two leave float32
        small, aims = weights * unit, expected * unit
        errors = torch.full((1, n), torch.nan, dtype=torch.float64, device="cuda")
        kernels.residual([rows], [small], [offset], aims, [0, columns], [False], [errors], [hits])
        exact = (wide @ small.double() - aims.double()).square().sum(1)
        torch.testing.assert_close(errors[0], exact, rtol=1e-5, atol=0)
    rows[11, 7] = torch.nan
    gram.zero_()
    kernels.gram([rows], targets, [gram], [cross])
    bad = gram.tril().isnan()
    assert bad[7, :8].all()
    assert bad[7:, 7].all()
    bad[7], bad[:, 7] = False, False
    assert not bad.any()


@pytest.mark.parametrize("d", [1024, 1500, 4096])
def test_factors_against_float64(d: int) -> None:
    rows = torch.randn(d + 500, d, device="cuda")
    gram = (rows.double().T @ rows.double()) + d * torch.eye(d, device="cuda")
    lower = torch.linalg.cholesky(gram)
    assert multiplies_fast(lower.float()) == (torch.cuda.get_device_capability() == (9, 0))
    factor, rhs = Factor(lower.float().contiguous()), torch.randn(d, 90, dtype=torch.float64, device="cuda")

    def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
        return float((found.double() - expected).norm() / expected.norm()) < 1e-5

    assert close(factor.halve(rhs), torch.linalg.solve_triangular(lower, rhs, upper=False))
    assert close(factor.solve(rhs), torch.cholesky_solve(rhs, lower))
    assert close(factor.inverse_root, torch.linalg.solve_triangular(lower, torch.eye(d).to(lower), upper=False))
    inverse = torch.cholesky_inverse(lower)
    assert close(factor.inverse_traces(), torch.stack([inverse.trace(), inverse.square().sum()]))


@pytest.mark.parametrize("variant", ["sm90", "sm80"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("samples", [1, 130, 700, 20_000])
def test_residual_kernel_against_float64(
    kernels: Any, monkeypatch: pytest.MonkeyPatch, samples: int, dtype: torch.dtype, variant: str
) -> None:
    monkeypatch.setenv("PHASEFAST_SM90", str(int(variant == "sm90")))
    generator = torch.Generator("cuda").manual_seed(samples)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    edges, classes, widths = [0, 300, 310, 311], [False, True, False], [1, 33, 512, *range(2, 18)]
    rows = [random(samples, width).to(dtype) for width in widths]
    weights = [random(width, 311) / width**0.5 for width in widths]
    offsets, targets = [random(311) for _ in widths], random(samples, 311)
    repeats = []
    for _ in range(10):
        errors = [torch.full((3, samples), torch.nan, dtype=torch.float64, device="cuda") for _ in widths]
        hits = [torch.ones(3, samples, dtype=torch.bool, device="cuda") for _ in widths]
        kernels.residual(rows, weights, offsets, targets, edges, classes, errors, hits)
        repeats.append([*errors, *hits])
    assert all(torch.equal(a, b) for other in repeats[1:] for a, b in zip(repeats[0], other, strict=True))
    for i, row in enumerate(rows):
        expected, expected_hits = torch.zeros_like(repeats[0][i]), torch.zeros_like(repeats[0][len(rows) + i])
        exact = [row.double()], [weights[i].double()], [offsets[i].double()], targets.double()
        reference.residual(*exact, edges, classes, [expected], [expected_hits])
        # A block of one column has the square of a difference of numbers of order one, each good to about 1e-5.
        torch.testing.assert_close(repeats[0][i], expected, rtol=1e-5, atol=5e-5)
        assert (repeats[0][len(rows) + i] == expected_hits).double().mean() > 0.99  # rounding may decide a near tie


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("samples", [1, 130, 20_000])
def test_residual_kernel_of_even_shapes_against_float64(kernels: Any, samples: int, dtype: torch.dtype) -> None:
    generator = torch.Generator("cuda").manual_seed(samples)
    edges, classes, width = [0, 512, 522], [False, True], 192
    rows, targets = (torch.randn(samples, size, generator=generator, device="cuda") for size in (width, 522))
    weights, offset = (torch.randn(size, 522, generator=generator, device="cuda") / width**0.5 for size in (width, 1))
    rows = rows.to(dtype)
    found, expected = (torch.full((2, samples), torch.nan, dtype=torch.float64, device="cuda") for _ in range(2))
    hits, expected_hits = (torch.ones(2, samples, dtype=torch.bool, device="cuda") for _ in range(2))
    kernels.residual([rows], [weights], [offset[0]], targets, edges, classes, [found], [hits])
    wide = [rows.double()], [weights.double()], [offset[0].double()], targets.double()
    reference.residual(*wide, edges, classes, [expected], [expected_hits])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (hits == expected_hits).double().mean() > 0.99  # rounding may decide a near tie


@pytest.mark.parametrize(("width", "columns"), [(1, 1), (130, 7), (512, 300), (1030, 20)])
def test_ridge_solve_kernel_against_float64(kernels: Any, width: int, columns: int) -> None:
    generator = torch.Generator("cuda").manual_seed(width)
    rows = torch.randn(2 * width + 5, width, generator=generator, device="cuda")
    rows[:, width // 3] = 0
    gram, cross = rows.T @ rows, rows.T @ torch.randn(len(rows), columns, generator=generator, device="cuda")
    bad = gram.clone()
    bad[width // 2, width // 2] = -1e9
    penalties = torch.tensor([0.1, 10.0, 1000.0], dtype=torch.float64, device="cuda")
    repeats = []
    for _ in range(10):
        weights = [torch.full((3, width, columns), torch.nan, device="cuda") for _ in range(2)]
        factors = [torch.full((3, width, width), torch.nan, device="cuda") for _ in range(2)]
        info = torch.full((2, 3), -1, dtype=torch.int32, device="cuda")
        kernels.ridge_solve([gram, bad], [cross, cross], [penalties] * 2, weights, factors, info)
        repeats.append([weights[0], factors[0], info])
    assert all(torch.equal(a, b) for other in repeats[1:] for a, b in zip(repeats[0], other, strict=True))
    assert repeats[0][2].tolist() == [[0] * 3, [width // 2 + 1] * 3]
    assert weights[1].isnan().all()
    expected = torch.empty(3, width, columns, dtype=torch.float64, device="cuda")
    expected_factors = torch.empty(3, width, width, dtype=torch.float64, device="cuda")
    exact = [gram.double()], [cross.double()], [penalties]
    reference.ridge_solve(*exact, [expected], [expected_factors], torch.empty(1, 3, dtype=torch.int32, device="cuda"))
    scale = float(expected.abs().max())
    torch.testing.assert_close(repeats[0][0].double(), expected, rtol=1e-3, atol=1e-4 * scale)
    torch.testing.assert_close(repeats[0][1].double(), expected_factors, rtol=1e-3, atol=1e-2)


def test_solve_and_residual_are_the_reference_on_cuda_tensors() -> None:
    rows, targets = torch.randn(300, 40, device="cuda"), torch.randn(300, 6, device="cuda")
    system = [rows.T @ rows], [rows.T @ targets], [torch.tensor([0.1, 10.0], dtype=torch.float64, device="cuda")]
    results = []
    for module in (ops, reference):
        weights, info = torch.empty(2, 40, 6, device="cuda"), torch.empty(1, 2, dtype=torch.int32, device="cuda")
        module.ridge_solve(*system, [weights], [], info)
        errors = torch.empty(1, 300, dtype=torch.float64, device="cuda")
        hits = torch.empty(1, 300, dtype=torch.bool, device="cuda")
        offset = torch.zeros(6, device="cuda")
        module.residual([rows], [weights[0]], [offset], targets, [0, 6], [True], [errors], [hits])
        assert info.tolist() == [[0, 0]]
        results.append((weights, errors, hits))
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-4, atol=1e-6)
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-4)
    assert torch.equal(results[0][2], results[1][2])


def test_the_host_waits_no_more_often_for_more_batches(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    net.cuda()
    counts = []
    for batch_size in (150, 10):
        engine = Engine(net, probe_set, layers=["conv", "hidden"], batch_size=batch_size)
        engine.activations()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                cells = engine.activations()
            torch.cuda.set_sync_debug_mode("error")
            accumulate(cells, engine.targets, torch.float32)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(warning.message) for warning in seen))
    assert counts[0] == counts[1]
