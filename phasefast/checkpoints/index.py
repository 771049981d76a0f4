"""Indexes of checkpoints that are split into shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .messages import damage_named

INDEX = ".index.json"


def read_index(path: Path) -> dict[str, set[str]]:
    """The names of tensors in each shard, by the file name of the shard.

    Raises:
        CheckpointError: missing, damaged, or without a map of weights.
    """
    with damage_named(path):
        loaded: Any = json.loads(path.read_text(encoding="utf-8"))
    weight_map = loaded.get("weight_map") if isinstance(loaded, dict) else None
    shards_named = isinstance(weight_map, dict) and all(
        isinstance(shard, str) and Path(shard).name == shard and not shard.endswith(INDEX)
        for shard in weight_map.values()
    )
    if not weight_map or not shards_named:
        raise CheckpointError(f"{path}: expected a 'weight_map' of names to shards, got none; save the model again")
    shards: dict[str, set[str]] = {shard: set() for shard in sorted(set(weight_map.values()))}
    for name, shard in weight_map.items():
        shards[shard].add(name)
    return shards
