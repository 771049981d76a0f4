"""What errors of damaged files say."""

from __future__ import annotations

import errno
import os

import pytest

from phasefast.checkpoints.messages import damage_named
from phasefast.errors import UnreadableError


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError(101), "(KeyError 101)"),
        (EOFError(), "(EOFError)"),
        (OSError(errno.EINVAL, os.strerror(errno.EINVAL)), f"({os.strerror(errno.EINVAL)})"),
        (ValueError("no magic number\nbut more"), "(no magic number)"),
    ],
)
def test_what_went_wrong_is_told_in_words(error: Exception, told: str) -> None:
    with pytest.raises(UnreadableError) as caught, damage_named("step_1.pt"):
        raise error
    assert str(caught.value) == f"step_1.pt: cannot be read, perhaps truncated or still being written {told}"
