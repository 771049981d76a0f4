"""Names chosen by globs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

_NOT = "!"


def chosen(
    names: Sequence[str], patterns: Sequence[str], default: Callable[[], Sequence[str]] | None = None
) -> list[str]:
    """Those of ``names`` that match a pattern, but none that begins with ``!``, in their own order.

    Args:
        default: gives what is chosen from where every pattern begins with ``!``; all names by default.
    """
    wanted = [pattern for pattern in patterns if not pattern.startswith(_NOT)]
    without = [pattern[len(_NOT) :] for pattern in patterns if pattern.startswith(_NOT)]
    if wanted:
        start: Sequence[str] = [name for name in names if _matches(name, wanted)]
    else:
        start = names if default is None else default()
    return [name for name in start if not _matches(name, without)]


def idle(names: Sequence[str], patterns: Iterable[str]) -> str | None:
    """The first pattern that matches no name, if there is one."""
    return next((each for each in patterns if not any(fnmatchcase(n, each.removeprefix(_NOT)) for n in names)), None)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
