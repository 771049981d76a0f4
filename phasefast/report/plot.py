"""The picture of a run: the phases of all layers, and reconstruction and accuracy over the steps of training."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..common.notices import warn
from ..errors import ArgumentError, DataError, LayerError
from ..metrics import ACCURACY, FVU
from ..options import checked_step
from ..phases.detect import detect_phases
from ..phases.phase_report import CellPhases, PhaseReport
from ..results.scores import MODEL_LAYER, Scores
from ..results.selecting import listed_patterns, matching
from .bests import with_best
from .curves import (
    Curve,
    Look,
    accuracy_metric,
    accuracy_target,
    curves_of,
    drawn_targets,
    fvu_target,
    headline,
    looks,
    of_targets,
    telling_layers,
)
from .names import LONGEST, cut, spelled
from .page import EDGE, NAME, Page, picture, widest, written
from .panel import Panel, draw_panel
from .phase_map import BAR, KEY, Row, draw_key, draw_map, draw_stop_bar, map_height, sampled
from .scales import MAX_FVU, StepAxis, accuracy_axis, fvu_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FVU, _LOG_FVU, _ACCURACY, _GAP = 3.3, 4.2, 1.9, 0.2  # inches


@picture
def plot_phases(
    scores: Scores,
    report: PhaseReport | None = None,
    path: str | Path | None = None,
    title: str = "Learning phases",
    marks: Mapping[str, CellPhases] | None = None,
    layers: Sequence[str] | None = None,
    events: Mapping[str, int | Sequence[int]] | None = None,
) -> Figure:
    """A figure, shown by notebooks, of all layers of a run.

    On top, each layer (of more than 45, some) has a row with its phases and its stop window. The upper panel shows the
    held-out FVU of the input, on a log axis if the layers' differ much. The lower panel shows the held-out accuracy of
    linear decoders of the label, with a ring at the report's best if training gained by it, and the network's own
    accuracy. Dark curves are late layers. The phases of the last analysed layer before the model's own output, as far
    as labels show which that is, shade the upper panel, or, without the input, that of the label; its stop window is
    marked in both.

    Args:
        scores: of one run.
        report: its phases, by default as ``detect_phases`` finds them; may be empty. Dotted lines mark the steps that
            failed.
        path: file to write it to as well, as a PNG 1,620 pixels wide, a PDF or an SVG.
        marks: by target, the phases and stop window that go through the panels instead of that layer's.
        layers: names or globs; the first that was analysed is that layer, by default as described above. All layers
            are drawn: ``scores.select(layers)`` has some.
        events: steps by name, such as ``{"lower rate": [30_000, 60_000]}``, each a line through the panels.

    Raises:
        LayerError: one of ``layers`` matches none.
        DataError: there is no finite FVU or accuracy to draw. ArgumentError: ``path`` or a step is of another kind.
        DependencyError: matplotlib is missing.
        StoreError: the file cannot be written.
    """
    for name, given, kind in (
        ("scores", scores, Scores),
        ("report", PhaseReport(()) if report is None else report, PhaseReport),
    ):
        if not isinstance(given, kind):
            raise ArgumentError(f"{name}: expected {kind.__name__}, got {type(given).__name__}; path= names a file")
    fvu_name, accuracy_name = fvu_target(scores), accuracy_target(scores)
    target = headline(scores)
    if target is None:
        raise DataError(f"nothing to draw: expected finite held-out 'fvu' or 'accuracy' rows, got {scores!r}")
    report = detect_phases(of_targets(scores, drawn_targets(scores))) if report is None else report
    if marks is None and not report.best:
        there = [each for each in report if each.layer in scores.layers and each.target in scores.targets]
        with contextlib.suppress(DataError):  # without what there is of each sample nothing tells which is the best
            report = replace(report, best=with_best(scores, replace(report, cells=tuple(there))).best)
    cells = {cell.layer: cell for cell in report if cell.target == target}
    wanted = [matching(scores.layers, [each], "layer", LayerError) for each in listed_patterns(layers) or ()]
    telling = telling_layers(scores) if layers is None else [*itertools.chain(*wanted)]
    last = next((cells[layer] for layer in telling if layer in cells), None)
    cell = last if marks is None else marks.get(target)
    styles = looks(
        scores.layers, cell.layer if cell else next((layer for layer in telling if layer in scores.layers), None)
    )
    panels = [_fvu_panel(curves_of(scores, fvu_name, FVU, styles, report), fvu_name)] if fvu_name else []
    if accuracy_name:
        metric = accuracy_metric(scores, accuracy_name)
        accuracy, baseline = (
            curves_of(scores, accuracy_name, metric, styles, report),
            scores.baseline(accuracy_name, metric),
        )
        axis, best = accuracy_axis(accuracy, baseline), _best_of(report, accuracy_name, scores, styles)
        text = "held-out accuracy, {}" if metric == ACCURACY else f"{{}}: {spelled(metric)}"
        panel = Panel(accuracy, axis, _ACCURACY, text, accuracy_name, baseline, best)
        panels.append(panel if metric == ACCURACY else replace(panel, constant="chance"))
    panels.sort(key=lambda panel: panel.target != target)  # below the phases of that target
    rows = [Row(styles[layer], cells.get(layer)) for layer in scores.layers] if cells else []
    shown = sampled(rows)
    name = (styles[cell.layer].name if cell.layer in styles else cell.layer) if cell else ""
    names = widest(text for panel in panels for text, _ in panel.labels)
    names = max(names, widest(row.look.name for row in shown), widest([name], "bold")) if rows else names
    heights = map_height(len(shown)) + BAR + (KEY if rows else 0) + sum(_GAP + panel.height for panel in panels)
    failed = [step for step, failure in report.failed.items() if not failure.partial]
    steps = sorted({*scores.steps, *failed})
    happened = _events(events or {}, steps[0], steps[-1])  # which the upper panel names
    page = Page(StepAxis(np.array(steps)), NAME + names + EDGE, heights)
    page.header(title, _note(cell, name, len(shown), len(rows)))
    if rows:
        draw_key(page, shown)
        draw_map(page, shown)
    draw_stop_bar(page, cell, name)
    for panel in panels:
        page.skip(_GAP)
        # The phases of one target would mislead about the curves of another.
        shaded = panel.target == target
        draw_panel(page, panel, cell, shaded, last=panel is panels[-1], failed=failed, events=happened)
        happened = dict.fromkeys(happened, "")
    return written(page.figure, path)


def _events(given: Mapping[str, int | Sequence[int]], first: int, last: int) -> dict[int, str]:
    """The names of those that lie on the axis, by step.

    Raises:
        ArgumentError: a step that is none, or no names.
    """
    if not isinstance(given, Mapping):
        raise ArgumentError(f"events: expected a mapping from names to steps, got {type(given).__name__}")
    found: dict[int, str] = {}
    for name, steps in given.items():
        for place in map(checked_step, steps if isinstance(steps, (list, tuple, range)) else [steps]):
            found[place] = f"{found[place]}, {name}" if place in found else str(name)
    if beyond := {step: name for step, name in found.items() if not first <= step <= last}:
        warn(f"events: {beyond} are not drawn, as steps {first} to {last} were measured")
    return {step: name for step, name in found.items() if step not in beyond}


def _best_of(
    report: PhaseReport, target: str, scores: Scores, styles: Mapping[str, Look]
) -> tuple[str, int, float] | None:
    """A target's best point, as panels have it, where training gained anything: curves may end beside each other."""
    for best in report.best:
        if best.target != target or best.layer not in styles or not best.beats_constant:
            continue
        if best.steps[0] > scores.curve(best.layer, target, best.metric)[0].min():
            return styles[best.layer].name, best.step, best.value
    return None


def _fvu_panel(curves: Sequence[Curve], target: str) -> Panel:
    layers = [each for each in curves if each.look.name != MODEL_LAYER]
    # An untrained model's own error would press those of layers flat: of what is more than theirs, the last counts.
    tops = [MAX_FVU, *(each.end[1] for each in curves), *(float(each.finite.max()) for each in layers or curves)]
    top = max(tops)
    shown = [replace(each, values=np.minimum(each.values, top)) for each in curves]
    axis, height = fvu_axis(shown, _FVU), _FVU
    if axis.log and not axis.cuts:
        axis, height = fvu_axis(shown, _LOG_FVU), _LOG_FVU
    return Panel(curves, axis, height, "{} variance not decodable (FVU)", target)


def _note(cell: CellPhases | None, name: str, rows: int, layers: int) -> str:
    """Which phases are shown, and whose go through the panels."""
    if cell is None:
        return ""
    some = f", {rows} of {layers} layers" if rows < layers else ""
    shaded = f"; {'shaded below' if cell.phases else 'marked'}: {name}"
    return f"phases of {cut(cell.target, LONGEST)} {spelled(cell.metric)}{some}{shaded}"
