"""What all cells of a sweep need of wide targets, kept on disk for later and other processes of the sweep."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from ..common.files import save
from ..common.notices import warn
from ..errors import StoreError
from . import target_matrix
from .target_matrix import TargetMatrix

FORMAT = 9  # raise it with any change of what `build_targets` makes of the same columns
_RECORDS: list[Any] = [
    record for record in vars(target_matrix).values() if isinstance(record, type) and is_dataclass(record)
]
_LAYOUT = [(record.__name__, [(field.name, field.type) for field in fields(record)]) for record in _RECORDS]


@dataclass(frozen=True)
class TargetCache:
    """Target matrices under the hash of all they are made of: other data, targets or folds lie in another file.

    Attributes:
        folder: holds ``targets-<key>.pt``; made when there is something to keep.
        data: content hash of the probe set's inputs.
    """

    folder: Path
    data: str

    def key(
        self, digests: Sequence[str], folds: Sequence[int], dtypes: Iterable[torch.dtype], components: int | None = None
    ) -> str:
        """Content hash of a target matrix before it is made.

        Args:
            digests: the targets' content hashes. folds: row offsets. dtypes: of the targets' columns. components: how
                many leading ones are decoded, or None for all columns.
        """
        parts = (FORMAT, _LAYOUT, self.data, tuple(digests), tuple(folds), tuple(dtypes), components)
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def load(self, key: str, device: torch.device) -> TargetMatrix | None:
        """The matrix kept under ``key``, on ``device``; None where there is none, or the file is damaged or foreign."""
        path = self._path(key)
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:  # torch.load does not look at the checksums of its own files
                    return None
            with torch.serialization.safe_globals(_RECORDS):
                kept, targets = torch.load(path, map_location=device, weights_only=True)
        except Exception:  # a damaged file can raise anything
            return None
        return targets if kept == key and isinstance(targets, TargetMatrix) else None

    def store(self, key: str, targets: TargetMatrix) -> None:
        """Keep a matrix for ``load``; where that fails, a warning says so and nothing else happens."""
        # Only targets by fewer columns than their own: inner products take n^2 p work for a file of n^2 numbers,
        # components many passes. The rest takes a few passes over the columns, as reading a file of them would.
        if all(block.stop - block.start == block.width for block in targets.blocks):
            return
        try:
            save((key, targets), self._path(key), "the target statistics to", parents=True)
        except StoreError as error:
            warn(f"{error}; they will be computed again next time")

    def _path(self, key: str) -> Path:
        return self.folder / f"targets-{key}.pt"
