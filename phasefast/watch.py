"""Measure checkpoints as a training that runs elsewhere writes them."""

from __future__ import annotations

import contextlib
import glob
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from .checkpoints import Reader, as_revision, by_only_file, find_checkpoints, weights_files
from .common.notices import warn
from .common.scalars import as_float
from .data.probe_set import ProbeSet
from .errors import ArgumentError, CheckpointError, RewrittenError, TwiceError, with_notes
from .options import ProbeOptions
from .results.scores import Scores
from .sweep import Sweeper

_TRIES = 3
_Written = tuple[tuple[int, int], ...]


def watch(
    model: nn.Module,
    folder: str | os.PathLike[str],
    probe_set: ProbeSet,
    *,
    out: str | Path,
    every: float = 60.0,
    run: str = "run",
    weights_only: bool = True,
    key: str | None = None,
    load: Callable[[Path], Mapping[str, Any]] | None = None,
    **options: Unpack[ProbeOptions],
) -> Iterator[Scores]:
    """Sweep a folder again and again; yields all scores so far whenever it has measured new ones, and at first.

    They include those that ``out`` held in the beginning. It never ends by itself: leave the loop when you have seen
    enough. A checkpoint that cannot be read may still be being written: a warning names it, and it is tried twice more,
    since a disk may fail, and again once it has changed. A checkpoint that changes after it was measured is named in a
    warning; if no earlier one is as it was, it belongs to another training, which is an error.

    Args:
        folder: of checkpoints, or a glob of them; may still be empty. every: seconds between two looks.
        model, probe_set, out, run, weights_only, key, load, **options: as for :func:`phasefast.sweep`.

    Raises:
        CheckpointError: there is no such folder, or a step occurs twice; later on that is a warning.
        All errors of :func:`phasefast.sweep`, except SweepError.
    """
    if not 0 <= as_float(every) < math.inf:
        raise ArgumentError(f"every: expected seconds >= 0, got {every!r}")
    if as_revision(folder) is not None:
        raise CheckpointError(f"{folder}: expected a folder to watch; sweep measures what is on the Hub")
    place = Path(folder)
    while glob.has_magic(os.fspath(place)) and not place.is_dir():
        place = place.parent
    if not place.is_dir():
        raise CheckpointError(f"{folder}: expected a folder to watch, or a glob; create the folder first")
    if isinstance(out, (str, os.PathLike)):
        out = Path(out).absolute()  # the caller may change the directory between two looks
    sweeper = Sweeper(model, probe_set, out, run=run, reader=Reader(weights_only, key, load), **options)
    here = Path.cwd() if Path(folder).is_dir() else Path(glob.escape(os.getcwd()))
    return _rounds(sweeper, here / folder, every)


def _rounds(sweeper: Sweeper, folder: str | os.PathLike[str], every: float) -> Iterator[Scores]:
    known: dict[int, _Written] = {}
    last: dict[int, _Written] = {}
    tries: Counter[tuple[int, _Written]] = Counter()
    seen: list[int] | None = None
    count = 0
    while True:
        found = _found(folder, first=seen is None)
        written = {step: _written(path) for step, path in found.items()}  # before they are read
        # Steps that are measured and written again are compared with what they were, once nothing changes any more.
        steady = {step for step in found if seen is None or step not in seen or last.get(step) == written[step]}
        # A new folder may get a second file, which would make it a question which of them to read.
        new = list(found)[-1:] if seen is None else [step for step in found if step not in seen]
        steady -= {step for step in new if by_only_file(found[step]) and last.get(step) != written[step]}
        ready = {step: found[step] for step in steady if known.get(step) != written[step]}
        last = written
        known |= {step: written[step] for step in ready}
        for step, error in sweeper.measure(ready, all_of_them=True).items() if ready else ():
            if isinstance(error, RewrittenError):  # which another look would not mend
                warn(with_notes(error))
                continue
            tries[step, written[step]] += 1
            if tries[step, written[step]] == 1:
                warn(
                    f"step {step} is tried {_TRIES - 1} more times, and again once it has changed: {with_notes(error)}"
                )
            if tries[step, written[step]] < _TRIES:  # a disk may fail once
                del known[step]
        if sweeper.count > count or (seen is None and sweeper.steps):
            yield sweeper.scores(sweeper.steps)
        seen, count = sweeper.steps, sweeper.count
        time.sleep(every)


def _found(folder: str | os.PathLike[str], first: bool) -> dict[int, Path]:
    """The checkpoints there are; of what is wrong with the folder later on, a warning."""
    try:
        return find_checkpoints(folder)
    except CheckpointError as error:
        if first:
            raise
        warn(f"waiting: {error}")
        return dict(error.others) if isinstance(error, TwiceError) else {}


def _written(path: Path) -> _Written:
    """When those files of a checkpoint were written that are there, in ns, and their sizes."""
    found = []
    with contextlib.suppress(CheckpointError):  # an index that is still being written
        for file in weights_files(path):
            with contextlib.suppress(OSError):
                stat = file.stat()
                found.append((stat.st_mtime_ns, stat.st_size))
    return tuple(found)
