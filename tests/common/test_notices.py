"""Warnings point at the line of the user's."""

from __future__ import annotations

from typing import Any

import pytest

from phasefast.common.notices import Once, few, shown, warn


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


def test_names_are_shown_in_the_order_of_their_numbers() -> None:
    assert shown({"layer10", "layer2", "layer2.1", "a", ""}) == "['', 'a', 'layer2', 'layer2.1', 'layer10']"
    assert shown(map(str, [10, 9, 2, 100, 3, 4])) == "['2', '3', '4', '9', '10'] ..."
    assert few(["b", "a"]) == "['b', 'a']"


def test_a_warning_is_given_once_for_the_same_text_or_matter() -> None:
    once = Once()
    given = [("a", ""), ("a", ""), ("b", "matter"), ("c", "matter"), ("d", "")]
    with pytest.warns(RuntimeWarning) as caught:
        [once.warn(text, about) for text, about in given]
    assert [str(each.message) for each in caught] == ["a", "b", "d"]
    assert {each.filename for each in caught} == {__file__}
