"""Benchmarks in groups: ours and its opponents on the same work, with a table of ratios at the end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from timing import OURS, best_of, product_rate, seconds, synchronised

from phasefast import build_info, ops


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Sides of a benchmark: plain ATen and ours, and further opponents where the module names some."""
    marked = any("who" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "who" in metafunc.fixturenames and not marked:
        metafunc.parametrize("who", ["aten", *getattr(metafunc.module, "MORE_OPPONENTS", []), OURS])


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["torch"], machine_info["build"] = torch.__version__, build_info()
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Without every single time: the file is kept. With what the machine does at best."""
    del config, benchmarks
    output_json["machine_info"]["rates"] = RATES
    for bench in output_json["benchmarks"]:
        bench["stats"].pop("data", None)


RATES: dict[str, dict[str, float]] = {}  # by device: FLOP/s of products by type, B/s of copies
# Seconds of a round on a GPU: calls follow each other as a sweep's do, and starting one with nothing on its way, then
# waiting for it, some 20 us, is not all that is measured.
A_ROUND = 2e-3
CUDA = torch.cuda.is_available() and build_info().get("cuda", False)


@pytest.fixture(scope="session", params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """Where both sides run."""
    if request.param == "cuda" and not CUDA:
        pytest.skip("built without CUDA kernels, or no GPU")
    return str(request.param)


@pytest.fixture(scope="session")
def kernels(device: str) -> Any:
    """The compiled ops of the device; on a GPU the kernels themselves, whatever is the default route."""
    return torch.ops.phasefast_cuda if device == "cuda" else ops


@pytest.fixture(scope="session")
def gemm_rate(device: str) -> dict[torch.dtype, float]:
    """Matrix products of this machine, in FLOP/s by type of the factors; TF32 off."""
    size = 8192 if device == "cuda" else 1024
    kinds = (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float32,)
    rates = {dtype: product_rate(dtype, device, size) for dtype in kinds}
    RATES.setdefault(device, {}).update({str(dtype).removeprefix("torch."): rate for dtype, rate in rates.items()})
    return rates


@pytest.fixture(scope="session")
def copy_rate(device: str) -> float:
    """Copies of 64 MiB, on a GPU 4 GiB, in bytes read and written per second."""
    source = torch.randn(2**30 if device == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    rate = 2 * source.nbytes / best_of(synchronised(partial(target.copy_, source), device))
    RATES.setdefault(device, {})["copy"] = rate
    return rate


@pytest.fixture
def measure(benchmark: Any, device: str) -> Callable[..., None]:
    """Runs one side of a group for about a second, at least three rounds."""

    def run(
        group: str,
        side: Callable[[], Any],
        work: float,
        rate: float,
        error: float | None = None,
        who: str | None = None,
        rounds: int | None = None,
    ) -> None:
        """Measures ``side``.

        Args:
            work: useful FLOPs or bytes. rate: what the machine does of them per second at best.
            error: relative to float64; by default what the side returns. who: the side, where it is no parameter.
            rounds: 1 for what takes long; it is not warmed up either.
        """
        calls = 1
        if rounds is None:
            taken = seconds(synchronised(side, device))
            rounds = int(min(max(1.0 / taken, 3), 200))
            calls = int(min(max(A_ROUND / taken, 1), 100)) if device == "cuda" else 1
        side = synchronised(side, device, every=calls)
        benchmark.group = f"{device} {group}"
        returned = benchmark.pedantic(side, rounds=rounds, iterations=calls, warmup_rounds=int(rounds > 1))
        median = benchmark.stats.stats.median
        benchmark.extra_info.update(
            who=who or benchmark.params["who"],
            error=returned if error is None else error,
            rate=work / median,
            unit="B/s" if "capture" in group else "FLOP/s",
            roof_share=round(work / rate / median, 3),
            threads=torch.get_num_threads(),
            calls=calls,
        )

    return run


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One line for each opponent; with a GPU, the table is the last thing that is printed."""
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, dict[str, Any]] = {}
    for bench in getattr(session, "benchmarks", []):
        if "who" in bench.extra_info:
            groups.setdefault(bench.group, {})[bench.extra_info["who"]] = bench
    if not groups:
        return
    terminalreporter.section("ratio of medians, of quartiles in brackets")
    titles = f"{'op, shape':<42} {'ours ms':>9} {'opponent':>12} {'ms':>9} {'ratio':>6} {'':15} {'rate':>8} {'roof':>5}"
    terminalreporter.write_line(f"{titles}  error: ours, theirs")
    for group, sides in groups.items():
        for name, other in sides.items():
            if name != OURS and OURS in sides:
                terminalreporter.write_line(_line(group, name, sides[OURS], other))


def _line(group: str, name: str, ours: Any, theirs: Any) -> str:
    mine, other, info = ours.stats, theirs.stats, ours.extra_info
    rate = f"{info['rate'] / 1e9:.0f} G" if info["rate"] < 1e12 else f"{info['rate'] / 1e12:.1f} T"
    return (
        f"{group:<42} {1e3 * mine.median:9.3f} {name:>12} {1e3 * other.median:9.3f} {other.median / mine.median:5.2f}x "
        f"[{other.q1 / mine.q3:6.2f} {other.q3 / mine.q1:6.2f}] {rate:>8} {100 * info['roof_share']:3.0f} %  "
        f"{info['error']:.3g}, {theirs.extra_info['error']:.3g}"
    )
