"""Phases in words: what is printed of a cell and of a report."""

from __future__ import annotations

import math
from typing import Any

import pytest

from phasefast import compare_phases
from phasefast.phases.phase_report import CellPhases, Phase, PhaseReport

CONSTANT, FALL, RISE = (
    Phase("constant", 0, 8, -0.01, (-0.02, 0.01)),
    Phase("decrease", 8, 64, -0.1, (-0.2, -0.05)),
    Phase("increase", 64, 4096, 0.1, (0.05, 0.2)),
)


def cell(layer: str, *phases: Phase, window: tuple[int, int] | None = None, **evidence: Any) -> CellPhases:
    return CellPhases(layer, "input", "fvu", phases, 64, (32, 128), window, {"steps": [0, 8, 64, 4096], **evidence})


def test_few_samples_are_told() -> None:
    few = cell("a", FALL, window=(32, 128), samples=29)
    assert "Fewer than 30 held-out samples, or groups: intervals may be too narrow" in str(PhaseReport((few,)))
    enough = [cell("a", FALL, window=(32, 128), samples=30), cell("a", samples=5), cell("a", FALL)]
    assert "Fewer than 30" not in str(PhaseReport(tuple(enough)))


def test_windows_of_one_step_are_told() -> None:
    single = [cell(name, FALL, RISE, window=(64, 64)) for name in "abcdef"]
    assert "Stop windows of one step, which may be the lowest only by noise: a." in str(PhaseReport((single[0],)))
    assert "the lowest only by noise: a; b; c; d and 2 more." in str(PhaseReport(tuple(single)))
    assert "of one step" not in str(PhaseReport((cell("a", FALL, RISE, window=(64, 128)), cell("b", RISE))))


@pytest.mark.parametrize(
    ("made", "is_open", "text"),
    [
        (cell("a", CONSTANT, FALL, RISE, window=(32, 128)), False, "32-128"),
        (cell("a", CONSTANT, FALL, window=(32, 4096)), True, "32-4096+"),
        (cell("a", CONSTANT, FALL, RISE, window=(32, 4096)), True, "32-4096+"),  # the increase does not close it
        (cell("a", FALL, RISE, window=(64, 64)), False, "64"),
        (cell("a", CONSTANT), False, "-"),
        (CellPhases("a", "input", "fvu", (), 64, (32, 128), (32, 64)), False, "32-64"),
    ],
)
def test_a_window_is_open_where_it_ends_at_the_last_step(made: CellPhases, is_open: bool, text: str) -> None:
    assert made.stop_open is is_open
    assert made.window_text == text


def test_a_cell_is_one_line() -> None:
    made = cell("stage4", CONSTANT, FALL, RISE, window=(32, 128), reason=None)
    assert repr(made) == (
        "CellPhases('stage4', 'input': constant 0-8, decrease 8-64, increase 64-4096; stop window 32-128)"
    )
    assert str(made) == repr(made)
    assert made.why == ""
    assert repr(cell("a")) == "CellPhases('a', 'input': none; stop window -)"


def test_a_report_prints_as_a_table() -> None:
    report = PhaseReport(
        (
            cell("stage1", reason="it changes by amounts that come back"),
            cell("features", CONSTANT, FALL, window=(64, 4096)),
        )
    )
    assert str(report).splitlines() == [
        "layer     target  phases                       stop window",
        "stage1    input   none                         -",
        "features  input   constant 0-8, decrease 8-64  64-4096+",
        "+ open: no certain rise of 0.25 of the decrease or more, up to the last step",
        "stage1: it changes by amounts that come back",
    ]
    assert repr(report) == "PhaseReport(2 cells, layers ['stage1', 'features'], targets ['input'])"
    assert str(PhaseReport(())).splitlines() == ["layer  target  phases  stop window"]


def test_few_reasons_are_printed_those_without_a_phase_first() -> None:
    cells = [cell(f"constant{i}", CONSTANT, reason="hardly changes") for i in range(6)]
    label = CellPhases("last", "label", "error", (), 0, (0, 0), None, {"reason": "comes back"})
    lines = str(PhaseReport((*cells, label))).splitlines()
    assert lines[8:] == [
        "last, label: comes back",
        *(f"constant{i}, input: hardly changes" for i in range(3)),
        "and 3 more: see cell.why, cell.doubt or phases.json",
    ]


def test_rows_are_for_tables_of_ones_own() -> None:
    losses = {"first": 0.8, "minimum": 0.3, "last": 0.5}
    report = PhaseReport((cell("a", CONSTANT, FALL, window=(32, 4096), loss=losses), cell("b")))
    first, second = report.rows()
    assert first == {
        "layer": "a",
        "target": "input",
        "metric": "fvu",
        "constant_start": 0,
        "constant_end": 8,
        "constant_change": -0.01,
        "constant_low": -0.02,
        "constant_high": 0.01,
        "decrease_start": 8,
        "decrease_end": 64,
        "decrease_change": -0.1,
        "decrease_low": -0.2,
        "decrease_high": -0.05,
        "increase_start": pytest.approx(math.nan, nan_ok=True),
        "increase_end": pytest.approx(math.nan, nan_ok=True),
        "increase_change": pytest.approx(math.nan, nan_ok=True),
        "increase_low": pytest.approx(math.nan, nan_ok=True),
        "increase_high": pytest.approx(math.nan, nan_ok=True),
        "minimum": 64,
        "minimum_low": 32,
        "minimum_high": 128,
        "stop_start": 32,
        "stop_end": 4096,
        "stop_open": True,
        "loss_first": 0.8,
        "loss_minimum": 0.3,
        "loss_last": 0.5,
        "other_minimum": pytest.approx(float("nan"), nan_ok=True),
        "left_out": [],
        "why": "",
        "doubt": "",
    }
    assert list(second) == list(first)
    assert math.isnan(second["decrease_start"])
    assert math.isnan(second["stop_start"])
    assert not second["stop_open"]
    assert math.isnan(second["loss_minimum"])
    runs = compare_phases({"x": report, "y": report}).rows()
    assert [(row["run"], row["layer"]) for row in runs] == [("x", "a"), ("y", "a"), ("x", "b"), ("y", "b")]
    assert runs[0] == {"run": "x", **first, **{key: runs[0][key] for key in first if key.startswith("increase")}}


def test_steps_that_are_left_out_are_named_with_their_curves() -> None:
    cells = [cell("a", left_out=[8, 64]), cell("b"), cell("c", left_out=[64])]
    assert "far above their neighbours: a at 8, 64; c at 64." in str(PhaseReport(tuple(cells)))
    many = tuple(cell(f"layer{i}", left_out=[8]) for i in range(7))
    assert "layer3 at 8; and in 3 more curves." in str(PhaseReport(many))
