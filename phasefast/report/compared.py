"""Several runs beside each other: tables of what they agree on, and a picture of one layer in all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.text import Text

from ..errors import ArgumentError, LayerError
from ..metrics import METRIC_OF_LOSS
from ..phases.best import CommonBest, check_runs, no_better
from ..phases.comparing import Agreement, Comparison, compare_phases, comparison_notes
from ..phases.detect import detect_phases
from ..phases.phase_report import KINDS, CellPhases, PhaseReport
from ..results.scores import MODEL_LAYER, Scores
from .curves import drawn_targets, headline, of_targets, telling_layers, values_by_step
from .names import shortened, spelled
from .plot import plot_phases
from .table import curve_tables, heading, numbers, plus_minus, say_thinned, simple_table, window_without

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ALL = "all runs"
_FEW = 2  # runs whose curves stand beside each other


def absolute(directory: str | Path) -> Path:
    """The whole path of a directory, by the names of links in it, not of what these lead to."""
    return Path(os.path.abspath(directory))


def run_names(directories: Sequence[str | Path]) -> list[str]:
    """The ends of the paths, as long as it takes to tell them apart.

    Raises:
        ArgumentError: the same directory twice.
    """
    paths, places = [absolute(each) for each in directories], [Path(each).resolve() for each in directories]
    if twice := [str(place) for place in places if places.count(place) > 1]:
        raise ArgumentError(f"{twice[0]} is given twice; give a directory for each run")
    names: list[str] = []
    for length in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names) and MODEL_LAYER not in names:
            break
    return names


def print_comparison(
    comparison: Comparison, scores: Mapping[str, Scores], telling: Sequence[str], console: Console
) -> None:
    """Per target: in how many runs each layer has which phase, and when; then mean curves, or those of two runs.

    Last, when all runs may stop, by the first of the layers ``telling``.
    """
    targets = {each.target: [other for other in comparison if other.target == each.target] for each in comparison}
    for agreements in targets.values():
        _print_phases(agreements, console)
        _print_curves(agreements, scores, console)
    one = next(iter(scores.values()))
    of_target = targets.get(headline(one) or "", next(iter(targets.values())))
    last = min(of_target, key=lambda each: telling.index(each.layer))
    stop = f"stop at {last.window_text}" if last.stop_window else f"no stop window in common: {last.why}"
    console.print(Text(f"\nAll runs, by {last.layer} and target {last.target}: {stop}", style="bold"))
    for best in comparison.best:
        console.print(Text(_best_text(best, comparison, plus_minus(console)), style="bold"))


def _best_text(best: CommonBest, comparison: Comparison, sign: str) -> str:
    """Where the runs decode a target best, and whether that lies in the input's stop window."""
    without = [run for run, each in best.own.items() if not each.beats_constant]
    chance = no_better(best.metric)
    if len(without) == len(best.own):
        return f"All runs, target {best.target}: {chance}, so none is named best"
    value, deviation = numbers([best.mean, best.deviation])
    text = f"{best.layer} at step {best.step}, {spelled(best.metric)} {value} {sign} {deviation}"
    if elsewhere := [
        f"{run} {each.layer} at {each.step}"
        for run, each in best.own.items()
        if each.beats_constant and (each.layer, each.step) != (best.layer, best.step)
    ]:
        text += f"; single runs: {', '.join(elsewhere)}"
    if window := window_without(comparison, best.layer, [best.step]):
        text += f". The input's stop window there, {window}, does not contain that step"
    if without:
        text += f". In {', '.join(without)} {chance}"
    return f"All runs, target {best.target}: best is {text}"


def _print_phases(agreements: Sequence[Agreement], console: Console) -> None:
    first = agreements[0]
    heading(f"Phases of target {first.target} in {len(first.cells)} runs, by held-out {spelled(first.metric)}", console)
    table = simple_table(padding=1)
    table.add_column("layer", overflow="fold")
    for title in (*KINDS, "minimum\n[range]", "stop window\nof all"):
        table.add_column(Text(title), justify="right", no_wrap=True)
    names = shortened(each.layer for each in agreements)
    for each in agreements:
        table.add_row(*map(Text, (names[each.layer], *each.texts)))
    console.print(table)
    for note in comparison_notes(agreements):
        console.print(Text(note, style="dim"))


def _print_curves(agreements: Sequence[Agreement], scores: Mapping[str, Scores], console: Console) -> None:
    sign = plus_minus(console)
    target, metric = agreements[0].target, agreements[0].metric
    shown = METRIC_OF_LOSS[metric]
    what = ", ".join(scores) if len(scores) == _FEW else f"mean of {len(scores)} runs, {sign} standard deviation"
    heading(f"Held-out {spelled(shown)} of target {target}: {what}", console)
    taken = {step for own in scores.values() for step in own.steps}
    shared = taken.intersection(*(own.steps for own in scores.values()))
    if not shared:
        console.print(Text("The runs have no step in common.", style="dim"))
        return
    if shared < taken:
        console.print(Text(f"at the {len(shared)} of {len(taken)} steps that all runs have", style="dim"))
    say_thinned(shared, console)
    layers = [each.layer for each in agreements]
    if all(own.has_curve(MODEL_LAYER, target, shown) for own in scores.values()):
        layers.append(MODEL_LAYER)
    curves = {name: curve for layer in layers for name, curve in _curves(layer, target, scores, shown, sign)}
    for part, table in enumerate(curve_tables(curves, console.width)):
        console.print(*[""] * bool(part), table, sep="\n")


def plot_comparison(
    scores: Mapping[str, Scores],
    comparison: Comparison | None = None,
    path: str | Path | None = None,
    layer: str | None = None,
) -> Figure:
    """One layer of several runs in one picture, a row and a curve for each run, as ``plot_phases`` draws them.

    The phases are those of the input, or of what ``plot_phases`` shows instead. The stop window of all runs is marked.

    Args:
        scores: of two runs or more by name. comparison: theirs, by default of what ``detect_phases`` finds.
        path: file to write it to as well. layer: one that all have, by default the last before the model's heads.

    Raises:
        LayerError: not all runs have such a layer. All errors of ``compare_phases`` and ``plot_phases``.
    """
    check_runs(scores)
    if not isinstance(comparison, (Comparison, NoneType)):
        raise ArgumentError(f"comparison: expected Comparison, got {type(comparison).__name__}; path= names a file")
    if comparison is None:
        drawn = [*dict.fromkeys(name for own in scores.values() for name in drawn_targets(own))]
        comparison = compare_phases({run: detect_phases(of_targets(own, drawn)) for run, own in scores.items()})
    common = list(dict.fromkeys(each.layer for each in comparison))
    if layer is None:
        layer = next((each for each in telling_layers(next(iter(scores.values()))) if each in common), None)
    if layer not in common:
        raise LayerError(f"layer {layer!r}: expected one of {common}, which all runs have")
    alike = [own.filter(layer=layer).with_column("layer", run).with_column("run", run) for run, own in scores.items()]
    together = Scores.concat(alike)
    own = [each for each in comparison if each.layer == layer]
    report = PhaseReport(tuple(replace(cell, layer=run) for each in own for run, cell in each.cells.items()))
    marks = {each.target: _marked(each) for each in own}
    return plot_phases(together, report, path, f"Learning phases: layer {layer}", marks)


def _marked(agreement: Agreement) -> CellPhases:
    """What is marked in the picture: the stop window of all runs, and no phases."""
    window = agreement.stop_window
    last = {"steps": [window[1]]} if window and agreement.stop_open else {}
    return CellPhases(_ALL, agreement.target, agreement.metric, (), 0, (0, 0), window, last)


def _curves(
    layer: str, target: str, scores: Mapping[str, Scores], metric: str, sign: str
) -> Iterator[tuple[str, dict[int, str]]]:
    """Those of two runs, else mean and standard deviation, as texts, at the steps that all of them have."""
    curves = [
        {step: value for step, (value, _) in values_by_step(own, layer, target, metric).items()}
        for own in scores.values()
    ]
    steps = [step for step in curves[0] if all(step in curve for curve in curves)]
    values = np.array([[curve[step] for curve in curves] for step in steps]).reshape(len(steps), len(curves))
    if len(scores) == _FEW:
        for run, found in zip(scores, values.T, strict=True):
            yield f"{layer} {run}", dict(zip(steps, numbers(found.tolist()), strict=True))
        return
    spread = values.std(1, ddof=1)
    spread[spread < 1e-9 * np.abs(values).max(1, initial=0.0)] = 0.0  # rounding
    for name, found in (("", values.mean(1)), (f" {sign}", spread)):
        yield layer + name, dict(zip(steps, numbers(found.tolist()), strict=True))
