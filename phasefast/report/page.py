"""The page of the picture: axes below each other, all with the same steps, between a title and the names of layers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ..common.files import writing
from ..errors import ArgumentError, DependencyError
from ..results.store import FORMATS
from .curves import INK
from .names import cut
from .scales import StepAxis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

    from .drawn import Picture

PIXELS_PER_INCH = 180
MUTED, STOP, BEST = "#666666", "#0072B2", "#D55E00"
# Okabe and Ito's colours, which all kinds of colour vision tell apart; in grey the written numbers do.
PHASES = {"constant": ("#8c8c8c", "i"), "decrease": ("#009E73", "ii"), "increase": ("#D55E00", "iii")}
_TINT = 0.3
LINE = 0.165  # inches that a line of 9-point text takes
LEADER, NAME = 0.12, 0.31  # inches right of the axes: where what leads to a name begins, and the name itself
_WIDTH, _LEFT, _TITLE, _FOOT = 9.0, 0.85, 0.5, 0.62  # inches
EDGE, _APART = 0.11, 0.3  # inches between what is on the right and the edge of the page, and the title and the note
_TITLED = 1.6  # inches that are left to the title


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def need_matplotlib() -> None:
    """Raise DependencyError if it is missing: to be called before work that takes long."""
    try:
        import matplotlib.style  # noqa: F401
    except ImportError as error:
        raise DependencyError("pictures need matplotlib: pip install 'phasefast[report]'") from error


def picture_format(path: str | Path) -> str:
    """The format of a picture, from the end of its name; ArgumentError if it is not one of ``FORMATS``."""
    if (suffix := Path(path).suffix.lower()) not in FORMATS:
        raise ArgumentError(f"picture: expected a name that ends with {', '.join(FORMATS)}, got {path}")
    return suffix[1:]


def picture(draw: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Draws with matplotlib's own settings, whatever the user's are.

    Raises, before it draws:
        DependencyError: it is missing. ArgumentError: a ``path`` is of no picture.
    """
    signature = inspect.signature(draw)

    @functools.wraps(draw)
    def drawn(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        need_matplotlib()
        if (path := signature.bind(*args, **kwargs).arguments.get("path")) is not None:
            picture_format(path)
        import matplotlib.style

        # Publishers refuse the fonts of the other kind.
        with matplotlib.style.context(["default", {"pdf.fonttype": 42, "ps.fonttype": 42}]):
            return draw(*args, **kwargs)

    return drawn


def tint(colour: str) -> tuple[float, ...]:
    """A phase's colour as bands have it."""
    from matplotlib.colors import to_rgb

    return tuple(1 - _TINT + _TINT * part for part in to_rgb(colour))


def blank(width: float, height: float) -> Picture:
    """A page of so many inches that can measure texts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from .drawn import Picture

    figure = Picture(figsize=(width, height), dpi=PIXELS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def written(figure: Picture, path: str | Path | None) -> Picture:
    """The figure, in a file too where one is named.

    Raises:
        ArgumentError: the end of its name is of no picture. StoreError: it cannot be written.
    """
    if path is not None:
        form = picture_format(path)
        with writing(path, "the picture") as partial:
            figure.savefig(partial, format=form)
    return figure


def length(text: Text) -> float:
    """Inches that a text takes along its line."""
    box = text.get_window_extent()
    return float(max(box.width, box.height)) / PIXELS_PER_INCH


def widest(texts: Iterable[str], weight: str = "normal") -> float:
    """Inches that the widest of these texts takes in 9 points."""
    page = blank(1, 1)
    return max(length(page.text(0, 0, text, fontsize=9, weight=weight, parse_math=False)) for text in {*texts})


def fit(text: Text, words: str, room: float, around: str = "{}") -> None:
    """Let a text say ``around`` these words, without their middle where they would take more than so many inches."""
    for letters in range(len(words), 0, -1):
        text.set_text(around.format(cut(words, letters)))
        if length(text) <= room:
            return


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
        self.width = _WIDTH - _LEFT - self.right
        self._height = _TITLE + self.content + _FOOT
        self.figure = blank(_WIDTH, self._height)
        self._top = self._height - _TITLE

    def header(self, title: str, note: str) -> None:
        """The title and, at the right end of its line, a note, as much of both as fits."""
        line = (self._height - 0.34) / self._height
        plain: dict[str, Any] = {"parse_math": False}
        room = _WIDTH - _LEFT - EDGE - _APART
        beside = self.figure.text(1 - EDGE / _WIDTH, line, "", fontsize=9, color=MUTED, ha="right", **plain)
        fit(beside, note, room - _TITLED)
        text = self.figure.text(_LEFT / _WIDTH, line, "", fontsize=13, weight="bold", color=INK, **plain)
        fit(text, title, room - length(beside))

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

    def inches(self, distance: float) -> float:
        """How many inches a distance on the axis of steps takes."""
        low, high = self.axis.limits
        return distance / (high - low) * self.width

    def distance(self, inches: float) -> float:
        """The distance on the axis of steps that takes so many inches."""
        low, high = self.axis.limits
        return inches / self.width * (high - low)
