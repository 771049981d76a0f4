"""Pairs of benchmarks: plain ATen against the op, in one group per shape; a table of ratios at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from phasefast import build_info, ops

OPPONENT, OURS = "aten", "ours"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "who" in metafunc.fixturenames:
        metafunc.parametrize("who", [OPPONENT, OURS])


def best_of(run: Callable[[], Any], repeats: int = 5) -> float:
    """Seconds of the fastest of some calls after one that warms up."""
    times = []
    run()
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


CUDA = torch.cuda.is_available() and build_info().get("cuda", False)
no_kernels = pytest.mark.skipif(not CUDA, reason="built without CUDA kernels, or no GPU")


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=no_kernels)])
def device(request: pytest.FixtureRequest) -> str:
    """Where both sides run."""
    return str(request.param)


@pytest.fixture(scope="session")
def kernels(device: str) -> Any:
    """The compiled ops of the device; on a GPU the kernels themselves, whatever is the default route."""
    return torch.ops.phasefast_cuda if device == "cuda" else ops


@pytest.fixture(scope="session")
def gemm_rate(device: str) -> dict[torch.dtype, float]:
    """Matrix products of this machine, in FLOP/s by type of the factors; TF32 off."""
    size, rates = 8192 if device == "cuda" else 1024, {}
    for dtype in (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float32,):
        a = torch.randn(size, size, device=device).to(dtype)
        out = torch.empty_like(a)
        rates[dtype] = 2 * size**3 / best_of(synchronised(partial(torch.mm, a, a, out=out), device))
    return rates


@pytest.fixture(scope="session")
def copy_rate(device: str) -> float:
    """Copies of 64 MiB, on a GPU 4 GiB, in bytes read and written per second."""
    source = torch.randn(2**30 if device == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_of(synchronised(partial(target.copy_, source), device))


def synchronised(side: Callable[[], Any], device: str) -> Callable[[], Any]:
    """The call with its work on the device done."""

    def run() -> None:
        side()
        torch.cuda.synchronize()

    return run if device == "cuda" else side


@pytest.fixture
def measure(benchmark: Any, device: str) -> Callable[..., None]:
    """Runs one side of a pair for about a second, at least three rounds."""

    def run(group: str, side: Callable[[], Any], roof: float, error: float) -> None:
        """``roof``: seconds that the work would take at the machine's rate; ``error``: relative to float64."""
        side = synchronised(side, device)
        start = time.perf_counter()
        side()
        rounds = int(min(max(1.0 / (time.perf_counter() - start), 3), 200))
        benchmark.group = f"{device} {group}"
        benchmark.pedantic(side, rounds=rounds, warmup_rounds=1)
        benchmark.extra_info.update(
            error=f"{error:.1e}",
            roof_share=round(roof / benchmark.stats.stats.median, 3),
            threads=torch.get_num_threads(),
        )

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, dict[str, Any]] = {}
    for bench in getattr(session, "benchmarks", []):
        if bench.params and bench.params.get("who") in (OPPONENT, OURS):
            groups.setdefault(bench.group, {})[bench.params["who"]] = bench
    pairs = {group: pair for group, pair in groups.items() if len(pair) == 2}
    if not pairs:
        return
    terminalreporter.section(f"{OPPONENT} / {OURS} (ratio of medians, of quartiles in brackets)")
    for group, pair in pairs.items():
        theirs, ours = pair[OPPONENT].stats, pair[OURS].stats
        info = pair[OURS].extra_info
        terminalreporter.write_line(
            f"{group:<40} {theirs.median / ours.median:6.2f}x  "
            f"[{theirs.q1 / ours.q3:5.2f} {theirs.q3 / ours.q1:5.2f}]  "
            f"{1e3 * ours.median:9.3f} ms  {100 * info['roof_share']:4.0f} % of roof  error {info['error']}"
        )
