"""The command that measures checkpoints: all of a folder, a share of them, or as they arrive."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ..checkpoints import order_checkpoints
from ..checkpoints.sources import Source
from ..common.console import of_results
from ..common.tables import aligned, counted
from ..errors import ArgumentError
from ..in_turn import name_of
from ..phases.detect import detect_phases
from ..results.failures import read_failures
from ..results.shards import list_shards
from ..sweep import share_of, sweep
from ..watch import watch
from .app import Checkpoints, Key, Load, Model, Samples, Targets, Trust, app
from .measuring import measuring
from .names import load_function, load_model, load_probe_set, load_targets


@app.command("sweep")
@measuring()
def sweep_command(
    model: Model,
    checkpoints: Checkpoints,
    probe_set: Samples,
    out: Annotated[Path, typer.Option(help="Directory for the scores; what it holds is not measured again.")] = Path(
        "runs/sweep"
    ),
    run: Annotated[str, typer.Option(help="Label of the rows.")] = "run",
    target: Targets = None,
    options: Any = None,
    key: Key = None,
    load: Load = None,
    shard: Annotated[
        str | None, typer.Option(help="i/n: every n-th checkpoint from the i-th on, from 0; torchrun's by default.")
    ] = None,
    watch_every: Annotated[
        float | None, typer.Option("--watch", min=0, help="Keep looking for new checkpoints, every this many seconds.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start over.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the checkpoints with their steps, and what --out has of them.")
    ] = False,
    trust: Trust = False,
) -> None:
    """Measure every checkpoint of a training, once; several jobs may share the work."""
    share = _shard(shard)
    if dry_run:
        _list(share_of(order_checkpoints(checkpoints), share), out, overwrite, of_results())
        return
    if watch_every is not None and (share is not None or overwrite):
        raise ArgumentError("--watch runs alone and keeps what is stored: leave out --shard, torchrun and --overwrite")
    samples = load_probe_set(probe_set)
    options["targets"] = load_targets(target, samples, options["tokens"] == "each") if target else None
    inputs = load_model(model), checkpoints, samples
    options |= {"key": key, "load": load_function(load) if load else None}
    console = of_results()
    if watch_every is None:
        options |= {"overwrite": overwrite, "weights_only": not trust, "shard": share}
        with _told_when_stopped(out, console):
            found = sweep(*inputs, out=out, run=run, **options)
        part = f"share {share[0]} of {share[1]}: " if share else ""
        stored = len(list_shards(out))
        more = stored - len(found.steps)  # of another share, or whose files are gone
        were = "was" if more == 1 else "were"
        others = f", beside {more} more that {were} measured earlier or by other jobs" if more > 0 else ""
        these = "1 checkpoint is" if len(found.steps) == 1 else f"{len(found.steps)} checkpoints are"
        text = f"{part}{these} in {out}{others}; see phasefast report {out}"
        console.print(text, soft_wrap=True)
        return
    with _told_when_stopped(out, console):
        for scores in watch(*inputs, out=out, every=watch_every, run=run, weights_only=not trust, **options):
            console.print(f"{len(scores.steps)} checkpoints to step {scores.steps[-1]}")
            if len(scores.steps) > 1:
                console.print(str(detect_phases(scores)), soft_wrap=True)


def _list(sources: Mapping[int, Source], out: Path, overwrite: bool, console: Console) -> None:
    """The checkpoints by step, and what is known of each."""
    stored = set() if overwrite else list_shards(out).keys() & sources.keys()
    failed = {} if overwrite else read_failures(out)
    lines = list[tuple[str, ...]]()
    for step, source in sources.items():
        state = "stored" if step in stored else "to measure"
        if step in failed:
            state += ", in part" if step in stored else ", failed before"
        lines.append((str(step), name_of(step, source), state))
    left = len(sources) - len(stored)
    summary = f"{counted(len(sources), 'checkpoint')}: {len(stored)} stored in {out}, {left} to measure"
    for line in [*aligned(lines, left={1, 2}), summary]:  # not a table, which would break paths where it is narrow
        console.print(Text(line), soft_wrap=True)


@contextlib.contextmanager
def _told_when_stopped(out: Path, console: Console) -> Iterator[None]:
    """Say what is there where the user stops the work."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"stopped; {out} has {len(list_shards(out))} checkpoints, run again to continue", soft_wrap=True)
        raise


def _shard(given: str | None) -> tuple[int, int] | None:
    """The share of this job: of ``i/n``, or of torchrun's processes."""
    if given is None:
        given = "{RANK}/{WORLD_SIZE}".format_map(os.environ) if {"RANK", "WORLD_SIZE"} <= os.environ.keys() else "0/1"
    match = re.fullmatch(r"(\d+)/(\d+)", given)
    if match is None:
        raise ArgumentError(f"--shard: expected i/n, such as 0/4, got {given!r}")
    share = int(match[1]), int(match[2])
    return None if share == (0, 1) else share
