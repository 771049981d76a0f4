"""The page of the picture: axes below each other, all with the same steps, between a title and the names of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .scales import StepAxis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 180
INK, MUTED, STOP = "#222222", "#666666", "#0072B2"
# Okabe and Ito's colours, which all kinds of colour vision tell apart; in grey the written numbers do.
PHASES = {"constant": ("#8c8c8c", "i"), "decrease": ("#009E73", "ii"), "increase": ("#D55E00", "iii")}
_TINT = 0.3
LINE = 0.165  # inches that a line of 9-point text takes
LEADER, NAME = 0.12, 0.31  # inches right of the axes: where what leads to a name begins, and the name itself
_WIDTH, _LEFT, _TITLE, _FOOT = 9.0, 0.85, 0.5, 0.62  # inches
_EDGE, _APART = 0.11, 0.3  # inches between the note and the edge of the page, and the title and the note


def tint(colour: str) -> tuple[float, ...]:
    """A phase's colour as bands have it."""
    from matplotlib.colors import to_rgb

    return tuple(1 - _TINT + _TINT * part for part in to_rgb(colour))


@dataclass
class Page:
    """Axes of the given heights are placed from the top downwards.

    Attributes:
        right: inches that the names take. content: inches that all axes and gaps take together.
    """

    axis: StepAxis
    right: float
    content: float

    def __post_init__(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width = _WIDTH - _LEFT - self.right
        self._height = _TITLE + self.content + _FOOT
        self.figure: Figure = Figure(figsize=(_WIDTH, self._height), dpi=PIXELS_PER_INCH, facecolor="white")
        FigureCanvasAgg(self.figure)
        self._top = self._height - _TITLE

    def header(self, title: str, note: str) -> None:
        """The title, as much of it as fits, and a note at the right end of its line."""
        line = (self._height - 0.34) / self._height
        plain: dict[str, Any] = {"parse_math": False}
        beside = self.figure.text(1 - _EDGE / _WIDTH, line, note, fontsize=9, color=MUTED, ha="right", **plain)
        text = self.figure.text(_LEFT / _WIDTH, line, title, fontsize=13, weight="bold", color=INK, **plain)
        room = beside.get_window_extent().x0 - text.get_window_extent().x0 - _APART * PIXELS_PER_INCH
        if (width := text.get_window_extent().width) > room:
            text.set_text(title[: int(len(title) * room / width) - 1] + "…")

    def skip(self, inches: float) -> None:
        """Leave so much empty."""
        self._top -= inches

    def axes(self, inches: float) -> Axes:
        """Axes of this height, as wide as the steps."""
        self._top -= inches
        box = (_LEFT / _WIDTH, self._top / self._height, self.width / _WIDTH, inches / self._height)
        axes = self.figure.add_axes(box)
        axes.set_xlim(*self.axis.limits)
        return axes

    def strip(self, inches: float) -> Axes:
        """The same without an axis, in inches from its top downwards."""
        axes = self.axes(inches)
        axes.axis("off")
        axes.set_ylim(inches, 0)
        return axes

    def inches(self, octaves: float) -> float:
        """How long a distance between steps is."""
        low, high = self.axis.limits
        return octaves / (high - low) * self.width

    def octaves(self, inches: float) -> float:
        """How many steps lie on a length."""
        low, high = self.axis.limits
        return inches / self.width * (high - low)
