"""Where texts are printed: as they are, without markup, so that names and paths may have brackets in them."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

from rich.console import Console

_LINE = 160  # letters, where no terminal has a width of its own
# In a notebook too on the stream that is asked for, not as an output of its own for each line.
_PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "emoji": False, "force_jupyter": False}


class _Stream:
    """A stream that certain errors make one that nobody reads any more, as a broken pipe does."""

    def __init__(self, stream: IO[str], errors: tuple[int, ...]) -> None:
        self._stream, self._errors = stream, errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._told():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._told():
            self._stream.flush()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in self._errors:
                raise BrokenPipeError from error
            raise


class _Lasting(Console):
    """Where nobody reads any more, the work goes on in silence."""

    _lost: tuple[int, ...] = (errno.EIO, errno.ENOSPC, errno.EDQUOT)  # a terminal that is gone, a full disk

    @property  # type: ignore[misc]
    def file(self) -> IO[str]:
        return _Stream(super().file, self._lost)  # type: ignore[return-value]

    def on_broken_pipe(self) -> None:
        self.quiet = True


class _Results(_Lasting):
    """So that ``report | head`` writes its files too; that results find no room on a disk is an error."""

    _lost = (errno.EIO,)

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
