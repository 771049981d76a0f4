"""Globs: what is chosen, what is left out, what matches nothing."""

from __future__ import annotations

import pytest

from phasefast.common.globs import chosen, idle

NAMES = ["conv1", "conv2", "drop", "fc"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["fc", "conv?"], ["conv1", "conv2", "fc"]),
        (["*", "!conv*"], ["drop", "fc"]),
        (["!conv*", "*"], ["drop", "fc"]),
        (["!drop"], ["conv1", "conv2", "fc"]),
        (["conv*", "!conv1", "!drop"], ["conv2"]),
        (["conv[!1]"], ["conv2"]),
        (["fc", "!*"], []),
    ],
)
def test_names_are_chosen_in_their_own_order(patterns: list[str], expected: list[str]) -> None:
    assert chosen(NAMES, patterns) == expected
    assert idle(NAMES, patterns) is None


def test_without_any_that_chooses_the_default_is_what_others_are_left_out_of() -> None:
    assert chosen(NAMES, ["!drop"], lambda: ["drop", "fc"]) == ["fc"]
    assert chosen(NAMES, ["conv1", "!drop"], lambda: ["drop", "fc"]) == ["conv1"]


def test_the_first_pattern_that_matches_nothing_is_told() -> None:
    assert idle(NAMES, ["fc", "!bn*", "pool"]) == "!bn*"


def test_a_pattern_that_is_a_name_means_that_one() -> None:
    names = ["block[0]", "block0", "*"]
    assert (chosen(names, ["block[0]"]), idle(names, ["block[0]"])) == (["block[0]"], None)
    assert chosen(names, ["b*", "!block[0]"]) == ["block0"]
    assert chosen(names, ["*"]) == ["*"]
