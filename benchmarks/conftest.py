"""Pairs of benchmarks: plain ATen against the op, in one group per shape; a table of ratios at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

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


@pytest.fixture(scope="session")
def gemm_rate() -> float:
    """float32 matrix products of this machine, in FLOP/s."""
    a, out = torch.randn(1024, 1024), torch.empty(1024, 1024)
    return 2 * 1024**3 / best_of(lambda: torch.mm(a, a, out=out))


@pytest.fixture(scope="session")
def cuda_gemm_rate() -> dict[torch.dtype, float]:
    """Matrix products of this GPU, in FLOP/s by dtype; TF32 off."""
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(8192, 8192, device="cuda").to(dtype)
        rates[dtype] = 2 * 8192**3 / best_of(lambda a=a: (a @ a, torch.cuda.synchronize()))
    return rates


@pytest.fixture(scope="session")
def copy_rate() -> float:
    """Copies of 64 MiB on this machine, in bytes read and written per second."""
    source = torch.randn(2**24)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_of(lambda: target.copy_(source))


@pytest.fixture
def measure(benchmark: Any) -> Callable[..., None]:
    """Runs one side of a pair for about a second, at least three rounds."""

    def run(group: str, side: Callable[[], Any], roof: float, error: float) -> None:
        """``roof``: seconds that the work would take at the machine's rate; ``error``: relative to float64."""
        start = time.perf_counter()
        side()
        rounds = int(min(max(1.0 / (time.perf_counter() - start), 3), 200))
        benchmark.group = group
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
            f"{group:<34} {theirs.median / ours.median:6.2f}x  "
            f"[{theirs.q1 / ours.q3:5.2f} {theirs.q3 / ours.q1:5.2f}]  "
            f"{1e3 * ours.median:9.3f} ms  {100 * info['roof_share']:4.0f} % of roof  error {info['error']}"
        )
