"""What choosing a penalty adds to the rest of a cell's work: with a choice, and with the chosen penalties given."""

from __future__ import annotations

from typing import Any

from opponents import CLASSES, synthetic
from ours import Cell
from timing import OURS, Side, Size, in_turn

from phasefast.algebra.systems import DEFAULT_ALPHAS

# Fit rows, held-out rows, features, columns of the input: of digits, with more and more features, and of CIFAR-10.
SIZES = (
    (300, 100, 64, 64), (700, 200, 256, 64), (1400, 397, 512, 64), (1400, 397, 768, 64), (1400, 397, 1024, 64),
    (1400, 397, 1300, 64), (1400, 397, 2048, 64), (1400, 397, 4096, 64), (2000, 500, 1024, 3072),
    (2000, 500, 4096, 3072), (5000, 1000, 2048, 3072), (20_000, 5000, 512, 3072),
)  # fmt: skip
_SMOKE = ((60, 20, 10, 16), (40, 20, 300, 16))
_MOST = 40  # repeats of cells that take milliseconds: their ratios scatter
_ROWS = 5e7  # elements of all repeats' rows together


def section(size: Size, repeats: int) -> dict[str, Any]:
    """Per cell: seconds with and without choosing, in turn, and the share that choosing adds."""
    cells = []
    for n, m, d, p in _SMOKE if size == Size.SMOKE else SIZES:
        cell = Cell.of(synthetic(n, m, d, p), DEFAULT_ALPHAS)
        sides = [Side(OURS, cell.error), Side("given", cell.without_choosing())]
        count = repeats if size == Size.SMOKE else max(repeats, min(_MOST, int(_ROWS / (n * d))))
        _, given = in_turn(sides, count)
        shares = [1 / ratio - 1 for ratio in given["ratios"]]
        shape = {"n": n, "m": m, "d": d, "p": p + CLASSES, "route": cell.costs()[0].route}
        cells.append({**shape, "seconds": given["seconds"], "choosing": shares})
    return {"penalties": len(DEFAULT_ALPHAS), "cells": cells}
