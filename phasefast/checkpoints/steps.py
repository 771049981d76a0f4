"""Which training step a checkpoint belongs to, and the order in which checkpoints are swept."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

Source = str | os.PathLike[str] | Mapping[str, Any]
_WORDS = r"(?:global_?step|steps?|iter(?:ation)?|checkpoint|ckpt)[-_=]?"
_NUMBER = r"(\d+(?:\.\d+)?)([km]?)(?![a-z\d]|\.\d)"  # 500, 64k, 1.5k, but not 1e3
_NAMED = re.compile(_WORDS + _NUMBER, re.IGNORECASE)
_OTHER = r"(?<![a-z])(?:epochs?|model|weights|net|state)|(?<![a-z\d])(?<!\d\.)"  # not the 18 of resnet18
_ALONE = re.compile(f"(?:{_OTHER}){_NUMBER}", re.IGNORECASE)
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000}
_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def parse_step(name: str | os.PathLike[str]) -> int:
    """The step in a file name: ``step_128.pt``, ``iter-000128``, ``step64k.pt``, ``epoch=3-step=500.ckpt``.

    Raises:
        CheckpointError: no step, or several numbers of which none is named.
    """
    path = Path(name)
    stem = path.stem if path.suffix in _SUFFIXES else path.name
    named, alone = _NAMED.findall(stem), _ALONE.findall(stem)
    for number, unit in named[-1:] or (alone if len(alone) == 1 else []):
        step = Decimal(number) * _UNITS[unit.lower()]
        if step % 1 == 0:
            return int(step)
    raise CheckpointError(
        f"{name}: no step in its name (expected such as step_128.pt, step64k.pt or 128.pt); give {{step: path}} instead"
    )


def order_checkpoints(
    checkpoints: Mapping[int, Source] | Sequence[Source] | str | os.PathLike[str],
) -> dict[int, Source]:
    """Checkpoints by step, in ascending order.

    Args:
        checkpoints: ``{step: state dict or file}``; a list of files, whose steps are in their names; a list of state
            dicts, whose steps are 0, 1, 2, ...; a file; or a folder of files, of which those without a step in their
            names are left out, with a warning.

    Raises:
        CheckpointError: nothing to sweep, a step that is missing, negative or there twice.
    """
    if isinstance(checkpoints, (str, os.PathLike)):
        folder = Path(checkpoints)
        if folder.is_file():
            return order_checkpoints([folder])
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: expected a folder of checkpoints or a list of files; it is not a folder")
        found = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
        if not found:
            raise CheckpointError(f"{folder}: holds no files ending in {', '.join(_SUFFIXES)}")
        with_step = [path for path in found if _has_step(path)]
        if left := [path.name for path in found if path not in with_step] if with_step else []:
            warnings.warn(f"{folder}: left out {left}, with no step in their names", RuntimeWarning, stacklevel=3)
        return order_checkpoints(with_step or found)
    if isinstance(checkpoints, Mapping):
        pairs = list(checkpoints.items())
        if bad := [step for step, _ in pairs if isinstance(step, bool) or not isinstance(step, int) or step < 0]:
            raise CheckpointError(f"checkpoints: expected steps that are integers >= 0, got {bad[:5]}")
    else:
        pairs = [(i if isinstance(c, Mapping) else parse_step(c), c) for i, c in enumerate(checkpoints)]
    if not pairs:
        raise CheckpointError("checkpoints: expected at least one, got none")
    ordered: dict[int, Source] = {}
    for step, source in sorted(pairs, key=lambda pair: pair[0]):
        if step in ordered:
            raise CheckpointError(f"step {step}: given twice, as {ordered[step]} and {source}; give {{step: path}}")
        ordered[step] = source
    return ordered


def _has_step(path: Path) -> bool:
    try:
        parse_step(path)
    except CheckpointError:
        return False
    return True
