"""In which files the weights of a checkpoint are."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..common.notices import shown
from ..errors import UnreadableError
from .index import INDEX, read_index
from .sources import DISTRIBUTED, ENTRIES, SUFFIXES, may_be_weights
from .steps import has_step, named_after_step, named_by, parse_step

_PART = re.compile(r"-\d+-of-(?!0*1\b)\d+")  # one of several shards


def needed(entries: Sequence[str] = ENTRIES) -> str:
    """What a folder must have to be a checkpoint, as part of a message."""
    return f"one of {', '.join(entries)}, or a single file ending in {', '.join(SUFFIXES)}"


def find_entry(folder: Path) -> Path | None:
    """The file by which the checkpoint in a folder is read; None where the folder is no checkpoint.

    It has a name of ``ENTRIES``; or it is the only one that may be weights, in a folder named after a step, and says no
    other step.
    """
    if found := next((folder / name for name in ENTRIES if (folder / name).is_file()), None):
        return found
    files = candidates(folder)
    return files[0] if len(files) == 1 and not _says_other_step(files[0]) else None


def candidates(folder: Path) -> list[Path]:
    """The files in a folder named after a step that may be its weights; none in other folders."""
    if not named_after_step(folder):
        return []
    files = (file for file in folder.iterdir() if may_be_weights(file) and not _PART.search(file.name))
    return sorted(file for file in files if file.is_file())


def by_only_file(folder: Path) -> bool:
    """Whether a folder is a checkpoint by the only file in it, so that another may make it none."""
    with contextlib.suppress(OSError):  # it may be deleted meanwhile
        entry = find_entry(folder) if folder.is_dir() else None
        return entry is not None and entry.name not in ENTRIES
    return False


def why_none(folder: Path) -> str:
    """Why the files in a folder named after a step make it no checkpoint, for messages; empty if it has none."""
    files = candidates(folder)
    names = [file.name for file in files]
    if len(files) == 1:
        return f"holds {names[0]}, which names another step: give {{step: path}}" if _says_other_step(files[0]) else ""
    if not names:
        return ""
    first = min(names, key=lambda name: (not name.startswith("model"), name))
    name = re.sub(rf"(?<!\d)0*{parse_step(folder)}(?!\d)", "[0-9]*", first)
    return f"holds {shown(names)}: choose one with a glob such as '{folder.parent / '*' / name}'"


def _says_other_step(file: Path) -> bool:
    return named_by(file) == file and has_step(file) and parse_step(file) != parse_step(file.parent)


def entry_of(path: str | os.PathLike[str]) -> Path:
    """The file by which a checkpoint is read: itself, or the one in a folder.

    Raises:
        CheckpointError: a folder without one.
    """
    path = Path(path)
    entry = find_entry(path) if path.is_dir() else path
    if entry is None:
        why = why_none(path) or "is the checkpoint still being written?"
        raise UnreadableError(f"{path}: expected a folder with {needed()}; {why}")
    return entry


def weights_files(path: str | os.PathLike[str]) -> list[Path]:
    """All files that the weights of a checkpoint are read from.

    Raises:
        CheckpointError: a folder that is no checkpoint, or an index that cannot be read.
    """
    entry = entry_of(path)
    return [entry, *(_described(entry) or [])]


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether any file of a checkpoint's weights exists; a folder that was emptied to save space may keep other files.

    Raises:
        CheckpointError: an index that cannot be read.
    """
    entry = find_entry(Path(path)) if Path(path).is_dir() else Path(path)
    if entry is None or not entry.is_file():
        return False
    files = _described(entry)
    return any(file.is_file() for file in ([entry] if files is None else files))


def _described(entry: Path) -> list[Path] | None:
    """The files of weights that an entry only describes; None where it has them itself."""
    if entry.name == DISTRIBUTED:
        return sorted(entry.parent.glob("*.distcp"))
    return [entry.parent / shard for shard in read_index(entry)] if entry.name.endswith(INDEX) else None
