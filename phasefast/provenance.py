"""Which training the stored steps of a sweep belong to, as far as their checkpoints show."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

from .checkpoints import SCHEME, Reader, Revision, load_into, weights_hash
from .checkpoints.sources import Source
from .common.interrupts import interrupts_free
from .engine import Engine
from .errors import CheckpointError, OtherWeightsError, RewrittenError
from .in_turn import name_of
from .results.scores import Scores
from .results.store import check_weights


class Provenance:
    """Compares what stored steps were measured on with the checkpoints that are given for them now.

    Args:
        engine: whose model has the weights of a checkpoint while that is measured. stored: by step; steps that are
            measured are added by its owner.

    Attributes:
        confirmed: whether some checkpoint is known to be of the training that the stored steps are of.
        equal: stored steps that were compared last, and are of the same weights.
    """

    def __init__(self, engine: Engine, reader: Reader, stored: Mapping[int, Scores]) -> None:
        self._engine, self._reader, self._stored = engine, reader, stored
        self.confirmed, self.equal = False, set[int]()
        self._given: Mapping[int, Source] = {}
        self._sources: dict[int, Source | None] = {}  # of stored steps; None where that may be of another training

    def compare(
        self, given: Mapping[int, Source], todo: Collection[int]
    ) -> tuple[dict[int, Exception], dict[int, Exception]]:
        """Compare the given checkpoints that are not to be measured again with what their steps were measured on.

        Returns:
            By step, the reasons why some cannot be compared, and the errors of those that were written again.

        Raises:
            OtherWeightsError: a checkpoint belongs to another training.
        """
        self._given, self.equal = given, set[int]()
        # Step 0 tells nothing: trainings may begin alike.
        self.confirmed = self.confirmed or any(
            self._is_as_measured(step, given[step]) for step in todo if step in self._stored and step > 0
        )
        for step in given.keys() & self._stored.keys():
            self._sources.setdefault(step, given[step])
        failures, rewritten = dict[int, Exception](), dict[int, Exception]()
        for step in sorted(given.keys() - set(todo)):
            try:
                if _is_same(self._stored[step], given[step], self._engine, self._reader):
                    self.equal.add(step)
            except CheckpointError as error:
                failures[step] = error
            except OtherWeightsError as error:
                rewritten[step] = self._rewritten(step, error)
        self.confirmed |= any(step > 0 for step in self.equal)
        return failures, rewritten

    def check(self, step: int) -> None:
        """Compare the checkpoint that is loaded with what the stored step was measured on.

        Raises:
            RewrittenError: it was written again. OtherWeightsError: it belongs to another training.
        """
        try:
            check_weights(self._stored[step], weights_hash(self._engine.model))
        except OtherWeightsError as error:
            raise self._rewritten(step, error) from None
        self.equal.add(step)

    def measured(self, step: int) -> None:
        """Take note of one of the given checkpoints that is measured, before its step is stored."""
        # Of a training that begins anew lower steps come first.
        self._sources.setdefault(step, self._given[step] if step > max(self._stored, default=-1) else None)
        self.confirmed = True

    def _rewritten(self, step: int, error: OtherWeightsError) -> RewrittenError:
        """The error that a step's checkpoint was written again, if the training went on from an older one.

        Raises:
            OtherWeightsError: ``error``, if no earlier step except step 0 is known to belong to that training.
        """
        for earlier, source in self._sources.items():
            taken = earlier in self.equal or isinstance(source, Mapping)
            if 0 < earlier < step and (taken or (source is not None and self._is_as_measured(earlier, source))):
                self.confirmed = True
                return RewrittenError(str(error))
        raise error

    def _is_as_measured(self, step: int, source: Source) -> bool:
        """Whether the files of a stored step's checkpoint exist, and have not changed; False if that is unknown."""
        with suppress(CheckpointError):  # which is told once it is read
            return _is_known(self._stored[step], source, self._reader)
        return False


def origin_of(sources: Iterable[Source]) -> str | None:
    """The folder that all of them are in, or the repository of the Hub; None of others."""
    places = set()
    for source in sources:
        if isinstance(source, Mapping):
            return None
        places.add(
            f"{SCHEME}{source.repo}" if isinstance(source, Revision) else os.path.dirname(os.path.realpath(source))
        )
    if len(places) > 1 and all(map(os.path.isabs, places)):
        places = {os.path.commonpath(places)} - {os.path.sep}  # of checkpoints in folders of their own
    return places.pop() if len(places) == 1 else None


def _is_known(stored: Scores, source: Source, reader: Reader) -> bool:
    """Whether stored scores, which all have the same weights, were measured on these very files.

    Raises:
        CheckpointError: the files cannot be read.
    """
    return reader.is_there(source) and reader.fingerprint(source) in stored.values_of("source_hash")


def _is_same(stored: Scores, source: Source, engine: Engine, reader: Reader) -> bool:
    """Stored scores must be of this checkpoint: compare files without loading them, else the weights once loaded.

    False if it no longer exists. What ``load`` reads is always loaded: it may be another function than before.
    """
    same_function = reader.load is None or isinstance(source, Revision)  # all of these would be downloaded again
    with interrupts_free():
        if same_function and _is_known(stored, source, reader):
            return True
        if not reader.is_there(source):
            return False  # measured, and deleted since to save space
        try:
            state = reader.read(source)
        except CheckpointError as error:
            if reader.lacks_part(source, error):
                return False  # likewise, but for the rest of a folder
            raise
    load_into(engine.model, state, name_of(stored.steps[0], source), engine.recomputed)
    check_weights(stored, weights_hash(engine.model))
    return True
