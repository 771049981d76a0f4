"""The user's interrupts, Ctrl-C or a notebook's stop, wait while a model is not as it was found."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class _Held:
    """Handles interrupts meanwhile: the first one waits to be let through, until then or a second one.

    What is installed tells alone whether any wait: there is no other state that an interrupt could leave behind.

    Attributes:
        free: whether none has to wait just now. over: whether none has to any more.
    """

    def __init__(self, before: Callable[[int, FrameType | None], Any]) -> None:
        self._before, self._process = before, os.getpid()
        self.free = self.over = False
        self._waiting: tuple[int, FrameType | None] | None = None

    @property
    def holds(self) -> bool:
        """Whether it does: not in a process that was forked meanwhile."""
        return not self.over and self._process == os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._waiting is None and self.holds and not self.free:
            self._waiting = number, frame
            return
        free, self.free = self.free, False  # what is put back on the way out is not to be interrupted
        self.let_through()
        self._before(number, frame)
        self.free = free  # as nothing was raised

    def let_through(self) -> None:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._before(*waiting)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Interrupts of the main thread wait for :func:`let_interrupts_through`, or the end of the block.

    Python would raise KeyboardInterrupt between any two instructions, in the middle of what puts things back too. A
    second one does not wait.
    """
    before = signal.getsignal(signal.SIGINT) if _in_main_thread() else None
    if _holder() is not None or not callable(before):  # held already, ignored, or not Python's to handle
        yield
        return
    own = _Held(before)
    try:
        with contextlib.suppress(ValueError):  # of an interpreter inside another
            signal.signal(signal.SIGINT, own)
        yield
    finally:
        if _in_main_thread() and signal.getsignal(signal.SIGINT) is own:
            signal.signal(signal.SIGINT, before)
        own.over = True
        own.let_through()


def let_interrupts_through() -> None:
    """Where one may end what is done, as nothing is half done: between batches, chunks of rows, and layers."""
    if (own := _holder()) is not None:
        own.let_through()


@contextlib.contextmanager
def interrupts_free() -> Iterator[None]:
    """Inside a block that holds them none waits, as while files are read, or waited for."""
    own = _holder()
    if own is None or own.free:
        yield
        return
    own.free = True
    try:
        own.let_through()
        yield
    finally:
        own.free = False


def _holder() -> _Held | None:
    """What holds interrupts of this thread."""
    handler = signal.getsignal(signal.SIGINT) if _in_main_thread() else None
    return handler if isinstance(handler, _Held) and handler.holds else None


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
