"""The order in which checkpoints are swept."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import CheckpointError
from .sources import BESIDE, ENTRIES, SUFFIXES, Source, find_entry
from .steps import has_step, parse_step

_BESIDE = re.compile(rf"{BESIDE}\.\w+")


def order_checkpoints(
    checkpoints: Mapping[int, Source] | Sequence[Source] | str | os.PathLike[str],
) -> dict[int, Source]:
    """Checkpoints by step, in ascending order.

    Args:
        checkpoints: ``{step: state dict or path}``; a list of paths, whose steps are in their names; a list of state
            dicts, whose steps are 0, 1, 2, ...; a file; a folder that is a checkpoint; or a folder of files and such
            folders, of which those without a step in their names are left out, with a warning.

    Raises:
        CheckpointError: nothing to sweep, a step that is missing, negative or there twice.
    """
    if isinstance(checkpoints, (str, os.PathLike)):
        path = Path(checkpoints)
        if not path.exists():
            raise CheckpointError(f"{path}: expected a folder of checkpoints or a list of files; it is not there")
        return order_checkpoints(_in_folder(path) if path.is_dir() else [path])
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


def _in_folder(folder: Path) -> list[Path]:
    """The checkpoints with a step that a folder holds, else itself where it is one; warns of what is left out."""
    files, complete, others = _sorted_out(folder)
    found = sorted(files + complete)
    with_step = [path for path in found if has_step(path)]
    if not with_step and find_entry(folder):
        return [folder]
    unfinished = [path.name for path in others if has_step(path)]
    wanted = f"hold none of {', '.join(ENTRIES)}"
    if not found:
        empty = f", and {unfinished} {wanted}" if unfinished else ""
        raise CheckpointError(f"{folder}: holds no files ending in {', '.join(SUFFIXES)}, no folders of weights{empty}")
    for names, why in (
        ([path.name for path in found if path not in with_step] if with_step else [], "with no step in their names"),
        (unfinished, f"which {wanted}: still being written?"),
    ):
        if names:
            warnings.warn(f"{folder}: left out {names}, {why}", RuntimeWarning, stacklevel=4)
    return with_step or found


def _sorted_out(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """What is in a folder: files that may be weights, folders that are checkpoints, other folders."""
    inside = sorted(folder.iterdir())
    folders = [path for path in inside if path.is_dir()]
    complete = [path for path in folders if find_entry(path)]
    files = [path for path in inside if path.suffix in SUFFIXES and not _BESIDE.fullmatch(path.name)]
    return [path for path in files if not path.is_dir()], complete, [path for path in folders if path not in complete]
