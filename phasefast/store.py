"""Which steps of a run directory are done already, and by the same configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import StoreError
from .files import replacing
from .scores import Scores, list_shards, prepare_store, read_shard

# What the settings of a configuration are called where they are given; the others have their own names.
_NAMES = {
    "names": "layers",
    "model": "the model's parameters",
    "data": "the probe set",
    "penalties": "alphas or noise",
    "choice": "selection or penalty_per",
    "batchnorm": "batchnorm or batch_size",
    "rows": "tokens, pool or the rows' dtype",
    "components": "target_components",
    "sketch": "layer_sketch",
}


def open_store(
    directory: str | Path, config_hash: str, settings: Mapping[str, Any], overwrite: bool = False
) -> dict[int, Scores]:
    """Make a run directory's ``scores/``; the steps that are finished there.

    Args:
        config_hash: of ``settings``, which are kept beside the shards. overwrite: start over: remove the shards.

    Raises:
        StoreError: the directory cannot be written, or a shard was measured with other options, layers, targets, data,
            run or architecture.
    """
    folder = prepare_store(directory)
    done: dict[int, Scores] = {}
    for step, path in list_shards(directory).items():
        if overwrite:
            remove_shard(path)
            continue
        scores = read_shard(path)
        found = scores.values_of("config_hash")
        if found != [config_hash]:
            raise StoreError(
                f"{path}: measured with another configuration (expected {config_hash}, found {', '.join(found)})"
                f"{_difference(folder, found[0], settings)}; give the same model, run, options and data, another "
                "out=, or overwrite=True to start over"
            )
        done[step] = scores
    kept = _settings_file(folder, config_hash)
    if not kept.exists():
        with replacing(kept) as partial:
            partial.write_text(json.dumps(settings), encoding="utf-8")
    return done


def _settings_file(folder: Path, config_hash: str) -> Path:
    return folder / f"settings-{config_hash}.json"


def _difference(folder: Path, config_hash: str, settings: Mapping[str, Any]) -> str:
    """Which settings another configuration has otherwise, as part of a sentence; nothing where it left no word."""
    try:
        others = json.loads(_settings_file(folder, config_hash).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    own = json.loads(json.dumps(settings))
    names = [_NAMES.get(key, key) for key in {**own, **others} if own.get(key) != others.get(key)]
    return f": {'; '.join(names)} differ{'s' if len(names) == 1 else ''}"


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
