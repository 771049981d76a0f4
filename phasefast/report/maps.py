"""The picture of all targets: how well each layer gives each of them back at each step, as a map."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ArgumentError, DataError
from ..metrics import ACCURACIES, FVU, LOSSES
from ..phases.best import best_checkpoint
from ..results.losses import LEAST_CHANGE
from ..results.scores import MODEL_LAYER, Scores
from .curves import INK, evenly
from .names import LONGEST, cut, shortened, spelled
from .page import BEST, EDGE, LINE, MUTED, blank, fit, length, picture, widest, written
from .scales import LETTER, MAX_FVU
from .table import number, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _TITLE, _HEAD, _FOOT, _APART = 9.0, 0.55, 0.3, 0.3, 0.1  # inches
_TALL, _ROW = 3.2, (LINE, 0.25)  # inches: of a map, and of a row at least and at most
_KEY, _BAR = 0.8, 0.13  # inches right of a map, and of its colours
_LAYERS, _STEPS, MOST_MAPS = 45, 60, 12  # shown, at most
_SMALL, _DARK = 9, 0.5  # points; share of the colours, on which numbers are white
_EMPTY = "#eeeeee"
_HARDLY = 0.005  # better than a constant: less is rounded to the same


@dataclass(frozen=True)
class _Map:
    """One target: held-out values [layers, steps], NaN where there is none, and how good they are, from 0 to 1.

    Attributes:
        constant: what the best constant scores. scores: that it is of.
    """

    target: str
    metric: str
    layers: Sequence[str]
    steps: Sequence[int]
    values: np.ndarray
    constant: float
    scores: Scores

    @cached_property
    def beats(self) -> bool:
        """Whether some layer is better than a constant by more than chance, as far as samples tell."""
        with contextlib.suppress(DataError, ArgumentError):  # without samples, or of the model's own alone
            return best_checkpoint(self.scores, self.target).beats_constant
        return True

    @property
    def best(self) -> tuple[int, int] | None:
        """The layer and step of the best of all; None where it hardly differs from a constant, or by chance."""
        row, column = divmod(int(self.layer_losses.argmin()), len(self.steps))
        gain = (self.values[row, column] - self.constant) * (1 if self.is_share else -1)
        return (row, column) if self.beats and gain > _HARDLY else None

    @property
    def losses(self) -> np.ndarray:
        """Less is better; Inf where there is none."""
        return np.where(np.isfinite(self.values), -self.values if self.is_share else self.values, np.inf)

    @property
    def layer_losses(self) -> np.ndarray:
        """Those of layers, without the model's own, where there are any."""
        alone = self.losses[: len(self.layers) - (self.layers[-1] == MODEL_LAYER)]
        return alone if np.isfinite(alone).any() else self.losses

    @property
    def is_share(self) -> bool:
        """Whether it is of hits, not of errors."""
        return self.metric in ACCURACIES

    @property
    def ends(self) -> tuple[float, float]:
        """The worst and the best value that colours tell apart: those of layers, as the model's own can be far off."""
        finite = self.layer_losses[np.isfinite(self.layer_losses)]
        best, worst = float(finite.min()), float(finite.max())
        if self.is_share:
            return -worst, -best
        return (min(worst, MAX_FVU) if best < MAX_FVU else worst), best

    @property
    def differ(self) -> bool:
        """Whether colours are to tell values apart, instead of saying how far they are from nothing and all."""
        worst, best = self.ends
        return worst != best and (self.beats or not self.is_share)

    @property
    def goodness(self) -> np.ndarray:
        """Where values lie between the ends: accuracies, or the roots of FVUs, as these lie over many decades.

        Those that are all the same, or accuracies that differ by chance, lie between nothing and all.
        """
        ends = np.array(self.ends)
        values = np.clip(self.values, ends.min(), ends.max())
        worst, best = ends if self.is_share else np.sqrt(np.maximum(ends, 0))
        even = values if self.is_share else np.sqrt(np.maximum(values, 0))
        alone = self.values.clip(0, 1)
        same = alone if self.is_share else 1 - alone
        share = (even - worst) / (best - worst) if self.differ else same
        return np.where(np.isfinite(self.values), share, np.nan)

    @property
    def key(self) -> list[str]:
        """What the best and the worst colour stand for."""
        worst, best = self.ends
        if not self.differ:
            return ["1", "0"] if self.is_share else ["0", "1"]
        finite = self.values[np.isfinite(self.values)]
        low = "\u2264 " if finite.min() < min(self.ends) else ""
        high = "\u2265 " if finite.max() > max(self.ends) else ""
        signs = (high, low) if self.is_share else (low, high)
        return [sign + number(end) for sign, end in zip(signs, (best, worst), strict=True)]


@picture
def plot_maps(scores: Scores, path: str | Path | None = None, title: str = "What each layer gives back") -> Figure:
    """A figure, shown by notebooks, of the held-out score of every layer and step, with a map for each target.

    Each map has a row for each layer, the first one on top and the model's own output last, and a column for each step.
    Bright means decoded well; the best step of each layer is bold, or has a dot, and the best of all has a frame. Of
    more than 45 layers, 60 steps or 12 targets some are shown.

    Args:
        scores: of one run. path: file to write it to as well, as a PNG 1,620 pixels wide, a PDF or an SVG.

    Raises:
        DataError: there is no finite held-out FVU or accuracy to draw. ArgumentError: ``path`` is of another kind.
        DependencyError: matplotlib is missing. StoreError: the file cannot be written.
    """
    scores.check_one_run()
    if not (maps := _maps(scores)):
        raise DataError(f"nothing to draw: expected finite held-out 'fvu' or 'accuracy' rows, got {scores!r}")
    shown = maps[:MOST_MAPS]
    names = shortened(layer for each in shown for layer in each.layers)
    left = widest(names.values()) + 2 * EDGE
    rows = [min(max(_TALL / len(each.layers), _ROW[0]), _ROW[1]) for each in shown]
    talls = [row * len(each.layers) for row, each in zip(rows, shown, strict=True)]
    height = _TITLE + sum(_HEAD + tall + _FOOT + _APART for tall in talls)
    figure, top = blank(_WIDTH, height), _TITLE
    head: dict[str, Any] = {"fontsize": 13, "weight": "bold", "color": INK, "parse_math": False}
    some = f"the first {MOST_MAPS} of {len(maps)} targets; " if len(maps) > len(shown) else ""
    note = f"{some}bright: decoded well; bold, dots: each layer's best step"
    beside = figure.text(1 - EDGE / _WIDTH, 1 - 0.3 / height, note, fontsize=_SMALL, color=MUTED, ha="right")
    fit(figure.text(EDGE / _WIDTH, 1 - 0.3 / height, "", **head), title, _WIDTH - 4 * EDGE - length(beside))
    for each, tall in zip(shown, talls, strict=True):
        top += _HEAD
        box = (left / _WIDTH, 1 - (top + tall) / height, (_WIDTH - left - _KEY) / _WIDTH, tall / height)
        _draw(figure, each, names, box, tall, _WIDTH - left - _KEY)
        top += tall + _FOOT + _APART
    return written(figure, path)


def _maps(scores: Scores) -> list[_Map]:
    found = []
    targets = dict.fromkeys([*scores.targets, *scores.filter(layer=MODEL_LAYER).values_of("target")])
    for target in targets:
        for metric in LOSSES:
            layers = [each for each in [*scores.layers, MODEL_LAYER] if scores.has_curve(each, target, metric)]
            if not layers:
                continue
            curves = {layer: scores.curve(layer, target, metric) for layer in layers}
            steps = sorted({step for own, _ in curves.values() for step in own.tolist()})
            values = np.full((len(layers), len(steps)), np.nan)
            for row, layer in enumerate(layers):
                known = dict(zip(*(part.tolist() for part in curves[layer]), strict=True))
                values[row] = [known.get(step, np.nan) for step in steps]
            if np.isfinite(values).any():
                baseline = 1.0 if metric == FVU else scores.baseline(target, metric)
                found.append(_thinned(_Map(target, metric, layers, steps, values, baseline or 0, scores)))
            break
    return found


def _thinned(own: _Map) -> _Map:
    """Some of many layers and steps, with the best of all, and as far as there is room those of the layers drawn."""
    row, column = divmod(int(own.layer_losses.argmin()), len(own.steps))
    rows = evenly(len(own.layers), _LAYERS, row)
    columns = evenly(len(own.steps), _STEPS, *own.losses[rows].argmin(1).tolist(), column)
    layers, steps = [own.layers[i] for i in rows], [own.steps[i] for i in columns]
    return replace(own, layers=layers, steps=steps, values=own.values[np.ix_(rows, columns)])


def _draw(figure: Any, own: _Map, names: Mapping[str, str], box: tuple[float, ...], tall: float, wide: float) -> None:
    """Args: box: of the map, in shares of the page. tall, wide: in inches."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    colours, axes, good = colormaps["viridis"].with_extremes(bad=_EMPTY), figure.add_axes(box), own.goodness
    axes.imshow(np.ma.masked_invalid(good), cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    name = "FVU" if own.metric == FVU else spelled(own.metric)
    axes.set_title(f"{cut(own.target, LONGEST)}: held-out {name}", fontsize=10, loc="left", parse_math=False)
    row, column = tall / len(own.layers), wide / len(own.steps)
    places = range(len(own.layers) - 1, -1, -math.ceil(LINE / row))
    axes.set_yticks(places, [names[own.layers[i]] for i in places], fontsize=_SMALL, parse_math=False)
    places = range(len(own.steps) - 1, -1, -math.ceil(LETTER * (len(str(own.steps[-1])) + 1.5) / column))
    axes.set_xticks(places, [str(own.steps[i]) for i in places], fontsize=_SMALL)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    rounded = np.where(np.abs(own.values) < LEAST_CHANGE, 0, own.values).tolist()  # long numbers that say no more
    texts = [[text.replace("nan", "") for text in numbers(line)] for line in rounded]
    written = row >= LINE and widest(text for line in texts for text in line) < 0.95 * column
    for y, losses in enumerate(own.losses):
        least = int(losses.argmin()) if np.isfinite(losses).any() else -1
        for x, text in enumerate(texts[y]):
            ink, weight = ("white" if good[y, x] < _DARK else INK), "bold" if x == least else "normal"
            if written:
                axes.text(x, y, text, fontsize=_SMALL, color=ink, weight=weight, ha="center", va="center_baseline")
            elif x == least:
                axes.plot(x, y, ".", color=ink, markersize=4)
    if own.best is not None:
        y, x = own.best
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=BEST, linewidth=2, clip_on=False))
    bar = figure.add_axes((1 - (_KEY - 0.1) / _WIDTH, box[1], _BAR / _WIDTH, box[3]))
    bar.imshow(np.linspace(1, 0, 64)[:, None], cmap=colours, aspect="auto", vmin=0, vmax=1)
    bar.yaxis.tick_right()
    bar.set_xticks([])
    bar.set_yticks([0, 63], own.key, fontsize=_SMALL)
    bar.tick_params(length=0)
    bar.spines[:].set_visible(False)
