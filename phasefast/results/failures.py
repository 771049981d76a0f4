"""Checkpoints that could not be measured, and why: in words, and in a run directory."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..common.files import remove_file, write_json
from ..common.notices import warn
from ..errors import GoneError, NonFiniteError, StoreError, with_notes
from .paths import store_folder
from .scores import MODEL_LAYER
from .shards import list_shards, writing_alone

FAILED = "_failed-{}.json"  # in ``scores/``, with the step; see store.py for the "_"
_NAMED = 12  # steps of failures that are alike


@dataclass(frozen=True)
class Failure:
    """What a checkpoint is called, and why it was not measured.

    Attributes:
        partial: but for some layers or targets it was, or on other weights than it has now.
        layers: that cannot be, with the reason where it is to be told.
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
    """The steps of failures that differ in nothing but the step and the name of the checkpoint."""
    groups: dict[str, list[int]] = {}
    for step, failure in failures.items():
        groups.setdefault(_beside_step(step, failure).replace(failure.checkpoint, ""), []).append(step)
    return list(groups.values())


def listed(failures: Mapping[int, Failure]) -> Iterator[str]:
    """A line for each failure; those that are ``alike`` share the first one's."""
    for first, *others in alike(failures):
        likewise = f"; likewise {len(others)} more: {named(others)}" if others else ""
        yield f"step {first}: {_beside_step(first, failures[first])}{likewise}"


def _beside_step(step: int, failure: Failure) -> str:
    """Why, after a step that was named already; the name of a checkpoint stays whole."""
    named_so = failure.error.startswith(failure.checkpoint) and failure.checkpoint != f"step {step}"
    return failure.error if named_so else failure.error.removeprefix(f"step {step} ")


def named(steps: Sequence[int]) -> str:
    """The first of some steps."""
    return ", ".join(map(str, steps[:_NAMED])) + (", ..." if len(steps) > _NAMED else "")


def keep_failures(directory: str | Path, failures: Mapping[int, Failure]) -> None:
    """Record why checkpoints were not measured, until they are; warns if that cannot be written.

    Of a stored checkpoint only what is ``partial`` is recorded: if nothing is, another job has measured it.
    """
    if not failures:
        return
    with writing_alone(directory):
        try:
            stored = list_shards(directory)
            known = dict(stored_failures(directory)) if any(step in stored for step in failures) else {}
        except StoreError as unread:  # the failures themselves are yet to be told
            warn(str(unread))
            return
        for step, failure in failures.items():
            if step not in stored:
                _write_failure(directory, step, failure)
            elif failure.partial:
                layers = known[step].layers if step in known else {}
                error = "; ".join(filter(None, (*layers.values(), failure.error)))
                _write_failure(directory, step, replace(failure, error=error, layers=layers))


def settle_failures(directory: str | Path, steps: Collection[int]) -> None:
    """For stored steps that lack nothing asked for, keep only the record of layers that cannot be measured."""
    with writing_alone(directory):
        for step, failure in list(stored_failures(directory)):
            if step in steps and failure.partial:
                write_lost(directory, step, failure.layers)


def _write_failure(directory: str | Path, step: int, failure: Failure) -> None:
    """Write a record; only warns if that fails, since the scores are stored, or the failure will be reported."""
    try:
        write_json(_failure_file(directory, step), asdict(failure), "what failed to")
    except StoreError as error:
        warn(str(error))


def write_lost(directory: str | Path, step: int, layers: Mapping[str, str]) -> None:
    """Record the layers that a stored step will never have; remove the record where there are none."""
    if layers:
        failure = Failure(f"step {step}", "; ".join(filter(None, layers.values())), partial=True, layers=layers)
        _write_failure(directory, step, failure)
    else:
        remove_file(_failure_file(directory, step))


def lost_name(layer: str, target: str) -> str:
    """What a layer is called among those that are lost: the model's own are of one target each."""
    return f"{layer} ({target})" if layer == MODEL_LAYER else layer


def reasons(lost: Mapping[str, Exception]) -> dict[str, str]:
    """Why layers were left out, if it is to be reported: those that nobody asked for may fail at every step."""
    told = NonFiniteError, GoneError
    return {layer: str(error) if isinstance(error, told) else "" for layer, error in lost.items()}


def read_failures(directory: str | Path) -> dict[int, Failure]:
    """The checkpoints of a run directory, by step, that could not be measured, or have layers that are not finite.

    Raises:
        StoreError: such a file cannot be read.
    """
    return {step: failure for step, failure in stored_failures(directory) if failure.error}


def lost_layers(directory: str | Path) -> dict[int, dict[str, str]]:
    """Layers that could not be measured at steps of a run directory, with the reason if it is to be reported.

    Raises:
        StoreError: as ``read_failures``.
    """
    return {step: dict(failure.layers) for step, failure in stored_failures(directory)}


def stored_failures(directory: str | Path) -> Iterator[tuple[int, Failure]]:
    """All failures that a run directory records, by step: for stored steps only those that are partial.

    Raises:
        StoreError: such a file cannot be read; raised when its turn comes.
    """
    stored = list_shards(directory)
    for path in sorted(store_folder(directory).glob(FAILED.format("*"))):
        try:
            known, step = json.loads(path.read_text(encoding="utf-8")), int(path.stem.rpartition("-")[2])
            failure = Failure(**known)
            if not isinstance(failure.layers, dict):
                raise TypeError(f"layers: expected reasons by name, got {failure.layers!r}")
        except FileNotFoundError:  # another job has measured it by now
            continue
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise StoreError(f"cannot read {path}, a record of what failed: {error}; delete it") from error
        if failure.partial or step not in stored:  # another job may have measured it before this was written
            yield step, failure


def _failure_file(directory: str | Path, step: int) -> Path:
    return store_folder(directory) / FAILED.format(f"{step:012d}")
