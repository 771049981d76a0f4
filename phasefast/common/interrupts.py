"""The user's interrupts, Ctrl-C or a notebook's stop, wait while a model is not as it was found."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class _Held:
    """Handles interrupts meanwhile: the first waits to be let through, a second one does not."""

    def __init__(self, before: Callable[[int, FrameType | None], Any]) -> None:
        self._before, self._waits = before, False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._waits or _current is not self:
            self._waits = False
            self._before(number, frame)
        else:
            self._waits = True

    def let_through(self) -> None:
        if self._waits:
            self._waits = False
            self._before(signal.SIGINT, None)


_current: _Held | None = None


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Interrupts of the main thread wait for :func:`let_interrupts_through`, or the end of the block.

    Python would raise KeyboardInterrupt between any two instructions, in the middle of what puts things back too. A
    second one does not wait.
    """
    global _current
    before = signal.getsignal(signal.SIGINT) if _in_main_thread() else None
    if _current is not None or not callable(before):  # held already, ignored, or not Python's to handle
        yield
        return
    own = _current = _Held(before)
    signal.signal(signal.SIGINT, own)
    try:
        yield
    finally:
        _current = None
        if _in_main_thread() and signal.getsignal(signal.SIGINT) is own:
            signal.signal(signal.SIGINT, before)
        own.let_through()


def let_interrupts_through() -> None:
    """Where one may end what is done: between batches, and between the layers that are decoded."""
    if _current is not None and _in_main_thread():
        _current.let_through()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
