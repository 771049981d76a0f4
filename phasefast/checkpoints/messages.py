"""What messages about checkpoints have in common."""

from __future__ import annotations

from collections.abc import Iterable


def shown(names: Iterable[str], most: int = 5) -> str:
    """Names as part of a message, the first few of many."""
    listed = sorted(names)
    return f"{listed[:most]}{' ...' if len(listed) > most else ''}"
