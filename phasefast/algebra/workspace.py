"""Memory of large matrices on the CPU, kept from one measurement to the next."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import threading
import weakref
from collections import deque
from contextvars import ContextVar, Token
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_UNIT = 1 << 16  # bytes that places are multiples of
_SLACK = 1.25  # times what was in use at one time: free places between others may be too small
_HUGE_PAGES = hasattr(mmap, "MADV_HUGEPAGE")
_current: ContextVar[Workspace | None] = ContextVar("workspace", default=None)
_all = weakref.WeakSet["Workspace"]()


@dataclass
class _Range:
    """Free bytes; ``clean``: they take no memory."""

    start: int
    stop: int
    clean: bool


class Workspace:
    """Inside ``with workspace:`` large matrices take the places of those that were freed.

    Memory that goes back to the system is cleared before it is used again, and the host of a virtual machine may have
    to find it anew, which takes longer than to fill it. At most a quarter more is kept than was in use at one time.

    Args:
        limit: bytes beyond which free memory is not kept.
    """

    def __init__(self, limit: float = math.inf) -> None:
        self._limit = limit
        self._pages: mmap.mmap | None = None
        self._rationed = False  # once found out, not asked for every matrix
        self._free: list[_Range] = []  # ascending; neighbours differ in kind
        self._used = self._most = 0  # bytes now, and at most so far
        self._returned = deque[_Range]()
        self._lock = threading.Lock()
        self._tokens: list[Token[Workspace | None]] = []
        _all.add(self)

    def __enter__(self) -> Workspace:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _current.reset(self._tokens.pop())

    def __reduce__(self) -> tuple[type[Workspace], tuple[float]]:
        """A copy, such as another process gets of a tracker, has memory of its own."""
        return Workspace, (self._limit,)

    @property
    def kept(self) -> int:
        """Bytes of memory that it holds for matrices, in use or not."""
        with self._lock:
            self._take_back()
            return self._held()

    def take(self, count: int) -> memoryview | None:
        """So many bytes until nothing refers to them; None where the system lends no address space."""
        size = -(-count // _UNIT) * _UNIT
        with self._lock:
            if self._pages is None and not self._rationed:
                self._rationed = not self._reserve()
            if self._pages is None:
                return None
            self._take_back()
            start = self._fitting(size)
            if start is None:
                return None
            self._cut(start, start + size)
            self._used += size
            self._most = max(self._most, self._used)
            if self._held() > min(_SLACK * self._most, self._limit):
                self._clean()
            view = memoryview(self._pages)[start : start + count]
        weakref.finalize(view, self._freed, start, start + size).atexit = False
        return view

    def _freed(self, start: int, stop: int) -> None:
        """Called at any time, by any thread, in the midst of ``take`` too: so it changes nothing but the queue."""
        part = _Range(start, stop, clean=False)
        if self._used > self._limit:
            self._empty(part)
        self._returned.append(part)

    def _reserve(self) -> bool:
        """Address space for all the memory there is, which takes none of it yet; not where it is rationed."""
        import resource  # not on Windows

        if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY or _counted():
            return False
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _UNIT * _UNIT
        self._pages = huge_pages(size)
        self._free = [_Range(0, size, clean=True)]
        return self._pages is not None

    def give_back(self) -> None:
        """Give all that is free back to the system."""
        with self._lock:
            self._take_back()
            self._clean()

    def _held(self) -> int:
        return self._used + sum(part.stop - part.start for part in self._free if not part.clean)

    def _take_back(self) -> None:
        if not self._returned:
            return
        while self._returned:
            part = self._returned.popleft()
            self._used -= part.stop - part.start
            self._free.append(part)
        self._merge()

    def _merge(self) -> None:
        merged: list[_Range] = []
        for part in sorted(self._free, key=lambda part: part.start):
            if merged and merged[-1].stop == part.start and merged[-1].clean == part.clean:
                merged[-1].stop = part.stop
            else:
                merged.append(part)
        self._free = merged

    def _fitting(self, size: int) -> int | None:
        """The lowest start of so many free bytes side by side."""
        start = stop = 0
        for part in self._free:
            start, stop = start if part.start == stop else part.start, part.stop
            if stop - start >= size:
                return start
        return None

    def _cut(self, start: int, stop: int) -> None:
        left = []
        for part in self._free:
            before = _Range(part.start, min(part.stop, start), part.clean)
            after = _Range(max(part.start, stop), part.stop, part.clean)
            left += [rest for rest in (before, after) if rest.start < rest.stop]
        self._free = left

    def _clean(self) -> None:
        for part in self._free:
            if not part.clean:
                self._empty(part)
        self._merge()

    def _empty(self, part: _Range) -> None:
        assert self._pages is not None
        with contextlib.suppress(OSError):  # of memory that is locked: it stays as it is
            self._pages.madvise(mmap.MADV_DONTNEED, part.start, part.stop - part.start)
            part.clean = True


def take(count: int) -> memoryview | mmap.mmap | None:
    """So many bytes, of the workspace in use or else of their own; None where the system has no huge pages to lend.

    Otherwise the system hands out, and clears, large matrices in pages of 4 kB: a tenth of the time of solving.
    """
    if not _HUGE_PAGES:
        return None
    workspace = _current.get()
    return (workspace.take(count) if workspace is not None else None) or huge_pages(count)


def give_back() -> None:
    """Give back what is free in the workspace in use: before a library allocates as much itself."""
    if (workspace := _current.get()) is not None:
        workspace.give_back()


def huge_pages(count: int) -> mmap.mmap | None:
    """So many bytes of their own, in huge pages where the kernel has them; None where the system lends none."""
    try:
        pages = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # no memory, of which torch has more to say
        return None
    with contextlib.suppress(OSError):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def _counted() -> bool:
    """Whether address space counts as memory (vm.overcommit_memory)."""
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2"
    except OSError:
        return False


def _before_fork() -> None:
    """Workers would keep the pages that are free here when these are written anew: each would be there twice."""
    for workspace in list(_all):
        workspace.give_back()


if _HUGE_PAGES:
    os.register_at_fork(before=_before_fork)
