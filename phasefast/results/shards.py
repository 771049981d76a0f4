"""Shards of scores in a run directory: where they lie, and reading them."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..common.files import alone, remove_partial
from ..common.notices import warn
from ..errors import DamagedError, DataError, StoreError
from .paths import store_folder
from .scores import Scores

DAMAGED = "_{}.damaged"  # what is left of a shard
_SHARD = re.compile(r"step-(\d+)\.parquet$")


def prepare_store(directory: str | Path) -> Path:
    """Make a run directory's ``scores/`` and check that it can be written to; StoreError names the directory."""
    folder = store_folder(directory)
    probe = folder / f".writable-{secrets.token_hex(4)}"  # jobs of other machines may share the disk
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
        remove_partial(folder)
    except OSError as error:
        raise StoreError(f"cannot write to the output directory {directory}: {error}; choose another one") from error
    return folder


def list_shards(directory: str | Path) -> dict[int, Path]:
    """Finished shards of a run directory by step; partial files are not among them."""
    found = (
        (match, path) for path in store_folder(directory).glob("step-*.parquet") if (match := _SHARD.search(path.name))
    )
    return dict(sorted((int(match[1]), path) for match, path in found))


def read_shard(path: Path) -> Scores:
    """One shard.

    Raises:
        DamagedError: the file is not one. StoreError: it cannot be opened, or has another step in its name.
    """
    # A file of pyarrow's, as it takes some names for URIs; a file of Python's is let go of by another thread, which
    # ends the process where the interpreter has ended before (1 in 20 times, at once after it was read).
    try:
        opened = pa.OSFile(os.fsencode(path))
    except OSError as error:
        raise StoreError(f"cannot open the shard {path}: {error}") from error
    with opened as file:
        try:
            table = pq.ParquetFile(file, page_checksum_verification=True).read(use_threads=False)
        except (OSError, ValueError, pa.ArrowException) as error:
            # The file may be whole where the system says so.
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
                raise StoreError(f"cannot read the shard {path}: {error}") from error
            what = f"the shard {path} is damaged ({error})"
            raise DamagedError(f"{what}; a sweep measures the step again, or delete it") from error
    try:
        scores = Scores(table)
    except (ValueError, StoreError) as error:
        raise StoreError(f"cannot read the shard {path}: {error}; delete it and sweep again") from error
    match = _SHARD.search(path.name)
    if match is None or scores.steps != [int(match[1])]:
        raise StoreError(f"{path}: expected the step in the file's name, got {scores.steps}; was the file renamed?")
    return scores


def set_aside(directory: str | Path, damaged: Collection[Path]) -> None:
    """Rename damaged shards of a run directory, with a warning, so that others can take their places."""
    if not damaged:
        return
    told: list[tuple[Path, DamagedError]] = []
    with writing_alone(directory):
        for path in damaged:
            try:
                read_shard(path)  # another job may have measured it again
            except DamagedError as error:
                told.append((path, error))
                _rename(path, error)
            except StoreError:  # another job has renamed it
                if path.exists():
                    raise
    if told:
        likewise = f"; likewise {len(told) - 1} more" if len(told) > 1 else ""
        (path, first), new = told[0], DAMAGED.format("*")
        warn(f"{path}: damaged ({first.__cause__}){likewise}; renamed to {new}, so that its step can be measured again")


def _rename(path: Path, error: DamagedError) -> None:
    try:
        path.replace(path.with_name(DAMAGED.format(path.name)))
    except OSError as refused:
        raise StoreError(f"{error}: the file cannot be renamed ({refused})") from error


def writing_alone(directory: str | Path) -> contextlib.AbstractContextManager[None]:
    """That no other job writes what a run directory holds of a step."""
    return alone(store_folder(directory) / ".lock")


def read_scores(directory: str | Path) -> Scores:
    """All scores of a run directory, merged over its shards.

    Raises:
        StoreError: there are no scores, or some cannot be read. DataError: they are not all of the same training and
            targets.
    """
    shards = list_shards(directory)
    if not shards and Path(directory).name == "scores":
        raise StoreError(f"no scores in {directory}; give the run directory {Path(directory).parent}")
    if others := [path.name for path in store_folder(directory).glob("*.parquet")] if not shards else []:
        raise StoreError(f"no scores in {directory}: expected files named step-*.parquet, got {sorted(others)[:3]}")
    if not shards and store_folder(directory).is_dir():
        raise StoreError(
            f"no scores in {directory}: measuring began there, but stored nothing: every checkpoint failed, or it was "
            "stopped before the first was measured, or is still measuring it; sweep again to see what fails"
        )
    if runs := [] if shards else sorted(path.parent.name for path in Path(directory).glob("*/scores")):
        raise StoreError(f"no scores in {directory}, only in its folders {', '.join(runs)}; give one, or compare them")
    if not shards:
        raise StoreError(
            f"no scores in {directory}: expected {store_folder(directory)}/step-*.parquet; sweep or run the demo first"
        )
    found, damaged = [], dict[str, DamagedError]()
    for path in shards.values():
        try:
            found.append(read_shard(path))
        except DamagedError as error:
            damaged[path.name] = error
    if damaged:
        first = next(iter(damaged.values()))
        raise DamagedError(
            f"{first}; {len(damaged)} of {len(shards)} shards are damaged: {', '.join(damaged)}"
        ) from first
    try:
        return Scores.concat(found)
    except DataError as error:
        raise DataError(f"{directory}: {error}, or measure again, each job with its own out=") from error
