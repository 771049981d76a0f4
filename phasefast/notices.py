"""Warnings that point at the user's own line."""

from __future__ import annotations

import sys
import warnings

_INSIDE = (__name__.partition(".")[0], "contextlib")


def warn(text: str) -> None:
    """A RuntimeWarning at the line outside the package that led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, RuntimeWarning, stacklevel=level)
