"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import StoreError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)  # without a number: what a library says instead
_OLD = 86_400  # seconds
_PARTIAL = re.compile(r".+\.[0-9a-f]{8}\.partial")


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], what: str, parents: bool = False) -> Iterator[Path]:
    """A new file beside ``path`` to write to: it takes the place of ``path`` after the block, or goes on any error.

    Args:
        what: is written, as the error says. parents: make the folders that are missing.

    Raises:
        StoreError: it cannot be written.
    """
    path = Path(path)
    path = Path(os.path.realpath(path)) if path.is_symlink() else path  # the link stays
    # Random, not the process id: shards of one sweep may run on machines that share a disk.
    partial = path.with_name(f"_{path.stem}.{secrets.token_hex(4)}.partial")
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        with contextlib.suppress(OSError):  # whoever may read the old one may the new one, and nobody else
            mode = stat.S_IMODE(path.stat().st_mode)
            partial.chmod(mode | stat.S_IWUSR)
        yield partial
        with contextlib.suppress(OSError):
            partial.chmod(stat.S_IMODE(path.stat().st_mode))
        os.replace(partial, path)
    except OSError as error:
        mend = "free some space or choose another place" if error.errno in _FULL else "choose another place"
        raise StoreError(f"cannot write {what} {path}: {error.strerror or error}; {mend}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], data: Any, what: str, indent: int | None = None) -> None:
    """Data that JSON has, in a file that is there whole or not at all; arguments and errors as of :func:`writing`."""
    with writing(path, what, parents=True) as partial:
        partial.write_text(json.dumps(data, indent=indent) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """What ``write_json`` has written; None where there is no file, or another one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time, where there is a system and a disk that can tell: by a lock on a file, which stays."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl  # not everywhere

            file = stack.enter_context(path.open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_partial(folder: Path) -> None:
    """Delete what a killed process has left of ``writing``, once it is old: younger ones may be another process's."""
    for path in folder.glob("*.partial"):
        with contextlib.suppress(OSError):
            if _PARTIAL.fullmatch(path.name) and time.time() - path.lstat().st_mtime > _OLD:
                path.unlink()


def save(data: Any, path: str | os.PathLike[str], what: str, parents: bool = False) -> None:
    """``torch.save`` to a file that is there whole or not at all; arguments and errors as of :func:`writing`."""
    with writing(path, what, parents) as partial:
        try:
            torch.save(data, partial)
        except RuntimeError as error:  # such as of a full disk
            raise OSError(str(error)) from error


def remove_file(path: Path) -> None:
    """Delete a file that an earlier run left; StoreError names it where that fails."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot remove {path}, left by earlier work: {error}; choose another directory") from error
