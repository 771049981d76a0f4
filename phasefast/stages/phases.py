"""Which learning phases a loss curve shows: nearly constant, decrease, increase, and when to stop.

A curve is the mean held-out loss at each probed step. What is asked of it, in this order:

* *Where is the valley?* The least-squares fit that first never rises and then never falls (two isotonic regressions,
  Barlow et al. 1972, over all places to split) says where the minimum is; a checkpoint that is odd by much less than
  the valley's depth does not move it.
* *Is there an order at all?* The residual of that fit and the von Neumann ratio (1941) are compared with those of the
  same values in random order (a permutation test): a curve that is neither a better valley nor smoother is noise.
* *Is a change large enough?* It must be at least 2 % of the loss before it, 0.001, and three times the step noise, and
  its bootstrap interval must exclude 0. The step noise is what neighbouring steps scatter, by the median absolute
  second difference (Gasser et al. 1986), or by the larger of the third one and the residual of the valley fit, if that
  is less; with fewer than seven steps, by that residual.
* *Is there a plateau before it?* The longest beginning of three or more probed steps whose losses stay within 20 % of
  the following change of their mean, with at most a third of its slope (per probed step), and whose own drift would
  not count as a change. A straight line has none.

Intervals are percentiles of a bootstrap over held-out samples (Efron 1979), the same samples at all steps. They say
what other held-out samples would have given *for these checkpoints*, not what another training run would give.

What this cannot do: a random walk is as smooth as a trend, and is often reported as one; of flat curves of 60 steps
whose noise of 3 % is correlated by half from step to step, a third get an increase. A checkpoint that is odd by the
depth of the valley or more can hide all phases, begin or end one, and exaggerate its change. Fewer than four steps have
no phases; of fewer than eight there are too few orders to test (``order_p`` is None), so that checkpoints that scatter
by more than 2 % are often reported as a change. A straight fall with step noise of 5 % of its size may get a plateau at
its beginning; a valley may lose its plateau, or with fewer than ten steps pass for noise, where the step noise is a
tenth of its depth. A fall and a rise that take two or three probed steps each look like scatter: of rises by a seventh
of the fall before them, about half are named at 12 steps and nearly all at 16; probe more steps there. A fall without a
rise, with step noise of 1 to 3 % of it, gets an increase in 2 to 6 of 100 curves of up to 17 steps, in a fifth of those
of 60 or more, which have as many lowest steps to rise from; and where a curve is flat around its minimum, intervals of
changes cover what they should in some 80 to 85 % instead of 95 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from ..errors import ArgumentError, DataError
from ..phase_report import CellPhases, Phase, PhaseKind, PhaseReport
from ..scores import Scores
from ..valley import bootstrap, order_test, step_noise, valleys


@dataclass(frozen=True)
class PhaseRules:
    """When a change counts, what near-constant means, and how wide the stop window is."""

    change: float = 0.02  # a change is at least this fraction of the loss before it,
    absolute: float = 1e-3  # and at least this much,
    noise: float = 3.0  # and at least this many standard deviations of the step noise
    plateau: float = 0.20  # a plateau's losses differ from their mean by at most this fraction of the change after it,
    slope: float = 1 / 3  # and its slope is at most this fraction of the slope after it
    window: float = 0.25  # the stop window's losses exceed the minimum by this fraction of the decrease before a rise
    fewest: int = 4  # steps that phases take: a plateau of three and a change after it
    order_level: float = 0.03  # p-value above which the order of the steps explains nothing
    noise_steps: int = 7  # fewer steps than this have too few differences to tell the step noise
    order_steps: int = 8  # fewer have too few orders: of 7, even a perfect valley has p = .025 to .07
    permutations: int = 2_000  # random orders that the test draws


DEFAULT_RULES = PhaseRules()


def detect_phases(
    scores: Scores,
    *,
    layers: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    replicates: int = 1_000,
    rules: PhaseRules = DEFAULT_RULES,
) -> PhaseReport:
    """The phases of every probed layer and target of one run.

    Args:
        scores: rows of at least two steps with per-sample held-out ``fvu``, or ``accuracy`` (analysed as ``error``).
        layers, targets: names or globs; None for all.
        seed: of the bootstrap and the permutations; the same for every cell.
        confidence, replicates: of the bootstrap's intervals.
        rules: thresholds.

    Raises:
        DataError: there is nothing to analyse, fewer than two steps, a step twice, or a loss that is not finite.
        LayerError, ArgumentError: a pattern matches no layer or no target.
    """
    if not isinstance(scores, Scores):
        raise ArgumentError(
            f"scores: expected those of one run, got {type(scores).__name__}; see compare_phases for more"
        )
    wanted = scores.select(layers, targets)
    options: dict[str, Any] = {"seed": seed, "confidence": confidence, "replicates": replicates, "rules": rules}
    cells = tuple(
        detect_curve(*_losses(wanted, layer, target, name), layer=layer, target=target, metric=metric, **options)
        for layer, target, name, metric in _cells(wanted)
    )
    if not cells:
        raise DataError(f"no phases to detect: expected held-out 'fvu' or 'accuracy', got {scores!r}; probe first")
    return PhaseReport(cells)


def detect_curve(
    steps: np.ndarray,
    samples: np.ndarray,
    *,
    layer: str = "curve",
    target: str = "input",
    metric: str = "fvu",
    seed: int = 0,
    confidence: float = 0.95,
    replicates: int = 1_000,
    rules: PhaseRules = DEFAULT_RULES,
) -> CellPhases:
    """The phases of one loss curve (lower is better).

    At most one phase of each kind is named, in the order constant, decrease, increase. A decrease ends at the minimum,
    below the loss of the first step; an increase starts there and is still there at the last step. Phases share their
    boundary steps. There may be no phase at all, where the curve changes but neither falls below its start nor ends
    above its minimum.

    Args:
        steps: [K] training steps, in any order.
        samples: [K, m] loss of each held-out sample at each step.
        layer, target, metric: what the result is labelled with.
        seed, confidence, replicates, rules: as for ``detect_phases``.

    Returns:
        Phases with signed changes, the minimum, and the stop window: the probed steps around the minimum whose loss is
        at most 25 % of the decrease above it; to the last step where no increase counts. None where nothing decreases.
    """
    if not 0 < confidence < 1 or replicates < 100:
        got = f"confidence={confidence}, replicates={replicates}"
        raise ArgumentError(f"{got}: expected a confidence between 0 and 1 and at least 100 replicates")
    steps, samples = _checked(steps, samples, f"layer {layer!r}, target {target!r}")
    rng = np.random.default_rng(seed)
    loss = samples.mean(axis=1)
    found = valleys(loss[None])
    noise, rough = step_noise(loss, found.fit(0), rules.noise_steps)
    curve = _Curve(
        loss=loss,
        fit=found.fit(0),
        minimum=int(found.minima[0]),
        replicates=bootstrap(samples, replicates, rng),
        tails=(50 * (1 - confidence), 50 * (1 + confidence)),
        noise=noise,
        rough=rough,
        order_p=order_test(loss, rules.permutations, rng) if len(loss) >= rules.order_steps else None,
        rules=rules,
    )
    spans, reason = curve.spans()
    window = curve.stop_window(spans)
    # A percentile that is a probed step, not a number between two of them.
    low, high = np.percentile(steps[valleys(curve.replicates).minima], curve.tails, method="inverted_cdf")
    return CellPhases(
        layer=layer,
        target=target,
        metric=metric,
        phases=tuple(Phase(s.kind, int(steps[s.first]), int(steps[s.last]), *curve.change(s)) for s in spans),
        minimum_step=int(steps[curve.minimum]),
        minimum_ci=(int(low), int(high)),
        stop_window=(int(steps[window[0]]), int(steps[window[1]])) if window else None,
        evidence={
            **curve.evidence(spans),
            "reason": reason,
            "steps": steps.tolist(),
            "samples": samples.shape[1],
            "confidence": confidence,
        },
    )


def _cells(scores: Scores) -> Iterator[tuple[str, str, str, str]]:
    """Layer, target, stored metric and its loss: the error where the target has an accuracy, else the FVU."""
    table = scores.filter(split="heldout").to_arrow()
    found = set(zip(*(table.column(name).to_pylist() for name in ("layer", "target", "metric"))))
    for layer, target in product(scores.layers, scores.targets):
        if (layer, target, "accuracy") in found:
            yield layer, target, "accuracy", "error"
        elif (layer, target, "fvu") in found:
            yield layer, target, "fvu", "fvu"


def _losses(scores: Scores, layer: str, target: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [K] and losses [K, m] of one cell; a classifier's loss is 1 where it errs."""
    try:
        steps, samples = scores.samples(layer, target, metric)
    except LookupError as error:
        raise DataError(f"{error}; the intervals need it, so probe these checkpoints again") from error
    return steps, 1 - samples if metric == "accuracy" else samples


def _checked(steps: np.ndarray, samples: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [K] int64 in ascending order and their samples [K, m] float64."""
    given, samples = np.asarray(steps), np.asarray(samples, dtype=np.float64)
    if given.ndim != 1 or samples.ndim != 2 or len(given) != len(samples):
        raise DataError(f"{where}: expected steps [K] and samples [K, m], got {given.shape} and {samples.shape}")
    if samples.shape[0] < 2 or samples.shape[1] < 2:
        got = f"{samples.shape[0]} steps and {samples.shape[1]} samples"
        raise DataError(f"{where}: expected at least 2 steps and 2 held-out samples, got {got}; probe more of them")
    with np.errstate(invalid="ignore"):
        whole = given.astype(np.int64)
    if not np.array_equal(whole, given):
        raise DataError(f"{where}: expected whole numbers as steps, got {given.tolist()}")
    order = np.argsort(whole, kind="stable")
    whole, samples = whole[order], samples[order]
    if (twice := whole[1:][np.diff(whole) == 0]).size:
        raise DataError(f"{where}: step {twice[0]} is there more than once; pass one run's scores: filter(run=...)")
    if (bad := ~np.isfinite(samples).all(axis=1)).any():
        raise DataError(
            f"{where}: the loss of step {whole[bad][0]} is not finite in {(~np.isfinite(samples[bad][0])).sum()} of "
            f"{samples.shape[1]} samples; leave that step out or probe it again"
        )
    return whole, samples


@dataclass(frozen=True)
class _Span:
    """A phase by the indices of its steps; ``before`` are those whose mean its change is counted from."""

    kind: PhaseKind
    first: int
    last: int
    before: slice


@dataclass(frozen=True)
class _Curve:
    """A curve with all that its phases are read from.

    Attributes:
        loss, fit: [K] the mean losses and their valley fit. minimum: index of the lowest step.
        replicates: [R, K] bootstrapped curves. tails: the percentiles that bound an interval.
        noise, rough: standard deviation between neighbouring steps, without the curve's curvature and with it.
        order_p: None where there are too few steps.
    """

    loss: np.ndarray
    fit: np.ndarray
    minimum: int
    replicates: np.ndarray
    tails: tuple[float, float]
    noise: float
    rough: float
    order_p: float | None
    rules: PhaseRules

    def spans(self) -> tuple[list[_Span], str | None]:
        """The phases, by index; and why neither a decrease nor an increase is among them, None where one is."""
        last, low = len(self.loss) - 1, self.minimum
        if last + 1 < self.rules.fewest:
            return (
                [],
                f"{last + 1} steps show changes between single ones, not phases; take {self.rules.order_steps} or more",
            )
        start, end = _Span("constant", 0, last, slice(0, 1)), _Span("increase", low, last, slice(low, low + 1))
        if self.order_p is not None and self.order_p > self.rules.order_level:
            p, level = _apart(self.order_p, self.rules.order_level)
            return [start], f"steps in random order would look as regular (p = {p}, more than {level})"
        fall = self._descent()
        falls, rises = self._fall(fall), self._counts(end)
        if not falls and not rises:
            level = self.loss.mean()
            away, needed = float(np.abs(self.loss - level).max()), self._needed(level)
            if away > needed:
                return [], self._unsure(fall, end) or self._small(fall, end)
            near = f"stays within {away:.2g} of its mean, no more than the {needed:.2g} that a change needs"
            return [start], self._unsure(fall, end) or near
        if rises:
            top = low + int(self.loss[low:].argmax())
            # The rise ends at its top where the curve comes down again by an amount that counts.
            end = replace(end, last=top if self.loss[top] - self.loss[last] >= self._needed(self.loss[low]) else last)
        if falls:
            return [*falls, end] if rises else falls, None
        plateau = self._plateau(end.last)
        if plateau is None or plateau < low:  # what falls from it to the minimum has no name
            return [end], None
        return [replace(start, last=plateau), replace(end, first=plateau, before=slice(0, plateau + 1))], None

    def _descent(self) -> _Span:
        """What leads to the minimum, after its plateau if it has one, from the first step if not."""
        plateau = self._plateau(self.minimum)
        before = slice(0, 1 if plateau is None else plateau + 1)
        return _Span("decrease", before.stop - 1, self.minimum, before)

    def _fall(self, fall: _Span) -> list[_Span]:
        """The descent and the plateau before it; empty where it does not count."""
        if not self._counts(fall):
            return []
        if fall.first > 0:
            return [_Span("constant", 0, fall.first, slice(0, 1)), fall]
        top = int(self.loss[: self.minimum].argmax())
        if self.loss[top] - self.loss[0] >= self._needed(self.loss[0]):  # it first rises: that part has no name
            return [replace(fall, first=top, before=slice(top, top + 1))]
        return [fall]

    def _unsure(self, *spans: _Span) -> str:
        """Which of the changes are large enough, but not certain; empty where none is."""
        texts = []
        for span in spans:
            if self._size(span) >= self._asked(span):
                change, (low, high) = self.change(span)
                texts.append(f"changes by {change:.2g}, but the interval of that, {low:.2g} to {high:.2g}, includes 0")
        return "; ".join(texts)

    def _small(self, fall: _Span, rise: _Span) -> str:
        """By how much a curve that varies is short of a decrease and of an increase."""
        fallen, asked = _apart(max(0.0, self._size(fall)), self._asked(fall))
        risen, asked_of_rise = _apart(max(0.0, self._size(rise)), self._asked(rise))
        start = "its plateau" if fall.first else "the first step"
        return (
            f"varies by {np.ptp(self.loss):.2g}, but from {start} to the minimum falls by only {fallen} ({asked} "
            f"needed), and from there to the last step rises by only {risen} ({asked_of_rise} needed)"
        )

    def change(self, span: _Span) -> tuple[float, tuple[float, float]]:
        """Change of the loss over a phase, and its interval."""
        changes = self.replicates[:, span.last] - self.replicates[:, span.before].mean(axis=1)
        low, high = np.percentile(changes, self.tails)
        return self._amount(span), (float(low), float(high))

    def _amount(self, span: _Span) -> float:
        return float(self.loss[span.last] - self.loss[span.before].mean())

    def _counts(self, span: _Span) -> bool:
        """Whether a decrease or an increase is large enough and its interval excludes 0."""
        _, (low, high) = self.change(span)
        return self._size(span) >= self._asked(span) and (high < 0 if span.kind == "decrease" else low > 0)

    def _size(self, span: _Span) -> float:
        """Of a decrease or an increase; negative where the loss goes the other way."""
        return -self._amount(span) if span.kind == "decrease" else self._amount(span)

    def _asked(self, span: _Span) -> float:
        return self._needed(self.loss[span.before].mean())

    def _needed(self, level: float) -> float:
        """The smallest change that counts where the loss before it is ``level``."""
        return float(max(self.rules.change * level, self.rules.absolute, self.rules.noise * self.noise))

    def _plateau(self, stop: int) -> int | None:
        """Last index of the plateau before the change that ends at index ``stop``; None where there is none."""
        for end in range(stop - 1, 1, -1):
            part = self.loss[: end + 1]
            place = np.arange(end + 1) - end / 2
            slope = float(place @ part / (place @ place))
            after = abs(self.loss[stop] - self.loss[end]) / (stop - end)
            change = abs(self.loss[stop] - part.mean())
            near = np.abs(part - part.mean()).max() <= self.rules.plateau * change
            # Its own drift would not count as a change, nor does it bend more than the whole curve.
            flat = abs(slope) * end < max(self._needed(self.loss[0]), self.rules.noise * self.rough)
            if near and flat and abs(slope) <= self.rules.slope * after:
                return end
        return None

    def stop_window(self, spans: Sequence[_Span]) -> tuple[int, int] | None:
        """Indices of the first and last step around the minimum about as good as it; None without a decrease.

        Where no increase counts, nothing speaks against the last step.
        """
        kinds = [span.kind for span in spans]
        if "decrease" not in kinds:
            return None
        # Read from the valley fit, so that one odd step does not close it.
        margin = self.rules.window * abs(self.change(spans[kinds.index("decrease")])[0])
        near = np.flatnonzero(self.fit <= self.fit.min() + margin)
        return int(near[0]), int(near[-1]) if "increase" in kinds else len(self.fit) - 1

    def evidence(self, spans: Sequence[_Span]) -> dict[str, Any]:
        """What the decision rests on, ready for JSON."""
        kinds = [span.kind for span in spans]
        places = {"first": 0, "minimum": self.minimum, "last": -1}
        return {
            "decrease": "decrease" in kinds,
            "increase": "increase" in kinds,
            "order_p": self.order_p,
            "step_noise": self.noise,
            "needed": {"decrease": self._needed(self.loss[0]), "increase": self._needed(self.loss[self.minimum])},
            "loss": {name: float(self.loss[place]) for name, place in places.items()},
        }


def _apart(smaller: float, larger: float) -> tuple[str, str]:
    """Both in so few digits that they differ, where they do."""
    pairs = ((f"{smaller:.{digits}g}", f"{larger:.{digits}g}") for digits in range(2, 9))
    return next((pair for pair in pairs if pair[0] != pair[1]), (f"{smaller:.9g}", f"{larger:.9g}"))
