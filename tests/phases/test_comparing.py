"""What several runs have in common."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import phasefast as pf
from phasefast.errors import DataError
from phasefast.phases.phase_report import CellPhases, Phase, PhaseReport

FALL, RISE = Phase("decrease", 8, 64, -0.1, (-0.2, -0.05)), Phase("increase", 64, 512, 0.1, (0.05, 0.2))


def run(window: tuple[int, int] | None, minimum: int = 64, layers: str = "a", last: int = 512) -> PhaseReport:
    phases = () if window is None else (FALL, RISE)
    evidence = {"steps": [0, 8, 64, last]}
    return PhaseReport(
        tuple(CellPhases(layer, "input", "fvu", phases, minimum, (32, 128), window, evidence) for layer in layers)
    )


@pytest.mark.parametrize(
    ("windows", "common", "text", "why"),
    [
        ([(16, 64), (32, 128), (8, 64)], (32, 64), "32-64", ""),
        ([(16, 64), (64, 512)], (64, 64), "64", ""),
        ([(16, 512), (64, 512)], (64, 512), "64-512+", ""),
        ([(16, 512), (64, 128)], (64, 128), "64-128", ""),
        ([(16, 32), (64, 128)], None, "-", "s0 16-32; s1 64-128 do not overlap"),
        ([(16, 32), None, (16, 32)], None, "-", "none in s1; the others share 16-32"),
        ([(16, 32), None], None, "-", "none in s1; the other has 16-32"),
        ([(16, 512), None], None, "-", "none in s1; the other has 16-512+"),
        ([(16, 512), (32, 512), None], None, "-", "none in s2; the others share 32-512+"),
        ([(16, 64), (32, 512), None], None, "-", "none in s2; the others share 32-64"),
        ([(8, 16), None, (32, 64)], None, "-", "none in s1"),
        ([None, None], None, "-", "no run has a stop window"),
    ],
)
def test_the_window_of_all_is_what_their_windows_share(
    windows: list[tuple[int, int] | None], common: tuple[int, int] | None, text: str, why: str
) -> None:
    found = pf.compare_phases({f"s{i}": run(window) for i, window in enumerate(windows)}).agreement("a")
    assert (found.stop_window, found.window_text, found.why) == (common, text, why)
    assert found.count("decrease") == sum(window is not None for window in windows)
    assert found.count("constant") == 0


@pytest.mark.parametrize(
    ("others", "text"),
    [([(16, 256), (16, 512)], "16-128+"), ([(16, 64), (16, 512)], "16-64"), ([(16, 128)], "16-128"), ([None], "-")],
)
def test_the_window_of_all_is_open_where_a_run_was_measured_no_longer(
    others: list[tuple[int, int] | None], text: str
) -> None:
    reports = {"short": run((16, 128), last=128)} | {f"s{i}": run(window) for i, window in enumerate(others)}
    found = pf.compare_phases(reports).agreement("a")
    assert (found.window_text, found.stop_open) == (text, text.endswith("+"))


def test_minima_are_told_by_their_range_and_median() -> None:
    found = pf.compare_phases({f"s{step}": run((16, 64), step) for step in (128, 32, 256, 64)}).agreement("a")
    assert found.minimum_steps == (32, 64, 256)


def test_only_what_all_runs_have_is_compared() -> None:
    found = pf.compare_phases(
        {"one": run((16, 64), layers="abc"), "two": run(None, layers="cab"), "x": run(None, layers="dcb")}
    )
    assert [each.layer for each in found] == ["b", "c"]
    assert len(found) == 2
    assert repr(found).splitlines() == [
        "Comparison of one, two, x",
        "  Agreement('b', 'input': 2 x none; 1 x decrease, increase; stop window -)",
        "  Agreement('c', 'input': 2 x none; 1 x decrease, increase; stop window -)",
    ]
    assert str(found).splitlines() == [
        "3 runs: one, two, x",
        "layer  target  constant  decrease  increase  minimum [range]  stop window of all",
        "b      input     0 of 3    1 of 3    1 of 3          64 [64]                   -",
        "c      input     0 of 3    1 of 3    1 of 3          64 [64]                   -",
        "b, c: no stop window in common: none in two, x; the other has 16-64",
    ]
    with pytest.raises(KeyError, match="no phases of layer 'a', target 'input'; there are "):
        found.agreement("a")
    with pytest.raises(DataError, match=r"no layer and target in common: one has \['a/input'\]; two has \['b/input'\]"):
        pf.compare_phases({"one": run(None), "two": run(None, layers="b")})
    with pytest.raises(DataError, match=r"two runs or more by name, {name: PhaseReport}, got \['one'\]"):
        pf.compare_phases({"one": run(None)})
    with pytest.raises(DataError, match=r"two runs or more by name, .* got \['list'\]"):
        pf.compare_phases([run(None), run(None)])  # type: ignore[arg-type]


def test_second_valleys_are_told() -> None:
    one, two = run((16, 64)), run((16, 64))
    (cell,) = two
    two = replace(two, cells=(replace(cell, evidence={**cell.evidence, "other_minimum": 256}),))
    found = pf.compare_phases({"one": one, "two": two})
    assert str(found).splitlines()[-1] == (
        "a: two valleys, of which the lower one counts; lowest of the other: two at 256"
    )
    assert [str(each["other_minimum"]) for each in found.rows()] == ["nan", "256"]


def test_seeds_may_be_named_by_numbers() -> None:
    reports = {seed: run((16, 64)) for seed in range(2)}
    found = pf.compare_phases(reports)  # type: ignore[arg-type]
    assert found.runs == ("0", "1")
    assert "Comparison of 0, 1" in repr(found)
    with pytest.raises(DataError, match=r"a different name for each run, got \['0', '0'\]"):
        pf.compare_phases({0: reports[0], "0": reports[1]})  # type: ignore[dict-item]


def test_json_has_each_run_and_all() -> None:
    found = json.loads(pf.compare_phases({"one": run((16, 64)), "two": run((32, 128), 32)}).to_json())
    assert found == {
        "runs": ["one", "two"],
        "cells": [
            {
                "layer": "a",
                "target": "input",
                "metric": "fvu",
                "phases": {"constant": 0, "decrease": 2, "increase": 2},
                "minimum_steps": {"one": 64, "two": 32},
                "stop_windows": {"one": [16, 64], "two": [32, 128]},
                "stop_windows_open": {"one": False, "two": False},
                "stop_window": [32, 64],
                "stop_open": False,
            }
        ],
        "best": [],
    }
