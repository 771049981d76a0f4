"""Where the scores of a run lie."""

from __future__ import annotations

from pathlib import Path


def store_folder(directory: str | Path) -> Path:
    """Where the shards of a run directory lie: its ``scores/``."""
    return Path(directory) / "scores"


def shard_file(directory: str | Path, step: int) -> Path:
    """The file of a step's scores in a run directory."""
    return store_folder(directory) / f"step-{step:012d}.parquet"
