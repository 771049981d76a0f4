"""Names of a measurement's stages in what ``torch.profiler`` records."""

from __future__ import annotations

from torch.autograd.profiler import record_function

PREFIX = "phasefast: "


def stage(name: str) -> record_function:
    """Decorates a function, or encloses lines, that belong to a stage; one inside another counts as its own."""
    return record_function(PREFIX + name)
