"""Where texts are printed: as they are, without markup, so that names and paths may have brackets in them."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import IO, Any

from rich.console import Console

from ..errors import StoreError

_LINE = 160  # letters, where no terminal has a width of its own
# In a notebook too on the stream that is asked for, not as an output of its own for each line.
_PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "emoji": False, "force_jupyter": False}


class _Stream:
    """A stream of a console: what becomes of errors when it is written."""

    def __init__(self, stream: IO[str], handled: Callable[[], AbstractContextManager[None]]) -> None:
        self._stream, self._handled = stream, handled

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        with self._handled():
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:  # names that the stream has no letters for
                encoding: str = getattr(self._stream, "encoding", None) or error.encoding
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def flush(self) -> None:
        with self._handled():
            self._stream.flush()


class _Lasting(Console):
    """Where nobody reads any more, the work goes on in silence: a pipe is broken, a terminal gone, a disk full."""

    @property  # type: ignore[misc]
    def file(self) -> IO[str]:
        return _Stream(super().file, self._handled)  # type: ignore[return-value]

    @staticmethod
    @contextmanager
    def _handled() -> Iterator[None]:
        try:
            yield
        except BlockingIOError:
            pass  # the next one may find a reader
        except (OSError, ValueError) as error:  # ValueError: it is closed
            raise BrokenPipeError from error

    def on_broken_pipe(self) -> None:
        self.quiet = True


class _Results(_Lasting):
    """So that ``report | head`` writes its files too; results that find no room are an error."""

    @staticmethod
    @contextmanager
    def _handled() -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO):
                raise BrokenPipeError from error
            why = error.strerror if isinstance(error, OSError) else None
            raise StoreError(f"cannot write to standard output: {why or error}") from error

    def on_broken_pipe(self) -> None:
        super().on_broken_pipe()
        with suppress(OSError, ValueError, AttributeError), open(os.devnull, "w") as nowhere:  # streams without a file
            os.dup2(nowhere.fileno(), self.file.fileno())  # for what is buffered still


def of_work() -> Console:
    """Standard error, for progress and warnings."""
    return _Lasting(stderr=True, **_PLAIN)


def of_results() -> Console:
    """Standard output; lines are long in a file or a pipe, unless COLUMNS says otherwise."""
    seen = sys.stdout is not None and sys.stdout.isatty()
    wide = None if seen or "COLUMNS" in os.environ else _LINE
    return _Results(width=wide, **_PLAIN)


def put(text: str) -> None:
    """Write to standard output exactly this, which other programs may read."""
    console = of_results()
    try:
        console.file.write(text)
        console.file.flush()
    except BrokenPipeError:
        console.on_broken_pipe()
