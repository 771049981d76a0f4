"""A panel of the picture: curves over the steps, with their names on the right."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..phases.phase_report import CellPhases
from .curves import INK, Curve, Label, end_labels
from .page import BEST, LEADER, LINE, MUTED, NAME, PHASES, STOP, Page, fit
from .scales import APART, NARROW, ROOM, ValueAxis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = 40  # on a curve, at most
_BAND = 0.18  # opacity
_BEYOND = 0.2  # inches by which the text beside an axis may be longer than it
_CROSS: dict[str, Any] = {"markeredgewidth": 1.8}
_HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 1.1}
_BASELINE: dict[str, Any] = {"color": MUTED, "linewidth": 0.9, "linestyle": (0, (6, 3)), "zorder": 1}
_BEST: dict[str, Any] = {
    "marker": "o",
    "markersize": 10,
    "markerfacecolor": "none",
    "markeredgecolor": BEST,
    "markeredgewidth": 1.5,
    "linestyle": "none",
    "clip_on": False,
    "zorder": 4,
}
_EVENT: dict[str, Any] = {"color": MUTED, "linewidth": 0.9, "linestyle": (0, (5, 2, 1, 2)), "zorder": 1}
_FAILED: dict[str, Any] = {"color": INK, "linewidth": 0.9, "linestyle": (0, (1, 2.5)), "zorder": 1}


@dataclass(frozen=True)
class Panel:
    """Curves of a target on an axis of ``height`` inches, and the names at their ends.

    Attributes:
        title: what stands beside the axis, with ``{}`` for the target.
        baseline: accuracy of the best constant, if that is known. constant: what that is called.
        best: what the best point is called, its step and its value.
    """

    curves: Sequence[Curve]
    axis: ValueAxis
    height: float
    title: str
    target: str
    baseline: float | None = None
    best: tuple[str, int, float] | None = None
    constant: str = "most frequent class"

    @cached_property
    def labels(self) -> list[Label]:
        """What is written at the ends of the curves, as much as there is room for."""
        return end_labels(self.curves, int(self.height / LINE + 1e-6) + 1)


def draw_panel(
    page: Page,
    panel: Panel,
    cell: CellPhases | None,
    shaded: bool,
    last: bool,
    failed: Collection[int] = (),
    events: Mapping[int, str] = MappingProxyType({}),
) -> None:
    """Draw it below what is there.

    Args:
        cell: whose stop window is marked, and, if ``shaded``, whose phases.
        last: whether the steps are written below it. failed: steps that were not measured. events: their names by step,
            which may be empty.
    """
    axes = page.axes(panel.height)
    _value_axis(axes, panel)
    for phase in cell.phases if cell and shaded else ():
        start, end = page.axis.at(phase.start_step), page.axis.at(phase.end_step)
        axes.axvspan(start, end, color=PHASES[phase.kind][0], alpha=0.08, linewidth=0)
    for step in cell.stop_window or () if cell else ():
        axes.axvline(page.axis.at(step), color=STOP, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    if panel.baseline is not None:
        axes.axhline(panel.baseline, **_BASELINE)
    for step in failed:
        axes.axvline(page.axis.at(step), **_FAILED)
    for step, name in events.items():
        axes.axvline(page.axis.at(step), **_EVENT)
        _name_event(axes, page.axis.at(step), name, panel.height)
    for curve in panel.curves:
        _curve(page, axes, curve, panel.axis)
    lines = {panel.constant: _BASELINE} if panel.baseline is not None else {}
    if panel.best is not None:
        name, step, value = panel.best
        axes.plot(page.axis.at(step), value, **_BEST)
        lines = {f"best: {name} at {step}": _BEST, **lines}
    _legend(axes, panel.curves, lines | ({"not measured": _FAILED} if failed and last else {}))
    _names(page, axes, panel)
    ticks = page.axis.ticks(page.width)
    axes.set_xticks([page.axis.at(step) for step in ticks], [str(step) if last else "" for step in ticks])
    axes.tick_params(colors=INK, labelsize=9.5, length=3)
    if last:
        axes.set_xlabel("training step", fontsize=10.5, color=INK)


def _name_event(axes: Axes, place: float, name: str, height: float) -> None:
    """What happened, along the upper end of its line, on the left of it."""
    how: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "top", "fontsize": 8, "color": MUTED, "zorder": 4}
    how["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}  # over curves and cuts
    text = axes.text(place, 0.98, "", transform=axes.get_xaxis_transform(), parse_math=False, **how)
    fit(text, name, 0.5 * height)


def _legend(axes: Axes, curves: Sequence[Curve], lines: Mapping[str, dict[str, Any]]) -> None:
    """What markers mean that are not those of a layer, and ``lines``, by name: how they are drawn."""
    kinds = {"estimate": ("o", _HOLLOW, "estimated"), "left out": ("x", _CROSS, "left_out")}
    there = {
        name: axes.plot([], [], color=INK, marker=marker, markersize=5.5, linestyle="none", **how)[0]
        for name, (marker, how, which) in kinds.items()
        if any((getattr(curve, which) & np.isfinite(curve.values)).any() for curve in curves)
    }
    there |= {name: axes.plot([], [], **how)[0] for name, how in lines.items()}
    if there:
        tight = {
            "frameon": False,
            "handletextpad": 0.3,
            "handlelength": 1.2,
            "borderpad": 0,
            "borderaxespad": 0.15,
            "columnspacing": 1,
        }
        where: dict[str, Any] = {"bbox_to_anchor": (1, 1), "fontsize": 9, "ncols": len(there), **tight}
        axes.legend(list(there.values()), list(there), loc="lower right", **where)


def _value_axis(axes: Axes, panel: Panel) -> None:
    axis = panel.axis
    bottom, top = axis.ends
    floor, ceiling = axis.shown
    values = np.concatenate([curve.finite for curve in panel.curves])
    notes = [f"values above {ceiling:.3g} are drawn there"] if values.max() > ceiling else []
    axes.set_ylim(bottom, top)
    if axis.log:
        axes.set_yscale("function", functions=(axis.at, axis.value))
        axes.set_ylim(bottom, top)
        ticks = axis.ticks(panel.height)
        texts = [f"{tick:g}" for tick in ticks]
        if values.min() < floor:
            ticks = [tick for tick in ticks if (axis.at(tick) - axis.at(floor)) * panel.height > APART]
            least = f"\u2264{floor:.0e}".replace("e-0", "e-")  # in few letters, as there is no more room
            ticks, texts = [floor, *ticks], [least, *texts[len(texts) - len(ticks) :]]
        axes.set_yticks(ticks, texts)
        notes = ["log axis, empty parts cut out" if axis.cuts else "log axis", *notes]
        for place in axis.cuts:
            _cut(axes, place, panel.height)
    else:
        unit = 10.0 ** np.floor(np.log10(top)) if top < 0.01 else 1.0
        notes += [f"in units of {unit:.0e}"] if unit < 1 else []
        notes += ["axis does not begin at 0"] if bottom > (NARROW - ROOM) * top else []
        axes.yaxis.set_major_formatter(partial(_tick, unit, top))
    label = axes.set_ylabel("", fontsize=10.5, color=INK, parse_math=False)
    fit(label, panel.target, panel.height + _BEYOND, panel.title)
    axes.set_title(", ".join(notes), loc="left", pad=2.5, fontsize=8.5, color=MUTED)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _tick(unit: float, top: float, value: float, _: int | None) -> str:
    """A value of an axis up to ``top`` in a unit; a function with a name, so that figures can be pickled."""
    return f"{value / unit:.4g}" if abs(value) > top * 1e-9 else "0"


def _cut(axes: Axes, place: float, height: float) -> None:
    """A white gap through the panel where no curve is, with strokes at the axis."""
    from matplotlib.patches import Rectangle

    half, page = 0.03 / height, axes.transAxes
    gap = Rectangle((-0.01, place - half), 1.02, 2 * half, facecolor="white", transform=page, clip_on=False, zorder=2.6)
    axes.add_patch(gap)
    for edge in (place - half, place + half):
        axes.plot([0, 1], [edge, edge], color="#c4c4c4", linewidth=0.6, transform=page, zorder=2.7)
        stroke = [edge - 0.6 * half, edge + 0.6 * half]
        axes.plot([-0.009, 0.009], stroke, color=INK, linewidth=0.9, transform=page, clip_on=False, zorder=2.8)


def _curve(page: Page, axes: Axes, curve: Curve, axis: ValueAxis) -> None:
    """The line, cut at the ends of the axis; markers are full at exact values, hollow at estimates, else crosses."""
    places, look = np.array([page.axis.at(step) for step in curve.steps.tolist()]), curve.look
    values = np.clip(curve.values, *axis.shown)
    finite = np.isfinite(values)
    there = finite if look.marker else _alone(finite)  # of which nothing else would be seen
    marker, edge = look.marker or "x", {"markeredgecolor": look.colour, "markeredgewidth": 1.5}
    if look.marker:
        edge = {"markeredgecolor": "white", "markeredgewidth": 0.6}
    drawn: dict[str, Any] = {"color": look.colour, "markersize": 3.5 + look.width, "clip_on": False, "zorder": 3}
    axes.plot(places, values, look.dashes, linewidth=look.width, **drawn)
    if curve.band is not None:
        low, high = (np.clip(edge, *axis.shown) for edge in curve.band)
        axes.fill_between(places, low, high, color=look.colour, alpha=_BAND, linewidth=0, zorder=1.5)
    taken, guessed, odd = ~curve.left_out, curve.estimated, {**_CROSS, "markeredgecolor": look.colour}
    kinds = ((there & taken & ~guessed, marker, edge), (there & taken & guessed, marker, _HOLLOW))
    for kind, shape, how in (*kinds, (finite & ~taken, "x", odd)):
        chosen = _marked(places, kind)
        if chosen.any():
            axes.plot(places[chosen], values[chosen], linestyle="none", marker=shape, **drawn, **how)


def _marked(places: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Which of a curve's points [K] that are ``there`` have a marker: of many some, and those with none beside them."""
    if there.sum() <= _MARKERS:  # more would hide the line
        return there
    even, indices = np.linspace(places[0], places[-1], _MARKERS), np.flatnonzero(there)
    nearest = indices[np.abs(places[indices, None] - even).argmin(axis=0)]
    return np.asarray(np.isin(np.arange(len(places)), nearest) | _alone(there))


def _alone(there: np.ndarray) -> np.ndarray:
    """Which of a curve's points [K] have none beside them."""
    around = np.pad(there, 1)
    return np.asarray(there & ~around[:-2] & ~around[2:])


def _names(page: Page, axes: Axes, panel: Panel) -> None:
    """The names at the ends of the curves, moved apart where they would overlap."""
    foot = (int(page.axis.steps[-1]), panel.axis.ends[0])
    ends = [foot if curve is None else curve.end for _, curve in panel.labels]
    heights = panel.axis.at(np.clip([value for _, value in ends], *panel.axis.shown))
    order = sorted(range(len(ends)), key=lambda i: ends[i][1])  # stable: of equals, later layers are higher
    wanted = heights[order]
    places = spread(wanted, LINE / panel.height)
    inch, across = 1 / page.width, axes.transAxes
    for i, y, place in zip(order, wanted, places, strict=True):
        (name, curve), step = panel.labels[i], ends[i][0]
        if curve is not None:
            start = (page.inches(page.axis.at(step) - page.axis.limits[0]) + 0.06) * inch
            x = [start, max(start, 1 - 0.05 * inch), 1 + LEADER * inch, 1 + (NAME - 0.06) * inch]
            how: dict[str, Any] = {"transform": across, "clip_on": False, "zorder": 1}
            shown = slice(int(step < page.axis.steps[-1]), None)  # a line would look like values of later steps
            if shown.start:
                axes.plot(x[:2], [y, y], color=MUTED, linewidth=0.8, linestyle=(0, (1, 4)), **how)
            axes.plot(x[shown], [y, y, place, place][shown], color=curve.look.colour, linewidth=0.9, **how)
        colour, x_of_name = MUTED if curve is None else INK, 1 + NAME * inch
        axes.text(x_of_name, place, name, transform=across, fontsize=9, color=colour, va="center", parse_math=False)


def spread(wanted: np.ndarray, gap: float) -> np.ndarray:
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
