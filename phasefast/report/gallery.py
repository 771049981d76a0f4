"""The picture of reconstructions: some inputs, and beside them what each layer still knows of them at each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import ArgumentError, DataError, DependencyError
from ..files import writing
from ..reconstruction import Reconstructions
from .curves import INK, evenly
from .names import shortened
from .page import EDGE, MUTED, blank, widest

_WIDTH, _TITLE, _HEAD, _FOOT, _APART = 9.0, 0.45, 0.22, 0.2, 0.14  # inches
_SMALL, _LARGE = 9, 13  # points
_MOST, _STRIPS, _LARGEST = 15, 8, 1.0  # columns beside the inputs, strips, and inches that a column is wide at most
_BESIDE, _GAP = 0.25, 0.06  # of a column: beside that of the inputs, and between two images
_SLANT = math.radians(45)  # of long names above columns
_FINE = 64  # pixels of a side that an image has at least, so that gaps are thinner than one of its own


@dataclass(frozen=True)
class _Strip:
    """Rows of samples under one name, with a column for each of these steps and layers."""

    name: str
    places: Sequence[tuple[int, str]]


def plot_reconstructions(
    found: Reconstructions, path: str | Path, title: str = "What each layer still knows of held-out images"
) -> Path:
    """Draw inputs that are images, and what is decoded of them, as a PNG of up to 1,620 pixels' width.

    A row for each sample; a column for each step, in a strip of its own for each layer, or for each layer where there
    is one step; of more than 15 columns, or 8 strips, some. Below each column stands the FVU of all held-out samples.
    Colours go from the least to the largest value that a channel has on the fit samples.

    Raises:
        DataError: the inputs are no images [c, h, w] of one or three channels, nor [h, w].
        ArgumentError: these are no reconstructions. DependencyError: matplotlib is missing.
        StoreError: the file cannot be written.
    """
    if not isinstance(found, Reconstructions):
        raise ArgumentError(f"expected Reconstructions, got {type(found).__name__}")
    shape = tuple(found.inputs.shape[1:])
    if not (len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))) or min(shape[-2:]) == 1:
        raise DataError(f"nothing to draw: expected images [c, h, w] of 1 or 3 channels, or [h, w], got {shape}")
    steps, layers = found.steps, found.layers
    shown = [steps[i] for i in evenly(len(steps), _MOST, 0)]
    some = [layers[i] for i in evenly(len(layers), _STRIPS if len(steps) > 1 else _MOST, 0)]
    names = shortened(some)
    if len(steps) > 1:
        strips = [_Strip(names[layer], [(step, layer) for step in shown]) for layer in some]
        heads, corner = [str(step) for step in shown], "step"
    else:
        strips = [_Strip(f"step {steps[0]}", [(steps[0], layer) for layer in some])]
        heads, corner = [names[layer] for layer in some], "layer"
    counts = ((len(shown), len(steps), "steps"), (len(some), len(layers), "layers"))
    note = ", ".join(f"{few} of {all_of_them} {what}" for few, all_of_them, what in counts if few < all_of_them)
    try:
        left = widest([corner, "FVU", *(strip.name for strip in strips)], "bold") + 2 * EDGE
        longest = widest(heads)
    except ImportError as error:
        raise DependencyError("this picture needs matplotlib: pip install 'phasefast[report]'") from error
    count = 1 + _BESIDE + len(heads)
    slanted = longest > (1 - _GAP) * min(_LARGEST, (_WIDTH - left - EDGE) / count)
    beyond, above = (longest * math.cos(_SLANT), longest * math.sin(_SLANT)) if slanted else (0.0, 0.0)
    above += _HEAD
    pitch = min(_LARGEST, (_WIDTH - left - EDGE - beyond) / count)
    wide = pitch * (1 - _GAP)
    tall = (pitch * shape[-2] / shape[-1]) * len(found.samples)
    height = _TITLE + above + len(strips) * (tall + _FOOT + _APART)
    titled = left + widest([title], "bold") * _LARGE / _SMALL + widest([note]) + 3 * EDGE
    width = min(_WIDTH, max(left + count * pitch + beyond + EDGE, titled))
    figure = blank(width, height)

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, **{"fontsize": _SMALL, "color": INK, "parse_math": False, **style})

    def draw(x: float, y: float, images: Tensor) -> None:
        axes = figure.add_axes((x / width, 1 - (y + tall) / height, wide / width, tall / height))
        axes.imshow(_stacked(_pixels(images, found.limits)), aspect="auto", interpolation="antialiased")
        axes.axis("off")

    columns = [left + (1 + _BESIDE + i) * pitch for i in range(len(heads))]
    write(left, 0.3, title, fontsize=_LARGE, weight="bold")
    write(width - EDGE, 0.3, note, color=MUTED, ha="right")
    top = _TITLE + above
    write(EDGE, top - 0.06, corner, color=MUTED)
    write(left + wide / 2, top - 0.06, "input", ha="center")
    for x, head in zip(columns, heads, strict=True):
        style = {"rotation": math.degrees(_SLANT), "rotation_mode": "anchor"} if slanted else {"ha": "center"}
        write(x + wide / 2, top - 0.06, head, **style)
    for strip in strips:
        write(EDGE, top + tall / 2, strip.name, weight="bold", va="center")
        write(EDGE, top + tall + 0.13, "FVU", color=MUTED)
        draw(left, top, found.inputs)
        for x, place in zip(columns, strip.places, strict=True):
            if place not in found.decoded:
                continue
            draw(x, top, found[place])
            write(x + wide / 2, top + tall + 0.13, f"{found.fvu[place]:.2g}", ha="center", color=MUTED)
        top += tall + _FOOT + _APART
    with writing(path, "the picture") as partial:
        figure.savefig(partial, format="png")
    return Path(path)


def _pixels(images: Tensor, limits: Tensor) -> np.ndarray:
    """Images [s, h, w, 3] from 0 to 1, each channel by its limits [2, c]."""
    low, high = limits.to(images.dtype).unflatten(1, (-1, 1, 1))
    of_unit = (images.unflatten(0, (-1, 1)) if images.ndim == 3 else images).sub(low).div((high - low).clamp_min(1e-12))
    pixels: np.ndarray = of_unit.clamp(0, 1).expand(-1, 3, -1, -1).movedim(1, -1).numpy()
    return pixels


def _stacked(pixels: np.ndarray) -> np.ndarray:
    """Images [s, h, w, 3] below each other, with white between them."""
    times = math.ceil(_FINE / pixels.shape[1])
    large = pixels.repeat(times, 1).repeat(times, 2)
    gap = max(1, round(_GAP * large.shape[1]))
    large[:, -gap:] = 1
    return large.reshape(-1, *large.shape[2:])
