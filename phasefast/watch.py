"""Measure checkpoints as a training that runs elsewhere writes them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from torch import nn

from .checkpoints import find_checkpoints, weights_files
from .engine import ProbeOptions
from .errors import CheckpointError
from .notices import warn
from .scores import Scores
from .stages.probe_set import ProbeSet
from .sweep import Sweeper

_Written = list[tuple[int, int]]


def watch(
    model: nn.Module,
    folder: str | os.PathLike[str],
    probe_set: ProbeSet,
    *,
    out: str | Path,
    every: float = 60.0,
    run: str = "run",
    weights_only: bool = True,
    **options: Unpack[ProbeOptions],
) -> Iterator[Scores]:
    """Sweep a folder again and again; yields all scores in ``out`` at first and whenever there are new ones.

    It never ends by itself: leave the loop when you have seen enough. A checkpoint that cannot be read is perhaps still
    being written: a warning names it, and it is tried again once it has changed.

    Args:
        folder: of checkpoints; may be empty still. every: seconds between two looks.
        model, probe_set, out, run, weights_only, **options: as for :func:`phasefast.sweep`.

    Raises:
        CheckpointError: there is no such folder, or a step is there twice.
        And as :func:`phasefast.sweep` does, but SweepError.
    """
    if not Path(folder).is_dir():
        raise CheckpointError(f"{folder}: expected a folder to watch; make it first")
    sweeper = Sweeper(model, probe_set, out, run=run, weights_only=weights_only, **options)
    return _rounds(sweeper, folder, every)


def _rounds(sweeper: Sweeper, folder: str | os.PathLike[str], every: float) -> Iterator[Scores]:
    failed: dict[int, _Written] = {}
    seen: list[int] = []
    while True:
        found = find_checkpoints(folder)
        written = {step: _written(path) for step, path in found.items()}  # before they are read
        ready = {step: path for step, path in found.items() if failed.get(step) != written[step]}
        for step, error in sweeper.measure(ready).items():
            failed[step] = written[step]
            warn(f"step {step} is tried again when it has changed: {error}")
        if sweeper.steps != seen:
            seen = sweeper.steps
            yield sweeper.scores(seen)
        time.sleep(every)


def _written(path: Path) -> _Written:
    """When those files of a checkpoint were written that are there, in ns, and their sizes."""
    found = []
    with contextlib.suppress(CheckpointError):  # an index that is still being written
        for file in weights_files(path):
            with contextlib.suppress(OSError):
                stat = file.stat()
                found.append((stat.st_mtime_ns, stat.st_size))
    return found
