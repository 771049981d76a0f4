"""The picture of reconstructions: some inputs, and beside them what each layer still knows of them at each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..errors import ArgumentError, DataError
from ..reconstruction import Reconstructions
from .curves import INK, evenly
from .names import shortened
from .page import EDGE, MUTED, blank, picture, widest, written
from .table import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _TITLE, _HEAD, _FOOT, _APART = 9.0, 0.45, 0.22, 0.2, 0.14  # inches
_SMALL, _LARGE = 9, 13  # points
_MOST, _STRIPS, _LARGEST = 15, 8, 1.0  # columns beside the inputs, strips, and inches of an image's side at most
_NARROW = 0.4  # inches of a column, for what is written below it
_BESIDE, _GAP = 0.25, 0.06  # of a column: beside that of the inputs, and between two images
_SLANT = math.radians(45)  # of long names above columns
_FEW = 4  # places of a side that a series has, rather than an image without channels
_LONG, _WIDEST = 8, 64  # sides of images, not of series [t, c]; but of spectrograms [1, h, w]
_FINE = 64  # pixels of a side that an image has at least, so that gaps are thinner than one of its own


@dataclass(frozen=True)
class _Strip:
    """Rows of samples under one name, with a column for each of these steps and layers."""

    name: str
    places: Sequence[tuple[int, str]]


@dataclass(frozen=True)
class _Table:
    """What stands above the columns, left of these, in the strips, and what is left out."""

    corner: str
    heads: Sequence[str]
    strips: Sequence[_Strip]
    note: str


@dataclass(frozen=True)
class _Layout:
    """Inches: of the page, from its left edge to the column of inputs and from its top to the first strip, from column
    to column, of a strip's images; and whether names above columns are slanted.
    """

    width: float
    height: float
    left: float
    top: float
    pitch: float
    wide: float
    tall: float
    slanted: bool

    @classmethod
    def of(cls, table: _Table, samples: int, shape: Sequence[int], title: str) -> _Layout:
        """As large as the page allows. Args: shape: of an image, [..., h, w]."""
        left = widest([table.corner, "FVU", *(strip.name for strip in table.strips)], "bold") + 2 * EDGE
        longest, count = widest(table.heads), 1 + _BESIDE + len(table.heads)
        largest = min(_LARGEST, max(_NARROW, _LARGEST * shape[-1] / shape[-2]))  # less of tall ones
        slanted = longest > (1 - _GAP) * min(largest, (_WIDTH - left - EDGE) / count)
        beyond, above = (longest * math.cos(_SLANT), longest * math.sin(_SLANT)) if slanted else (0.0, 0.0)
        pitch = min(largest, (_WIDTH - left - EDGE - beyond) / count)
        tall, top = pitch * shape[-2] / shape[-1] * samples, _TITLE + above + _HEAD
        titled = left + widest([title], "bold") * _LARGE / _SMALL + widest([table.note]) + 3 * EDGE
        width = min(_WIDTH, max(left + count * pitch + beyond + EDGE, titled))
        height = top + len(table.strips) * (tall + _FOOT + _APART)
        return cls(width, height, left, top, pitch, pitch * (1 - _GAP), tall, slanted)


@picture
def plot_reconstructions(
    found: Reconstructions,
    path: str | Path | None = None,
    title: str = "What each layer still knows of held-out images",
) -> Figure:
    """A figure, shown by notebooks, of inputs that are images, and of what is decoded of them.

    It has a row for each sample and a column for each step, in a strip of its own for each layer, or, for a single
    step, a column for each layer. Of more than 15 columns, or 8 strips, some are shown, with the steps of the layers'
    least errors. Below each column stands the FVU of all held-out samples. Colours go from the least to the largest
    value that a channel has on the fit samples.

    Args:
        path: file to write it to as well, as a PNG at most 1,620 pixels wide, a PDF or an SVG.

    Raises:
        DataError: the inputs are not images [c, h, w] of one or three channels, or [h, w], but, say, series [t, c].
        ArgumentError: these are no reconstructions. DependencyError: matplotlib is missing.
        StoreError: the file cannot be written.
    """
    if not isinstance(found, Reconstructions):
        raise ArgumentError(f"plot_reconstructions: expected Reconstructions, got {type(found).__name__}")
    shape = tuple(found.inputs.shape[1:])
    if not _is_image(shape):
        raise DataError(
            f"nothing to draw: expected images [c, h, w] of 1 or 3 channels, or [h, w], with no side much longer than "
            f"the other, got {shape}; pf.reconstruct gives the numbers"
        )
    table = _arranged(found)
    layout = _Layout.of(table, len(found.samples), shape, title)
    figure = blank(layout.width, layout.height)

    def write(x: float, y: float, text: str, **style: Any) -> None:
        style = {"fontsize": _SMALL, "color": INK, "parse_math": False, **style}
        figure.text(x / layout.width, 1 - y / layout.height, text, **style)

    def draw(x: float, y: float, images: Tensor) -> None:
        place = (x / layout.width, 1 - (y + layout.tall) / layout.height)
        axes = figure.add_axes((*place, layout.wide / layout.width, layout.tall / layout.height))
        axes.imshow(_stacked(_pixels(images, found.limits)), aspect="auto", interpolation="antialiased")
        axes.axis("off")

    left, top, middle = layout.left, layout.top, layout.wide / 2
    columns = [left + (1 + _BESIDE + i) * layout.pitch for i in range(len(table.heads))]
    write(left, 0.3, title, fontsize=_LARGE, weight="bold")
    write(layout.width - EDGE, 0.3, table.note, color=MUTED, ha="right")
    write(EDGE, top - 0.06, table.corner, color=MUTED)
    write(left + middle, top - 0.06, "input", ha="center")
    for x, head in zip(columns, table.heads, strict=True):
        slanted = {"rotation": math.degrees(_SLANT), "rotation_mode": "anchor"}
        write(x + middle, top - 0.06, head, **(slanted if layout.slanted else {"ha": "center"}))
    for strip in table.strips:
        below = top + layout.tall + 0.13
        write(EDGE, top + layout.tall / 2, strip.name, weight="bold", va="center")
        write(EDGE, below, "FVU", color=MUTED)
        draw(left, top, found.inputs)
        for x, place in zip(columns, strip.places, strict=True):
            if place in found.decoded:
                draw(x, top, found[place])
                write(x + middle, below, number(found.fvu[place]), ha="center", color=MUTED)
        top += layout.tall + _FOOT + _APART
    return written(figure, path)


def _is_image(shape: Sequence[int]) -> bool:
    """Whether samples of a shape can be drawn: those without channels may be series, as may be those that are long."""
    if len(shape) not in (2, 3) or min(shape[-2:]) < (_FEW if len(shape) == 2 else 2):
        return False
    high, wide = shape[-2:]
    widest = _LONG if len(shape) == 2 else _WIDEST
    return (len(shape) == 2 or shape[0] in (1, 3)) and high <= _LONG * wide and wide <= widest * high


def _arranged(found: Reconstructions) -> _Table:
    """Steps beside each other and layers below; of one step, layers beside each other."""
    steps, layers = found.steps, found.layers
    some = [layers[i] for i in evenly(len(layers), _STRIPS if len(steps) > 1 else _MOST)]
    least = [min(range(len(steps)), key=lambda i: found.fvu.get((steps[i], layer), math.inf)) for layer in some]
    shown = [steps[i] for i in evenly(len(steps), _MOST, *reversed(least))]
    counts = ((len(shown), len(steps), "steps"), (len(some), len(layers), "layers"))
    note = ", ".join(f"{few} of {all_of_them} {what}" for few, all_of_them, what in counts if few < all_of_them)
    names = shortened(some)
    if len(steps) > 1:
        strips = [_Strip(names[layer], [(step, layer) for step in shown]) for layer in some]
        return _Table("step", [str(step) for step in shown], strips, note)
    strip = _Strip(f"step {steps[0]}", [(steps[0], layer) for layer in some])
    return _Table("layer", [names[layer] for layer in some], [strip], note)


def _pixels(images: Tensor, limits: Tensor) -> np.ndarray:
    """Images [s, h, w, 3] from 0 to 1, each channel by its limits [2, c]."""
    low, high = limits.to(images.dtype).unflatten(1, (-1, 1, 1))
    of_unit = (images.unflatten(0, (-1, 1)) if images.ndim == 3 else images).sub(low).div((high - low).clamp_min(1e-12))
    pixels: np.ndarray = of_unit.clamp(0, 1).expand(-1, 3, -1, -1).movedim(1, -1).numpy()
    return pixels


def _stacked(pixels: np.ndarray) -> np.ndarray:
    """Images [s, h, w, 3] below each other, with white below each."""
    times = math.ceil(_FINE / pixels.shape[1])
    large = pixels.repeat(times, 1).repeat(times, 2)
    gap = max(1, round(_GAP / (1 - _GAP) * large.shape[1]))
    white = np.ones_like(large[:, :1]).repeat(gap, 1)
    return np.concatenate([large, white], 1).reshape(-1, *large.shape[2:])
