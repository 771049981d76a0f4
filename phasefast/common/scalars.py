"""Numbers as users give them: Python's and NumPy's, but no truth values."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any


def is_integer(given: Any, least: int) -> bool:
    """Whether it is an integer of at least so much."""
    try:
        return operator.index(given) >= least and not isinstance(given, bool)
    except TypeError:
        return False


def as_float(given: Any) -> float:
    """A number as a Python float; NaN for what is none, Inf for integers that are too large."""
    try:
        return float(given) if isinstance(given, Real) and not isinstance(given, bool) else math.nan
    except OverflowError:
        return math.inf
