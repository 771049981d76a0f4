"""Which training step a checkpoint belongs to, and the order in which checkpoints are swept."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

Source = str | os.PathLike[str] | Mapping[str, Any]
_NAMED = re.compile(r"(?:global_?step|steps?|iter(?:ation)?|checkpoint|ckpt)[-_=]?(\d+)", re.IGNORECASE)
_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def parse_step(name: str | os.PathLike[str]) -> int:
    """The step in a file name: ``step_128.pt``, ``iter-000128``, ``checkpoint-48000``, ``epoch=3-step=500.ckpt``.

    Raises:
        CheckpointError: no step, or several numbers of which none is named.
    """
    stem = Path(name).name
    named = _NAMED.findall(stem)
    numbers = re.findall(r"\d+", Path(stem).stem)
    if named:
        return int(named[-1])
    if len(numbers) == 1:
        return int(numbers[0])
    raise CheckpointError(
        f"{name}: no step in its name (expected such as step_128.pt or 128.pt); give {{step: path}} instead of a list"
    )


def order_checkpoints(
    checkpoints: Mapping[int, Source] | Sequence[Source] | str | os.PathLike[str],
) -> dict[int, Source]:
    """Checkpoints by step, in ascending order.

    Args:
        checkpoints: ``{step: state dict or file}``; a list of files, whose steps are in their names; a list of state
            dicts, whose steps are 0, 1, 2, ...; a file; or a folder of files.

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
        return order_checkpoints(found)
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
