"""The order in which checkpoints are swept."""

from __future__ import annotations

import glob
import operator
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

from ..common.notices import shown, warn
from ..common.scalars import is_integer
from ..errors import CheckpointError, TwiceError
from ..results.failures import named
from .entries import find_entry, needed, why_none
from .hub import Revision, as_revision, revisions
from .messages import damage_named
from .sources import ENTRIES, SUFFIXES, TEMPORARY, Source, may_be_weights
from .steps import epoch_beside_step, has_step, named_after_step, named_by, names_step, parse_step, stem_of, unit_of

_UNFINISHED = f"have temporary names or do not hold {needed()}"
_DIGITS = r"[\d.]+(?:e-?\d+)?"  # 2000, 0.53, 1e-05
_Some = TypeVar("_Some", bound=Source)


def find_checkpoints(folder: str | os.PathLike[str]) -> dict[int, Path]:
    """The checkpoints with a step in their names that are in a folder, in ascending order; there may be none.

    Warns of what it leaves out beside them. In a folder that is itself a checkpoint, whatever else it holds, are none.
    Of what is no folder those that match it as a glob.

    Raises:
        CheckpointError: a folder cannot be read, or a step occurs twice.
    """
    folder = Path(folder)
    if not folder.is_dir() and glob.has_magic(os.fspath(folder)):
        return _of_matches(folder, _matches(folder))
    found, unfinished = _sorted_out(folder)
    with_step = [path for path in found if has_step(path)]
    if (entry := find_entry(folder)) and (not with_step or _is_one(folder, entry, with_step)):
        return {}
    if found and unfinished:
        warn(f"{folder}: left out {unfinished}, which {_UNFINISHED}: {_why_left_out(folder, unfinished)}")
    with damage_named(folder):
        _check_alike(folder, with_step)
    _tell_doubtful(folder, found, {path: path for path in with_step})
    return _by_step([(parse_step(path), path) for path in with_step])


def _check_alike(folder: Path, found: Sequence[Path]) -> None:
    """Warn where folders are read by files of different names, which may be different weights."""
    entries = [entry.name for path in found if path.is_dir() and (entry := find_entry(path))]
    stems = (re.sub(_DIGITS, "", stem_of(name)) for name in entries)
    names = {"model" if name in ENTRIES else stem: name for stem, name in zip(stems, entries, strict=True)}
    if len(names) > 1:
        warn(f"{folder}: its folders hold weights of different names, {shown(names.values())}: are they the same?")


def order_checkpoints(
    checkpoints: Mapping[int, Source] | Sequence[Source] | str | os.PathLike[str],
) -> dict[int, Source]:
    """Checkpoints by step, in ascending order.

    Args:
        checkpoints: ``{step: state dict or path}``; a list of paths, whose steps are in their names; a list of state
            dicts, whose steps are 0, 1, 2, ...; a file, or a glob of several; a folder that is a checkpoint; or a
            folder of files and such folders, of which unfinished ones and those without a step in their names are left
            out, with a warning. Of ``hf://repository@name`` those revisions that match, or all with a step.

    Raises:
        CheckpointError: there is nothing to sweep, or a step is missing, negative or occurs twice.
    """
    if isinstance(checkpoints, (str, os.PathLike)):
        hub = as_revision(checkpoints)
        checkpoints = revisions(hub) if hub is not None else _at(Path(checkpoints))
    if not isinstance(checkpoints, Iterable):
        checkpoints = [checkpoints]
    given = list(checkpoints.values() if isinstance(checkpoints, Mapping) else checkpoints)
    if wrong := [type(each).__name__ for each in given if not isinstance(each, (str, os.PathLike, Mapping))]:
        raise CheckpointError(
            f"checkpoints: expected paths or state dicts, {{step: one of these}} or a folder, got {wrong[0]}"
        )
    if not given:
        raise CheckpointError("checkpoints: expected at least one, got none")
    if not isinstance(checkpoints, Mapping):
        given = [_as_source(source) for source in given]
        paths = (
            Path(each) for each in given if isinstance(each, (str, os.PathLike)) and not isinstance(each, Revision)
        )
        _tell_units("checkpoints", [name for path in paths if has_step(name := _named(path))])
        steps = (index if isinstance(each, Mapping) else _step_of(each) for index, each in enumerate(given))
        return _by_step(list(zip(steps, given, strict=True)))
    if bad := [step for step in checkpoints if not is_integer(step, 0)]:
        raise CheckpointError(f"checkpoints: expected steps that are integers >= 0, got {bad[:5]}")
    return _by_step([(operator.index(step), _as_source(source)) for step, source in checkpoints.items()])


def _as_source(given: Source) -> Source:
    """A path of the Hub as the revision that it means."""
    return given if isinstance(given, Mapping) else as_revision(given) or given


def _step_of(path: str | os.PathLike[str]) -> int:
    """That in the name of a file, folder or revision; CheckpointError where there is none."""
    return path.step if isinstance(path, Revision) else parse_step(_named(Path(path)))


def _at(path: Path) -> Mapping[int, Path] | list[Path]:
    """The checkpoints that a path or a glob stands for, by step where a folder has them.

    Raises:
        CheckpointError: there are none.
    """
    if not path.exists():
        several = _matches(path)
        if not several:
            raise CheckpointError(f"{path}: expected a folder of checkpoints, a file or a glob; nothing matches it")
        return _of_matches(path, several) or several
    if not path.is_dir():
        return [path]
    return find_checkpoints(path) or ([path] if find_entry(path) else _without_steps(path))


def _matches(pattern: Path) -> list[Path]:
    """What matches a glob; a warning tells what has a temporary name, or is in such a folder."""
    matches = [Path(name) for name in sorted(glob.glob(os.fspath(pattern)))]
    folders = {path: path.parent.name if named_after_step(path.parent) else "" for path in matches}
    left = [path for path in matches if any(map(TEMPORARY.fullmatch, (path.name, folders[path])))]
    if left:
        warn(f"{pattern}: left out {shown(map(str, left))}, which have temporary names: still being written?")
    return [each for each in matches if each not in left]


def _named(path: Path) -> Path:
    """Which name says the step of a path that was given: its own if it says one, else that of its folder."""
    return path if has_step(path) else named_by(path)


def _of_matches(pattern: Path, found: Sequence[Path]) -> dict[int, Path]:
    """What matches a glob, by step: of one match in each folder the folder may say it."""
    count = Counter(path.parent for path in found)
    names = {path: named_by(path) if count[path.parent] == 1 else _named(path) for path in found}
    with_step = {path: name for path, name in names.items() if has_step(name)}
    _tell_doubtful(pattern, found, with_step)
    return _by_step([(parse_step(name), path) for path, name in with_step.items()])


def _tell_doubtful(where: Path, found: Sequence[Path], with_step: Mapping[Path, Path]) -> None:
    """Warn of what has no step in its name, beside what has, and of what ``_tell_units`` does.

    Args: with_step: by path the name that says its step.
    """
    if with_step and (left := [path.name for path in found if path not in with_step]):
        warn(f"{where}: left out {left}, which have no step in their names")
    _tell_units(where, with_step.values())


def _tell_units(where: str | Path, names: Iterable[Path]) -> None:
    """Warn where names count different things, as far as they say what, but for 0 of what is not called an epoch."""
    units, names = dict[str, str](), list(names)
    _tell_epochs(where, names)
    for name in names:
        if parse_step(name) > 0 or unit_of(name) == "epochs":
            units.setdefault(unit_of(name), name.name)
    if len(units) > 1:
        kinds = ", ".join(f"{unit} as in {name}" for unit, name in units.items())
        warn(
            f"{where}: names have {kinds}; all are taken for steps of one training: give {{step: path}}, or a glob of "
            "some of them"
        )


def _tell_epochs(where: str | Path, names: Iterable[Path]) -> None:
    """Warn where a later epoch has a smaller step, by which it comes before an earlier one."""
    epochs = [(epoch, parse_step(name), name.name) for name in names if (epoch := epoch_beside_step(name)) is not None]
    latest = (Decimal(0), -1, "")  # before all
    for own in sorted(epochs):
        if own[0] > latest[0] and own[1] < latest[1]:
            warn(
                f"{where}: {own[2]} is of a later epoch than {latest[2]}, but comes before it, as its step is smaller: "
                "if steps start again in each epoch, give {step: path} with the number of updates since the training "
                "began; if these are two trainings, give a glob that matches one"
            )
            return
        latest = max(latest, own, key=lambda each: each[1])


def _is_one(folder: Path, entry: Path, inside: Sequence[Path]) -> bool:
    """Whether a folder with weights has its own step: ``checkpoint-64`` has, ``run-2`` with ``step_64.pt`` has not.

    Nor has ``ckpt1`` with nothing but ``net_64.pt``.
    """
    if entry in inside:
        return parse_step(entry) == parse_step(folder)
    return names_step(folder) or (has_step(folder) and not any(map(names_step, inside)))


def _by_step(pairs: Sequence[tuple[int, _Some]]) -> dict[int, _Some]:
    ordered: dict[int, list[_Some]] = {}
    for step, source in sorted(pairs, key=lambda pair: pair[0]):
        ordered.setdefault(step, []).append(source)
    if twice := [step for step, sources in ordered.items() if len(sources) > 1]:
        first, second, *_ = ordered[twice[0]]
        others = f", likewise {named(twice[1:])}" if len(twice) > 1 else ""
        raise TwiceError(
            f"step {twice[0]}: given twice, as {first} and {second}{others}; give {{step: path}}, or a glob that "
            "matches only one of them, or move the others elsewhere",
            {step: sources[0] for step, sources in ordered.items() if len(sources) == 1},
        )
    return {step: source for step, (source,) in ordered.items()}


def _without_steps(folder: Path) -> list[Path]:
    """What may be weights in a folder without any step.

    Raises:
        CheckpointError: nothing.
    """
    found, unfinished = _sorted_out(folder)
    if not found:
        empty = f", and {unfinished} {_UNFINISHED}: {_why_left_out(folder, unfinished)}" if unfinished else ""
        inside = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and _sorted_out(path)[0]]
        others = f"; its folders {shown(inside)} do: give one of these" if inside and not unfinished else ""
        raise CheckpointError(
            f"{folder}: holds no files ending in {', '.join(SUFFIXES)}, no folders of weights{empty}{others}"
        )
    return found


def _why_left_out(folder: Path, unfinished: Iterable[str]) -> str:
    """Why folders may have been left out."""
    reasons = ((name, why_none(folder / name)) for name in unfinished if (folder / name).is_dir())
    return next((f"{name} {why}" for name, why in reasons if why), "still being written?")


def _sorted_out(folder: Path) -> tuple[list[Path], list[str]]:
    """What is in a folder: files and folders that may be weights, and the names of unfinished ones with a step."""
    found, unfinished = [], []
    with damage_named(folder):
        for path in sorted(folder.iterdir()):
            if TEMPORARY.fullmatch(path.name) or (path.is_dir() and not find_entry(path)):
                unfinished += [path.name] if has_step(path) else []
            elif path.is_dir() or may_be_weights(path):
                found.append(path)
    return found, unfinished
