"""Which steps of a run directory are done already, and by the same configuration."""

from __future__ import annotations

from pathlib import Path

from .errors import StoreError
from .scores import Scores, list_shards, prepare_store, read_shard


def open_store(directory: str | Path, config_hash: str, overwrite: bool = False) -> dict[int, Scores]:
    """Make a run directory's ``scores/``; the steps that are finished there.

    Args:
        overwrite: start over: remove the shards that are there.

    Raises:
        StoreError: the directory cannot be written, or a shard was measured with other options, layers, targets, data,
            run or architecture.
    """
    prepare_store(directory)
    done: dict[int, Scores] = {}
    for step, path in list_shards(directory).items():
        if overwrite:
            remove_shard(path)
            continue
        scores = read_shard(path)
        found = scores.values_of("config_hash")
        if found != [config_hash]:
            raise StoreError(
                f"{path}: measured with another configuration (expected {config_hash}, found {', '.join(found)}); "
                "give the same model, run, options and data, another out=, or overwrite=True to start over"
            )
        done[step] = scores
    return done


def check_weights(stored: Scores, column: str, expected: str) -> None:
    """Compare the weights that a stored step was measured on with those at hand.

    Args:
        column: ``state_hash`` or ``source_hash``. expected: the hash at hand.

    Raises:
        StoreError: they differ.
    """
    found = stored.values_of(column)
    if found != [expected]:
        raise StoreError(
            f"step {stored.steps[0]} is stored already, but was measured on other weights ({column} {found[0]}, "
            f"now {expected}): another training? give another out=, or overwrite=True to start over"
        )


def remove_shard(path: Path) -> None:
    """Delete one shard; StoreError names it where that fails."""
    try:
        path.unlink()
    except OSError as error:
        raise StoreError(f"cannot remove the earlier scores {path}: {error}; choose another directory") from error
