"""Warnings that point at the user's own line."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_INSIDE = re.compile(rf"({__name__.partition('.')[0]}|contextlib|torch\._dynamo)\b")
_NUMBERS = re.compile(r"\d+")
_MOST, _LISTED = 5, 20  # names that are shown, reasons
_HELD = threading.local()


def warn(text: str) -> None:
    """A RuntimeWarning at the line outside the package that led here."""
    if (texts := getattr(_HELD, "texts", None)) is not None:
        texts.append(text)
        return
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _INSIDE.match(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, RuntimeWarning, stacklevel=level)


class Once:
    """Warnings that are given but once."""

    def __init__(self) -> None:
        self._told = set[str]()

    def warn(self, text: str, about: str = "") -> None:
        """Warn, unless it was done with the same text, or ``about`` the same."""
        if (about or text) not in self._told:
            self._told.add(about or text)
            warn(text)


@contextlib.contextmanager
def held() -> Iterator[list[str]]:
    """The warnings of this thread are kept, for the one that waits for it: there is no line of the user's in this."""
    before, texts = getattr(_HELD, "texts", None), list[str]()
    _HELD.texts = texts
    try:
        yield texts
    finally:
        _HELD.texts = before


def shown(names: Iterable[Any]) -> str:
    """Names as part of a message, the first few of many, in the order of the letters and numbers in them."""
    return few(sorted(names, key=_letters_and_numbers))


def listed_reasons(reasons: Mapping[str, Exception]) -> str:
    """Why layers are left out, by name; of many those of one kind, such as experts, share the first one's reason."""
    kinds: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        kind = _NUMBERS.sub("", f"{reason}".replace(repr(name), "", 1)) if len(reasons) > _LISTED else name
        kinds.setdefault(kind, []).append(name)
    several = [(f"; likewise {len(rest)} more: {shown(rest)}" if rest else "") for _, *rest in kinds.values()]
    return "; ".join(f"{reasons[first]}{more}" for (first, *_), more in zip(kinds.values(), several, strict=True))


def few(names: Sequence[Any]) -> str:
    """The same in the order in which they are given."""
    return f"{[*names[:_MOST]]}{' ...' if len(names) > _MOST else ''}"


def _letters_and_numbers(name: Any) -> list[tuple[str, int]]:
    """Pairs, so that ``layer2`` comes before ``layer10``."""
    return [(letters, int(digits or -1)) for letters, digits in re.findall(r"(\D*)(\d*)", str(name))]
