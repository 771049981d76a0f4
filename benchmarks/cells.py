"""One layer's cell, from captured activations to scores, ours and what people use instead."""

from __future__ import annotations

from functools import partial
from typing import Any

from opponents import CLASSES, OPPONENTS, SLOW, installed, oracle, synthetic
from ours import Cell
from timing import OURS, Side, Size, floor, in_turn, products

FAST = "ours, fast"
ONE, TEN = (1e-3,), tuple(10.0**k for k in range(-6, 4))
# Name: fit rows, held-out rows, features, columns of the input, penalties, opponents.
CASES = {
    "one penalty": (20_000, 5_000, 512, 3072, ONE, ("aten", "sklearn Ridge", "lstsq", "adam")),
    "ten penalties": (20_000, 5_000, 512, 3072, TEN, ("aten", "sklearn RidgeCV", "himalaya RidgeCV")),
    "wide, ten penalties": (2_000, 500, 4096, 3072, TEN, ("aten", "sklearn RidgeCV", "himalaya KernelRidgeCV")),
}
# himalaya takes minutes at the full size.
QUICK = CASES | {"ten penalties": (5_000, 1_250, *CASES["ten penalties"][2:])}
SMOKE = {
    "one penalty": (200, 50, 16, 24, ONE, ("aten", "sklearn Ridge", "lstsq", "adam")),
    "wide, ten penalties": (40, 20, 64, 24, TEN, ("aten", "himalaya KernelRidgeCV")),
}
OF_SIZE = {Size.SMOKE: SMOKE, Size.QUICK: QUICK, Size.FULL: CASES}


def section(size: Size, repeats: int) -> dict[str, Any]:
    """All cases: the same rows and targets for all sides."""
    cases = []
    for name, (n, m, d, p, alphas, opponents) in OF_SIZE[size].items():
        data = synthetic(n, m, d, p)
        cell = Cell.of(data, alphas)
        beside = products(1, 256 if size == Size.SMOKE else 4096)
        sides = [*beside, Side(OURS, cell.error), Side(FAST, partial(cell.error, "fast"))]
        there = [who for who in opponents if installed(who)]
        sides += [Side(who, partial(OPPONENTS[who], data, alphas), who in SLOW) for who in there]
        measured = in_turn(sides, repeats)
        records = measured[len(beside) :]
        exact, cost = dict(zip(alphas, oracle(data, alphas), strict=True)), cell.costs()[0]
        best = min(exact.values())
        known = {OURS: cell.chosen["exact"], FAST: cell.chosen["fast"]}
        for record in records:
            record["excess"] = record["error"] / best - 1
            if record["who"] in known:
                record["rounding"] = record["error"] / exact[known[record["who"]]] - 1
        shape = {"n": n, "m": m, "d": d, "p": p + CLASSES, "penalties": len(alphas)}
        bound = floor([cost], beside, measured)
        cases.append({"case": name, **shape, "route": cost.route, "oracle": best, "sides": records, "floor": bound})
    return {"cases": cases}
