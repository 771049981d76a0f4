"""What a reproduction prints: published beside measured, the advice and its back-test, the claims."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_results(results: dict[str, Any], console: Console) -> None:
    """Print the tables of a ``results.json``: curves of the last features, transfer, decoders and claims."""
    console.print(_curves(results))
    if any(seed["transfer"] for seed in results["seeds"]):
        console.print(_transfer(results))
    if results["decoders"]:
        console.print(_decoders(results))
    for claim in results["claims"]:
        mark = ("holds", "green") if claim["holds"] else ("does not hold", "red")
        console.print(Text.assemble(mark, f": {claim['name']} ({claim['figures']})"), soft_wrap=True)


def _curves(results: dict[str, Any]) -> Table:
    """Mean over the seeds, BatchNorm by batch; published figures in brackets."""
    published, curves = results["published"], [seed["batch"] for seed in results["seeds"]]
    columns = [key for key in ("mse", "fvu", "colour", "quadrant", "label", "test", "train") if key in curves[0]]
    name, features = results["setting"]["name"], results["seeds"][0]["features"]
    table = Table(title=f"{name}, layer {features}, BatchNorm by batch, mean of {len(curves)} seeds")
    table.caption = "in brackets: published" if published else None
    table.add_column("step", justify="right")
    for column in columns:
        table.add_column(column, justify="right")
    for index, step in enumerate(curves[0]["steps"]):
        cells = []
        for column in columns:
            text = f"{np.mean([curve[column][index] for curve in curves]):.3f}" if curves[0][column] else "-"
            if published and column in published and step in published["steps"]:
                text += f" ({published[column][published['steps'].index(step)]:.3f})"
            cells.append(text)
        table.add_row(str(step), *cells)
    return table


def _transfer(results: dict[str, Any]) -> Table:
    table = Table(title="Transfer: accuracy in the stop window, found without labels, at the best and at the last step")
    for column in ("seed", "task", "window", "in window", "best", "last", "regret", "regret of last"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for seed in results["seeds"]:
        for task, test in seed["transfer"].items():
            table.add_row(
                str(seed["seed"]),
                task,
                "{}-{}".format(*test["window"]),
                f"{test['in_window']:.3f}",
                f"{test['best']:.3f} at {test['best_step']}",
                f"{test['last']:.3f}",
                f"{test['regret']:.2f}",
                f"{test['regret_of_last']:.2f}",
            )
    return table


def _decoders(results: dict[str, Any]) -> Table:
    table = Table(title="Held-out error per element and seconds from activations to it: exact, and trained by Adam")
    table.add_column("step", justify="right")
    for kind in ("exact", "linear", "conv"):
        table.add_column(kind, justify="right")
    for row in results["decoders"]:
        found = [
            f"{row[kind]['heldout_mse']:.4f}, {row[kind]['seconds']:.1f} s" for kind in ("exact", "linear", "conv")
        ]
        table.add_row(str(row["step"]), *found)
    return table
