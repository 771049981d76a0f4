"""Tables as plain text."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(lines: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """The lines of a table: the columns ``left`` begin at the left, others, of numbers, end at the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(_padded(line, widths, left)).rstrip() for line in lines]


def _padded(line: Sequence[str], widths: Sequence[int], left: Collection[int]) -> list[str]:
    cells = enumerate(zip(line, widths, strict=True))
    return [f"{text:<{width}}" if place in left else f"{text:>{width}}" for place, (text, width) in cells]
