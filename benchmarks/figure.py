"""docs/performance.png from a result of compare.py: time against each size, and what the planner expects."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from statistics import median
from typing import Any

MEASURED, MODEL = "#0072B2", "#D55E00"  # Okabe & Ito: told apart by all eyes, in print too
NAMES = {
    "rows": ("fit rows", "n"),
    "features": ("features", "d"),
    "targets": ("target columns", "p"),
    "layers": ("layers", "k"),
    "checkpoints": ("checkpoints", "c"),
    "penalties": ("penalties", "L"),
}


def draw(growth: dict[str, Any], path: Path) -> None:
    """Write the figure of the section ``growth``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rate = median(growth["rates"])
    figure, grid = pyplot.subplots(2, 3, figsize=(10, 6), layout="constrained", facecolor="white")
    for axes, (name, axis) in zip(grid.flat, growth["axes"].items(), strict=True):
        label, symbol = NAMES[name]
        values, best = axis["values"], [min(own) for own in axis["seconds"]]
        planned = [work / rate for work in axis["work"]]
        axes.plot(values, planned, "--", color=MODEL, linewidth=2, label="planned, at the rate of products")
        above = [median(own) - least for own, least in zip(axis["seconds"], best, strict=True)]
        bars = [[0.0] * len(best), above]
        axes.errorbar(
            values, best, bars, fmt="o-", color=MEASURED, markersize=5, label="measured: best, bar to the median"
        )
        highest = max(map(median, axis["seconds"]))
        limits = 10 ** math.floor(math.log10(min(planned + best))), 10 ** math.ceil(math.log10(highest))
        axes.set(xscale="log", yscale="log", xlabel=label, ylim=limits)  # whole decades: two labels at least
        axes.set_xticks(values, [f"{value:,}" for value in values], fontsize=9)
        axes.minorticks_off()
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        time, work = axis["exponent"], axis["planned"]
        axes.set_title(f"time ~ ${symbol}^{{{time:.2f}}}$, planned ${symbol}^{{{work:.2f}}}$", fontsize=12)
    for axes in grid[:, 0]:
        axes.set_ylabel("seconds")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=11)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["sections"]["growth"], Path(sys.argv[2]))
