"""Names chosen by globs."""

from __future__ import annotations

import glob
from collections.abc import Callable, Collection, Iterable, Sequence
from fnmatch import fnmatchcase

_NOT = "!"


def chosen(
    names: Sequence[str], patterns: Sequence[str], default: Callable[[], Sequence[str]] | None = None
) -> list[str]:
    """Those of ``names`` that match a pattern, but none that begins with ``!``, in their own order.

    A pattern that is one of the names, but for a ``!`` before it, means that one.

    Args:
        default: gives what is chosen from where every pattern begins with ``!``; all names by default.
    """
    known = set(names)
    wanted = [_glob(pattern, known) for pattern in patterns if not pattern.startswith(_NOT)]
    without = [_glob(pattern[len(_NOT) :], known) for pattern in patterns if pattern.startswith(_NOT)]
    if wanted:
        start: Sequence[str] = [name for name in names if _matches(name, wanted)]
    else:
        start = names if default is None else default()
    return [name for name in start if not _matches(name, without)]


def idle(names: Sequence[str], patterns: Iterable[str]) -> str | None:
    """The first pattern that matches no name, if there is one."""
    known = set(names)
    for pattern in patterns:
        wanted = _glob(pattern.removeprefix(_NOT), known)
        if not any(fnmatchcase(name, wanted) for name in names):
            return pattern
    return None


def _glob(pattern: str, names: Collection[str]) -> str:
    return glob.escape(pattern) if pattern in names else pattern


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
