"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from .errors import StoreError


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], what: str, parents: bool = False) -> Iterator[Path]:
    """A new file beside ``path`` to write to: it takes the place of ``path`` after the block, or goes on any error.

    Args:
        what: is written, as the error says. parents: make the folders that are missing.

    Raises:
        StoreError: it cannot be written.
    """
    path = Path(path)
    # Random, not the process id: shards of one sweep may run on machines that share a disk.
    partial = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.partial")
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save raises either where the disk is full
        raise StoreError(f"cannot write {what} {path}: {error}; free some space or choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
