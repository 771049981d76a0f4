"""What of the scores is asked for, by patterns and steps, and in which order layers are."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Sequence

from ..common.globs import chosen, idle
from ..common.scalars import is_integer
from ..errors import ArgumentError, PhasefastError


def listed_patterns(patterns: Sequence[str] | None) -> Sequence[str] | None:
    """One alone as one of several; None for all."""
    return [patterns] if isinstance(patterns, str) else patterns


def matching(names: list[str], patterns: Sequence[str] | None, what: str, error: type[PhasefastError]) -> list[str]:
    """Those of ``names`` that match a pattern; ``error`` names a pattern that matches none."""
    if (pattern := idle(names, patterns or ())) is not None:
        raise error(f"{what} pattern {pattern!r} matches nothing in the scores; they have {names}")
    return names if patterns is None else chosen(names, patterns)


def listed_steps(steps: Iterable[int]) -> list[int]:
    """The steps that are given; ArgumentError where these are none."""
    given = list(steps) if isinstance(steps, Iterable) else [None]
    if not all(is_integer(step, 0) for step in given):
        raise ArgumentError(f"steps: expected integers >= 0, such as range(1000), got {steps!r}")
    return [operator.index(step) for step in given]  # type: ignore[arg-type]


def in_order(pairs: Iterable[tuple[int, str]]) -> list[str]:
    """Layers of (step, layer) in the order of the step that has most of them, as one that lost none; then others."""
    by_step: dict[int, dict[str, None]] = {}
    for step, layer in pairs:
        by_step.setdefault(step, {})[layer] = None
    fullest = max(by_step.values(), key=len, default={})
    return list(dict.fromkeys(itertools.chain(fullest, *by_step.values())))
