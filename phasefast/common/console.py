"""Where texts are printed: as they are, without markup, so that names and paths may have brackets in them."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from rich.console import Console

_LINE = 160  # letters, where no terminal has a width of its own
# In a notebook too on the stream that is asked for, not as an output of its own for each line.
_PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "emoji": False, "force_jupyter": False}


class _Lasting(Console):
    """Where nobody reads any more, the work goes on in silence."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class _Results(_Lasting):
    """So that ``report | head`` writes its files too."""

    def on_broken_pipe(self) -> None:
        super().on_broken_pipe()
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:  # but streams without a file
            os.dup2(nowhere.fileno(), self.file.fileno())  # for what is buffered still


def of_work() -> Console:
    """Standard error, for progress and warnings."""
    return _Lasting(stderr=True, **_PLAIN)


def of_results() -> Console:
    """Standard output; lines are long in a file or a pipe, unless COLUMNS says otherwise."""
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _LINE
    return _Results(width=wide, **_PLAIN)
