"""Does the planner choose well? Random cells, each by every route that can serve it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ours import Cell
from timing import Size, seconds

NEAR = 1.5  # a choice within this factor of the fastest route is a good one
_FLOPS = 5e10  # of all routes of a cell together: about as much as a core's worth of CPU does in a second
_RUNS = 2


def made_up(n: int, d: int, p: int, alphas: Sequence[float], generator: torch.Generator) -> Cell:
    """A cell of ReLU rows whose targets depend on them in part, a quarter as many held-out rows as fit rows."""
    rows = torch.randn(n + n // 4, d, generator=generator).relu()
    some = rows[:, :32]
    targets = some @ torch.randn(some.shape[1], p, generator=generator)
    targets += some.shape[1] ** 0.5 * torch.randn(len(rows), p, generator=generator)
    return Cell(rows[:n], rows[n:], targets, None, alphas)


def penalties(count: int) -> list[float]:
    """Penalties over the decades that suit ``made_up``."""
    return [10.0 ** (6 * (k + 0.5) / count - 4) for k in range(count)]


def section(size: Size) -> dict[str, Any]:
    """Cells of log-uniform sizes; those that would take long by any route are drawn again."""
    smoke, generator = size == Size.SMOKE, torch.Generator().manual_seed(0)
    sizes = ((20, 200), (5, 200), (2, 100)) if smoke else ((200, 6000), (50, 6000), (10, 4000))
    low, high = torch.tensor(sizes).log().unbind(1)
    cells: list[dict[str, Any]] = []
    while len(cells) < (3 if smoke else 60):
        n, d, p = (low + (high - low) * torch.rand(3, generator=generator)).exp().round().int().tolist()
        count = int(torch.randint(1, 11, (), generator=generator))
        if n * d * (d + 2 * p) > _FLOPS:  # before the cell is made
            continue
        cell = made_up(n, d, p, penalties(count), generator)
        splits = ("both", "heldout")[len(cells) % 2]
        costs = {cost.route: cost.flops for cost in cell.costs(splits)}
        if sum(costs.values()) <= _FLOPS:
            shape = {"n": n, "d": d, "p": p, "penalties": count, "splits": splits}
            cells.append({**shape, "flops": costs} | _measured(cell, splits))
    choices = [cell for cell in cells if len(cell["seconds"]) > 1]
    good = [cell for cell in choices if cell["over_best"] <= NEAR]
    share = len(good) / len(choices) if choices else None
    return {"near": NEAR, "cells": cells, "with_choice": len(choices), "share": share}


def _measured(cell: Cell, splits: str) -> dict[str, Any]:
    routes = cell.routes(splits)
    taken: dict[str, list[float]] = {route: [] for route in routes}
    for _ in range(_RUNS):
        for route, forced in routes.items():
            taken[route].append(seconds(lambda forced=forced: cell.scores(**forced)))
    best = {route: min(each) for route, each in taken.items()}
    chosen = next(iter(routes))
    return {"chosen": chosen, "seconds": taken, "over_best": best[chosen] / min(best.values())}
