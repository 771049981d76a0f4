"""The tables that compare.py prints."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table


def show(console: Console, name: str, measured: dict[str, Any]) -> None:
    """Print one section."""
    products = ", ".join(f"{kind} {rate / 1e9:.0f}" for kind, rate in measured["products"].items())
    console.rule(f"{name} ({measured['took']:.0f} s; products at {products} GFLOP/s)")
    for table in _TABLES[name](measured):
        console.print(table)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, least and largest."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def _comparison(case: dict[str, Any]) -> Table:
    title = f"{case['case']}: {case['n']} + {case['m']} rows, {case['d']} -> {case['p']}"
    table = _table(title, "side", "seconds", "over ours", "held-out error", "over best", "rounding", "peak MB")
    for side in case["sides"]:
        error, *others = (side.get(key) for key in ("error", "excess", "rounding"))
        table.add_row(
            side["who"],
            spread(side["seconds"], 3),
            spread(side["ratios"]),
            "" if error is None else f"{error:.6f}",
            *("" if other is None else f"{other:+.1e}" for other in others),
            f"{side['peak_bytes'] / 1e6:.0f}",
        )
    least, over = case["floor"]["seconds"], case["floor"]["over"]
    table.add_row("floor", spread(least, 3), f"ours over it {spread(over)}", "", "", "", "")
    return table


def _cells(measured: dict[str, Any]) -> list[Table]:
    return [_comparison(case) for case in measured["cases"]]


def _sweep(measured: dict[str, Any]) -> list[Table]:
    layers = _table(
        f"last checkpoint; prepared once in {measured['preparing']:.1f} s",
        "layer", "features", "route", "dtype", "penalty", "held-out error", "ours over float64", "aten over float64",
    )  # fmt: skip
    for layer in measured["layers"]:
        own = [f"{value:+.1e}" for value in layer.get("difference", {}).values()]
        name, route, dtype = layer["layer"], layer["route"], layer["dtype"]
        layers.add_row(name, str(layer["dim"]), route, dtype, f"{layer['alpha']:.0e}", f"{layer['value']:.6f}", *own)
    return [_comparison(measured), layers]


def _stages(measured: dict[str, Any]) -> list[Table]:
    found = []
    for way, parts in measured["parts"].items():
        table = _table(f"{way}: {measured['seconds'][way]:.2f} s without the profiler", "stage", "seconds", "calls")
        for name, own in parts.items():
            table.add_row(name, f"{own['host']:.3f}", f"{own['calls']:.0f}")
        found.append(table)
    return found


def _choosing(measured: dict[str, Any]) -> list[Table]:
    table = _table(f"among {measured['penalties']} penalties", "n, m, d, p", "route", "given: seconds", "choosing adds")
    for cell in measured["cells"]:
        size = ", ".join(str(cell[key]) for key in ("n", "m", "d", "p"))
        table.add_row(size, cell["route"], spread(cell["seconds"], 4), spread(cell["choosing"]))
    return [table]


def _approximations(measured: dict[str, Any]) -> list[Table]:
    table = _table(
        f"{measured['components']} components, sketches of {measured['sketch']} features",
        "layer", "features", "way", "seconds", "times as fast", "held-out error", "exact one lies in", "dropped",
    )  # fmt: skip
    for layer in measured["layers"]:
        for way, one in layer["ways"].items():
            known = one["approximation"] is not None
            ends = f"{one['low']:.6f} to {one['high']:.6f}" if known else ""
            dropped = f"{one['dropped']:.4f}" if known and one["dropped"] is not None else ""
            taken, faster, value = spread(one["seconds"]), f"{one['speedup']:.2f}", f"{one['value']:.6f}"
            table.add_row(layer["layer"], str(layer["dim"]), way, taken, faster, value, ends, dropped)
    return [table]


def _inputs(measured: dict[str, Any]) -> list[Table]:
    table = _table(
        f"{measured['n']} + {measured['m']} images, {measured['d']} features: {spread(measured['ratios'])} times",
        "size", "prepared in s", "seconds", "capture in s",
    )  # fmt: skip
    for record in measured["sizes"]:
        prepared, taken, captured = record["preparing"], spread(record["seconds"], 3), record["capture"]
        table.add_row(str(record["size"]), f"{prepared:.2f}", taken, f"{captured:.2f}")
    return [table]


def _routes(measured: dict[str, Any]) -> list[Table]:
    share = "none has a choice" if measured["share"] is None else f"chosen within {measured['near']} of the best: "
    share += "" if measured["share"] is None else f"{100 * measured['share']:.0f} % of {measured['with_choice']}"
    table = _table(share, "n, d, p, penalties", "chosen", "seconds of each route", "over best")
    for cell in measured["cells"]:
        size = ", ".join(str(cell[key]) for key in ("n", "d", "p", "penalties"))
        each = ", ".join(f"{route} {min(taken):.4f}" for route, taken in cell["seconds"].items())
        table.add_row(size, cell["chosen"], each, f"{cell['over_best']:.2f}")
    return [table]


def _growth(measured: dict[str, Any]) -> list[Table]:
    table = _table("exponents on the upper half", "what grows", "sizes", "seconds", "routes", "exponent", "planned")
    for name, axis in measured["axes"].items():
        seconds = " ".join(f"{min(own):.3g}" for own in axis["seconds"])
        sizes, routes = " ".join(map(str, axis["values"])), ", ".join(dict.fromkeys(axis["routes"]))
        table.add_row(name, sizes, seconds, routes, f"{axis['exponent']:.2f}", f"{axis['planned']:.2f}")
    return [table]


_TABLES = {
    "cell": _cells,
    "sweep": _sweep,
    "stages": _stages,
    "choosing": _choosing,
    "approximations": _approximations,
    "inputs": _inputs,
    "routes": _routes,
    "growth": _growth,
}
