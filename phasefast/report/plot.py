"""The picture of a run: reconstruction and accuracy over the steps of training, with the phases of the last layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, DependencyError, StoreError
from ..scores import MODEL_LAYER, Scores
from ..types import CellPhases, PhaseReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 180
# Inches: the width, and from top to bottom what lies above and below each other.
_WIDTH, _TITLE, _STRIP, _FVU, _ACCURACY, _GAP, _FOOT, _LEFT = 9.0, 0.5, 0.5, 3.3, 1.9, 0.2, 0.62, 0.85
_LETTER, _LINE = 0.078, 0.165  # inches that a letter and a line of 9-point text take
_LONGEST = 28  # letters of a name
_INK, _MUTED, _STOP = "#222222", "#666666", "#0072B2"
# Okabe and Ito's colours, which all kinds of colour vision tell apart; in grey the written names do.
_PHASES = {"constant": ("#8c8c8c", "i"), "decrease": ("#009E73", "ii"), "increase": ("#D55E00", "iii")}
_MARKERS = "osD^vPX<>h"
_MAX_FVU = 1.25
_HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 1.1}


@dataclass(frozen=True)
class _Curve:
    """Values [K] at steps [K], which of them are estimates [K], and how they are drawn."""

    name: str
    steps: np.ndarray
    values: np.ndarray
    estimated: np.ndarray
    colour: str
    marker: str
    width: float = 1.5
    dashes: str = "-"


_Label = tuple[str, _Curve | None]  # a text and the curve whose end it names


@dataclass(frozen=True)
class _StepAxis:
    """Steps on a log2 axis, on which step 0 lies one octave before the first other step."""

    steps: np.ndarray

    def at(self, step: int) -> float:
        """Where a step lies, in octaves."""
        positive = self.steps[self.steps > 0]
        first = math.log2(positive.min()) if len(positive) else 1.0
        return math.log2(step) if step > 0 else first - 1

    @property
    def limits(self) -> tuple[float, float]:
        """Left and right end, with room for the markers."""
        low, high = self.at(int(self.steps.min())), self.at(int(self.steps.max()))
        margin = 0.025 * (high - low) or 1.0
        return low - margin, high + margin

    def ticks(self, inches: float) -> list[int]:
        """Probed steps whose numbers fit beside each other on an axis of this length; the last one always does."""
        per_inch = (self.limits[1] - self.limits[0]) / inches
        chosen: list[int] = []
        for step in self.steps[::-1].tolist():
            room = _LETTER * (len(str(step)) + 1.5) * per_inch
            if not chosen or self.at(chosen[-1]) - self.at(step) >= room:
                chosen.append(step)
        return chosen


def plot_phases(scores: Scores, report: PhaseReport, path: str | Path, title: str = "Learning phases") -> Path:
    """Draw all layers of a run as a PNG 1,620 pixels wide, made to be read at 900.

    The upper panel shows the held-out FVU of the input, the lower one the held-out accuracy of linear decoders of the
    label and the network's own; dark curves are late layers. The strip above them shows the phases and the stop window
    of the last layer.

    Args:
        scores: of one run.
        report: its phases; may be empty.

    Raises:
        DataError: there is no finite FVU or accuracy to draw.
        DependencyError: matplotlib is missing.
        StoreError: the file cannot be written.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import to_hex
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError("the picture of the phases needs matplotlib: pip install 'phasefast[report]'") from error
    count = len(scores.layers)
    # The light end of the map would be hard to see on white.
    colours = [to_hex(colormaps["viridis"](0.82 * (count - 1 - i) / max(count - 1, 1))) for i in range(count)]
    fvu_target, fvu = _curves(scores, "fvu", "input", colours)
    label_target, accuracy = _curves(scores, "accuracy", "label", colours)
    accuracy += _own_accuracy(scores)
    if not fvu and not accuracy:
        raise DataError(f"nothing to draw: expected finite held-out 'fvu' or 'accuracy' rows, got {scores!r}")
    panels = [(curves, height) for curves, height in ((fvu, _FVU), (accuracy, _ACCURACY)) if curves]
    labels = [
        _labels(curves, int(inches / _LINE + 1e-6) + 1) for curves, inches in ((fvu, _FVU), (accuracy, _ACCURACY))
    ]
    right = 0.42 + _LETTER * max(len(text) for panel in labels for text, _ in panel)
    height = _TITLE + _STRIP + sum(_GAP + panel for _, panel in panels) + _FOOT
    figure = Figure(figsize=(_WIDTH, height), dpi=PIXELS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    page = _Page(figure, _StepAxis(np.array(scores.steps)), _WIDTH - _LEFT - right, height)
    cell = _last_layer(report, scores, fvu_target if fvu else label_target)
    page.header(title, cell)
    if fvu:
        name = f"{fvu_target} variance not decodable (FVU)"
        page.panel(fvu, labels[0], _FVU, cell, name, "fvu", last=not accuracy)
    if accuracy:
        page.panel(accuracy, labels[1], _ACCURACY, cell, "held-out accuracy", "accuracy", last=True)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise StoreError(f"cannot write the picture {path}: {error}; choose another directory") from error
    return Path(path)


class _Page:
    """Draws axes below each other, all with the same steps."""

    def __init__(self, figure: Figure, axis: _StepAxis, width: float, height: float) -> None:
        self._figure, self._axis, self._width, self._height = figure, axis, width, height
        self._top = height

    def header(self, title: str, cell: CellPhases | None) -> None:
        """Title, the strip of phases and the bar of the stop window."""
        self._top -= _TITLE
        line, right = (self._top + 0.16) / self._height, (_LEFT + self._width) / _WIDTH
        self._figure.text(_LEFT / _WIDTH, line, title, fontsize=13, weight="bold", color=_INK, parse_math=False)
        if cell is not None:
            note = f"phases of {_short(cell.layer)}, target {_short(cell.target)}"
            self._figure.text(right, line, note, fontsize=9, color=_MUTED, ha="right")
        strip = self._axes(_STRIP)
        strip.axis("off")
        strip.set_ylim(0, 2)
        if cell is None:
            strip.text(self._axis.limits[0], 0.5, "phases were not analysed", fontsize=9, color=_MUTED, va="center")
            return
        for phase in cell.phases:
            colour, number = _PHASES[phase.kind]
            start, end = self._axis.at(phase.start_step), self._axis.at(phase.end_step)
            strip.barh(1.5, end - start, 0.86, left=start, color=colour, alpha=0.3, edgecolor="white", linewidth=1)
            for text in (f"{number}  {phase.kind}", number):
                if self._inches(end - start) > _LETTER * len(text):
                    strip.text((start + end) / 2, 1.47, text, fontsize=9.5, color=_INK, ha="center", va="center")
                    break
        if not cell.phases:
            strip.text(self._axis.limits[0], 1.5, "no phase found", fontsize=9, color=_MUTED, va="center")
        self._stop_bar(strip, cell.stop_window)

    def _stop_bar(self, strip: Axes, window: tuple[int, int] | None) -> None:
        low, high = self._axis.limits
        if window is None:
            strip.text(low, 0.5, "no stop window", fontsize=9, color=_MUTED, va="center")
            return
        start, end = (self._axis.at(step) for step in window)
        strip.plot([start, end], [0.5, 0.5], color=_STOP, linewidth=4, marker="|", markersize=10, clip_on=False)
        text = f"stop at {window[0]}" if start == end else f"stop window {window[0]} to {window[1]}"
        pad, after = 0.02 * (high - low), self._inches(high - end) > _LETTER * (len(text) + 2)
        x, side = (end + pad, "left") if after else (start - pad, "right")
        strip.text(x, 0.46, text, fontsize=9, color=_STOP, ha=side, va="center")

    def panel(
        self,
        curves: Sequence[_Curve],
        labels: Sequence[_Label],
        height: float,
        cell: CellPhases | None,
        ylabel: str,
        metric: str,
        last: bool,
    ) -> None:
        """One panel of curves with their names on the right."""
        self._top -= _GAP
        axes = self._axes(height)
        bottom, top = _limits(curves, metric)
        axes.set_ylim(bottom, top)
        cut = any(np.nanmax(curve.values) > top for curve in curves)
        unit = 10.0 ** np.floor(np.log10(top)) if top < 0.01 else 1.0
        notes = f"\ncut at {top:g}" if cut else f"\nin units of {unit:.0e}" if unit < 1 else ""
        axes.set_ylabel(ylabel + notes, fontsize=10.5, color=_INK)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value / unit:.4g}" if abs(value) > top * 1e-9 else "0")
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        self._phases(axes, cell)
        for curve in curves:
            self._curve(axes, curve, top)
        if any((curve.estimated & np.isfinite(curve.values)).any() for curve in curves):
            example = axes.plot([], [], color=_INK, marker="o", markersize=5.5, linestyle="none", **_HOLLOW)
            tight = {"frameon": False, "handletextpad": 0.1, "borderpad": 0, "borderaxespad": 0.15}
            axes.legend(example, ["estimate"], loc="lower right", bbox_to_anchor=(1, 1), fontsize=9, **tight)
        self._names(axes, labels, height)
        ticks = self._axis.ticks(self._width)
        axes.set_xticks([self._axis.at(step) for step in ticks], [str(step) if last else "" for step in ticks])
        axes.tick_params(colors=_INK, labelsize=9.5, length=3)
        if last:
            axes.set_xlabel("training step", fontsize=10.5, color=_INK)

    def _curve(self, axes: Axes, curve: _Curve, top: float) -> None:
        """The line, cut at ``top``, with full markers at exact values and hollow ones at estimates."""
        places, values = np.array([self._axis.at(step) for step in curve.steps.tolist()]), np.minimum(curve.values, top)
        crossed = curve.marker == "x"
        edge = {"markeredgecolor": curve.colour if crossed else "white", "markeredgewidth": 1.5 if crossed else 0.6}
        drawn: dict[str, Any] = {"color": curve.colour, "markersize": 3.5 + curve.width, "clip_on": False}
        axes.plot(places, values, curve.dashes, linewidth=curve.width, **drawn)
        for chosen, how in ((~curve.estimated, edge), (curve.estimated, _HOLLOW)):
            axes.plot(places[chosen], values[chosen], linestyle="none", marker=curve.marker, **drawn, **how)

    def _phases(self, axes: Axes, cell: CellPhases | None) -> None:
        for phase in cell.phases if cell else ():
            start, end = self._axis.at(phase.start_step), self._axis.at(phase.end_step)
            axes.axvspan(start, end, color=_PHASES[phase.kind][0], alpha=0.08, linewidth=0)
        for step in cell.stop_window or () if cell else ():
            axes.axvline(self._axis.at(step), color=_STOP, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)

    def _names(self, axes: Axes, labels: Sequence[_Label], height: float) -> None:
        """The names at the ends of the curves, moved apart where they would overlap."""
        bottom, top = axes.get_ylim()
        ends = [(int(self._axis.steps[-1]), bottom) if curve is None else _end(curve) for _, curve in labels]
        order = sorted(range(len(labels)), key=lambda i: ends[i][1])  # stable: of equals, later layers are higher
        wanted = (np.clip([ends[i][1] for i in order], bottom, top) - bottom) / (top - bottom)
        places = _spread(wanted, _LINE / height)
        inch, page = 1 / self._width, axes.transAxes
        for i, y, place in zip(order, wanted, places, strict=True):
            (name, curve), step = labels[i], ends[i][0]
            if curve is not None:
                start = self._inches(self._axis.at(step) - self._axis.limits[0]) * inch + 0.06 * inch
                x = [start, max(start, 1 - 0.05 * inch), 1 + 0.12 * inch, 1 + 0.25 * inch]
                bend = [y, y, place, place]
                axes.plot(x, bend, color=curve.colour, linewidth=0.9, transform=page, clip_on=False, zorder=1)
            colour, x_of_name = _MUTED if curve is None else _INK, 1 + 0.31 * inch
            axes.text(x_of_name, place, name, transform=page, fontsize=9, color=colour, va="center", parse_math=False)

    def _axes(self, height: float) -> Axes:
        self._top -= height
        box = (_LEFT / _WIDTH, self._top / self._height, self._width / _WIDTH, height / self._height)
        axes = self._figure.add_axes(box)
        axes.set_xlim(*self._axis.limits)
        return axes

    def _inches(self, octaves: float) -> float:
        return octaves / (self._axis.limits[1] - self._axis.limits[0]) * self._width


def _curves(scores: Scores, metric: str, preferred: str, colours: Sequence[str]) -> tuple[str, list[_Curve]]:
    """The held-out curves of one target, ``preferred`` if it has the metric: (target, curves with a finite value)."""
    targets = sorted(scores.targets, key=lambda name: name != preferred)
    layers = scores.layers
    for target in targets:
        found = []
        for index, layer in enumerate(layers):
            steps, values = scores.curve(layer, target, metric)
            if np.isfinite(values).any():
                width = 2.4 if index == len(layers) - 1 else 1.5
                marker = _MARKERS[(len(layers) - 1 - index) % len(_MARKERS)]
                estimated = scores.estimated(layer, target, metric)
                found.append(_Curve(layer, steps, values, estimated, colours[index], marker, width))
        if found:
            return target, found
    return preferred, []


def _own_accuracy(scores: Scores) -> list[_Curve]:
    rows = scores.filter(layer=MODEL_LAYER, metric="accuracy", split="heldout").to_arrow()
    steps, values = rows.column("step").to_numpy(), rows.column("value").to_numpy()
    marker = "x" if len(steps) == 1 else ""
    exact = np.zeros(len(steps), dtype=bool)
    return [_Curve("model", steps, values, exact, _INK, marker, 1.8, "--")] if np.isfinite(values).any() else []


def _last_layer(report: PhaseReport, scores: Scores, target: str) -> CellPhases | None:
    cells = {cell.layer: cell for cell in report if cell.target == target}
    return cells.get(scores.layers[-1]) if scores.layers else None


def _limits(curves: Sequence[_Curve], metric: str) -> tuple[float, float]:
    values = np.concatenate([curve.values[np.isfinite(curve.values)] for curve in curves])
    if metric == "accuracy":
        low = max(0.0, float(values.min()))
        return low - 0.06 * (1.01 - low), 1.01
    # A few steps with far more error than variance would press all else flat; where most have it, nothing is gained.
    top = float(min(values.max() * 1.04, max(_MAX_FVU, 3 * np.median(values)))) or 1.0
    return -0.025 * top, top


def _labels(curves: Sequence[_Curve], most: int) -> list[_Label]:
    """What is written at the ends, at most so many: curves that coincide share a name.

    Of too many, the last two and evenly spaced others keep theirs, and the first label says how many layers have none.
    """
    groups: list[list[_Curve]] = []
    for curve in curves:
        twin = next((g for g in groups if np.array_equal(g[0].values, curve.values, equal_nan=True)), None)
        if twin is None:
            groups.append([curve])
        else:
            twin.append(curve)
    if len(groups) <= most:
        kept, labels = groups, list[_Label]()
    else:
        # The last two of accuracies are the network's own and the last layer's, whose phases are shown.
        kept = [*(groups[i] for i in np.linspace(0, len(groups) - 2, most - 2).round().astype(int)), groups[-1]]
        labels = [(f"{len(curves) - sum(map(len, kept))} more layers", None)]
    return labels + [(_short(" = ".join(curve.name for curve in group)), group[-1]) for group in kept]


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :]


def _end(curve: _Curve) -> tuple[int, float]:
    last = np.flatnonzero(np.isfinite(curve.values))[-1]
    return int(curve.steps[last]), float(curve.values[last])


def _spread(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Places in 0..1, in the order of ``wanted`` [n] (ascending), at least ``gap`` apart, each as near as can be."""
    offsets = gap * np.arange(len(wanted))
    pools: list[tuple[float, int]] = []  # isotonic regression of what is left without the gaps
    for value in wanted - offsets:
        mean, size = float(value), 1
        while pools and pools[-1][0] > mean:
            before, count = pools.pop()
            mean, size = (mean * size + before * count) / (size + count), size + count
        pools.append((mean, size))
    placed = np.repeat([mean for mean, _ in pools], [size for _, size in pools])
    places: np.ndarray = np.clip(placed, 0, max(0.0, 1 - float(offsets[-1]))) + offsets
    return places
