"""Measure one model, here and now."""

from __future__ import annotations

from typing import Unpack

from torch import nn

from .data.probe_set import ProbeSet
from .engine import Engine
from .options import ProbeOptions, checked_step
from .results.scores import Scores


def probe(
    model: nn.Module, probe_set: ProbeSet, *, step: int = 0, run: str = "run", **options: Unpack[ProbeOptions]
) -> Scores:
    """How much of the input, and which targets, a linear decoder reads off each layer.

    Args:
        model: any module that takes a batch of the probe set's inputs; left exactly as it was found.
        probe_set: the samples. step, run: labels of the scores' rows.
        **options: see :class:`phasefast.ProbeOptions`.

    Raises:
        PhasefastError: one of its subclasses, naming the option, layer or data that cannot be used.
    """
    return Engine(model, probe_set, run, **options).measure(checked_step(step))
