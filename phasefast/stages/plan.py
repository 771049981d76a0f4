"""What a measurement will cost, before anything is allocated."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import ArgumentError, MemoryBudgetError
from ..types import Layer, Route

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SHARE_OF_FREE_MEMORY = 0.7


@dataclass(frozen=True)
class Problem:
    """Sizes that all cells share: fit rows, held-out rows, target columns, sketched columns, folds, penalties.

    ``zero``: whether a penalty of zero is among them, whose solution of least norm only the primal route knows.
    """

    n: int
    m: int
    p: int
    q: int
    folds: int
    penalties: int
    zero: bool = False


@dataclass(frozen=True)
class Cost:
    """What a cell takes by one route: FLOPs of matrix products and factorisations, and bytes at the peak."""

    route: Route
    flops: float
    bytes: int


def cell_cost(dim: int, problem: Problem) -> Cost:
    """The route of fewer FLOPs for a cell of ``dim`` features, and its cost."""
    primal = Cost("primal", _primal_flops(dim, problem), 4 * _rows(problem) * dim + _primal_bytes(dim, problem))
    if problem.zero or dim <= problem.n:
        return primal
    n, m = problem.n, problem.m
    inner = 2 * (n * n / 2 + n * m) * dim + n**3 / 3 + n * n * m
    reducing = 8 * (3 * n * n + 3 * n * m + 3 * 1024 * _rows(problem)) + 4 * _rows(problem) * dim
    solving = 8 * _rows(problem) * n + _primal_bytes(n, problem)
    # Float64 takes twice the time of float32.
    dual = Cost("dual", 2 * inner + _primal_flops(n, problem), max(reducing, solving))
    return min(dual, primal, key=lambda cost: cost.flops)


def _rows(problem: Problem) -> int:
    return problem.n + problem.m


def _primal_flops(dim: int, problem: Problem) -> float:
    n, m, p, q = problem.n, problem.m, problem.p, problem.q
    statistics = n * dim * (dim + 2 * p)
    solving = 4 * dim**3 / 3 + 2 * dim * dim * p + 2 * m * dim * p
    choosing = problem.penalties * (problem.folds * (dim**3 / 3 + 2 * dim * dim * q) + 2 * n * dim * q)
    return statistics + solving + (2 * n * dim * q + choosing if problem.folds > 1 else 0)


def _primal_bytes(dim: int, problem: Problem) -> int:
    """A Gram matrix per fold and the sum, cross moments, factors and weights."""
    grams = 8 * dim * dim * (problem.folds + 1)
    crosses = 8 * dim * (problem.p + problem.folds * problem.q)
    solving = 8 * dim * (4 * dim + 3 * problem.p + (problem.penalties + 2) * problem.q)
    return grams + crosses + solving


def group_layers(layers: Sequence[Layer], problem: Problem, budget: int) -> list[list[Layer]]:
    """Layers measured together, in as few forward passes as the budget allows, in the given order.

    Args:
        budget: bytes.

    Raises:
        MemoryBudgetError: one layer alone does not fit; the message says what would.
    """
    groups: list[list[Layer]] = []
    used = 0
    for layer in layers:
        need = cell_cost(layer.dim, problem).bytes
        if need > budget:
            raise MemoryBudgetError(
                f"layer {layer.name!r}: its {layer.dim} features need {need / 1e9:.2f} GB, "
                f"the budget is {budget / 1e9:.2f} GB; pool it (pool=), give one penalty (alphas=[a] needs no folds), "
                "fewer rows, or a larger memory="
            )
        if not groups or used + need > budget:
            groups.append([])
            used = 0
        groups[-1].append(layer)
        used += need
    return groups


def memory_budget(memory: str | float | None, device: torch.device) -> int:
    """Bytes a measurement may take: ``"8GB"``, bytes, or by default most of what is free on the device.

    Raises:
        ArgumentError: a text that is no size.
    """
    if memory is None:
        return int(_SHARE_OF_FREE_MEMORY * _free_memory(device))
    if isinstance(memory, (int, float)):
        return int(memory)
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMGT]?B?)\s*", memory.upper()) if isinstance(memory, str) else None
    if match is None:
        raise ArgumentError(f"memory: expected bytes or a text such as '8GB', got {memory!r}")
    unit = match[2] if match[2].endswith("B") or not match[2] else f"{match[2]}B"
    return int(float(match[1]) * _UNITS[unit])


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
