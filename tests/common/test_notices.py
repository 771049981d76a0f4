"""Warnings point at the line of the user's."""

from __future__ import annotations

from typing import Any

import pytest

from phasefast.common.notices import warn


@pytest.mark.parametrize(
    ("name", "inside"),
    [("phasefast.track", True), ("contextlib", True), ("torch._dynamo.eval_frame", True), ("phasefaster", False)],
)
def test_what_lies_between_is_not_the_line_that_is_named(name: str, inside: bool) -> None:
    names: dict[str, Any] = {"__name__": name, "warn": warn}
    exec(compile("def call():\n    warn('something')", "between.py", "exec"), names)
    with pytest.warns(RuntimeWarning, match="something") as caught:
        names["call"]()
    assert caught[0].filename == (__file__ if inside else "between.py")
