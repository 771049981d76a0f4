"""Scores in words: what is printed of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..common.notices import shown
from ..common.tables import aligned
from ..metrics import FVU, LISTED

COLUMNS = ["run", "step", "layer", "dim", "target", "split", "metric", "value", "alpha", "route", "approximation"]
_COLUMNS = 15  # of a table, beyond which its lines would be too long
_WORSE = 1.01  # fvu, by rather more than the constant's own, whose mean is that of the fit rows


def listing(rows: Iterable[Mapping[str, Any]]) -> str:
    """A line for each layer: held-out scores, the penalty of each target and the routes; of each run's last step.

    Of many targets a column for each layer instead.

    Below, which layers do worse than a constant.

    Args:
        rows: with ``COLUMNS`` of ``scores.SCHEMA``, in the order of their steps and layers.
    """
    runs: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
    for row in rows:
        if row["split"] == "heldout" and row["metric"] in LISTED:
            runs.setdefault(row["run"], {}).setdefault(row["step"], []).append(row)
    parts = []
    for run, steps in runs.items():
        last = max(steps)
        earlier = f", the last of {len(steps)}" if len(steps) > 1 else ""
        parts.append("\n".join([f"{run}: step {last}{earlier}, held-out rows", *_lines(steps[last])]))
    return "\n\n".join(parts)


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    layers: dict[str, dict[str, str]] = {}
    for row in rows:
        cells = layers.setdefault(row["layer"], {"layer": row["layer"], "features": f"{row['dim']}"})
        approximate = "~" if row["approximation"] else ""
        cells[f"{row['target']} {row['metric']}"] = f"{approximate}{row['value']:.4g}"
        if row["alpha"] is not None:
            cells[f"{row['target']} penalty"] = f"{row['alpha']:.0e}"
            known = cells["route"].split(", ") if "route" in cells else []
            cells["route"] = ", ".join(dict.fromkeys([*known, row["route"]]))
    named = dict.fromkeys(title for cells in layers.values() for title in cells if title != "route")
    targets = list(dict.fromkeys(row["target"] for row in rows))
    # The model's own loss and accuracy come first of all: each target's columns stand together.
    order = {
        title: targets.index(title.rpartition(" ")[0]) + 1 for title in named if title.rpartition(" ")[0] in targets
    }
    titles = [*sorted(named, key=lambda title: order.get(title, 0)), "route"]
    table = [titles, *([cells.get(title, "") for title in titles] for cells in layers.values())]
    if len(titles) > max(_COLUMNS, len(table)):
        return [*aligned([*zip(*table, strict=True)], left=(0,)), *_remarks(rows)]
    return [*aligned(table, left=(0, len(titles) - 1)), *_remarks(rows)]


def _remarks(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    worse: dict[str, list[str]] = {}
    for row in rows:
        if row["metric"] == FVU and row["value"] > _WORSE:
            if row["alpha"] is None:
                yield (
                    f"{row['target']} fvu of the model itself above 1: it is not trained yet, or predicts other "
                    "numbers than the target's, such as standardised ones or logits"
                )
                continue
            worse.setdefault(row["target"], []).append(row["layer"])
    for target, layers in worse.items():
        yield worse_than_constant(target, layers)


def worse_than_constant(target: str, layers: Sequence[str]) -> str:
    """What may have made the FVU of these layers so high."""
    return (
        f"{target} fvu above 1, worse than a constant, in {shown(layers)}: typical of too few fit rows, of fit rows "
        "that the model was trained on, or of held-out rows of another kind"
    )
