"""What becomes of texts that nobody can read."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable

import pytest
from rich.console import Console
from typer.testing import CliRunner

from phasefast.cli import app
from phasefast.common.console import of_results, of_work, put
from phasefast.common.progress import progress
from phasefast.errors import StoreError


class Refusing(io.StringIO):
    """A stream that cannot be written."""

    def __init__(self, error: int, terminal: bool = False) -> None:
        super().__init__()
        self.error, self.terminal = error, terminal

    def write(self, text: str) -> int:
        raise OSError(self.error, os.strerror(self.error))

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("error", [errno.EPIPE, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("terminal", [False, True])
def test_work_goes_on_where_progress_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, error: int, terminal: bool
) -> None:
    monkeypatch.delenv("PHASEFAST_PROGRESS", raising=False)
    monkeypatch.setattr(sys, "stderr", Refusing(error, terminal))
    done = []
    with progress("working", 3, "parts") as update:
        for part in range(3):
            update(part + 1, "")
            done.append(part)
    of_work().print("a warning")
    assert done == [0, 1, 2]


@pytest.mark.parametrize(
    ("console", "stream", "error", "raised"),
    [
        (of_results, "stdout", errno.EPIPE, False),
        (of_results, "stdout", errno.EIO, False),
        (of_results, "stdout", errno.ENOSPC, True),
        (of_results, "stdout", errno.EBADF, True),
        (of_results, "stdout", errno.EDQUOT, True),
        (of_work, "stderr", errno.EBADF, False),
        (of_work, "stderr", errno.EAGAIN, False),
    ],
)
def test_results_without_room_are_an_error(
    monkeypatch: pytest.MonkeyPatch, console: Callable[[], Console], stream: str, error: int, raised: bool
) -> None:
    monkeypatch.setattr(sys, stream, Refusing(error))
    if not raised:
        console().print("a table")
        return
    with pytest.raises(StoreError, match=f"cannot write to standard output: {os.strerror(error)}"):
        console().print("a table")


def test_commands_say_that_there_is_no_room_for_their_results(monkeypatch: pytest.MonkeyPatch) -> None:
    full = type(of_results())(file=Refusing(errno.ENOSPC))
    monkeypatch.setattr("phasefast.cli.reporting.of_results", lambda: full)
    found = CliRunner().invoke(app, ["info"])
    assert (found.exit_code, found.stderr) == (
        1,
        f"error: cannot write to standard output: {os.strerror(errno.ENOSPC)}\n",
    )
    assert isinstance(CliRunner().invoke(app, ["--debug", "info"]).exception, StoreError)


@pytest.mark.parametrize(("error", "raised"), [(errno.EPIPE, False), (errno.ENOSPC, True)])
def test_tables_for_other_programs_are_results_too(monkeypatch: pytest.MonkeyPatch, error: int, raised: bool) -> None:
    monkeypatch.setattr(sys, "stdout", Refusing(error))
    if not raised:
        put("a,b\n")
        return
    with pytest.raises(StoreError, match=f"cannot write to standard output: {os.strerror(error)}"):
        put("a,b\n")


def test_tables_for_other_programs_are_written_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[bold]name[/bold],\t:smile:" + "x" * 300 + "\n"
    put(text)
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(("console", "stream"), [(of_results, "stdout"), (of_work, "stderr")])
def test_letters_that_a_stream_has_not_are_spelled(
    monkeypatch: pytest.MonkeyPatch, console: Callable[[], Console], stream: str
) -> None:
    kept = io.BytesIO()
    monkeypatch.setattr(sys, stream, io.TextIOWrapper(kept, encoding="ascii"))
    for text in ("layer schön", "layer next"):
        console().print(text)
    getattr(sys, stream).flush()
    assert kept.getvalue().decode() == "layer sch\\xf6n\nlayer next\n"


def test_streams_that_are_closed_or_none_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        of_work().print("a warning")
    monkeypatch.setattr(sys, "stdout", None)
    of_results().print("a table")
    put("a,b\n")
