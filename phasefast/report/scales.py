"""Where steps and values lie on the axes of the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from .curves import Curve

LETTER = 0.078  # inches that a letter of 9-point text takes
MAX_FVU = 1.25  # that axes and colours tell apart, where the best is below: decoders that fail can have any
# Values of so many times their curve's median would press all else flat on a linear axis,
_OUTLIER = 3.0
# and layers whose median FVUs differ by more than this would. On a log axis only such values are too far off.
_FACTOR = 20.0
_DECADES = 4.0  # what a log axis shows below its top, at most
# An empty part of a log axis between layers is cut out where it is at least so many decades long, and all of them at
# least this share of the axis; at most so many, the longest.
_EMPTY, _SHARE, _MOST_CUTS = 0.25, 1 / 3, 5
_END, _CUT = 0.1, 0.3  # inches: beyond the outermost values, and what a cut leaves of an empty part
_PER_DECADE = 8.0  # inches, at most: a change of 2 %, the least that counts, is as high as a marker
_HIGH, NARROW = 0.5, 0.75  # accuracy up to which an axis need not reach 1; share of an axis on which nothing lies
ROOM, _LEAST = 0.06, 0.05  # shares: above and below what is drawn, and of the least span
APART = 0.24  # inches between the numbers of an axis
_MANTISSAS: tuple[Sequence[float], ...] = (
    (1,),
    (1, 2, 5),
    (1, 1.5, 2, 3, 4, 5, 6, 8),
    [mantissa / 10 for mantissa in range(10, 100)],
)


@dataclass(frozen=True)
class StepAxis:
    """Steps on a log2 axis, on which step 0 lies one octave before the first other step, or on a linear one.

    On whichever of them the widest gap is narrower: a schedule of powers of two, or every epoch.
    """

    steps: np.ndarray

    @cached_property
    def is_linear(self) -> bool:
        """Whether steps lie as far apart as their numbers."""
        places = np.sort(self.steps), np.array([self._octave(step) for step in np.sort(self.steps).tolist()])
        linear, octaves = (np.diff(own).max(initial=0) / (np.ptp(own) or 1) for own in places)
        return bool(linear < octaves)

    def at(self, step: int) -> float:
        """Where a step lies: its number, or its octave."""
        return float(step) if self.is_linear else self._octave(step)

    def _octave(self, step: int) -> float:
        positive = self.steps[self.steps > 0]
        first = int(positive.min()) if len(positive) else 2
        return math.log2(step) if step >= first else math.log2(first) - 1 + step / first

    @property
    def limits(self) -> tuple[float, float]:
        """Left and right end, with room for the markers."""
        low, high = self.at(int(self.steps.min())), self.at(int(self.steps.max()))
        margin = 0.025 * (high - low) or 1.0
        return low - margin, high + margin

    def ticks(self, inches: float) -> list[int]:
        """Probed steps whose numbers fit beside each other on an axis of this length; the last one always does.

        On a linear axis only round ones, if these are half as many or more.
        """
        steps = self.steps[::-1].tolist()
        most = self._fitting(steps, inches)
        powers = range(len(str(steps[0])) if self.is_linear else 0)
        for stride in (each * 10**power for power in powers for each in (1, 2, 5)):
            some = [step for step in steps if step % stride == 0]
            if 2 * len(some) >= len(most) and self._fitting(some, inches) == some:
                return self._fitting([steps[0], *some], inches) if some[0] < steps[0] else some
        return most

    def _fitting(self, steps: Sequence[int], inches: float) -> list[int]:
        """Those of descending steps that have room beside the last one that has."""
        per_inch = (self.limits[1] - self.limits[0]) / inches
        chosen: list[int] = []
        for step in steps:
            room = LETTER * (len(str(step)) + 1.5) * per_inch
            if not chosen or self.at(chosen[-1]) - self.at(step) >= room:
                chosen.append(step)
        return chosen


@dataclass(frozen=True)
class ValueAxis:
    """Values on a vertical axis.

    Attributes:
        knots: [k] values, ascending. places: [k] where they lie, 0 the foot and 1 the top; others lie between them.
        shown: lowest and highest value that is drawn where it lies; others are drawn at these.
        log: whether equal ratios, not equal differences, are equally far apart.
        pieces: lowest and highest value of what cuts have left of a log axis.
    """

    knots: np.ndarray
    places: np.ndarray
    shown: tuple[float, float]
    log: bool = False
    pieces: tuple[tuple[float, float], ...] = ()

    @property
    def ends(self) -> tuple[float, float]:
        """The values at the foot and at the top."""
        return float(self.knots[0]), float(self.knots[-1])

    @property
    def cuts(self) -> list[float]:
        """The places at which an empty part was cut out."""
        inner = self.places[1:-1]
        return [float(pair.mean()) for pair in inner[1:-1].reshape(-1, 2)] if self.log else []

    def at(self, values: np.ndarray | float) -> np.ndarray:
        """Where values lie; those beyond an end at that end."""
        return np.asarray(np.interp(self._even(np.clip(values, *self.ends)), self._even(self.knots), self.places))

    def value(self, places: np.ndarray) -> np.ndarray:
        """The values that lie there."""
        even = np.interp(places, self.places, self._even(self.knots))
        return np.asarray(10.0**even if self.log else even)

    def ticks(self, inches: float) -> list[float]:
        """Round numbers in every piece of a log axis of this height, as many as fit."""
        found: list[float] = []
        for low, high in self.pieces:
            chosen = [float(f"{math.sqrt(low * high):.1e}")]
            for mantissas in _MANTISSAS:
                decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
                round_numbers = [float(f"{m:g}e{k}") for k in decades for m in mantissas]
                finer = [number for number in round_numbers if low * (1 - 1e-9) <= number <= high * (1 + 1e-9)]
                if (np.diff(self.at(np.array(finer))) * inches < APART).any():
                    break
                chosen = finer or chosen
            found += chosen
        return found

    def _even(self, values: np.ndarray) -> np.ndarray:
        return np.log10(values) if self.log else values


def accuracy_axis(curves: Sequence[Curve], baseline: float | None = None) -> ValueAxis:
    """From a little below the lowest accuracy, or ``baseline`` if that is lower, to 1, or a little above low ones."""
    known = [value for curve in curves for value in (curve.finite.min(), curve.finite.max())]
    known += [] if baseline is None else [baseline]
    low, high = max(0.0, float(min(known))), float(max(known))
    span = max(high - low, _LEAST)
    top = 1.01 if high > _HIGH else (low + high + (1 + 2 * ROOM) * span) / 2
    return _linear(top - max(top - low, span) * (1 + ROOM), top)


def fvu_axis(curves: Sequence[Curve], inches: float) -> ValueAxis:
    """Linear, or logarithmic where it would press some layers flat."""
    top = _top(curves, _OUTLIER)
    medians = [max(float(np.median(curve.finite)), top * 10**-_DECADES) for curve in curves]
    if max(medians) <= _FACTOR * min(medians):
        lowest = min(float(curve.finite.min()) for curve in curves)
        if lowest > NARROW * top:  # what changes little would be a line at the top
            span = max(top / 1.04 - lowest, _LEAST * top)
            return _linear(lowest - ROOM * span, lowest + (1 + ROOM) * span)
        return _linear(min(-0.025 * top, 1.04 * lowest), top)
    top = _top(curves, _FACTOR)
    floor = float(f"{top * 10**-_DECADES:.0e}")
    return _logarithmic([np.clip(curve.finite, floor, top) for curve in curves], (floor, top), inches)


def _top(curves: Sequence[Curve], factor: float) -> float:
    """The highest value, or else the highest that is at most ``factor`` times its own curve's median, but above 1."""
    highest = max(float(curve.finite.max()) for curve in curves)
    usual = [curve.finite[curve.finite <= factor * np.median(curve.finite)] for curve in curves]
    ceiling = max(MAX_FVU, 1.04 * float(np.concatenate(usual).max(initial=0.0)))
    return min(1.04 * highest, ceiling) if highest > 0 else 1.0


def _linear(bottom: float, top: float) -> ValueAxis:
    return ValueAxis(np.array([bottom, top]), np.array([0.0, 1.0]), (bottom, top))


def _logarithmic(curves: Sequence[np.ndarray], shown: tuple[float, float], inches: float) -> ValueAxis:
    """A log axis of the ranges of all curves, without long empty parts between them."""
    ranges: list[tuple[float, float]] = []
    for low, high in sorted((float(np.log10(each.min())), float(np.log10(each.max()))) for each in curves):
        if ranges and low <= ranges[-1][1]:
            low, high = ranges[-1][0], max(ranges.pop()[1], high)
        ranges.append((low, high))
    empty = [(after[0] - before[1], i) for i, (before, after) in enumerate(pairwise(ranges))]
    cut = sorted((part for part in empty if part[0] >= _EMPTY), reverse=True)[:_MOST_CUTS]
    whole = ranges[-1][1] - ranges[0][0]
    if sum(length for length, _ in cut) < _SHARE * whole:
        cut = []
    starts = [0, *sorted(i + 1 for _, i in cut), len(ranges)]
    pieces = [(ranges[i][0], ranges[j - 1][1]) for i, j in pairwise(starts)]
    room, length = inches - 2 * _END, sum(high - low for low, high in pieces)
    scale = min(_PER_DECADE, (room - len(cut) * _CUT) / max(length, 1e-9))
    gap = (room - length * scale) / len(cut) if cut else 0.0
    knots, places = [pieces[0][0] - _END / scale], [0.0]
    place = _END
    for low, high in pieces:
        knots += [low, high]
        places += [place, place + (high - low) * scale]
        place = places[-1] + gap
    knots.append(pieces[-1][1] + _END / scale)
    places.append(inches)
    # Each piece reaches a little into the empty parts, as far as the axis does beyond its ends.
    reach = 0.5 * _END / scale
    reached = tuple((10 ** (low - reach), 10 ** (high + reach)) for low, high in pieces)
    return ValueAxis(10 ** np.array(knots), np.array(places) / inches, shown, log=True, pieces=reached)
