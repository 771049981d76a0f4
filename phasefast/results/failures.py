"""Checkpoints that could not be measured, and why, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import with_notes

_NAMED = 12  # steps of failures that are alike


@dataclass(frozen=True)
class Failure:
    """What a checkpoint is called, and why it was not measured.

    Attributes:
        partial: but for some layers or targets it was. layers: that cannot be, with the reason where it is to be told.
    """

    checkpoint: str
    error: str
    partial: bool = False
    layers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: str, error: Exception) -> Failure:
        """That of an error, with the notes on it."""
        return cls(checkpoint, with_notes(error))


def alike(failures: Mapping[int, Failure]) -> list[list[int]]:
    """The steps of failures that differ in nothing but the name of the checkpoint."""
    groups: dict[str, list[int]] = {}
    for step, failure in failures.items():
        groups.setdefault(failure.error.replace(failure.checkpoint, ""), []).append(step)
    return list(groups.values())


def listed(failures: Mapping[int, Failure]) -> Iterator[str]:
    """A line for each failure; those that differ in nothing but the name of the checkpoint share the first one's."""
    for first, *others in alike(failures):
        likewise = f"; likewise {len(others)} more: {named(others)}" if others else ""
        yield f"step {first}: {failures[first].error}{likewise}"


def named(steps: Sequence[int]) -> str:
    """The first of some steps."""
    return ", ".join(map(str, steps[:_NAMED])) + (", ..." if len(steps) > _NAMED else "")
