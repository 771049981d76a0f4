"""Sides measured in turn within each repeat, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import ctypes
import enum
import itertools
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from phasefast.stages.plan import Cost

OURS, SINGLE, DOUBLE = "ours", "float32 products", "float64 products"


@dataclass(frozen=True)
class Side:
    """One way of doing the work; ``run`` returns its held-out error, where it has one.

    A slow one runs once, between two runs of ours.

    Attributes:
        flops: of products whose rate is wanted.
    """

    name: str
    run: Callable[[], float | None]
    slow: bool = False
    flops: float = 0.0


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def best_of(run: Callable[[], Any], repeats: int = 5) -> float:
    """Seconds of the fastest of some calls after one that warms up."""
    run()
    return min(seconds(run) for _ in range(repeats))


def synchronised(side: Callable[[], Any], device: str, every: int = 1) -> Callable[[], Any]:
    """The call with its work on the device done; ``every``: that of so many calls, at the last of them."""
    calls = itertools.count(1)

    def run() -> Any:
        returned = side()
        if next(calls) % every == 0:
            torch.cuda.synchronize()
        return returned

    return run if device == "cuda" else side


class Size(enum.StrEnum):
    """How much is measured: enough to see that it runs, what minutes allow, or all that the documents are made of."""

    SMOKE = "smoke"
    QUICK = "quick"
    FULL = "full"


def product_rate(dtype: torch.dtype, device: str = "cpu", size: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of square matrix products; TF32 off."""
    a = torch.randn(size, size, device=device).to(dtype)
    run = synchronised(partial(torch.mm, a, a, out=torch.empty_like(a)), device)
    return 2 * size**3 / best_of(run, repeats)


def products(count: int, size: int = 4096) -> list[Side]:
    """Products of float32 and of float64 matrices, to be measured in turn with the rest for :func:`floor`.

    A processor that has just been idle is faster than under load: a floor takes the rates that last, beside ours.
    """

    def repeated(factor: torch.Tensor, out: torch.Tensor, count: int) -> None:
        for _ in range(count):
            torch.mm(factor, factor, out=out)

    sides = []
    for name, dtype, each, width in ((SINGLE, torch.float32, count, size), (DOUBLE, torch.float64, 1, size // 2)):
        factor = torch.randn(width, width, dtype=dtype)
        work = 2.0 * each * width**3
        sides.append(Side(name, partial(repeated, factor, torch.empty_like(factor), each), flops=work))
    return sides


def peak_growth(run: Callable[[], float | None]) -> tuple[float | None, int]:
    """What the call returns, and by how many bytes the resident memory grew at its peak (ru_maxrss)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # memory freed but kept would hide growth
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # sets the peak back to what is resident now
    before = _peak()
    returned = run()
    return returned, _peak() - before


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1)


def in_turn(
    sides: Sequence[Side],
    repeats: int,
    before_each: Callable[[int], Any] = lambda repeat: None,
    warm: bool = True,
) -> list[dict[str, Any]]:
    """Measure all sides; a record of each: seconds, ours in the same repeats, their ratios, error and peak memory.

    Args:
        sides: ours, whose name is ``OURS``, among them. before_each: called with the number of each repeat.
        warm: call each side once before; otherwise memory is measured in the very calls that are timed.
    """
    records: dict[str, dict[str, Any]] = {
        side.name: {"who": side.name, "seconds": [], "ours": [], "error": None, "peak_bytes": 0} for side in sides
    }

    def watched(side: Side) -> float:
        record = records[side.name]
        start = time.perf_counter()
        record["error"], peak = peak_growth(side.run)
        record["peak_bytes"] = max(peak, record["peak_bytes"])
        return time.perf_counter() - start

    quick = [side for side in sides if not side.slow]
    for side in quick if warm else ():
        watched(side)
    for repeat in range(repeats):
        before_each(repeat)
        for side in quick if repeat % 2 == 0 else quick[::-1]:
            records[side.name]["seconds"].append(seconds(side.run) if warm else watched(side))
    ours = next(side for side in sides if side.name == OURS)
    for side in sides:
        record = records[side.name]
        if side.slow:
            before = seconds(ours.run)
            record["seconds"] = [watched(side)] * 2
            record["ours"] = [before, seconds(ours.run)]
        else:
            record["ours"] = records[OURS]["seconds"]
        record["ratios"] = [theirs / own for theirs, own in zip(record["seconds"], record["ours"], strict=True)]
    return list(records.values())


def floor(
    costs: Sequence[Cost], beside: Sequence[Side], records: Sequence[dict[str, Any]], forward: Sequence[float] = ()
) -> dict[str, Any]:
    """The least time: planned FLOPs at the rates of matrix products, and forward passes; and ours over it, per repeat.

    Args:
        beside: the products. records: of all sides. forward: seconds of the forward passes alone, or nothing.
    """
    taken = {record["who"]: record["seconds"] for record in records}
    single, double = ([side.flops / each for each in taken[side.name]] for side in beside)
    flops, wide = sum(cost.flops for cost in costs), sum(cost.double for cost in costs)
    planned = [(flops - wide) / a + wide / b for a, b in zip(single, double, strict=True)]
    least = [a + b for a, b in zip(planned, forward or [0.0] * len(planned), strict=True)]
    over = [own / bound for own, bound in zip(taken[OURS], least, strict=True)]
    rates = {"float32": single, "float64": double}
    return {"flops": flops, "flops_double": wide, "rates": rates, "seconds": least, "over": over}
