"""What messages about checkpoints have in common."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from ..errors import CheckpointError, PhasefastError, UnreadableError

IF_TRUSTED = "pass weights_only=False (--trust)"


@contextlib.contextmanager
def damage_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever goes wrong while ``path`` is read into an UnreadableError that names it."""
    name = os.fspath(path)
    try:
        yield
    except PhasefastError:
        raise
    except FileNotFoundError as error:
        raise UnreadableError(f"{error.filename or name}: no such file") from error
    except Exception as error:  # a damaged pickle can raise anything
        text = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if not re.search("[a-z]", text):  # a key, such as 101, or nothing
            text = f"{type(error).__name__} {text}".strip()
        detail = text.splitlines()[0]
        if isinstance(error, MemoryError) or "allocate memory" in detail:  # of torch a RuntimeError, of maps an OSError
            raise UnreadableError(f"{name}: out of memory while it was read ({detail})") from error
        raise UnreadableError(f"{name}: cannot be read, perhaps truncated or still being written ({detail})") from error


def not_plain(path: str | os.PathLike[str]) -> CheckpointError:
    """The error of a checkpoint that only unpickling arbitrary objects would read."""
    return CheckpointError(
        f"{os.fspath(path)}: holds more than plain tensors; save model.state_dict(), or, if you trust the file and it "
        f"has a state dict in it, {IF_TRUSTED}"
    )
