"""Progress of long work: a bar with an ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .console import of_work

# Lines before which there is no pause; seconds between later ones, at least and at most, but for the last one. There
# are about so many in most logs, and as many of what failed are not waited with.
_FIRST, _PAUSE, _LONGEST, _LINES = 20, 1.0, 60.0, 100
Update = Callable[[int, str], None]


@contextmanager
def progress(what: str, total: int, unit: str, console: Console | None = None) -> Iterator[Update]:
    """Show how far work has come, unless ``PHASEFAST_PROGRESS=0``; yields ``update(done, note)``.

    Args:
        what: such as ``"training"``. unit: plural of what is counted. console: standard error by default.
    """
    if os.environ.get("PHASEFAST_PROGRESS") == "0":
        yield lambda done, note: None
        return
    console = console or of_work()
    if console.is_terminal:
        columns = (
            TextColumn(what, markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(what, total=total, note="")
            yield lambda done, note: bar.update(task, completed=done, note=note)
        return
    start, told, lines = time.perf_counter(), -math.inf, 0

    def line(done: int, note: str) -> None:
        nonlocal told, lines
        now = time.perf_counter()
        pause = min(max((now - start) / _LINES, _PAUSE), _LONGEST)
        failed = "failed" in note and lines < _LINES
        if lines >= _FIRST and done < total and now - told < pause and not failed:
            return
        told, lines, left = now, lines + 1, (now - start) / max(done, 1) * (total - done)
        text = ", ".join(part for part in (f"{what} {done}/{total} {unit}", note, f"ETA {left:.0f} s") if part)
        console.print(text, soft_wrap=True)

    yield line
