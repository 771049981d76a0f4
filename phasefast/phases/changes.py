"""How large the changes of a loss curve are, how sure, and what is asked of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .phase_report import PhaseKind
from .rules import PhaseRules
from .valley import persistence, rarely_apart, rarely_gained


@dataclass(frozen=True)
class Span:
    """A phase by the indices of its steps; ``before`` are those whose mean its change is counted from."""

    kind: PhaseKind
    first: int
    last: int
    before: slice


@dataclass(frozen=True)
class Changes:
    """A curve with all that its changes are read from.

    Attributes:
        loss, fit: [K] the mean losses and their valley fit. minimum: index of the lowest step of the valley.
        gains: what a decrease and an increase explain, in squared errors.
        replicates: [R, K] bootstrapped curves. tails: the percentiles that bound an interval.
        noise, rough: standard deviation between neighbouring steps, without the curve's curvature and with it.
        order_p: None where there are too few steps.
    """

    loss: np.ndarray
    fit: np.ndarray
    minimum: int
    gains: dict[str, float]
    replicates: np.ndarray
    tails: tuple[float, float]
    noise: float
    rough: float
    order_p: float | None
    rules: PhaseRules

    def change(self, span: Span) -> tuple[float, tuple[float, float]]:
        """Change of the loss over a phase, and its interval."""
        changes = self.replicates[:, span.last] - self.replicates[:, span.before].mean(axis=1)
        low, high = np.percentile(changes, self.tails)
        return self._amount(span), (float(low), float(high))

    def _amount(self, span: Span) -> float:
        return float(self.loss[span.last] - self.loss[span.before].mean())

    def _size(self, span: Span) -> float:
        """Of a decrease or an increase; negative where the loss goes the other way."""
        return -self._amount(span) if span.kind == "decrease" else self._amount(span)

    def _counts(self, span: Span) -> bool:
        """Whether a decrease or an increase is large enough, not of one step only, and its interval excludes 0."""
        return self._size(span) >= self._asked(span) and self._sure(span) and not self._rests_on_one(span)

    def _sure(self, span: Span) -> bool:
        """Whether the interval of a decrease or an increase excludes 0."""
        _, (low, high) = self.change(span)
        return high < 0 if span.kind == "decrease" else low > 0

    def _asked(self, span: Span) -> float:
        """The smallest change to or from the minimum that counts.

        The lowest of many steps is low by chance too; but not where many others go the same way.
        """
        level = self._needed(self.loss[span.before].mean())
        return level if self._of_many(span) else max(level, self._low_by_chance)

    def _needed(self, level: float, deviations: float | None = None) -> float:
        """The smallest change that counts where the loss before it is ``level``; ``deviations``: of the step noise."""
        deviations = self.rules.noise if deviations is None else deviations
        return float(max(self.rules.change * level, self.rules.absolute, deviations * self.noise))

    def _of_many(self, span: Span) -> bool:
        """Whether all steps of a change explain more of the curve than they would of scatter."""
        return len(self.loss) >= self.rules.order_steps and self.gains[span.kind] > self._gain_by_chance

    @cached_property
    def _gain_by_chance(self) -> float:
        """What a fall or a rise may explain of scatter as it is here."""
        return rarely_gained(len(self.loss)) * self.noise**2 * persistence(self.loss, self.fit)

    @cached_property
    def _low_by_chance(self) -> float:
        """How far a step may lie above the lowest one of those that are about as low."""
        near = int((self.loss <= self.loss[self.minimum] + self.rules.noise * self.noise).sum())
        return rarely_apart(near, self.rules.noise) * self.noise

    def _rests_on_one(self, span: Span) -> bool:
        """Whether a change to or from the minimum would not count to or from the lower of its neighbours.

        Scatter dwindles as a training converges: the lowest of its early steps lies below all that comes later, by
        much more than later steps scatter. Nor does a rise count that is the last step's alone: it may have diverged.
        """
        if len(self.loss) < self.rules.order_steps or self.minimum not in (span.first, span.last):
            return False
        left, asked = self._without_one(span)
        return left < asked * (1 - 1e-9)

    def _without_one(self, span: Span) -> tuple[float, float]:
        """A change to or from the minimum without its one step, and what is asked of that."""
        low, count = self.minimum, len(self.loss)
        beside = min(self.loss[step] for step in (low - 1, low + 1) if 0 <= step < count)
        deviations = 1.0 if self._of_many(span) else self.rules.noise
        needed = self._needed(float(self.loss[span.before].mean()), deviations)
        # Of a straight change that just counts, all steps but the last are that much less.
        share = 1 - 1 / max(2, span.last - span.first)
        alone = float(beside - self.loss[low])
        if span.kind == "increase" and span.last == count - 1:
            alone = max(alone, float(self.loss[-1] - self.loss[-2]))
        return self._size(span) - alone, share * needed

    def _beside_it(self, step: int) -> float:
        """The lower one of a step's neighbours, which is not low by the choice of the step."""
        return float(min(self.loss[each] for each in (step - 1, step + 1) if 0 <= each < len(self.loss)))

    def _top(self, first: int, last: int) -> int:
        """Index of the highest step between two others."""
        return first + 1 + int(self.loss[first + 1 : last].argmax())
