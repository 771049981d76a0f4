"""Measure a model inside any training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import nn

from .checkpoints import weights_hash
from .common.notices import Once, warn
from .constants import Constants
from .data.probe_set import ProbeSet
from .engine import Engine
from .errors import ArgumentError, StoreError, may_pass, with_notes
from .options import ProbeOptions, checked_step
from .results.failures import Failure, keep_failures, lost_layers, named
from .results.pending import Pending
from .results.scores import Scores
from .results.store import check_weights, open_store
from .schedule import Schedule

_UNCHANGED = 4  # updates without effect that are told
_LONG = 20.0  # seconds of a measurement that are worth a hint


def _is_another_rank() -> bool:
    """Whether this is a rank but the first one of several."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return several and torch.distributed.get_rank() > 0


class PhaseTracker:
    """Call ``step(i)`` once per training step, with ``i`` updates done; it measures at some of them.

    If it is called less often, it measures at the first call at or after such a step.

    Args:
        model: the model in training; left exactly as found by each measurement.
        probe_set: the samples. steps: ``"log2"`` (0, 1, 2, 4, ...) or the steps to measure at; an empty list
            measures only at calls with ``force=True``.
        out: directory whose ``scores/`` gets one Parquet shard per step, and ``cache/`` what later runs on the
            same data and targets need not make again; None keeps all in memory only. Each training needs its own.
        run: label of the rows.
        overwrite: start over, removing the scores in ``out``, their ``phases.json`` and pictures.
        on_error: ``"warn"`` lets the training go on when a measurement fails; ``"raise"`` does not. An error that every
            later measurement would repeat, such as layers that do not exist, is raised at the first one in any case.
        **options: see :class:`phasefast.ProbeOptions`.

    Attributes:
        seconds: time spent measuring.

    Raises:
        StoreError: ``out`` cannot be written, or holds scores of another configuration.
    """

    def __init__(
        self,
        model: nn.Module,
        probe_set: ProbeSet,
        *,
        steps: Literal["log2"] | Iterable[int] = "log2",
        out: str | Path | None = "runs/live",
        run: str = "run",
        overwrite: bool = False,
        on_error: Literal["warn", "raise"] = "warn",
        **options: Unpack[ProbeOptions],
    ) -> None:
        self._schedule = Schedule.of(steps)
        if on_error not in ("warn", "raise"):
            raise ArgumentError(f"on_error: expected 'warn' or 'raise', got {on_error!r}")
        self._engine = Engine(model, probe_set, run, out, **options)
        # torch.compile would spend a minute tracing it. What this imports the first optimizer imports anyway.
        self._measure: Callable[[int], Scores] = torch.compiler.disable(self._untraced)
        self._on_error = on_error
        self.seconds = 0.0
        self._start: int | None = None
        self._before = self._earlier = -1  # the steps of the last call, and of the one before
        self._farthest = -1  # the latest step that was measured, or is known to be of these weights
        self._backwards = False  # whether it was told that a call was for a step before it
        self._weights: list[str] = []  # their hash at the last measurement, the step since which it is the same,
        self._since, self._unchanged = 0, False  # and whether this was told
        self._pending: Pending | None = None
        self._joined, self._new = Scores.from_rows([]), list[Scores]()  # to join them takes time for each that is there
        if out is not None:
            store = self._engine.store(Path(out).absolute())  # a training may change its directory
            self._joined = Scores.concat([*open_store(store, overwrite).values()])
            self._engine.known = frozenset(self._joined.layers)
            self._pending = Pending(store)
        self._steps, self._once = set(self._joined.steps), Once()
        self._measured = set[int]()  # by this tracker, so that they have all that can be asked for
        self._lost: dict[int, dict[str, str]] | None = None  # layers of stored steps, once it is asked for
        self._constants: Constants | None = None
        if self._out is not None and not _is_another_rank():
            self._constants = Constants(self._engine.model, self._out)
            self._constants.check()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_measure"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, which measures its own model."""
        vars(self).update(state, _measure=torch.compiler.disable(self._untraced))

    def __repr__(self) -> str:
        model, where = type(self._engine.model).__name__, self._out or "memory"
        steps = named(sorted(self._steps))
        return f"PhaseTracker(of {model}, scores in {where}: steps [{steps}], {self.seconds:.1f} s)"

    @property
    def scores(self) -> Scores:
        """Everything measured so far, steps stored by an earlier run of the same configuration included."""
        if self._new:
            self._joined, self._new = Scores.concat([self._joined, *self._new]), []
        return self._joined

    @property
    def _out(self) -> str | Path | None:
        """The directory of the scores, if they are stored."""
        return None if self._pending is None else self._pending.store.directory

    def _tell_backwards(self, step: int) -> None:
        """Such as where steps are counted anew in each epoch: no later epoch would be measured."""
        came = "again, for other weights" if step == self._farthest else f"after {self._farthest}"
        text = (
            f"step: {step} came {came}; expected the number of updates since the training began, which "
            "goes on through all epochs; for a new training create a new tracker, with another out="
        )
        if self._on_error == "raise":
            raise ArgumentError(text)
        if not self._backwards:
            warn(f"{text}; only later steps are measured from here on")
        self._backwards = True

    def _tell_unchanged(self, step: int, scores: Scores) -> None:
        """Such as where a notebook's cell has made a new model, and the tracker has the one before."""
        if (weights := scores.values_of("state_hash")) != self._weights or not self._since:
            # First updates may have no effect, as of a learning rate that begins with 0.
            self._weights, self._since, self._unchanged = weights, step, False
        elif not self._unchanged and step - self._since >= _UNCHANGED:
            self._unchanged = True
            trained = any(own.requires_grad for own in self._engine.model.parameters())
            why = (
                "is this model the one that is trained? If it was created again, create a new tracker too"
                if trained
                else "none of them requires a gradient, so all steps will be alike"
            )
            warn(f"step {step}: the weights are those of step {self._since}: {why}")

    def _untraced(self, step: int) -> Scores:
        """Measure; the second, fourth, eighth time and so on, note which constants updates have left as they were."""
        scores, count = self._engine.measure(step), len(self._measured) + 1
        if self._constants is not None and count > 1 and count & (count - 1) == 0:
            with contextlib.suppress(StoreError):  # scores that cannot be written are told of
                self._constants.keep()
        return scores

    def _count(self, step: int, seconds: float) -> None:
        """Add to the time that was spent; tell if the first measurement shows that this will be much."""
        if self.seconds == 0 and seconds > _LONG:
            warn(
                f"measuring step {step} took {seconds:.0f} s, as each step will: pf.plan(model, probe_set, ...), or "
                "`phasefast plan`, tells which layers cost most; pool=, layers= and fewer samples take less"
            )
        self.seconds += seconds

    def _lacks(self, stored: Scores, step: int) -> bool:
        """Whether a stored step has not all that is asked for by name, but for what was lost of it."""
        if step in self._measured:
            return False
        if self._lost is None:
            self._lost = {} if self._out is None else lost_layers(self._out)
        lost = self._lost.get(step, {})
        targets = self._engine.target_hashes
        asked = [name for name in self._engine.named if name not in lost]
        return bool(self._engine.lacking(stored, asked, lost, asked=True)) or not targets.keys() <= set(stored.targets)

    def step(self, step: int, force: bool = False) -> Scores | None:
        """Measure if ``step`` is due; returns its scores, or None if it is not due or the last call was for it too.

        Scores that ``out`` already holds of these weights are returned, not measured again; None if they lack a target,
        or a layer that is asked for by name. Scores that cannot be written to disk are kept, and written with the next
        ones, or when a step is forced.

        Args:
            step: updates done so far, in all epochs. force: measure at any step, such as the last one.

        Raises:
            ArgumentError: a step that is negative or no integer, or, with ``on_error="raise"``, one that comes after a
                later one, unless it was measured on these weights or is forced; with ``"warn"`` that is a warning.
            StoreError: the step is stored, but of other weights: ``out`` belongs to another training. With ``"warn"``
                it is a warning in a resumed training, whose first call is for a step above 1 and which need not repeat
                lost updates bit by bit; at that first call it is an error.
        """
        step = checked_step(step)
        try:
            return self._called(step, force)
        except Exception:
            raise
        except BaseException:  # an interrupt, after which it may be called again
            self._before = self._earlier
            raise

    def _called(self, step: int, force: bool) -> Scores | None:
        first, repeated = self._start is None, step == self._before
        start = self._start = step if self._start is None else self._start
        if first:  # one that goes on has called for what is stored
            self._before = max((known for known in self._steps if known <= step), default=-1)
            self._farthest = max((known for known in self._steps if known < step), default=-1)
        before = self._earlier = self._before
        self._before = step
        if not (force or self._schedule.is_due(before, step)):
            return None
        if step < self._farthest and not force and step not in self._steps:
            self._tell_backwards(step)
            return None
        if step in self._steps:
            if force or not repeated:
                self._store()
            if repeated and not force:  # such as while gradients accumulate: it is to take no time
                return None
            stored = self.scores.filter(step=step)
            if repeated:  # BatchNorm's statistics may have moved
                same = self._engine.recomputed or stored.values_of("state_hash") == [weights_hash(self._engine.model)]
                if not same:
                    warn(f"step {step} was measured on other weights, and is not again; averages need another tracker")
                return None
            try:
                check_weights(stored, weights_hash(self._engine.model))
                self._farthest = max(self._farthest, step)
                if not self._lacks(stored, step):
                    return stored
                self._once.warn(
                    f"step {step}: {self._out} holds scores of it without all layers and targets that are asked for "
                    "now, as of other such steps: a sweep of the checkpoints adds them",
                    about="lacks",
                )
            except StoreError as error:
                if step <= self._farthest:
                    self._tell_backwards(step)
                elif self._on_error == "raise" or first or start <= 1:
                    raise
                else:
                    warn(str(error))
            return None
        try:
            engine = self._engine
            scores = self._measure(step)
            self._farthest = max(self._farthest, step)
            self._count(step, float(scores.to_arrow().column("seconds")[0].as_py()))
            if self._pending is not None:
                self._pending.add(step, scores, engine.lost)
            self._new.append(scores)
            self._steps.add(step)
            self._measured.add(step)
        except Exception as error:
            if self._on_error == "raise" or (not may_pass(error) and self.seconds == 0):
                raise
            failure = Failure.of(f"step {step}", error)
            warn(f"step {step} was not measured: {failure.error}")
            if self._out is not None and not isinstance(error, StoreError):
                keep_failures(self._out, {step: failure})
            return None
        self._store()
        if not force:  # such as of the best weights, at the end
            self._tell_unchanged(step, scores)
        return scores

    def _store(self) -> None:
        """Write what is not stored yet, each step that the disk refused before too."""
        alone = not _is_another_rank()  # all of a sharded training store the same
        if self._pending is None or not (failed := self._pending.write(claims=alone)):
            return
        first = next(iter(failed.values()))
        if self._on_error == "raise":
            raise first
        were = f"step{'s' * (len(failed) > 1)} {named([*failed])} {'was' if len(failed) == 1 else 'were'}"
        again = "; tried again at the next step that is measured or forced" if self._pending else ""
        warn(f"{were} not stored: {with_notes(first)}{again}")
