"""Long names in few letters, so that those shown together can still be told apart."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

LONGEST = 28  # letters of a name
_CUT = "…"


def cut(text: str, letters: int, head: int | None = None) -> str:
    """A text without its middle, where it has more letters; ``head`` of them are left before it, or else half."""
    head = letters // 2 if head is None else head
    return text if len(text) <= letters else text[:head] + _CUT + text[len(text) - (letters - 1 - head) :]


def spelled(metric: str) -> str:
    """A metric in words."""
    return metric.replace("_", " ")


def shortened(names: Iterable[str]) -> dict[str, str]:
    """How each of these names is written: the long ones without components they share or a middle, all different."""
    names, letters = list(dict.fromkeys(names)), LONGEST
    while True:
        long = [name.split(".") for name in names if len(name) > letters]
        same = takewhile(lambda parts: len(set(parts)) == 1, zip(*(parts[:-1] for parts in long)))
        shared = len(list(same))
        fitting = (i for i in range(1, shared) if all(len(_from(i, parts)) <= letters for parts in long))
        start = next(fitting, shared)
        for head in sorted(range(2, letters), key=lambda head: abs(head - letters // 2)):
            written = {".".join(parts): cut(_from(start, parts), letters, head) for parts in long}
            written = {name: written.get(name, name) for name in names}
            if len(set(written.values())) == len(names):
                return written
        letters += 1  # that many cannot tell the names apart


def _from(start: int, parts: list[str]) -> str:
    return _CUT * (start > 0) + ".".join(parts[start:])
