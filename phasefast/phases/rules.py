"""The thresholds by which phases are named."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, fields

from ..common.scalars import as_float, is_integer
from ..errors import ArgumentError
from ..results.losses import LEAST_CHANGE
from .phase_report import FEW_STEPS


@dataclass(frozen=True)
class PhaseRules:
    """When a change counts, what near-constant means, and how wide the stop window is.

    Raises:
        ArgumentError: a threshold is not a number, or is below 0.
    """

    change: float = 0.02  # a change is at least this fraction of the loss before it,
    absolute: float = LEAST_CHANGE  # and at least this much,
    noise: float = 3.0  # and at least this many standard deviations of the step noise
    constant: float = 0.10  # a curve in order that goes farther from its mean than this fraction of it is not constant
    plateau: float = 0.20  # a plateau's losses differ from their mean by at most this fraction of the change after it,
    slope: float = 1 / 3  # and its slope is at most this fraction of the slope after it
    bump: float = 0.25  # rises of this fraction of a decrease are told: within it, or between a plateau and it
    window: float = 0.25  # the stop window's losses exceed the minimum by this fraction of the fall to it
    fewest: int = 4  # steps that phases take: a plateau of three and a change after it
    odd: float = 6.0  # a step this many standard deviations of the step noise above both neighbours is left out
    order_level: float = 0.03  # p-value above which the order of the steps explains nothing
    noise_steps: int = 7  # fewer steps than this have too few differences to tell the step noise
    order_steps: int = FEW_STEPS  # fewer have too few orders to test
    permutations: int = 2_000  # random orders that the test draws

    def __post_init__(self) -> None:
        for each in fields(self):
            value, whole = getattr(self, each.name), isinstance(each.default, int)
            if whole and not is_integer(value, 1):
                raise ArgumentError(f"{each.name}: expected a positive integer, got {value!r}")
            if not 0 <= (known := as_float(value)) < math.inf:
                raise ArgumentError(f"{each.name}: expected a number >= 0, got {value!r}")
            if each.name == "window" and known >= 1:
                raise ArgumentError(f"window: expected a fraction below 1, got {value!r}")
            plain = operator.index(getattr(self, each.name)) if whole else known
            object.__setattr__(self, each.name, plain)  # as JSON has them


DEFAULT_RULES = PhaseRules()
