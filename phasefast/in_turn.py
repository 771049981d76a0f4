"""Checkpoints in an engine's model, one after the other."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from .checkpoints import Reader, load_into, read_ahead
from .checkpoints.ahead import Read
from .checkpoints.sources import Source
from .common.interrupts import interrupts_free, interrupts_held
from .common.modes import in_training
from .common.progress import progress
from .engine import Engine
from .errors import PASSING, CheckpointError, PhasefastError, StoreError, may_pass, with_notes, without_frames
from .results.failures import Failure, alike
from .stages.preserve import on_device

_ENOUGH = 5  # first checkpoints that fail alike: if the last one does too, so do the others, such as by a wrong key


@contextlib.contextmanager
def restored(engine: Engine) -> Iterator[None]:
    """The engine's model, moved to the engine's device; afterwards it is moved back, and has its weights again."""
    with interrupts_held():
        before = _copied(engine.model)
        try:
            with on_device(engine.model, engine.device), in_training(engine.model) as switched:
                own = _copied(engine.model) if switched else None
                try:
                    yield
                finally:
                    if own is not None:  # what modules merge or keep in evaluation is of these
                        engine.model.load_state_dict(own)
        finally:
            engine.model.load_state_dict(before)


def _copied(model: nn.Module) -> dict[str, Any]:
    """A model's state dict, in memory of its own."""
    state = copy.copy(model.state_dict())  # as it is, with the versions of modules; a model may keep it
    for name, value in state.items():
        state[name] = value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
    return state


def measure_each(
    engine: Engine,
    sources: Mapping[int, Source],
    reader: Reader,
    what: str,
    measure: Callable[[int, str | None], None],
    failures: dict[int, Exception],
    begun: bool = False,
    all_of_them: bool = False,
) -> None:
    """Load each checkpoint, read while the one before is measured, and call ``measure``.

    Args:
        what: name of the work in the progress. measure: is given the step and the fingerprint of its files, None for a
            mapping. failures: filled with the errors, by step, as they occur.
        begun: whether another checkpoint was measured already. all_of_them: try each, however many fail.

    Raises:
        StoreError: always. Errors that all checkpoints would share, or that are the model's own, only before the first
            is measured.
    """
    spare, outer = engine.recomputed, sys.exception()

    def attempt(step: int, read: Callable[[], Read]) -> str:
        nonlocal begun
        try:
            with interrupts_free():  # it may be a download
                state, source_hash = read()
            load_into(engine.model, state, name_of(step, sources[step]), spare)
            measure(step, source_hash)
            begun = True
        except StoreError:
            raise
        except Exception as error:
            if not begun and not (isinstance(error, PhasefastError) and may_pass(error)):
                raise
            failures[step] = without_frames(error, outer)  # which hold activations
            # The first reason is seen at once.
            return " failed" if len(failures) > 1 else f" failed: {with_notes(error)}"
        return ""

    todo, done = dict(sources), 0
    with progress(what, len(sources), "checkpoints") as update:

        def attempt_all(part: Mapping[int, Source], enough: int) -> None:
            nonlocal done
            with contextlib.closing(read_ahead(part, engine.device, reader)) as ahead:
                for step, read in ahead:
                    note, done = attempt(step, read), done + 1
                    update(done, f"step {step}{note}")
                    del todo[step]
                    if not begun and len(failures) == enough and _none_fits(failures, sources):
                        return

        attempt_all(todo.copy(), len(sources) if all_of_them else _ENOUGH)
        if todo:  # weights under another key, or of another shape, may be those of the beginning
            last = max(todo)
            attempt_all({last: todo[last]}, _ENOUGH + 1)
            if not begun and _none_fits(failures, sources):
                untried = CheckpointError(f"not tried, as the first {_ENOUGH} and the last failed the same way")
                failures |= dict.fromkeys(todo, untried)
                return
            attempt_all(todo.copy(), len(sources))


def _none_fits(failures: Mapping[int, Exception], sources: Mapping[int, Source]) -> bool:
    """Whether all are checkpoints that can be read, but not used, for the same reason."""
    usable = any(isinstance(error, PASSING) or not isinstance(error, CheckpointError) for error in failures.values())
    of_system = any(isinstance(error.__cause__, OSError) for error in failures.values())  # as load= raises it
    return not (usable or of_system) and len(alike(in_words(failures, sources))) == 1


def in_words(failures: Mapping[int, Exception], sources: Mapping[int, Source]) -> dict[int, Failure]:
    """The failures by step, each with the name of its checkpoint."""
    return {step: Failure.of(name_of(step, sources[step]), error) for step, error in failures.items()}


def name_of(step: int, source: Source) -> str:
    """What messages call a checkpoint."""
    return f"step {step}" if isinstance(source, Mapping) else os.fspath(source)
