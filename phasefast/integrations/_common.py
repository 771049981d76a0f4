"""When a trainer's callback measures: before the first step, after each one, and in any case at the last."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from ..checkpoints import state_hash
from ..common.notices import warn
from ..data.probe_set import ProbeSet
from ..errors import ArgumentError
from ..options import checked_options
from ..track import PhaseTracker

_OF_TRACKERS = inspect.signature(PhaseTracker).parameters


class LiveProbe:
    """What the callbacks have in common; only the rank that calls ``_begin`` measures, and it waits for no other.

    Args:
        probe_set: the samples. **options: see :class:`phasefast.PhaseTracker`.
        wrap: turns the model that is trained into the one that is probed: a module around it that makes its inputs from
            the samples, or a part of it, such as ``lambda model: model.encoder``.
        log: called for each measured step with its held-out values, ``{"phasefast/fc/input/fvu": 0.41, ...}``, and with
            the step, such as ``lambda values, step: wandb.log(values)``.

    Raises:
        ArgumentError: options that do not exist, or values that cannot be used.
    """

    def __init__(
        self,
        probe_set: ProbeSet,
        *,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        log: Callable[[dict[str, float], int], object] | None = None,
        **options: Any,
    ) -> None:
        checked_options({name: value for name, value in options.items() if name not in _OF_TRACKERS})
        if log is not None and not callable(log):
            raise ArgumentError(f"log: expected a function of numbers by name and of the step, got {log!r}")
        self._probe_set, self._options, self._wrap, self._log = probe_set, options, wrap, log
        self._model: nn.Module | None = None
        self._tracker: PhaseTracker | None = None
        self._last = 0
        self._hash = ""  # of the model as it was when it was last kept

    @property
    def tracker(self) -> PhaseTracker:
        """The tracker of the training that began last.

        Raises:
            ArgumentError: no training has begun, or this is not rank 0.
        """
        if self._tracker is None:
            raise ArgumentError("tracker: exists only once the training has begun, and only on rank 0")
        return self._tracker

    def _begin(self, model: nn.Module, step: int) -> None:
        """The model is where it will be trained, ``step`` updates done: 0, or those of the training it resumes."""
        if model is not self._model or step < self._last:  # another training
            probed = model if self._wrap is None else self._wrap(model)
            self._tracker = PhaseTracker(probed, self._probe_set, **self._options)
            self._model, self._hash = model, ""
        self._last = step
        self._step(step)

    def _after(self, step: int) -> None:
        """A batch is done, and ``step`` updates: as many as before while gradients accumulate."""
        if self._tracker is not None and step != self._last:
            self._step(step)
            self._last = step

    def _keep_hash(self) -> None:
        """Take note of the weights that are trained."""
        if self._tracker is not None:
            self._hash = self._hash_now()

    def _hash_now(self) -> str:
        """Of the parameters: callbacks that average them change these, and statistics may move by themselves."""
        return "" if self._model is None else state_hash(dict(self._model.named_parameters()))

    def _end(self, step: int) -> None:
        """``step`` was the last one. BatchNorm may have seen more batches since it was measured, if it was.

        Not measured, with a warning, where the weights are others than those of which note was taken last.
        """
        if self._tracker is None or step in self._tracker.scores.steps:
            return
        if self._hash and self._hash != self._hash_now():
            text = "other weights, such as averages, have taken the place of the trained ones"
            warn(f"step {step} was not measured: {text}")
            return
        self._step(step, force=True)

    def _step(self, step: int, force: bool = False) -> None:
        """Measure, if it is time to, and log what that gives."""
        if (scores := self.tracker.step(step, force)) is not None and self._log is not None:
            self._log({f"phasefast/{name}": value for name, value in scores.to_dict().items()}, step)
