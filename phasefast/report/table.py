"""Tables for a terminal or a pipe: the phases of all layers, and the curves they were read from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..metrics import ACCURACIES, ACCURACY, FVU, LOSSES, METRIC_OF_LOSS
from ..phases.best import FEWEST_SIGNS, BestCheckpoint, no_better
from ..phases.comparing import Agreement
from ..phases.phase_report import (
    KINDS,
    NOT_THERE,
    CellPhases,
    Phase,
    PhaseKind,
    PhaseReport,
    failure_notes,
    phase_notes,
    span_text,
)
from ..results.listing import worse_than_constant
from ..results.scores import MODEL_LAYER, Scores
from .curves import evenly, values_by_step
from .names import shortened, spelled

_COLOURS: dict[PhaseKind, str] = {"constant": "", "decrease": "green", "increase": "yellow"}
_WIDE = 1000  # letters
_MOSTLY = 0.5  # of the samples are of one class, so that others hardly count
_VISIBLE = 10  # times the last decimal: what a curve changes by
INPUT = "input"  # of which the first layers keep most
MOST_STEPS = 60  # in tables of curves
_WORSE = 1.05  # fvu at some step that is told, as it is no scatter around 1
_MOST_ROWS = 400  # of the phases of all targets


def print_report(scores: Scores, report: PhaseReport, console: Console) -> None:
    """Per target: the phases of its layers, then their curves, in as many parts as the console's width asks for.

    Of so many targets that nobody would read them all the first ones; of the others what is best.
    """
    there = [(cell.target, cell.metric) for cell in report]
    for metric in ACCURACIES:
        of_model = scores.filter(layer=MODEL_LAYER, metric=metric, split="heldout").values_of("target")
        there += [(target, LOSSES[metric]) for target in of_model]
    rows, left = 0, list[str]()
    for target, metric in dict.fromkeys(there):
        cells = [cell for cell in report if (cell.target, cell.metric) == (target, metric)]
        rows += len(cells)
        if rows > _MOST_ROWS and rows > len(cells):
            left.append(target)
            continue
        _print_target(scores, target, metric, cells, console)
        for best in report.best:
            if best.target == target and cells:
                _print_best(scores, best, report, console)
    if left:
        heading(f"{len(left)} more targets; --target shows the tables of those that match a glob", console)
        for best in report.best:
            if best.target in left:
                _print_best(scores, best, report, console, f"{best.target}: ")
    if report.failed:
        console.print()
    for note in failure_notes(report.failed):
        console.print(Text(note, style="yellow"))


def _print_target(scores: Scores, target: str, metric: str, cells: Sequence[CellPhases], console: Console) -> None:
    """The phases of a target's layers, if it has any, and their curves."""
    if cells:
        _print_phases(cells, console)
    shown = METRIC_OF_LOSS[metric]
    curves = {cell.layer: _curve(scores, cell.layer, target, shown) for cell in cells}
    if own := _curve(scores, MODEL_LAYER, target, shown):
        curves[MODEL_LAYER] = own
    heading(f"Held-out {spelled(shown)} of target {target}, by step", console)
    say_thinned({step for curve in curves.values() for step in curve}, console)
    for part, table in enumerate(curve_tables(curves, console.width)):
        if part:
            console.print()
        console.print(table)
    worse = [cell.layer for cell in cells if shown == FVU and _worst(scores, cell.layer, target) > _WORSE]
    if worse:
        console.print(Text(worse_than_constant(target, worse), style="dim"))
    if shown in ACCURACIES and (baseline := scores.baseline(target, shown)) is not None:
        console.print(Text(f"Always the most frequent fit class: {number(baseline)}", style="dim"))
    if estimates := scores.approximations(target, shown):
        console.print(f"~ estimates: {'; '.join(estimates)}. Intervals: columns low and high.", style="dim")


def _print_best(scores: Scores, best: BestCheckpoint, report: PhaseReport, console: Console, before: str = "") -> None:
    """The layer and step that a target is decoded best from, and what held-out samples do not tell apart from that.

    Args:
        before: what the text begins with.
    """
    target = best.target
    steps = scores.curve(best.layer, target, best.metric)[0].tolist()
    if not best.beats_constant:
        share = scores.baseline(target, best.metric) or 0.0
        text = no_better(best.metric, number(share) if best.metric in ACCURACIES else "")
        rare = best.metric == ACCURACY and share >= _MOSTLY
        mend = "; classifier='balanced' counts all classes alike" if rare else ""
        console.print(Text(f"{before}{text[0].upper()}{text[1:]}, so none is named best{mend}"), soft_wrap=True)
        return
    value = number(best.value, 4 if best.metric == FVU else 3)
    text = f"{before}Best: {best.layer} at step {best.step}, {spelled(best.metric)} {value}"
    alike = [f"its steps {', '.join(_spans(best.steps, steps))}"] if len(best.steps) > 1 else []
    alike += [f"{layer} at {step}" for layer, step in best.others.items()]
    tells = best.metric not in ACCURACIES or best.samples >= FEWEST_SIGNS
    if not tells:
        text += f"; {best.samples} held-out samples, or groups, are too few to tell others apart from it"
    else:
        text = f"{text}; not told apart from it: {'; '.join(alike)}" if alike else f"{text}, told apart from all others"
    if window := window_without(report, best.layer, best.steps):
        contained = "contains none of these steps" if len(best.steps) > 1 else "does not contain it"
        text += f". The input's stop window there, {window}, {contained}"
    if tells and len(steps) > 1 and best.steps[0] == steps[0]:
        gain = f"training after step {steps[0]}" if steps[0] else "training"
        text += f". Step {steps[0]}, the first, is among these: these samples show no gain here by {gain}"
    console.print(Text(text))


def window_without(cells: Iterable[CellPhases | Agreement], layer: str, steps: Iterable[int]) -> str:
    """A layer's stop window of the input, if none of these steps lies in it; else nothing."""
    for cell in cells:
        if (cell.layer, cell.target) == (layer, INPUT) and cell.stop_window is not None:
            first, last = cell.stop_window
            return "" if any(first <= step <= last for step in steps) else cell.window_text
    return ""


def _spans(some: Sequence[int], steps: Sequence[int]) -> Iterator[str]:
    """Runs of neighbours among ``steps``: ``3``, ``6-24``."""
    places = [steps.index(step) for step in some]
    for _, run in itertools.groupby(enumerate(places), key=lambda pair: pair[1] - pair[0]):
        own = [steps[place] for _, place in run]
        yield span_text(own[0], own[-1])


def say_thinned(steps: Collection[int], console: Console) -> None:
    """That not all of so many steps are in a table."""
    if len(steps) > MOST_STEPS:
        console.print(Text(f"{MOST_STEPS} of {len(steps)} steps; the scores have them all", style="dim"))


def _print_phases(cells: Sequence[CellPhases], console: Console) -> None:
    """The phases of one target's layers, with what is to be said of them."""
    metric = spelled(cells[0].metric)
    heading(f"Phases of target {cells[0].target}: steps, and change of the held-out {metric}", console)
    print_fitting(lambda between: phase_table(cells, between), console)
    for note in phase_notes(cells):
        console.print(Text(note, style="dim"))


def phase_table(cells: Sequence[CellPhases], between: str) -> Table:
    """One row per layer: its phases and their changes, the minimum with its interval, the stop window; ``-`` is none.

    Args:
        between: steps and their changes or intervals.
    """
    names = shortened(cell.layer for cell in cells)
    table = simple_table(padding=1)
    table.add_column("layer", overflow="fold")
    for heading in (*KINDS, "minimum\n[interval]", f"stop{between}window"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cell in cells:
        phases = [_phase(cell.phase(kind), between) for kind in KINDS]
        minimum = Text(f"{cell.minimum_step}{between}[{span_text(*cell.minimum_ci)}]")
        window = Text(cell.window_text, style="" if cell.stop_window else "dim")
        table.add_row(Text(names[cell.layer]), *phases, minimum, window)
    return table


def curve_tables(curves: Mapping[str, Mapping[int, str]], width: int) -> Iterator[Table]:
    """One row per curve ``{step: text}``, one column per step; as many tables as it takes to stay within ``width``.

    Of many steps some are shown, evenly spaced.
    """
    steps = sorted({step for curve in curves.values() for step in curve})
    steps = [steps[i] for i in evenly(len(steps), MOST_STEPS)]
    names = shortened(curves)
    first = max([len("step"), *map(len, names.values())])
    while steps:
        table, used, count = simple_table(padding=0), first, 0
        table.add_column("step", no_wrap=True)
        for step in steps:
            cells = [curve.get(step, "") for curve in curves.values()]
            used += 1 + max(len(text) for text in [str(step), *cells])
            if count and used > width:
                break
            table.add_column(str(step), justify="right", no_wrap=True)
            count += 1
        for name, curve in curves.items():
            table.add_row(Text(names[name]), *(curve.get(step, "") for step in steps[:count]))
        yield table
        steps = steps[count:]


def numbers(values: Sequence[float]) -> list[str]:
    """The numbers of a curve in few letters, with as many decimals as its changes take, of three digits at most."""
    finite = [abs(value) for value in values if math.isfinite(value) and value]
    spread, least = (max(finite) - min(finite), min(finite)) if finite else (0.0, 1.0)
    digits = 3
    while spread and digits < 5 and spread * 10**digits < _VISIBLE and least * 10**digits < 99.5:
        digits += 1
    return [number(value, digits) for value in values]


def number(value: float, decimals: int = 3) -> str:
    """Three digits in few letters: ``.359``, ``1.41``, ``2e-6``; of small numbers so many decimals: ``.0061``.

    Of the smallest a second digit where more than three are asked for: ``2.4e-6``.
    """
    size = abs(value)
    if not math.isfinite(value) or size == 0:
        return f"{value:g}"
    if size < 5e-4 or size >= 9999.5:
        mantissa, exponent = f"{value:.{int(decimals > 3 and size < 1)}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    if size < 0.9995:
        return f"{value:.{decimals}f}".replace("0.", ".", 1)
    return f"{value:.{max(0, 2 - math.floor(math.log10(1.0005 * size)))}f}"  # so that 9.996 is 10.0


def heading(text: str, console: Console) -> None:
    """A title above a table."""
    # Not the table's own title, which would wrap where the table is narrow.
    console.print(Text(f"\n{text}", style="bold"))


def print_fitting(make: Callable[[str], Table], console: Console) -> None:
    """A table whose ranges stand beside their numbers, or below them where that is too wide.

    Args:
        make: the table, by what is between these.
    """
    table = make(" ")
    if console.measure(table, options=console.options.update(max_width=_WIDE)).maximum > console.width:
        table = make("\n")
    console.print(table)


def plus_minus(console: Console) -> str:
    """The sign before a deviation, in letters that a console has."""
    return "±" if console.encoding.startswith("utf") else "+-"


def simple_table(padding: int) -> Table:
    """A table without columns yet; ``padding``: spaces between them."""
    # Without edges and with few lines, so that it reads well in a log too.
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, padding, 0, 0))


def _phase(phase: Phase | None, between: str) -> Text:
    if phase is None:
        return Text(NOT_THERE, style="dim")
    change = ("+" if phase.change > 0 else "") + number(phase.change)
    return Text(f"{span_text(phase.start_step, phase.end_step)}{between}{change}", style=_COLOURS[phase.kind])


def _worst(scores: Scores, layer: str, target: str) -> float:
    """The highest FVU that a layer has at any step; 0 without a finite one."""
    found = [value for value, _ in values_by_step(scores, layer, target, FVU).values()]
    return max(filter(math.isfinite, found), default=0.0)


def _curve(scores: Scores, layer: str, target: str, metric: str) -> dict[int, str]:
    """Text of each step's value, with ``~`` before an estimate; none where there is no such metric."""
    found = values_by_step(scores, layer, target, metric)
    texts = numbers([value for value, _ in found.values()])
    return {step: "~" * guess + text for (step, (_, guess)), text in zip(found.items(), texts, strict=True)}
