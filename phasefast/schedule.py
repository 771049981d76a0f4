"""At which calls of a training loop to measure."""

from __future__ import annotations

import bisect
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from .common.scalars import as_float, is_integer
from .errors import ArgumentError


@dataclass(frozen=True)
class Schedule:
    """The steps to measure at, ascending; None for 0, 1, 2, 4, 8, ..."""

    steps: tuple[int, ...] | None

    @classmethod
    def of(cls, steps: Literal["log2"] | Iterable[int]) -> Schedule:
        """Of what a tracker was given; ArgumentError for anything else."""
        if (isinstance(steps, str) and steps != "log2") or not isinstance(steps, Iterable):
            raise ArgumentError(f"steps: expected 'log2' or a collection of integers, got {steps!r}")
        return cls(None if isinstance(steps, str) else tuple(sorted({_checked(step) for step in steps})))

    def is_due(self, before: int, step: int) -> bool:
        """Whether a step to measure at lies after that of the call before and up to this one's, or is that itself.

        Args: before: -1 where there was none.
        """
        if self.steps is not None:
            place = bisect.bisect_right(self.steps, step)
            return place > 0 and (self.steps[place - 1] > before or self.steps[place - 1] == step)
        power = step & (step - 1) == 0
        return power or (before < step and (before < 0 or before.bit_length() < step.bit_length()))


def _checked(step: Any) -> int:
    """One of the steps to measure at; floats may be whole numbers, as ``numpy.logspace`` makes them."""
    whole = int(step) if as_float(step).is_integer() else step
    if not is_integer(whole, 0):
        raise ArgumentError(f"steps: expected numbers of updates, integers >= 0, got {step!r}")
    return operator.index(whole)
