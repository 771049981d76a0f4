"""Devices to compute on."""

from __future__ import annotations

import os
from functools import cache

import torch

from ..errors import ArgumentError


def fastest_device() -> torch.device:
    """A GPU where there is any, of torchrun's processes each one's own; else the CPU."""
    count, rank = torch.cuda.device_count() if torch.cuda.is_available() else 0, os.environ.get("LOCAL_RANK", "")
    if count == 0:
        return torch.device("cpu")
    # Where each process is shown one GPU alone, that is its first.
    return torch.device("cuda", int(rank) if rank.isdecimal() and count > 1 else 0)


@cache
def has_float64(device: torch.device) -> bool:
    """Whether it has such numbers, which MPS lacks."""
    try:
        return torch.empty(0, dtype=torch.float64, device=device).device.type == device.type
    except (RuntimeError, AssertionError, TypeError):
        return False


def resolve_device(given: str | torch.device | None, home: torch.device) -> torch.device:
    """The device asked for, or ``home`` for None, or the CPU for one without float64.

    Raises:
        ArgumentError: it cannot be used.
    """
    if given is None and home.type != "cuda" and not has_float64(home):
        return torch.device("cpu")
    try:
        device = home if given is None else torch.device(given)
        # A tensor tells which GPU "cuda" is, which other threads would not know.
        return torch.empty(0, dtype=torch.float64, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        known = "'cpu' or 'cuda'" if torch.cuda.is_available() else "'cpu'"
        raise ArgumentError(f"device {str(given)!r} cannot be used: {error}; give one such as {known}") from error
