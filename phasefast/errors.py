"""Every error phasefast raises on purpose; a message names the culprit, what was expected, what came and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PhasefastError(Exception):
    """Base class of all errors raised by phasefast."""


class ArgumentError(PhasefastError, ValueError):
    """An argument has a value or a shape that cannot be used."""


class DataError(PhasefastError, ValueError):
    """A probe set or a target is empty, too small, mismatched, out of range or not finite."""


class LayerError(PhasefastError, LookupError):
    """A layer pattern matches nothing, a hook never fires, or an output is not a tensor of rows."""


class GoneError(LayerError):
    """A layer that was asked for, and was there at first, has no rows any more, as behind another head."""


class NonFiniteError(PhasefastError, ArithmeticError):
    """Activations hold NaN or Inf."""


class SolveError(PhasefastError, ArithmeticError):
    """No factorisation of a cell's Gram matrix succeeded."""


class MemoryBudgetError(PhasefastError, MemoryError):
    """The plan for a cell does not fit the memory budget."""


class CheckpointError(PhasefastError, ValueError):
    """A checkpoint is unreadable, untrusted, or does not fit the model."""


class TwiceError(CheckpointError):
    """A step occurs twice.

    Attributes:
        others: the checkpoints of all other steps, by step.
    """

    def __init__(self, message: str, others: Mapping[int, Any] | None = None) -> None:
        super().__init__(message)
        self.others = others or {}


class RewrittenError(CheckpointError):
    """A checkpoint was written again, with other weights than those that its step was measured on."""


class UnreadableError(CheckpointError):
    """A checkpoint is missing, damaged or still being written, so that it may be readable another time."""


class StoreError(PhasefastError, OSError):
    """Scores or a probe set cannot be written, or scores cannot be read or belong to another configuration."""


class DamagedError(StoreError):
    """A file of scores exists and can be opened, but is not what was written."""


class OtherWeightsError(StoreError):
    """A step is stored already, but was measured on other weights: those of another training, as far as is known."""


class SweepError(PhasefastError, RuntimeError):
    """Some checkpoints of a sweep failed; the others are stored.

    Attributes:
        failed: the reason, by step; stored steps whose checkpoints now hold other weights are among them.
    """

    def __init__(self, message: str, failed: Mapping[int, Any] | None = None) -> None:
        super().__init__(message)
        self.failed = dict(failed or {})


class DependencyError(PhasefastError, ImportError):
    """An optional dependency is missing; the message says how to install it."""


# The next checkpoint would fail with these too.
LASTING = (ArgumentError, DataError, LayerError, MemoryBudgetError, DependencyError)
# The same checkpoint need not fail with these another time.
PASSING = (UnreadableError, MemoryBudgetError, DependencyError)


def may_pass(error: Exception) -> bool:
    """Whether the next checkpoint may succeed; a RuntimeError is how a device runs out of memory."""
    return isinstance(error, (PhasefastError, RuntimeError, MemoryError)) and not isinstance(error, LASTING)


def with_notes(error: Exception) -> str:
    """The text of an error and of the notes on it, after its type unless it is one of the package's own."""
    kind = "" if isinstance(error, PhasefastError) else f"{type(error).__name__}: "
    texts = [text for each in (f"{kind}{error}", *getattr(error, "__notes__", [])) if (text := each.strip(": \n"))]
    ended = [text if text.endswith((".", "!", "?", ":", ";")) else f"{text}." for text in texts[:-1]]
    return " ".join([*ended, *texts[-1:]])


def without_frames(error: Exception, outer: BaseException | None = None) -> Exception:
    """The error without tracebacks, its own and those of what it came of, so that what their frames hold is let go.

    Args:
        outer: what was being handled before, which stays as it is.
    """
    todo, seen = list[BaseException | None]([error]), {id(outer)}
    while todo:
        found = todo.pop()
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            found.__traceback__ = None
            todo += [found.__cause__, found.__context__]
    return error
