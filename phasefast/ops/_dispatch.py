"""How every op runs: compiled where it can be, else as its reference."""

from __future__ import annotations

from typing import Any

from . import _checks, _extension, reference


def run(op: str, *arguments: Any) -> None:
    """Run an op whose first argument is a list with an entry for each cell.

    Raises:
        ArgumentError: an argument does not fit. Kernels check too, but their RuntimeErrors say less.
    """
    # Without a tensor there is no device to dispatch on.
    kernel, check = _extension.compiled(op) if arguments[0] else None, getattr(_checks, op)
    if kernel is None:
        check(*arguments)
        getattr(reference, op)(*arguments)
        return
    try:
        kernel(*arguments)
    except RuntimeError:
        check(*arguments)
        raise
