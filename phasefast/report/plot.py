"""The picture of a run: the phases of all layers, and reconstruction and accuracy over the steps of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError, DependencyError, StoreError
from ..scores import Scores
from ..types import CellPhases, PhaseReport
from .curves import Curve, accuracy_curves, end_labels, fvu_curves, looks, short
from .page import LINE, Page
from .panel import Panel, draw_panel
from .phase_map import BAR, KEY, Row, draw_key, draw_map, draw_stop_bar, map_height, sampled
from .scales import LETTER, StepAxis, ValueAxis, accuracy_axis, fvu_axis

_FVU, _LOG_FVU, _ACCURACY, _GAP = 3.3, 4.2, 1.9, 0.2  # inches


def plot_phases(scores: Scores, report: PhaseReport, path: str | Path, title: str = "Learning phases") -> Path:
    """Draw all layers of a run as a PNG 1,620 pixels wide, made to be read at 900.

    On top, a row per layer shows its phases and its stop window. The upper panel shows the held-out FVU of the input,
    on a log axis where the layers' differ much, the lower one the held-out accuracy of linear decoders of the label
    and the network's own; dark curves are late layers. The last analysed layer's phases shade the upper panel, and its
    stop window is marked in both.

    Args:
        scores: of one run.
        report: its phases; may be empty.

    Raises:
        DataError: there is no finite FVU or accuracy to draw.
        DependencyError: matplotlib is missing.
        StoreError: the file cannot be written.
    """
    try:
        styles = looks(scores.layers)
    except ImportError as error:
        raise DependencyError("the picture of the phases needs matplotlib: pip install 'phasefast[report]'") from error
    fvu_target, fvu = fvu_curves(scores, styles)
    label_target, accuracy = accuracy_curves(scores, styles)
    if not fvu and not accuracy:
        raise DataError(f"nothing to draw: expected finite held-out 'fvu' or 'accuracy' rows, got {scores!r}")
    panels = [_fvu_panel(fvu, fvu_target)] if fvu else []
    if accuracy:
        panels.append(_panel(accuracy, accuracy_axis(accuracy), _ACCURACY, "held-out accuracy"))
    target = fvu_target if fvu else label_target
    cells = {cell.layer: cell for cell in report if cell.target == target}
    layers = [Row(layer, look, cells.get(layer)) for layer, look in styles.items()] if cells else []
    rows, cell = sampled(layers), next((row.cell for row in reversed(layers) if row.cell), None)
    letters = [len(text) for panel in panels for text, _ in panel.labels]
    letters += [len(short(row.layer)) + 3 * (row.cell is cell) for row in rows]  # bold ones are wider
    heights = map_height(len(rows)) + BAR + (KEY if rows else 0) + sum(_GAP + panel.height for panel in panels)
    page = Page(StepAxis(np.array(scores.steps)), 0.42 + LETTER * max(letters), heights)
    page.header(title, _note(cell, len(rows), len(layers)))
    if rows:
        draw_key(page, rows)
        draw_map(page, rows, cell)
    draw_stop_bar(page, cell)
    for panel in panels:
        page.skip(_GAP)
        # The phases of one target would mislead about the curves of another.
        draw_panel(page, panel, cell, shaded=panel is panels[0], last=panel is panels[-1])
    try:
        page.figure.savefig(path, format="png")
    except OSError as error:
        raise StoreError(f"cannot write the picture {path}: {error}; choose another directory") from error
    return Path(path)


def _fvu_panel(curves: Sequence[Curve], target: str) -> Panel:
    axis, height = fvu_axis(curves, _FVU), _FVU
    if axis.log and not axis.cuts:
        axis, height = fvu_axis(curves, _LOG_FVU), _LOG_FVU
    return _panel(curves, axis, height, f"{target} variance not decodable (FVU)")


def _panel(curves: Sequence[Curve], axis: ValueAxis, height: float, title: str) -> Panel:
    return Panel(curves, end_labels(curves, int(height / LINE + 1e-6) + 1), axis, height, title)


def _note(cell: CellPhases | None, rows: int, layers: int) -> str:
    """Which phases are shown, and whose go through the panels."""
    if cell is None:
        return ""
    some = f", {rows} of {layers} layers" if rows < layers else ""
    return f"phases of {short(cell.target)} {cell.metric}{some}; shaded below: {short(cell.layer)}"
