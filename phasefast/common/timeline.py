"""Names of a measurement's stages in what ``torch.profiler`` records."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch.autograd.profiler import record_function

PREFIX = "phasefast: "


_Found = TypeVar("_Found")


def stage(name: str) -> record_function:
    """Decorates a function, or encloses lines, that belong to a stage; one inside another counts as its own."""
    return record_function(PREFIX + name)


def staged(name: str, function: Callable[[], _Found]) -> Callable[[], _Found]:
    """A function that is made while measuring, as part of a stage; torch.compile may look on, and decorates none."""

    def run() -> _Found:
        with stage(name):
            return function()

    return run
