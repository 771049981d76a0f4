"""Which phases a loss curve shows, once its valley, its scatter and its bootstrap are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..common.tables import told_apart
from .changes import Changes, Span
from .valley import Valleys, apart_together, noise_around, valleys


@dataclass(frozen=True)
class Curve(Changes):
    """A curve with its changes and valleys, which its phases are read from.

    Attributes:
        other: index of the lowest step of a second valley that is not as deep; None where there is one valley.
    """

    other: int | None = None

    def at_lowest(self, found: Valleys) -> Curve:
        """The curve by the fit that falls up to its lowest step, if that is elsewhere, and not by chance; two valleys.

        Many steps of one part outvote few of another in the best fit, as where checkpoints are dense at first. The
        lowest step counts where a neighbour lies below the minimum too, by more than steps scatter, or where the curve
        rises in between by an amount that counts, and not at one step only: then there are two valleys.

        Args:
            found: its valley fits.
        """
        low, best, size = self.minimum, int(self.loss.argmin()), len(self.loss)
        if size < self.rules.order_steps:
            return self
        if abs(best - low) < 2:
            return self._beside_another()
        noise, rough = noise_around(best, self.loss, found.fit(0, best), self.rules.noise_steps)
        one = replace(self, fit=found.fit(0, best), gains=found.gains(0, best), minimum=best, noise=noise, rough=rough)
        if two := one._beside(low):
            return two
        moved = self.loss[low] - self._beside_it(best) >= max(one._low_by_chance, self.rules.noise * one.noise)
        return (one if moved else self)._beside_another()

    def _beside_another(self) -> Curve:
        """The curve with its second valley, where it has one whose steps have an order."""
        if self.order_p is None or self.order_p > self.rules.order_level:
            return self
        found = list[tuple[float, Curve]]()
        for loss, place in ((self.loss[self.minimum + 1 :], 1), (self.loss[: self.minimum][::-1], -1)):
            nearest, size = None, len(loss)
            while size > 1:  # up to the top before the one that was found there may be another
                drop = np.maximum.accumulate(loss[:size])[:-1] - loss[1:size]
                low = 1 + int(drop.argmax())
                two = self._beside(self.minimum + place * (1 + low))
                if two is None or self._beside_it(two.other or 0) < self.loss[self.minimum]:
                    break
                nearest, size = (float(drop.max()), two), int(loss[:low].argmax())
            found += [nearest] if nearest else []
        after = [two for _, two in found if two._falls_again]  # which bounds the stop window
        return after[0] if after else max(found, key=lambda each: each[0])[1] if found else self

    def _beside(self, other: int) -> Curve | None:
        """The curve with a second valley, lowest at ``other``; None where it is scatter, or nothing falls to it."""
        first, last = sorted((self.minimum, other))
        top = self._top(first, last)
        # The scatter is what both valleys leave: a single one leaves all of the other.
        splits = [self.minimum, None] if other > self.minimum else [None, self.minimum - top - 1]
        parts = zip((self.loss[: top + 1], self.loss[top + 1 :]), splits)
        fit = np.concatenate([valleys(part[None]).fit(0, split) for part, split in parts])
        noise, rough = noise_around(self.minimum, self.loss, fit, self.rules.noise_steps)
        two = replace(self, fit=fit, noise=noise, rough=rough, other=other)
        level = max(self._beside_it(self.minimum), self._beside_it(other))
        asked = max(two._needed(level), two._low_by_chance)
        # What only rises from the first step on is no valley.
        high = min(max(self.loss[top - 1], self.loss[top + 1]), self.loss[:first].max(initial=-np.inf))
        rise = self.replicates[:, top] - self.replicates[:, other]
        return two if high - level >= asked and np.percentile(rise, self.tails[0]) > 0 else None

    def spans(self) -> tuple[list[Span], str | None]:
        """The phases, by index; and why neither a decrease nor an increase is among them, or no decrease, or None."""
        last, low = len(self.loss) - 1, self.minimum
        if last + 1 < self.rules.fewest:
            return (
                [],
                f"{last + 1} steps show changes from step to step, not phases; take {self.rules.order_steps} or more",
            )
        start, end = Span("constant", 0, last, slice(0, 1)), self._ascent()
        level = self.loss.mean()
        away, needed = float(np.abs(self.loss - level).max()), self._needed(level)
        near = f"stays within {away:.2g} of its mean, no more than the {needed:.2g} that a change needs"
        if self.order_p is not None and self.order_p > self.rules.order_level:
            texts = told_apart(self.order_p, self.rules.order_level)
            why = "steps in random order would look as regular (p = {}, more than {})".format(*texts)
            return ([], f"varies by {np.ptp(self.loss):.2g}, but {why}") if away > needed else self._steady(start, near)
        fall = self._descent()
        falls, up_to_last = self._fall(fall), self._counts(end)
        rises = up_to_last or (bool(falls) and self._comes_down(end))
        if not falls and not rises:
            shaped = self.order_p is not None and away > max(self.rules.constant * level, self.rules.absolute)
            if away > needed or shaped:  # by what is no valley, and was taken for noise
                return [], (self._unsure(fall, end) or self._small(fall, end)) + self._humped()
            return self._steady(start, self._unsure(fall, end) or near)
        if rises and not self._falls_again:
            part = replace(end, last=low + int(self.loss[low:].argmax()))
            # The rise ends at its top where the curve comes down again by an amount that counts, or too far to count.
            down = self.loss[part.last] - self.loss[last] >= self._needed(self.loss[low])
            end = part if not up_to_last or (down and self._sure(part)) else end
        if falls:
            return [*falls, end] if rises else falls, None
        why = f"no stop window: {self._failing_fall(fall)}"
        plateau = self._plateau(end.last)
        if plateau is None or plateau < low:  # what falls from it to the minimum has no name
            return [end], why
        after = replace(end, first=plateau, before=slice(0, plateau + 1))
        return [replace(start, last=plateau), after] if self._counts(after) else [end], why

    def _steady(self, whole: Span, near: str) -> tuple[list[Span], str]:
        """A curve without changes that no more than scatters: one phase, unless neighbours lie apart together."""
        place, away = apart_together(self.loss, self.rules.noise)
        middle = int(np.abs(self.loss - np.median(self.loss)).argmin())
        spans = [Span("constant", middle, step, slice(middle, middle + 1)) for step in (place, place + 1)]
        ends = [float(np.sign(end)) for span in spans for end in self.change(span)[1]]
        sure = away != 0 and len(self.loss) >= self.rules.order_steps and set(ends) == {float(np.sign(away))}
        if not sure or abs(away) < self._needed(float(self.loss[middle]), 0.0):
            return [whole], near
        side = "above" if away > 0 else "below"
        return [], f"varies by {np.ptp(self.loss):.2g}: neighbouring steps lie {abs(away):.2g} {side} most others"

    def _descent(self) -> Span:
        """What leads to the minimum, after its plateau if it has one, from the first step if not."""
        plateau = self._plateau(self.minimum)
        before = slice(0, 1 if plateau is None else plateau + 1)
        return Span("decrease", before.stop - 1, self.minimum, before)

    def _ascent(self) -> Span:
        """What leads from the minimum to the last step, or to the top before a second valley."""
        low, last = self.minimum, len(self.loss) - 1
        if self.other is not None and self._falls_again:
            last = self._top(low, self.other)
        return Span("increase", low, last, slice(low, low + 1))

    def _comes_down(self, rise: Span) -> bool:
        """Whether a rise would count up to its top, from which the last step alone may have come down."""
        low, last = self.minimum, len(self.loss) - 1
        top = low + int(self.loss[low:].argmax())
        if self._falls_again or last < self.rules.order_steps or not low < top < last:
            return False
        part = replace(rise, last=top)
        high = min(self.loss[-2], max(self.loss[top - 1], self.loss[top + 1]))  # tops are high by chance
        return bool(high - self._beside_it(low) >= self._asked(part)) and self._counts(part)

    def _fall(self, fall: Span) -> list[Span]:
        """The descent and the plateau before it; empty where it does not count."""
        if not self._counts(fall):
            return []
        before = [Span("constant", 0, fall.first, slice(0, 1))] if fall.first > 0 else []
        top, level = fall.first + int(self.loss[fall.first : self.minimum].argmax()), self.loss[fall.before].mean()
        # After a plateau the highest step is high by chance too.
        least = self.rules.bump * self._size(fall) if before else 0.0
        whole = replace(fall, first=top, before=slice(top, top + 1))
        rises = self.loss[top] - level >= max(self._needed(level), least)  # at first: that part has no name
        return [*before, whole if rises and self._sure(whole) else fall]

    def _humped(self) -> str:
        """That the curve rises, then falls again, where both would be enough for a change; else nothing."""
        top = int(self.loss.argmax())
        risen, fallen = (float(self.loss[top] - part.min()) for part in (self.loss[: top + 1], self.loss[top:]))
        if min(risen, fallen) < self._needed(float(self.loss[: top + 1].min())):
            return ""
        return f"; it rises by {risen:.2g} to its top, then falls by {fallen:.2g}, which no phase names"

    def _unsure(self, *spans: Span) -> str:
        """Which of the changes are large enough, and why they do not count; empty where none is."""
        texts = []
        for span in spans:
            if self._size(span) >= self._asked(span):
                what, sign = ("falls", -1) if span.kind == "decrease" else ("rises", 1)
                texts.append(f"{what} by {self._size(span):.2g}, but {self._failing(span, sign)}")
        return "; ".join(texts)

    def _failing(self, span: Span, sign: int = 1) -> str:
        """Why a change that is large enough does not count; ``sign``: -1 where it is told as a fall."""
        low, high = sorted(sign * end for end in self.change(span)[1])
        if self._rests_on_one(span):
            left, asked = self._without_one(span)
            return "without one of its steps by only {} ({} needed)".format(*told_apart(max(0.0, left), asked))
        return f"the interval of this change, {low:.2g} to {high:.2g}, includes 0"

    def _failing_fall(self, fall: Span) -> str:
        """Why what leads to the minimum is no decrease."""
        start = "its plateau" if fall.first else "the first step"
        if self._size(fall) >= self._asked(fall):
            return f"falls from {start} to the minimum by {self._size(fall):.2g}, but {self._failing(fall, -1)}"
        fallen, asked = told_apart(max(0.0, self._size(fall)), self._asked(fall))
        return f"falls from {start} to the minimum by only {fallen} ({asked} needed)"

    def _small(self, fall: Span, rise: Span) -> str:
        """By how much a curve that varies is short of a decrease and of an increase."""
        risen, asked = told_apart(max(0.0, self._size(rise)), self._asked(rise))
        return (
            f"varies by {np.ptp(self.loss):.2g}, but {self._failing_fall(fall)}, and rises from there to the last step "
            f"by only {risen} ({asked} needed)"
        )

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
            if near and flat and abs(slope) <= self.rules.slope * after and not self._moves(end):
                return end
        return None

    def _moves(self, end: int) -> bool:
        """Whether the loss at an index differs from the beginning as much as a change, by more than the samples may.

        From the median of three steps, as one may be apart by itself: the first is before any training.
        """
        middle = int(self.loss[:3].argsort()[1])
        amount, (low, high) = self.change(Span("constant", middle, end, slice(middle, middle + 1)))
        return abs(amount) >= self._needed(float(self.loss[middle])) and (low > 0 or high < 0)

    def stop_window(self, spans: Sequence[Span]) -> tuple[int, int] | None:
        """Indices of the first and last step around the minimum about as good as it; None without a decrease.

        Where no increase counts, nothing speaks against the last step.
        """
        kinds = [span.kind for span in spans]
        if "decrease" not in kinds:
            return None
        # Read from the valley fit, so that one odd step does not close it.
        fit, low, last = self.fit, self.minimum, spans[-1].last
        if "increase" in kinds and not self._falls_again:  # what comes down after its top would pull that down too
            rise = valleys(self.loss[low : last + 1][None]).fit(0, 0)[1:]
            fit = np.concatenate([fit[: low + 1], rise, np.full(len(fit) - 1 - last, rise[-1])])
        far = np.flatnonzero(fit > fit[low] + self._margin)
        start = int(max([-1, *far[far < low]])) + 1
        end = int(min([len(fit), *far[far > low]])) - 1
        return start, end if "increase" in kinds or self._falls_again else len(fit) - 1

    @property
    def _falls_again(self) -> bool:
        """Whether a second valley lies after the minimum."""
        return self.other is not None and self.other > self.minimum

    def doubt(self, spans: Sequence[Span]) -> str | None:
        """What speaks against the end of a stop window, though it is not certain; None where nothing does."""
        kinds = [span.kind for span in spans]
        if "decrease" not in kinds or self._falls_again:
            return None
        below = float(self.loss[self.minimum] - self.loss[-1])
        if "increase" in kinds:
            text = f"the last step alone lies {below:.2g} below the minimum: later steps would show if that lasts"
            return text if below >= self._needed(self.loss[-1]) else None
        rise = self._ascent()
        if self._size(rise) <= self._margin:
            return None
        risen, asked = told_apart(self._size(rise), self._asked(rise))
        why = self._failing(rise) if self._size(rise) >= self._asked(rise) else f"{asked} would be certain"
        of = "the decrease" if self.early_rise(spans) is None else "the fall from before its first rise"
        share = f"{self.rules.window:g} of {of}"
        return f"open, though the curve ends {risen} above its minimum, more than {share}: {why}"

    def early_rise(self, spans: Sequence[Span]) -> tuple[int, int] | None:
        """Indices of the first and last step of a rise before the decrease, which is none of the phases; or None."""
        fall = next((span for span in spans if span.kind == "decrease"), None)
        start = spans[0].last if spans and spans[0].kind == "constant" else 0
        return (start, fall.first) if fall is not None and fall.first > start else None

    def rise_within(self, spans: Sequence[Span]) -> Span | None:
        """The largest rise within a decrease, if that is told: one of few steps is scatter to the step noise."""
        fall = next((span for span in spans if span.kind == "decrease"), None)
        if fall is None or (self.other is not None and self.other < self.minimum):  # which says it already
            return None
        part = self.loss[fall.first : fall.last + 1]
        top = int((part - np.minimum.accumulate(part)).argmax())
        low = fall.first + int(part[: top + 1].argmin())
        rise = Span("increase", low, fall.first + top, slice(low, low + 1))
        least = max(self.rules.bump * self._size(fall), self.rules.change * self.loss[low], self.rules.absolute)
        return rise if self._size(rise) >= least and self._sure(rise) else None

    @property
    def _margin(self) -> float:
        """How far above the minimum the stop window's losses are at most: of a fall, from before what rises first."""
        return self.rules.window * self._size(self._descent())

    def evidence(self) -> dict[str, Any]:
        """What the decision rests on, ready for JSON."""
        places = {"first": 0, "minimum": self.minimum, "last": -1}
        return {
            "order_p": self.order_p,
            "step_noise": self.noise,
            "window": self.rules.window,
            "needed": {"decrease": self._asked(self._descent()), "increase": self._asked(self._ascent())},
            "loss": {name: float(self.loss[place]) for name, place in places.items()},
        }
