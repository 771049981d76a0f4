"""Several recipes of several seeds each: which run is of which, tables of how they differ, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import ArgumentError, DataError, LayerError
from ..metrics import FVU
from ..phases.comparing import Comparison
from ..phases.phase_report import PhaseReport
from ..phases.recipes import RecipeCell, RecipeComparison, compare_recipes, recipe_notes
from ..results.scores import MODEL_LAYER, Scores
from .curves import Curve, Look, accuracy_metric, accuracy_target, fvu_target, telling_layers, values_by_step
from .names import shortened, spelled
from .page import EDGE, NAME, Page, picture, widest, written
from .panel import Panel, draw_panel
from .scales import StepAxis, accuracy_axis, fvu_axis
from .table import heading, plus_minus, print_fitting, simple_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours but yellow, which all kinds of colour vision tell apart; markers and names do the rest.
_COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222"
_MARKERS, _PANEL, _GAP = "os^DvPX", 3.0, 0.2


def split_runs(runs: Mapping[str, Path], patterns: Sequence[str]) -> dict[str, list[str]]:
    """The names of the runs of each recipe, by the glob that the ends of their paths match.

    Raises:
        ArgumentError: a run of no recipe or of two, or a recipe of fewer than two runs.
    """
    if len(set(patterns)) < len(patterns):
        raise ArgumentError(f"--recipe: expected a different glob for each recipe, got {list(patterns)}")
    found: dict[str, list[str]] = {pattern: [] for pattern in patterns}
    for name, path in runs.items():
        of = [pattern for pattern in patterns if _matches(path, pattern)]
        if len(of) != 1:
            what = f"both {' and '.join(map(repr, of))}" if of else f"none of {list(patterns)}"
            raise ArgumentError(f"--recipe: expected each run to match one glob, got {path}, which matches {what}")
        found[of[0]].append(name)
    if few := [pattern for pattern, own in found.items() if len(own) < 2]:
        raise ArgumentError(f"--recipe {few[0]!r}: expected two runs or more, got {found[few[0]]} of {list(runs)}")
    return found


def _matches(path: Path, pattern: str) -> bool:
    try:
        return path.match(pattern)
    except ValueError as error:
        raise ArgumentError(f"--recipe: expected a glob, such as 'wide-*', got {pattern!r} ({error})") from None


def recipes_of(comparison: Comparison, recipes: Mapping[str, Sequence[str]]) -> RecipeComparison:
    """What ``compare_recipes`` makes of runs that were read. Args: recipes: the names of each one's runs."""
    reports = {run: PhaseReport(tuple(each.cells[run] for each in comparison)) for run in comparison.runs}
    return compare_recipes({recipe: {run: reports[run] for run in own} for recipe, own in recipes.items()})


def print_recipes(comparison: RecipeComparison, console: Console) -> None:
    """Per target: what each layer has at its best and at last, recipe by recipe."""
    sign = plus_minus(console)
    for target in dict.fromkeys(cell.target for cell in comparison):
        cells = [cell for cell in comparison if cell.target == target]
        heading(f"Held-out {spelled(cells[0].metric)} of target {target}, by recipe", console)
        print_fitting(partial(_table, cells, comparison.titles(sign), sign), console)
        for note in recipe_notes(cells):
            console.print(Text(note, style="dim"))
    console.print()
    for line in [*comparison.about(), *comparison.by_chance()]:
        console.print(Text(line), soft_wrap=True)


def _table(cells: Sequence[RecipeCell], titles: Sequence[str], sign: str, between: str) -> Table:
    """A row for each layer and recipe. Args: between: numbers and what stands in brackets."""
    table = simple_table(padding=1)
    for title in ("layer", "recipe"):
        table.add_column(title, overflow="fold")
    for title in titles:
        table.add_column(Text(title.replace(" [", "\n[")), justify="right", no_wrap=True)
    names, before = shortened(cell.layer for cell in cells), ""
    for cell in cells:
        name, before = names[cell.layer] if cell.layer != before else "", cell.layer
        table.add_row(*map(Text, (name, cell.recipe, *cell.texts(sign, between))))
    return table


@picture
def plot_recipes(
    scores: Mapping[str, Mapping[str, Scores]], path: str | Path | None = None, layer: str | None = None
) -> Figure:
    """One layer of several recipes: mean curves over their runs, in bands of one standard deviation.

    Of the held-out FVU of the input and the held-out accuracy of the label, or what ``plot_phases`` shows instead, at
    the steps that all runs have.

    Args:
        scores: by recipe and run; two or more of both. path: file to write it to as well. layer: one that all have, by
            default the last before the model's heads.

    Raises:
        DataError: fewer, no step in common, or nothing to draw. LayerError: not all runs have such a layer.
        ArgumentError, DependencyError, StoreError: as for ``plot_phases``.
    """
    fit = isinstance(scores, Mapping) and all(isinstance(own, Mapping) and len(own) > 1 for own in scores.values())
    runs = [each for own in scores.values() for each in own.values()] if fit else []
    if not fit or len(scores) < 2 or not all(isinstance(each, Scores) for each in runs):
        raise DataError("expected two recipes or more, each of the scores of two runs or more, {recipe: {run: Scores}}")
    for own in runs:
        own.check_one_run()
    if len(scores) > len(named := {str(recipe): own for recipe, own in scores.items()}):
        raise DataError(f"expected a different name for each recipe, got {list(scores)}")
    scores = named
    common = [each for each in telling_layers(runs[0]) if all(each in own.layers for own in runs)]
    layer = layer if layer is not None or not common else common[0]
    if layer not in [*common, MODEL_LAYER]:
        raise LayerError(f"layer {layer!r}: expected one of {common}, which all runs have")
    looks = {
        recipe: Look(name, _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], 1.8)
        for i, (recipe, name) in enumerate(shortened(scores).items())
    }
    panels = []
    if (target := fvu_target(runs[0])) is not None and (curves := _curves(scores, layer, target, FVU, looks)):
        axis = fvu_axis(_edges(curves), _PANEL)
        panels.append(Panel(curves, axis, _PANEL, "{} variance not decodable (FVU)", target))
    if (target := accuracy_target(runs[0])) is not None:
        metric = accuracy_metric(runs[0], target)
        if curves := _curves(scores, layer, target, metric, looks):
            constants = {own.baseline(target, metric) for own in runs}
            constant = constants.pop() if len(constants) == 1 else None
            axis, title = accuracy_axis(_edges(curves), constant), f"{{}}: {spelled(metric)}"
            panels.append(Panel(curves, axis, _PANEL, title, target, constant))
    if not panels:
        raise DataError(
            f"nothing to draw: no finite held-out 'fvu' or 'accuracy' of layer {layer!r} at a step of all runs"
        )
    steps = np.unique(np.concatenate([curve.steps for panel in panels for curve in panel.curves]))
    names = widest(text for panel in panels for text, _ in panel.labels)
    page = Page(StepAxis(steps), NAME + names + EDGE, sum(_GAP + panel.height for panel in panels))
    count = sorted({len(own) for own in scores.values()})
    many = f"{count[0]}" if len(count) == 1 else f"{count[0]} to {count[-1]}"
    page.header(f"Recipes: layer {layer}", f"means of {many} runs, standard deviations")
    for panel in panels:
        page.skip(_GAP)
        draw_panel(page, panel, None, shaded=False, last=panel is panels[-1])
    return written(page.figure, path)


def _edges(curves: Sequence[Curve]) -> list[Curve]:
    """Curves with the edges of their bands among their values, for an axis with room for both and no cut between."""
    return [
        replace(curve, values=np.concatenate([curve.values, *(edge.clip(min=0) for edge in curve.band or ())]))
        for curve in curves
    ]


def _curves(
    scores: Mapping[str, Mapping[str, Scores]], layer: str, target: str, metric: str, looks: Mapping[str, Look]
) -> list[Curve]:
    """Mean and band of each recipe, at the steps of which all runs have a finite value; none if there are none."""
    tables = {recipe: [_finite_of(own, layer, target, metric) for own in of.values()] for recipe, of in scores.items()}
    first, *others = [table for own in tables.values() for table in own]
    steps = [step for step in first if all(step in table for table in others)]
    if not steps:
        return []
    found = []
    for recipe, own in tables.items():
        values, guesses = np.array([[table[step] for step in steps] for table in own]).transpose(2, 0, 1)
        mean, spread = values.mean(0), values.std(0, ddof=1)
        what = np.array(steps), mean, guesses.any(0), np.zeros(len(steps), dtype=bool)
        found.append(Curve(*what, looks[recipe], (mean - spread, mean + spread)))
    return found


def _finite_of(scores: Scores, layer: str, target: str, metric: str) -> dict[int, tuple[float, bool]]:
    """The finite ones of :func:`values_by_step`."""
    found = values_by_step(scores, layer, target, metric)
    return {step: (value, guess) for step, (value, guess) in found.items() if np.isfinite(value)}
