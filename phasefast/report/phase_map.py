"""The phases of all layers: a thin row each, coloured by kind, with the stop window in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..phases.phase_report import CellPhases
from .curves import INK, Look, evenly
from .names import cut
from .page import LEADER, LINE, MUTED, NAME, PHASES, STOP, Page, tint
from .scales import LETTER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEY, BAR = 0.27, 0.27  # inches: of the line that explains the rows, and of the one below them
_ROW, _ALL, _NAMED = 0.22, 2.3, 24  # inches: of a row, where all of them take no more; so many have names beside them
_MOST = 45  # rows that can be told apart
_NAME = 24  # letters of the name of a stop window's layer
_NUMBERED, _WORDED = 0.19, 0.12  # inches: thinner rows have no numbers, no words
_NOTHING: dict[str, Any] = {
    "color": "#b0b0b0",
    "linewidth": 0.7,
    "linestyle": (0, (1, 2)),
    "zorder": 0.5,
    "clip_on": False,
}


@dataclass(frozen=True)
class Row:
    """A layer and its phases; None where it was not analysed."""

    look: Look
    cell: CellPhases | None

    @property
    def span(self) -> tuple[int, int] | None:
        """The first and last step that was analysed."""
        steps = self.cell.evidence.get("steps") if self.cell else None
        return (min(steps), max(steps)) if steps else None

    @property
    def has_gaps(self) -> bool:
        """Whether some of the analysed steps are in no phase."""
        if self.cell is None or self.span is None:
            return False
        first, last = self.span
        ends = [first, *(phase.end_step for phase in self.cell.phases)]
        return ends != [*(phase.start_step for phase in self.cell.phases), last]


def sampled(rows: Sequence[Row]) -> list[Row]:
    """As many rows as can be told apart: all of up to 45, or else evenly spaced ones, and the chosen layer's."""
    return [rows[i] for i in evenly(len(rows), _MOST, _chosen(rows))]


def map_height(count: int) -> float:
    """Inches that so many rows take."""
    return min(_ROW * count, max(_ALL, LINE * min(count, _NAMED)))


def draw_key(page: Page, rows: Sequence[Row]) -> None:
    """What the colours and bars of the rows mean."""
    axes, x, y = page.strip(KEY), 0.0, 0.07
    axes.set_xlim(0, page.width)
    bar: dict[str, Any] = {"color": STOP, "linewidth": 2.4, "clip_on": False}  # the key may be wider than the axes
    for kind, (colour, number) in PHASES.items():
        axes.barh(y, 0.2, 0.13, left=x, color=tint(colour), clip_on=False)
        x = _write(axes, x + 0.27, y, f"{number}  {kind}")
    axes.plot([x, x + 0.24], [y, y], marker="|", markersize=6, **bar)
    x = _write(axes, x + 0.33, y, "stop window")
    if any(row.cell is not None and row.cell.stop_open for row in rows):
        axes.plot([x, x + 0.24], [y, y], **bar)
        axes.plot([x + 0.24], [y], marker=">", markersize=6, **bar)
        x = _write(axes, x + 0.35, y, "open")
    if any(row.has_gaps for row in rows):
        axes.plot([x, x + 0.27], [y, y], **_NOTHING)
        _write(axes, x + 0.35, y, "no phase")


def draw_map(page: Page, rows: Sequence[Row]) -> None:
    """One row per layer, the last one lowest; dotted where it is in no phase. The chosen layer's name is bold."""
    total = map_height(len(rows))
    height = total / len(rows)
    axes, apart, high = page.strip(total), math.ceil(LINE / height - 1e-6), page.axis.limits[1]
    chosen = _chosen(rows)
    for i, row in enumerate(rows):
        top, named = i * height, (chosen - i) % apart == 0
        _segments(page, axes, row, top, height)
        tick = [high + page.distance(0.03), high + page.distance(LEADER + 0.03)]
        middle, look = top + height / 2, row.look
        axes.plot(tick, [middle] * 2, color=look.colour, linewidth=min(2.0, 50 * height), clip_on=False)
        if named:
            x, bold = high + page.distance(NAME), "bold" if look.chosen else "normal"
            axes.plot([high + page.distance(LEADER + 0.1)], [middle], look.marker, color=look.colour, markersize=5,
                      markeredgecolor="white", markeredgewidth=0.6, clip_on=False)  # fmt: skip
            axes.text(x, middle, look.name, fontsize=9, weight=bold, color=INK, va="center", parse_math=False)


def draw_stop_bar(page: Page, cell: CellPhases | None, name: str) -> None:
    """The stop window whose ends are drawn through the panels below, in words; ``name`` is its layer's."""
    axes, y = page.strip(BAR), 0.15
    low, high = page.axis.limits
    words: dict[str, Any] = {"fontsize": 9, "va": "center"}
    if cell is None or cell.stop_window is None:
        text = "phases were not analysed" if cell is None else f"no stop window in {name}"
        axes.text(page.axis.at(int(page.axis.steps[0])), y, text, color=MUTED, parse_math=False, **words)
        return
    start, end = (page.axis.at(step) for step in cell.stop_window)
    _bar(page, axes, cell, y, 4.0)
    first, last = cell.stop_window
    text = f"stop at {first}" if first == last else f"stop window {first} to {last}"
    text = f"{cut(name, _NAME)}: {text}" + ", open" * cell.stop_open
    room, pad = LETTER * (len(text) + 2), page.distance(0.14)
    if page.inches(high - end) > room:
        axes.text(end + pad, y + 0.005, text, color=STOP, ha="left", **words)
    elif page.inches(start - low) > room:
        axes.text(start - pad, y + 0.005, text, color=STOP, ha="right", **words)
    else:
        on: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        axes.text((start + end) / 2, y + 0.005, text, color=STOP, ha="center", bbox=on, **words)


def _chosen(rows: Sequence[Row]) -> int:
    """The chosen layer's index among the rows."""
    return next((i for i, row in enumerate(rows) if row.look.chosen), 0)


def _segments(page: Page, axes: Axes, row: Row, top: float, height: float) -> None:
    cell, middle, words = row.cell, top + height / 2, height >= _WORDED
    first, last = (page.axis.at(step) for step in row.span or page.axis.steps[[0, -1]].tolist())
    if row.has_gaps:
        axes.plot([first, last], [middle, middle], **_NOTHING)
    if words and (cell is None or not cell.phases):
        text, on = "not analysed" if cell is None else "no phase", {"facecolor": "white", "edgecolor": "none", "pad": 1}
        size: dict[str, Any] = {"fontsize": min(8.5, 52 * height), "color": "#8a8a8a", "va": "center"}
        axes.text((first + last) / 2, middle, text, ha="center", bbox=on, **size)
    if cell is None:
        return
    for phase in cell.phases:
        colour, number = PHASES[phase.kind]
        start, end = page.axis.at(phase.start_step), page.axis.at(phase.end_step)
        edge: dict[str, Any] = {"edgecolor": "white", "linewidth": min(1.0, 6 * height)}
        axes.barh(middle, end - start, 0.88 * height, left=start, color=tint(colour), **edge)
        if height >= _NUMBERED and page.inches(end - start) > LETTER * (len(number) + 1):
            y = top + (0.4 if cell.stop_window else 0.5) * height
            axes.text((start + end) / 2, y, number, fontsize=7.5, color=INK, ha="center", va="center")
    if cell.stop_window is not None:
        y = top + (0.82 if height >= _NUMBERED else 0.5) * height
        _bar(page, axes, cell, y, min(2.2, 30 * height), capped=words)


def _bar(page: Page, axes: Axes, cell: CellPhases, y: float, width: float, capped: bool = True) -> None:
    """A stop window, with an arrow at its end where it is open, or else, if ``capped``, with bars across its ends."""
    start, end = (page.axis.at(step) for step in cell.stop_window or ())
    half = page.distance(0.035) if start == end else 0.0  # a single step would not be seen
    line = [start - half, end + half]
    axes.plot(line, [y, y], color=STOP, linewidth=width, solid_capstyle="butt", clip_on=False)
    caps = [(line[0], "|")] if capped else []
    caps += [(end, ">")] if cell.stop_open else [(line[1], "|")] if capped else []
    for x, marker in caps:
        how: dict[str, Any] = {"markersize": 2.4 * width, "markeredgewidth": 0.4 * width, "clip_on": False}
        axes.plot([x], [y], color=STOP, marker=marker, **how)


def _write(axes: Axes, x: float, y: float, text: str) -> float:
    """Write into the key; where the next entry begins."""
    axes.text(x, y + 0.005, text, fontsize=9, color=INK, va="center")
    return x + 0.9 * LETTER * len(text) + 0.18
