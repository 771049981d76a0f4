"""Measure every checkpoint of a training run, once."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from .checkpoints import Reader, check_copies, order_checkpoints
from .checkpoints.sources import Source
from .common.notices import Once
from .constants import Constants
from .data.probe_set import ProbeSet
from .engine import Engine
from .errors import PASSING, ArgumentError, CheckpointError, SweepError, UnreadableError
from .in_turn import in_words, measure_each, restored
from .options import ProbeOptions
from .provenance import Provenance, origin_of
from .results.failures import keep_failures, listed, lost_layers, named, reasons, settle_failures
from .results.origins import check_origin
from .results.paths import shard_file
from .results.scores import MODEL_LAYER, Scores
from .results.shards import list_shards, prepare_store
from .results.store import open_store, write_step


def sweep(
    model: nn.Module,
    checkpoints: Mapping[int, Source] | Sequence[Source] | str | os.PathLike[str],
    probe_set: ProbeSet,
    *,
    out: str | Path,
    run: str = "run",
    overwrite: bool = False,
    weights_only: bool = True,
    key: str | None = None,
    load: Callable[[Path], Mapping[str, Any]] | None = None,
    shard: tuple[int, int] | None = None,
    **options: Unpack[ProbeOptions],
) -> Scores:
    """Probe the model with the weights of each checkpoint; what ``out`` holds already is not measured again.

    Layers and targets that steps there lack are added. ``PHASEFAST_PROGRESS=0`` silences the progress.

    Args:
        model: gives the architecture; left exactly as it was found.
        checkpoints: ``{step: state dict or path}``, a list of state dicts or of paths, or a folder;
            docs/checkpoints.md lists what can be read.
        out: directory whose ``scores/`` gets one Parquet shard per step, whole or not at all, and ``cache/`` what later
            sweeps of the same data and targets need not make again.
        run: label of the rows. weights_only: see ``torch.load``.
        key: the key, or prefix of names, under which checkpoints keep the weights, if there are several: ``"ema"``.
        load: ``path -> state dict``, for checkpoints that the package cannot read, or to take only some weights.
        overwrite: start over: once a checkpoint has been measured, remove the scores in ``out``, their ``phases.json``
            and pictures.
        shard: ``(i, n)``: only every n-th checkpoint, from the i-th on (0 to n - 1). In this way jobs with the same
            checkpoints and ``out`` share a sweep; they may be started again with another n.
        **options: see :class:`phasefast.ProbeOptions`.

    Returns:
        All scores of the given checkpoints, or of the shard's; those of earlier calls included.

    Raises:
        SweepError: some checkpoints failed; it names them and has them in ``failed``. All others have been measured and
            stored, or were not tried, since the first ones and the last cannot be used for the same reason.
        ArgumentError, DataError, LayerError, MemoryBudgetError, DependencyError: at the first checkpoint, if all would
            fail.
        StoreError: ``out`` cannot be written, or holds scores of another configuration or of another training, that is,
            of other weights, and no earlier step has the same weights.
    """
    every = order_checkpoints(checkpoints)
    ordered = share_of(every, shard)
    if shard is not None and overwrite:
        raise ArgumentError("overwrite=True with shard=: it would remove what other shards write; empty out= instead")
    if isinstance(model, nn.Module):  # else the engine says so
        check_copies(model, every)  # before anything is removed
    sweeper = Sweeper(
        model, probe_set, out, run=run, overwrite=overwrite, reader=Reader(weights_only, key, load), **options
    )
    failures = sweeper.measure(ordered)
    scores = sweeper.scores(ordered.keys())
    if failures:
        failed = in_words(failures, ordered)
        lines = "\n".join(f"  {line}" for line in listed(failed))
        stored = set(scores.steps) - failures.keys()
        are = "is" if len(stored) == 1 else "are"
        kept = f"the other {len(stored)} {are} stored in {out}" if stored else "none was measured"
        kept += f", so that {out} keeps what it had" if sweeper.overwrites else ""
        if before := sorted(set(scores.steps) & failures.keys()):
            kept += f"; {out} keeps what it had of step{'s' * (len(before) > 1)} {named(before)}"
        passing = [step for step, error in failures.items() if isinstance(error, (*PASSING, RuntimeError, MemoryError))]
        those = f" step{'s' * (len(passing) > 1)} {named(passing)}" if len(passing) < len(failures) else ""
        retry = f"; sweep again to retry{those}" if passing else ""
        raise SweepError(f"{len(failures)} of {len(ordered)} checkpoints failed, {kept}{retry}:\n{lines}", failed)
    return scores


class Sweeper:
    """Measures checkpoints that ``out`` does not hold yet; targets, layers and plan are made once.

    Args:
        model, probe_set, out, run, overwrite, **options: as for :func:`sweep`. reader: of the checkpoints.

    Attributes:
        count: of the measurements so far. overwrites: whether what ``out`` holds is to be removed, as it is once there
            is something to take its place.
    """

    def __init__(
        self,
        model: nn.Module,
        probe_set: ProbeSet,
        out: str | Path,
        *,
        run: str = "run",
        overwrite: bool = False,
        reader: Reader,
        **options: Any,
    ) -> None:
        if not isinstance(out, (str, os.PathLike)):
            raise ArgumentError(f"out: expected a directory, got {out!r}; pf.probe and PhaseTracker need none")
        self._engine, self._out, self._reader = Engine(model, probe_set, run, out, **options), out, reader
        engine, self._constants = self._engine, Constants(self._engine.model, out)
        prepare_store(out)
        self.overwrites = overwrite and bool(list_shards(out))
        self._stored = {} if self.overwrites else open_store(engine.store(out), overwrite)
        self._lost = lost_layers(out) if self._stored else {}
        engine.known = frozenset(layer for scores in self._stored.values() for layer in scores.layers)
        self.count = 0
        self._once = Once()
        self._measured = False
        self._provenance = Provenance(engine, reader, self._stored)

    @property
    def steps(self) -> list[int]:
        """All that are measured, those that ``out`` held included."""
        return sorted(self._stored)

    def scores(self, steps: Iterable[int]) -> Scores:
        """Of the given steps, those that are measured."""
        return Scores.concat([self._stored[step] for step in steps if step in self._stored])

    def measure(self, ordered: Mapping[int, Source], all_of_them: bool = False) -> dict[int, Exception]:
        """Measure and store the checkpoints that are not done; what failed, by step, which is stored too.

        The model is left as it was found. Those that are done are compared with what they were measured on.
        ``all_of_them``: as for ``measure_each``.

        Raises:
            As :func:`sweep` does, but SweepError.
        """
        new = dict[int, Exception]()
        with restored(self._engine):
            lacking = {step: self._lacking(step) for step in self._stored}
            todo = {step: source for step, source in ordered.items() if lacking.get(step, True)}
            failures, rewritten = self._provenance.compare(ordered, todo.keys())
            settle_failures(self._out, ordered.keys() - todo.keys() - failures.keys() - rewritten.keys())
            if not self._measured and not self.overwrites:
                self._check_origin(ordered)
            kept = set[int]()
            self._keep(rewritten, ordered, kept)

            def measure(step: int, source_hash: str | None) -> None:
                self._keep(new, todo, kept)  # a kill would lose it
                self._measure(lacking, step, source_hash, ordered)

            try:
                begun = not all(lacking.values())
                measure_each(self._engine, todo, self._reader, "sweeping", measure, new, begun, all_of_them)
            finally:
                self._keep(new, todo, kept)
            if not (self._measured or self.overwrites):
                self._constants.check()
        return failures | rewritten | new

    def _check_origin(self, sources: Mapping[int, Source]) -> None:
        """Take note of where the checkpoints come from, and compare it with what is known."""
        if (origin := origin_of(sources.values())) is not None:
            check_origin(self._out, origin, self._provenance.confirmed, self._stored.keys() <= self._provenance.equal)

    def _keep(self, failures: Mapping[int, Exception], sources: Mapping[int, Source], kept: set[int]) -> None:
        """Write down what failed, unless it is ``kept``, to which it is added; not beside what is to be removed."""
        if self.overwrites:
            return
        new = {step: error for step, error in failures.items() if step not in kept}
        # Such as do not fit may be another model's, where none fits.
        sure = {step: error for step, error in new.items() if self._provenance.confirmed or not _is_misfit(error)}
        if sure:
            failed = in_words(sure, sources)
            keep_failures(self._out, {k: replace(each, partial=k in self._stored) for k, each in failed.items()})
            kept.update(sure)

    def _measure(
        self, lacking: Mapping[int, list[str]], step: int, source_hash: str | None, sources: Mapping[int, Source]
    ) -> None:
        """Measure and store the checkpoint that is loaded, of a stored step what it lacks.

        Args: sources: of all checkpoints.
        """
        engine = self._engine
        if step in self._stored:
            self._provenance.check(step)
        scores = engine.measure(step, keep=not self._measured, only=lacking.get(step))  # the first tells what changes
        if not len(scores):  # all that was to be added is lost, which alone is to be written down
            scores = self._stored[step]
        elif source_hash is not None:
            scores = scores.with_column("source_hash", source_hash)
        if self.overwrites:
            open_store(engine.store(self._out), overwrite=True)
            self.overwrites = False
            self._check_origin(sources)
        if step not in self._stored and shard_file(self._out, step).exists():
            self._once.warn(
                f"{self._out}: another job has stored step {step} meanwhile: jobs that do the same work can share it, "
                "with shard=(i, n) (--shard)",
                about="another job",
            )
        if not self._measured and source_hash is not None:
            self._constants.keep()
            self._constants.check()
        scores = write_step(engine.store(self._out), scores, engine.lost)
        self._provenance.measured(step)
        self._stored[step], self._measured = scores, True
        self._lost[step] = {**reasons(engine.lost), **self._lost.get(step, {})}
        self.count += 1

    def _lacking(self, step: int) -> list[str]:
        """Modules, and ``"model"``, whose layers a stored step has no scores of, though they can be measured."""
        engine, lost = self._engine, self._lost.get(step, {})
        # What is not called by all batches is an error at first, where it is asked for by name.
        names = [name for name in engine.names if name not in lost or (name in engine.named and not lost[name])]
        lacking = engine.lacking(self._stored[step], names, lost)
        return [name for name in lacking if name in self._usable] if lacking else []

    @cached_property
    def _usable(self) -> list[str]:
        """Modules that can be measured, as far as the model tells before it has the weights of a checkpoint."""
        try:
            return self._engine.modules
        except Exception:  # then these may be what it lacks
            return [*self._engine.names, MODEL_LAYER]


def share_of(ordered: Mapping[int, Source], shard: tuple[int, int] | None) -> dict[int, Source]:
    """Every n-th checkpoint from the i-th on, where a shard (i, n) is given."""
    if shard is None:
        return dict(ordered)
    try:
        index, count = map(operator.index, shard)
    except (TypeError, ValueError):
        index, count = 0, 0
    if not 0 <= index < count:
        raise ArgumentError(f"shard: expected integers (i, n) with 0 <= i < n, got {shard!r}")
    return dict(list(ordered.items())[index::count])


def _is_misfit(error: Exception) -> bool:
    """Whether a checkpoint can be read, but not be used."""
    return isinstance(error, CheckpointError) and not isinstance(error, UnreadableError)
