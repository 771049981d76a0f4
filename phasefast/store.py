"""Which steps of a run directory are done already, and by the same configuration."""

from __future__ import annotations

from pathlib import Path

from .errors import StoreError
from .scores import Scores, list_shards, read_shard


def reusable_shards(directory: str | Path, config_hash: str, overwrite: bool = False) -> dict[int, Scores]:
    """Finished steps of a run directory; none with ``overwrite``.

    Raises:
        StoreError: a shard was measured with other options, layers, targets or data.
    """
    done: dict[int, Scores] = {}
    for step, path in ({} if overwrite else list_shards(directory)).items():
        scores = read_shard(path)
        found = scores.to_arrow().column("config_hash").unique().to_pylist()
        if found != [config_hash]:
            raise StoreError(
                f"{path}: measured with another configuration (expected {config_hash}, found {', '.join(found)}); "
                "use the same options and data, another output directory, or overwrite"
            )
        done[step] = scores
    return done
