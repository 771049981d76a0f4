"""Tables and numbers as plain text, and where they are shown."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any


class Printed:
    """What a notebook's cell, or IPython, shows as it is printed."""

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(str(self))


def aligned(lines: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """The lines of a table: the columns ``left`` begin at the left, others, of numbers, end at the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(_padded(line, widths, left)).rstrip() for line in lines]


def _padded(line: Sequence[str], widths: Sequence[int], left: Collection[int]) -> list[str]:
    cells = enumerate(zip(line, widths, strict=True))
    return [f"{text:<{width}}" if place in left else f"{text:>{width}}" for place, (text, width) in cells]


def told_apart(smaller: float, larger: float) -> tuple[str, str]:
    """Both in so few digits that they differ, where they do."""
    pairs = ((f"{smaller:.{digits}g}", f"{larger:.{digits}g}") for digits in range(2, 9))
    return next((pair for pair in pairs if pair[0] != pair[1]), (f"{smaller:.9g}", f"{larger:.9g}"))


def counted(count: int, what: str, plural: str = "s") -> str:
    """So many of something, such as ``2 forward passes``."""
    return f"{count} {what}{plural if count != 1 else ''}"
