"""The layer and checkpoint that a target is decoded best from, and those that cannot be told apart from them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch

from ..common.distributions import student
from ..common.notices import warn
from ..common.scalars import as_float
from ..common.tables import Printed, counted
from ..errors import ArgumentError, DataError
from ..metrics import ACCURACIES, LOSSES
from ..results.losses import LEAST_CHANGE, losses_of
from ..results.scores import Scores

FEWEST_SIGNS = 6  # samples of which all signs are alike by chance in less than one case of twenty
_FEW = 50  # samples that are right in one of two cases only, up to which their chance is counted
_SHOWING = 3  # rows of each sample that are wrong, on average, to show how much they depend on each other
_COMMON = 2  # of so many steps of a run one should be measured in all runs
_HEAVY = 10  # of samples that do not count alike, all of whose signs are tried


@dataclass(frozen=True)
class BestCheckpoint(Printed):
    """Where a target is decoded best.

    Attributes:
        layer, step: where. value: the held-out ``metric`` there, ``accuracy``, ``balanced_accuracy`` or ``fvu``.
        samples: number of held-out samples.
        beats_constant: whether it is better than the best constant, the most frequent class or the fit mean, by more
            than the choice of samples explains in the best of so many; True if that constant is not known.
        steps: the steps of that layer that cannot be told apart from the best, which is among them.
        others: the best such step of each other layer that has any.
    """

    target: str
    metric: str
    layer: str
    step: int
    value: float
    samples: int
    beats_constant: bool
    steps: tuple[int, ...]
    others: Mapping[str, int]

    def __str__(self) -> str:
        if not self.beats_constant:
            return f"{self.target}: {no_better(self.metric)}"
        steps = [str(step) for step in self.steps if step != self.step]
        alike = [f"its steps {', '.join(steps)}"] if steps else []
        alike += [f"{layer} at {step}" for layer, step in self.others.items()]
        text = f"{self.target}: {self.layer} at step {self.step}, {self.metric} {self.value:.4g}"
        return f"{text}; not told apart from it: {'; '.join(alike)}" if alike else text


@dataclass(frozen=True)
class CommonBest(Printed):
    """Where several runs decode a target best, in the mean.

    Attributes:
        layer, step: where, among the layers and steps that all runs have in common.
        values: the held-out ``metric`` there, by run. own: each run's own best.
    """

    target: str
    metric: str
    layer: str
    step: int
    values: Mapping[str, float]
    own: Mapping[str, BestCheckpoint]

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return statistics.fmean(self.values.values())

    @property
    def deviation(self) -> float:
        """Standard deviation (n - 1) of the values, which another training would change."""
        return statistics.stdev(self.values.values())  # 0 where all are the same, without rounding

    def __str__(self) -> str:
        lines = [
            f"{self.target}: {self.layer} at step {self.step}, {self.metric} {self.mean:.4g} (sd {self.deviation:.2g})"
        ]
        return "\n".join(lines + [f"  {run}, {best}" for run, best in self.own.items()])


def no_better(metric: str, value: str = "") -> str:
    """That nothing is better than the best constant, in words. Args: value: the constant's."""
    constant = "the most frequent class" if metric in ACCURACIES else "the fit mean"
    return f"no layer is better than {constant}{f', {value},' if value else ''} by more than chance"


def best_checkpoint(
    scores: Scores, target: str = "label", *, layers: Sequence[str] | None = None, confidence: float = 0.95
) -> BestCheckpoint:
    """The layer and step of the best held-out score of a target, such as of the task you mean to transfer to.

    Others are told apart from it if the interval of their difference on the same samples excludes 0: for classes by the
    sign test (McNemar 1947), or, if samples have different weights, by all their signs (Fisher 1935); for numbers by
    the standard error of the ratio and Student's t, if FVUs differ by more than 0.0001, as for phases. The best of many
    seems a little better than it is; for numbers, with few samples (below 20) up to twice as many are told apart as
    should be.

    Args:
        scores: of one run, with per-sample held-out values. layers: names or globs; None for all.
        confidence: of each comparison.

    Raises:
        ArgumentError, LayerError: no such target or layer. DataError: no per-sample scores that are finite.
    """
    if not 0 < as_float(confidence) < 1:
        raise ArgumentError(f"confidence: expected a number between 0 and 1, got {confidence!r}")
    if not len(scores):
        raise DataError(f"best_checkpoint: expected held-out scores, got {scores!r}; probe first")
    if target not in scores.targets:
        raise ArgumentError(f"target {target!r}: expected one of {scores.targets}")
    scores.check_one_run()
    wanted = scores.select(layers).filter(target=target)
    metric = next((name for name in LOSSES if any(_layers(wanted, target, name))), "")
    curves = {layer: _curve(wanted, layer, target, metric) for layer in _layers(wanted, target, metric)}
    if not (found := {layer: curve for layer, curve in curves.items() if len(curve.steps)}):
        raise DataError(f"target {target!r}: expected finite held-out accuracy or fvu, got {wanted!r}")
    if len({curve.samples.shape[1] for curve in found.values()}) > 1:
        raise DataError(f"target {target!r}: layers were measured on held-out sets of different sizes")
    layer = min(found, key=lambda name: float(found[name].least.mean()))
    own = found[layer]
    alike = {name: curve.alike(own, metric in ACCURACIES, confidence) for name, curve in found.items()}
    step, tried = int(own.steps[own.best]), sum(len(curve.steps) for curve in found.values())
    constant = wanted.filter(layer=layer).baseline(target, metric)
    share = constant if metric in ACCURACIES else None
    rows = wanted.filter(layer=layer, metric=metric, split="heldout").without_samples.to_arrow().column("n")[0].as_py()
    return BestCheckpoint(
        target=target,
        metric=metric,
        layer=layer,
        step=step,
        value=float(own.values[own.best]),
        samples=own.samples.shape[1],
        beats_constant=constant is None or own.beats(share, rows, 1 - (1 - confidence) / tried),
        steps=tuple(own.steps[alike[layer]].tolist()),
        others={
            name: int(curve.steps[places[curve.losses[places].argmin()]])
            for name, curve in found.items()
            if name != layer and len(places := alike[name])
        },
    )


def best_of_runs(
    scores: Mapping[str, Scores], target: str = "label", *, layers: Sequence[str] | None = None
) -> CommonBest:
    """The layer and step at which several runs, such as seeds, decode a target best in the mean.

    Args:
        scores: of each run by name; two or more. layers: as for :func:`best_checkpoint`.

    Raises:
        All errors of :func:`best_checkpoint`; DataError also if the runs have no layer and step in common.
    """
    check_runs(scores)
    own = {run: best_checkpoint(each, target, layers=layers) for run, each in scores.items()}
    metric, *others = {each.metric for each in own.values()}
    tables = [_values(each.select(layers), target, metric) for each in scores.values()]
    if others or not (shared := [place for place in tables[0] if all(place in table for table in tables)]):
        raise DataError(f"target {target!r}: the runs {list(scores)} have no metric, layer and step in common")
    steps, fewest = {step for _, step in shared}, min(len({step for _, step in table}) for table in tables)
    if _COMMON * len(steps) < fewest:
        warn(
            f"target {target!r}: the runs have {counted(len(steps), 'step')} in common, of {fewest} or more that each "
            "has: the best is looked for among these alone"
        )
    sign = -1 if metric in ACCURACIES else 1
    layer, step = min(shared, key=lambda place: sign * sum(table[place] for table in tables))
    values = {run: table[layer, step] for run, table in zip(scores, tables, strict=True)}
    return CommonBest(target, metric, layer, step, values, own)


def check_runs(scores: Mapping[str, Scores]) -> None:
    """DataError where these are not the scores of two runs or more by name."""
    given = list(scores.values()) if isinstance(scores, Mapping) else [scores]
    if len(given) < 2 or not all(isinstance(each, Scores) for each in given):
        got = [type(each).__name__ for each in given]
        raise DataError(f"expected the scores of two runs or more by name, {{name: Scores}}, got {got}")


def _values(scores: Scores, target: str, metric: str) -> dict[tuple[str, int], float]:
    """The finite held-out values of each layer and step."""
    found = dict[tuple[str, int], float]()
    for layer in _layers(scores, target, metric):
        steps, values = (own.tolist() for own in scores.curve(layer, target, metric))
        found |= {(layer, step): value for step, value in zip(steps, values, strict=True) if math.isfinite(value)}
    return found


def _layers(scores: Scores, target: str, metric: str) -> Iterator[str]:
    return (layer for layer in scores.layers if scores.has_curve(layer, target, metric))


@dataclass(frozen=True)
class _Curve:
    """The finite losses of one layer: ``samples`` [K, m] at ``steps`` [K], in units whose samples are [m].

    Attributes:
        values: [K] of the metric.
    """

    steps: np.ndarray
    values: np.ndarray
    samples: np.ndarray
    unit: np.ndarray

    @cached_property
    def losses(self) -> np.ndarray:
        return np.asarray(self.samples.mean(1, dtype=np.float64))

    @property
    def best(self) -> int:
        return int(self.losses.argmin())

    @property
    def least(self) -> np.ndarray:
        return np.asarray(self.samples[self.best], dtype=np.float64)

    def beats(self, share: float | None, rows: int, confidence: float) -> bool:
        """Whether the least loss is below the constant's by more than chance.

        Args:
            share: what the constant is right of, for classes. rows: how many there are in all samples, of which some
                may be groups or sequences.
        """
        if share is None:
            return _is_above(self.unit - self.least, confidence)
        # Which samples the constant is right of is not known. Its share scatters too, as if by itself: but where
        # classes count alike, of which it has one. Errors scatter as its own at least: of a few all may be right.
        scatter = math.sqrt(share * (1 - share) * float(np.square(self.unit).mean())) * self._alike_in_samples(rows)
        if (self.unit == self.unit[0]).all():
            scatter = math.hypot(scatter, self.least.std(ddof=min(1, len(self.least) - 1)))
        return _is_above(1 - share - self.least, confidence, scatter=scatter)

    def _alike_in_samples(self, rows: int) -> float:
        """How much less means over the rows of samples scatter than single rows do: 1 where each sample is one.

        By the least loss, from 1 / sqrt(rows of a sample), of rows that do not depend on each other, to 1; and 1 where
        too few rows are wrong, or right, to show it.
        """
        each, loss = rows / len(self.least), float(self.least.mean())
        if each <= 1 or min(loss, 1 - loss) * rows < _SHOWING * len(self.least):
            return 1.0
        spread = float(self.least.std(ddof=min(1, len(self.least) - 1))) / math.sqrt(loss * (1 - loss))
        return min(1.0, max(spread, 1 / math.sqrt(each)))

    def alike(self, other: _Curve, of_classes: bool, confidence: float) -> np.ndarray:
        """Places of the losses that are not told apart from the least of another curve."""
        least = other.least
        if of_classes:
            apart = [_chance_of_signs(own - least) < 1 - confidence for own in self.samples]
        else:
            some = LEAST_CHANGE * float(other.unit.mean())
            more = self.losses - float(least.mean()) > some
            apart = [
                real and _is_above(own - least, confidence, other.unit)
                for real, own in zip(more.tolist(), self.samples, strict=True)
            ]
        return np.flatnonzero(~np.array(apart))


def _curve(scores: Scores, layer: str, target: str, metric: str) -> _Curve:
    losses = losses_of(scores, layer, target, metric)
    samples = losses.samples
    finite = np.isfinite(samples).all(1)
    unit = np.ones(samples.shape[1]) if losses.baseline is None else losses.baseline.astype(np.float64)
    values = scores.curve(layer, target, metric)[1][finite]
    return _Curve(losses.steps[finite], values, samples if finite.all() else samples[finite], unit)


def _is_above(more: np.ndarray, confidence: float, unit: np.ndarray | float = 1.0, scatter: float = 0.0) -> bool:
    """Whether the mean of numbers [m] in units [m], or of one size, is above 0 by more than chance.

    Args:
        scatter: their standard deviation at least.
    """
    count, mean = len(more), float(more.mean())
    if count < 2:
        return False
    spread = max(float((more - mean * (unit / np.mean(unit))).std(ddof=1)), scatter)
    return mean > student((1 + confidence) / 2, count - 1) * spread / math.sqrt(count)


def _chance_of_signs(more: np.ndarray) -> float:
    """How often numbers [m] add up to as much, of either sign, if each may as well have had the other one."""
    apart, total = -np.sort(-np.abs(more[more != 0])), abs(float(more.sum()))
    count = len(apart)
    if not count:
        return 1.0
    alike = bool(apart[0] == apart[-1])
    if alike and count <= _FEW:
        fewer = round((count - total / float(apart[0])) / 2)
        return min(1.0, 2 * sum(math.comb(count, k) for k in range(fewer + 1)) / float(2**count))
    # All signs of those that count most; the sum of the others is nearly normal.
    heavy, spread = _signs(min(count, _HEAVY)) @ apart[:_HEAVY], math.sqrt(2 * float(np.square(apart[_HEAVY:]).sum()))
    if spread == 0:
        return float((np.abs(heavy) >= total * (1 - 1e-9)).mean())
    least = total - float(apart[0]) * alike  # half a step, where sums have steps (Yates 1934)
    return float(torch.erfc(torch.from_numpy((least - heavy) / spread)).mean())


@cache
def _signs(count: int) -> np.ndarray:
    """All signs of so many numbers, [2^count, count]."""
    return 1.0 - 2.0 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
