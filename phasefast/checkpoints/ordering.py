"""The order in which checkpoints are swept."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import CheckpointError
from ..notices import warn
from .messages import damage_named
from .sources import BESIDE, ENTRIES, SUFFIXES, Source, find_entry, suffix_of
from .steps import has_step, names_step, parse_step

_BESIDE = re.compile(rf"{BESIDE}\.\w+")
_TEMPORARY = re.compile(r"(tmp|\.).*|.*\.(tmp|part|partial|incomplete)")
_UNFINISHED = f"have temporary names or hold none of {', '.join(ENTRIES)}"
_Some = TypeVar("_Some", bound=Source)


def find_checkpoints(folder: str | os.PathLike[str]) -> dict[int, Path]:
    """The checkpoints with a step in their names that are in a folder, in ascending order; there may be none.

    Warns of what it leaves out beside them. In a folder that is itself a checkpoint, whatever else it holds, are none.

    Raises:
        CheckpointError: a folder that cannot be read, or a step that is there twice.
    """
    folder = Path(folder)
    found, unfinished = _sorted_out(folder)
    with_step = [path for path in found if has_step(path)]
    if find_entry(folder) and (not with_step or _is_one(folder, with_step)):
        return {}
    for names, why in (
        ([path.name for path in found if path not in with_step] if with_step else [], "with no step in their names"),
        (unfinished if found else [], f"which {_UNFINISHED}: still being written?"),
    ):
        if names:
            warn(f"{folder}: left out {names}, {why}")
    return _by_step([(parse_step(path), path) for path in with_step])


def order_checkpoints(
    checkpoints: Mapping[int, Source] | Sequence[Source] | str | os.PathLike[str],
) -> dict[int, Source]:
    """Checkpoints by step, in ascending order.

    Args:
        checkpoints: ``{step: state dict or path}``; a list of paths, whose steps are in their names; a list of state
            dicts, whose steps are 0, 1, 2, ...; a file, or a glob of several; a folder that is a checkpoint; or a
            folder of files and such folders, of which unfinished ones and those without a step in their names are left
            out, with a warning.

    Raises:
        CheckpointError: nothing to sweep, a step that is missing, negative or there twice.
    """
    if isinstance(checkpoints, (str, os.PathLike)):
        path = Path(checkpoints)
        if not path.exists():
            several = [name for name in sorted(glob.glob(os.fspath(path))) if not _TEMPORARY.fullmatch(Path(name).name)]
            if several:
                with_step = [name for name in several if has_step(name)]
                if with_step and (left := [Path(name).name for name in several if name not in with_step]):
                    warn(f"{path}: left out {left}, with no step in their names")
                return order_checkpoints(with_step or several)
            raise CheckpointError(f"{path}: expected a folder of checkpoints, a file or a glob; there is none")
        if not path.is_dir():
            return order_checkpoints([path])
        return {**find_checkpoints(path)} or order_checkpoints([path] if find_entry(path) else _without_steps(path))
    if isinstance(checkpoints, Mapping):
        pairs = list(checkpoints.items())
        wrong = [each for each in checkpoints.values() if not isinstance(each, (str, os.PathLike, Mapping))]
        if bad := [step for step, _ in pairs if isinstance(step, bool) or not isinstance(step, int) or step < 0]:
            raise CheckpointError(f"checkpoints: expected steps that are integers >= 0, got {bad[:5]}")
    else:
        given = list(checkpoints) if isinstance(checkpoints, Iterable) else [checkpoints]
        wrong = [each for each in given if not isinstance(each, (str, os.PathLike, Mapping))]
        pairs = [(i if isinstance(c, Mapping) else parse_step(c), c) for i, c in enumerate([] if wrong else given)]
    if wrong:
        kind = type(wrong[0]).__name__
        raise CheckpointError(
            f"checkpoints: expected paths or state dicts, {{step: one of these}} or a folder, got {kind}"
        )
    if not pairs:
        raise CheckpointError("checkpoints: expected at least one, got none")
    return _by_step(pairs)


def _is_one(folder: Path, inside: Sequence[Path]) -> bool:
    """Whether a folder with weights has its own step: ``checkpoint-64`` has, ``run-2`` with ``step_64.pt`` has not."""
    return names_step(folder) or (has_step(folder) and not any(map(names_step, inside)))


def _by_step(pairs: Sequence[tuple[int, _Some]]) -> dict[int, _Some]:
    ordered: dict[int, _Some] = {}
    for step, source in sorted(pairs, key=lambda pair: pair[0]):
        if step in ordered:
            raise CheckpointError(
                f"step {step}: given twice, as {ordered[step]} and {source}; give {{step: path}} or a glob"
            )
        ordered[step] = source
    return ordered


def _without_steps(folder: Path) -> list[Path]:
    """What may be weights in a folder without any step.

    Raises:
        CheckpointError: nothing.
    """
    found, unfinished = _sorted_out(folder)
    if not found:
        empty = f", and {unfinished} {_UNFINISHED}" if unfinished else ""
        raise CheckpointError(f"{folder}: holds no files ending in {', '.join(SUFFIXES)}, no folders of weights{empty}")
    return found


def _sorted_out(folder: Path) -> tuple[list[Path], list[str]]:
    """What is in a folder: files and folders that may be weights, and the names of unfinished ones with a step."""
    found, unfinished = [], []
    with damage_named(folder):
        inside = sorted(folder.iterdir())
    for path in inside:
        if _TEMPORARY.fullmatch(path.name) or (path.is_dir() and not find_entry(path)):
            unfinished += [path.name] if has_step(path) else []
        elif path.is_dir() or (suffix_of(path) and not _BESIDE.fullmatch(path.name)):
            found.append(path)
    return found, unfinished
