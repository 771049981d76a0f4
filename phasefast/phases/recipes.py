"""What several recipes, each trained with several seeds, differ by: in their best and last scores, layer by layer."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..common.distributions import student
from ..common.scalars import as_float
from ..common.tables import Printed, aligned
from ..errors import ArgumentError, DataError
from ..metrics import ACCURACIES, METRIC_OF_LOSS
from .comparing import Agreement, compare_phases
from .phase_report import PhaseReport, first_of, span_text

_ROUNDING = 1e-12  # of numbers that are made of losses
_WHERE = ("best", "last")  # at the lowest loss of a run's training, and at its end


@dataclass(frozen=True)
class Difference:
    """By how much a mean over runs is above that of the first recipe, and the interval of that.

    NaN where the runs of both recipes are the same to rounding, which tells nothing of their scatter.
    """

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does; not where it is not known."""
        return self.low > 0 or self.high < 0

    def text(self, between: str) -> str:
        """As tables have it. Args: between: the number and the interval, and the ends of that."""
        known = math.isfinite(self.low)
        return f"{self.value:+.3g}{between}" + (f"[{self.low:+.2g},{between}{self.high:+.2g}]" if known else "[-]")


@dataclass(frozen=True)
class RecipeCell:
    """One layer and target of one recipe.

    Attributes:
        metric: of the values, such as ``"fvu"`` or ``"accuracy"``. best: each run's value at the step of its lowest
            loss. last: at its last step. minimum_steps, last_steps: these steps. decreasing: how many runs have a phase
            of decreasing loss. differences: from the first recipe, of ``"best"`` and ``"last"``; none for that.
    """

    layer: str
    target: str
    metric: str
    recipe: str
    best: Mapping[str, float] = field(hash=False)
    last: Mapping[str, float] = field(hash=False)
    minimum_steps: Mapping[str, int] = field(hash=False)
    last_steps: Mapping[str, int] = field(hash=False)
    decreasing: int
    differences: Mapping[str, Difference] = field(hash=False)

    def row(self) -> dict[str, Any]:
        """One of :meth:`RecipeComparison.rows`."""
        steps = sorted(self.minimum_steps.values())
        row: dict[str, Any] = {"layer": self.layer, "target": self.target, "metric": self.metric}
        row |= {"recipe": self.recipe, "runs": len(steps)}
        for where in _WHERE:
            mean, deviation = _spread(getattr(self, where))
            row |= {where: mean, f"{where}_deviation": deviation}
            found = self.differences.get(where, Difference(math.nan, math.nan, math.nan))
            row |= {f"{where}_difference": found.value, f"{where}_low": found.low, f"{where}_high": found.high}
        row |= {"minimum": statistics.median_low(steps), "minimum_first": steps[0], "minimum_last": steps[-1]}
        return row | {"decreasing": self.decreasing}

    def texts(self, sign: str = "+-", between: str = " ") -> list[str]:
        """What tables have: mean and deviation, and the difference, of both values; then the steps of the minima."""
        texts = []
        for where in _WHERE:
            mean, deviation = _spread(getattr(self, where))
            texts.append(f"{mean:.4g}{between}{sign} {deviation:.2g}")
            texts.append(self.differences[where].text(between) if where in self.differences else "")
        row = self.row()
        return [*texts, f"{row['minimum']}{between}[{span_text(row['minimum_first'], row['minimum_last'])}]"]


@dataclass(frozen=True, repr=False)
class RecipeComparison(Printed):
    """What recipes give, layer by layer and target by target; iterable, printed as a table.

    Attributes:
        runs: the names of each recipe's. confidence: of each interval by itself.
    """

    runs: Mapping[str, tuple[str, ...]] = field(hash=False)
    cells: tuple[RecipeCell, ...]
    confidence: float

    def __iter__(self) -> Iterator[RecipeCell]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)

    def __repr__(self) -> str:
        counts = ", ".join(f"{recipe!r}: {len(runs)} runs" for recipe, runs in self.runs.items())
        return f"RecipeComparison({counts}; {len(self)} cells)"

    def __str__(self) -> str:
        head = ["layer", "target", "metric", "recipe", *self.titles()]
        table = [[cell.layer, cell.target, cell.metric, cell.recipe, *cell.texts()] for cell in self]
        notes = [*recipe_notes(self.cells), *self.by_chance()]
        return "\n".join([*self.about(), *aligned([head, *table], left={0, 1, 2, 3}), *notes])

    def to_json(self) -> str:
        """``{"recipes", "confidence", "cells": [...]}``: for each cell its row, and its values and steps by run."""
        cells = [
            _finite(cell.row())
            | {"best_of": _finite(cell.best), "last_of": _finite(cell.last)}
            | {"minimum_of": cell.minimum_steps, "last_step_of": cell.last_steps}
            for cell in self
        ]
        return json.dumps({"recipes": self.runs, "confidence": self.confidence, "cells": cells}, indent=2)

    def about(self) -> list[str]:
        """Which runs the recipes have, in a line each."""
        return [f"{recipe}: {len(runs)} runs, {', '.join(runs)}" for recipe, runs in self.runs.items()]

    def by_chance(self) -> list[str]:
        """A line on how many intervals exclude 0, if they are so many that one or more would by chance."""
        found = [each for cell in self for each in cell.differences.values() if math.isfinite(each.low)]
        if (chance := (1 - self.confidence) * len(found)) < 1 - 1e-9:
            return []
        count = sum(each.excludes_zero for each in found)
        return [f"{count} of {len(found)} intervals exclude 0; if nothing differed, some {chance:.0f} would by chance."]

    def titles(self, sign: str = "+-") -> list[str]:
        """Of the columns that ``RecipeCell.texts`` has."""
        level = f"difference [{100 * self.confidence:g} %]"
        return [f"best {sign} sd", level, f"last {sign} sd", level, "minimum [range]"]

    def cell(self, layer: str, target: str, recipe: str) -> RecipeCell:
        """What one recipe gives; if there is none, KeyError names what there is."""
        there = {(each.layer, each.target, each.recipe): each for each in self}
        if (layer, target, recipe) not in there:
            raise KeyError(f"no layer {layer!r}, target {target!r}, recipe {recipe!r}; there are {list(there)}")
        return there[layer, target, recipe]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each layer, target and recipe; for ``pandas.DataFrame``.

        ``best`` and ``last``, means over ``runs`` runs, with ``_deviation`` (n - 1) and, but for the first recipe,
        ``_difference`` from it, ``_low`` and ``_high``; the median, first and last step of the runs' minima; how many
        runs are ``decreasing``: of others the minimum means little.
        """
        return [cell.row() for cell in self]


def recipe_notes(cells: Collection[RecipeCell]) -> list[str]:
    """Lines on runs that end at different steps, and on those without a decrease, if there are some."""
    ends = {step for cell in cells for step in cell.last_steps.values()}
    notes = [f"Runs end at different steps, {min(ends)} to {max(ends)}: their last scores are of these."]
    notes = notes if len(ends) > 1 else []
    counts = [(cell, len(cell.best) - cell.decreasing) for cell in cells if cell.decreasing < len(cell.best)]
    named = [f"{cell.layer}/{cell.target} {cell.recipe} {count} of {len(cell.best)}" for cell, count in counts]
    return notes + [f"Runs without a decrease, whose minimum means little: {first_of(named)}."] * bool(named)


def compare_recipes(reports: Mapping[str, Mapping[str, PhaseReport]], *, confidence: float = 0.95) -> RecipeComparison:
    """How recipes, each trained with several seeds, differ from the first of them, layer by layer.

    A run is one sample: its best held-out score, at the lowest loss, and its last one. Intervals of differences are
    Welch's (1947), each by itself: of 20 that exclude 0, one does by chance where nothing differs.

    Args:
        reports: by recipe and run, such as ``{"wide": {"seed 0": pf.detect_phases(scores), ...}, ...}``; two or more
            recipes of two or more runs. confidence: of the intervals.

    Raises:
        DataError: fewer of either, or no layer and target that all runs have. ArgumentError: no such confidence.
    """
    if not 0 < as_float(confidence) < 1:
        raise ArgumentError(f"confidence: expected a number between 0 and 1, got {confidence!r}")
    fit = isinstance(reports, Mapping) and all(isinstance(own, Mapping) for own in reports.values())
    if not fit or len(reports) < 2 or min(map(len, reports.values())) < 2:
        got = {recipe: list(own) for recipe, own in reports.items()} if fit else type(reports).__name__
        raise DataError(
            "expected two recipes or more, each of the phases of two runs or more, {recipe: {run: PhaseReport}}, got "
            f"{got}"
        )
    names = {str(recipe): [f"{recipe}/{run}" for run in own] for recipe, own in reports.items()}
    whole = {f"{recipe}/{run}": report for recipe, own in reports.items() for run, report in own.items()}
    if len(names) < len(reports) or len(whole) < sum(map(len, reports.values())):
        got = {recipe: list(own) for recipe, own in reports.items()}
        raise DataError(f"expected a different name for each recipe and run, got {got}")
    runs = {str(recipe): tuple(map(str, own)) for recipe, own in reports.items()}
    cells = []
    for agreement in compare_phases(whole):
        first: RecipeCell | None = None
        for recipe, of in names.items():
            cells.append(_cell(agreement, recipe, dict(zip(of, runs[recipe], strict=True)), first, confidence))
            first = first or cells[-1]
    return RecipeComparison(runs, tuple(cells), float(confidence))


def _cell(
    agreement: Agreement, recipe: str, runs: Mapping[str, str], first: RecipeCell | None, confidence: float
) -> RecipeCell:
    """One recipe's part of what all runs have. Args: runs: what its own are called, by their names there."""
    own = {run: agreement.cells[name] for name, run in runs.items()}
    metric = METRIC_OF_LOSS.get(agreement.metric, agreement.metric)
    sign, shift = (-1.0, 1.0) if metric in ACCURACIES else (1.0, 0.0)  # the loss of an accuracy is 1 less it
    best, last = (
        {run: shift + sign * float(cell.row()[f"loss_{where}"]) for run, cell in own.items()}
        for where in ("minimum", "last")
    )
    differences = {}
    if first is not None:
        differences = {
            where: _difference(list(values.values()), list(getattr(first, where).values()), confidence)
            for where, values in zip(_WHERE, (best, last), strict=True)
        }
    steps = {run: cell.minimum_step for run, cell in own.items()}
    ends = {run: max(cell.evidence.get("steps", [cell.minimum_step])) for run, cell in own.items()}
    decreasing = sum(cell.phase("decrease") is not None for cell in own.values())
    what = agreement.layer, agreement.target, metric, recipe
    return RecipeCell(*what, best, last, steps, ends, decreasing, differences)


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """With None in place of numbers that JSON has not."""
    return {name: None if isinstance(own, float) and not math.isfinite(own) else own for name, own in values.items()}


def _spread(values: Mapping[str, float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1), NaN where a value is not finite."""
    mean = statistics.fmean(values.values())
    return mean, statistics.stdev(values.values()) if math.isfinite(mean) else math.nan


def _difference(values: list[float], others: list[float], confidence: float) -> Difference:
    """Of two means, with Welch's interval; of his degrees of freedom the whole ones."""
    found = statistics.fmean(values) - statistics.fmean(others)
    if not math.isfinite(found):
        return Difference(math.nan, math.nan, math.nan)
    rounding = _ROUNDING * max(map(abs, [*values, *others]))
    found = found if abs(found) > rounding else 0.0
    parts = [(statistics.variance(each) / len(each), len(each) - 1) for each in (values, others)]
    scatter = math.sqrt(sum(part for part, _ in parts))
    if scatter <= rounding:
        edge = math.nan if found else 0.0
        return Difference(found, edge, edge)
    freedom = 1 / sum((part / scatter**2) ** 2 / own for part, own in parts)
    half = student((1 + confidence) / 2, math.floor(freedom * (1 + 1e-9))) * scatter
    return Difference(found, found - half, found + half)
