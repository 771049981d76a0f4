from __future__ import annotations

import io
import math

import numpy as np
import pytest
from rich.console import Console

from phasefast.phases.detect import detect_phases
from phasefast.phases.phase_report import CellPhases, Phase, PhaseReport
from phasefast.report import with_best
from phasefast.report.names import shortened
from phasefast.report.table import curve_tables, number, numbers, phase_table, print_report
from phasefast.results.scores import Scores

from .synthetic import log2_steps, make_scores, row

LONG = [f"module.encoder.blocks.{i}.feed_forward.down_projection" for i in range(4)]


def cell(layer: str, *phases: Phase, window: tuple[int, int] | None = None) -> CellPhases:
    return CellPhases(layer, "input", "fvu", phases, 64, (32, 128), window)


def printed(scores: Scores, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    print_report(scores, with_best(scores, detect_phases(scores)), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.3594, ".359"),
        (-0.0108, "-.011"),
        (0.99951, "1.00"),
        (1.414, "1.41"),
        (9.996, "10.0"),
        (12.34, "12.3"),
        (999.9, "1000"),
        (2.4e-6, "2e-6"),
        (12345.0, "1e4"),
        (0.0, "0"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.0061, 0.0066, 0.0071], [".0061", ".0066", ".0071"]),
        ([0.359, 0.358, math.nan], [".359", ".358", "nan"]),  # no more than three digits
        ([0.0018, 0.00182], [".00180", ".00182"]),
        ([0.05, 0.3], [".050", ".300"]),
        ([0.006, 0.006], [".006", ".006"]),
        ([math.inf, 0.0], ["inf", "0"]),
        ([2e-6, 3.1e-6, 0.2], ["2e-6", "3e-6", ".200"]),
        ([2.44e-4, 3.1e-4, 2.6e-4], ["2.4e-4", "3.1e-4", "2.6e-4"]),
        ([], []),
    ],
)
def test_small_curves_show_their_changes(values: list[float], texts: list[str]) -> None:
    assert numbers(values) == texts


def test_phases_changes_minimum_and_window_are_in_the_table() -> None:
    all_three = cell(
        "deep",
        Phase("constant", 0, 8, -0.0004, (-0.001, 0.001)),
        Phase("decrease", 8, 64, -0.068, (-0.07, -0.06)),
        Phase("increase", 64, 4096, 0.14, (0.13, 0.15)),
        window=(32, 128),
    )
    console = Console(width=100, file=io.StringIO())
    console.print(phase_table([all_three, cell("early")], " "))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    deep = next(line for line in lines if line.startswith("deep")).split()
    assert deep == ["deep", "0-8", "-4e-4", "8-64", "-.068", "64-4096", "+.140", "64", "[32-128]", "32-128"]
    early = next(line for line in lines if line.startswith("early")).split()
    assert early == ["early", "-", "-", "-", "64", "[32-128]", "-"]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("layers", [["stage1", "stage2", "features"], LONG])
def test_no_number_is_lost_at_common_widths(layers: list[str], width: int) -> None:
    scores = make_scores(layers, log2_steps(20))
    text = printed(scores, width)
    assert all(len(line) <= width for line in text.splitlines())
    names = shortened(layers).values()
    assert all(any(word in name for name in names) for word in text.split() if "…" in word)
    report = detect_phases(scores)
    last = report.cell(layers[-1])
    assert [phase.kind for phase in last.phases] == ["constant", "decrease", "increase"]
    for phase in last.phases:
        assert f"{phase.start_step}-{phase.end_step}" in text
    assert last.stop_window is not None
    assert "{}-{}".format(*last.stop_window) in text
    assert "model" in text
    for heading in (
        "Phases of target input: steps, and change of the held-out fvu",
        "Held-out accuracy of target label, by step",
    ):
        assert text.splitlines().count(heading) == 1


def test_open_windows_and_reasons_are_explained_below_the_table() -> None:
    steps = log2_steps(14)
    scores = make_scores(["a"], steps, accuracy=False, network=False)
    fall = Phase("decrease", 8, 64, -0.1, (-0.2, -0.05))
    known = {"order_p": 0.001, "steps": steps}
    cells = (
        CellPhases("a", "input", "fvu", (fall,), 64, (32, 128), (64, 4096), known),
        CellPhases("b", "input", "fvu", (), 64, (32, 128), None, {**known, "reason": "comes back [x]"}),
    )
    console = Console(width=100, file=io.StringIO())
    print_report(scores, PhaseReport(cells), console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert next(line for line in lines if line.startswith("a ")).split()[-1] == "64-4096+"
    assert "+ open: no certain rise of 0.25 of the decrease or more, up to the last step" in lines
    assert "b: comes back [x]" in lines
    print_report(scores, PhaseReport(cells[1:]), console)
    assert console.file.getvalue().count("+ open") == 1  # type: ignore[attr-defined]


def test_curve_tables_show_every_step_once_in_order() -> None:
    steps = log2_steps(20)
    curves = {"a": dict.fromkeys(steps, ".500"), "b": dict.fromkeys(steps[:3], "~1e-6")}
    console = Console(width=40, file=io.StringIO())
    tables = list(curve_tables(curves, 40))
    for table in tables:
        console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    shown = [step for line in lines if line.startswith("step") for step in line.split()[1:]]
    assert len(tables) > 1
    assert [int(step) for step in shown] == steps
    assert sum(line.count("~1e-6") for line in lines) == 3
    assert sum(line.count(".500") for line in lines) == 20


def test_estimates_are_called_so() -> None:
    scores = make_scores(["fc"], log2_steps(9), network=False)
    assert "~" not in printed(scores, 100)
    text = printed(scores.with_column("approximation", "sketch of 8 of 64 features"), 100)
    assert text.count("~ estimates: sketch of 8 of 64 features. Intervals: columns low and high.") == 2
    assert text.count("~") == 2 + 2 * 9  # of both targets at each step


@pytest.mark.parametrize(
    ("steps", "shares", "texts"),
    [
        ((0, 1, 2), (0.5, 0.6, 0.9), ["Best: a at step 2, accuracy ", "told apart from all others"]),
        (
            (0, 1, 2),
            (0.9, 0.6, 0.9),
            ["not told apart from it: its steps 0, 2", "Step 0", "show no gain here by training"],
        ),
        ((500, 600, 700), (0.9, 0.6, 0.9), ["its steps 500, 700", "show no gain here by training after step 500"]),
        ((0, 1, 2), (0.3, 0.5, 0.48), ["No layer is better than the most frequent class, .500, by more than chance"]),
    ],
)
def test_the_best_layer_and_step_are_told(steps: tuple[int, ...], shares: tuple[float, ...], texts: list[str]) -> None:
    luck = np.random.default_rng(0).random(300)
    rows = [
        {**row(step, "a", "label", "accuracy", luck < share), "baseline": 0.5}
        for step, share in zip(steps, shares, strict=True)
    ]
    shown = " ".join(printed(Scores.from_rows(rows), 100).split())
    for text in texts:
        assert text in shown
    assert shown.endswith("by training") == (steps[0] == 0 and shares[0] == 0.9)


def test_of_very_many_rows_the_first_targets_are_shown_and_what_is_best_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    luck = np.random.default_rng(0).random(300)
    rows = [
        {**row(step, layer, target, "accuracy", luck < 0.5 + 0.1 * step), "baseline": 0.5}
        for step in range(3)
        for layer in ("a", "b")
        for target in ("x [red]", "y", "z")
    ]
    scores = Scores.from_rows(rows)
    assert "more targets" not in printed(scores, 100)
    assert printed(scores, 100).count("Phases of target") == 3
    for most, tables in ((4, 2), (1, 1)):
        monkeypatch.setattr("phasefast.report.table._MOST_ROWS", most)
        text = printed(scores, 100)
        assert text.count("Phases of target") == text.count(", by step") == tables
        assert f"{3 - tables} more targets; --target shows the tables" in text
        assert text.count("Best: a at step 2") == 3
        assert "z: Best: a at step 2, accuracy" in text


def test_layers_that_do_worse_than_a_constant_at_some_step_are_told() -> None:
    levels = {"a": [1.0, 1.04, 0.9, 0.8], "b": [1.0, 1.06, 0.9, 0.8], "c": [1.0, math.nan, 2.0, 0.5]}
    rows = [
        row(step, layer, "age", "fvu", np.full(30, value))
        for layer, values in levels.items()
        for step, value in enumerate(values)
    ]
    scores = Scores.from_rows(rows)
    console = Console(width=200, file=io.StringIO())
    print_report(scores, detect_phases(scores, layers=["a", "b"]), console)
    told = "age fvu above 1, worse than a constant, in ['b']: typical of too few fit rows"
    assert told in console.file.getvalue()  # type: ignore[attr-defined]
    assert "worse than a constant" not in printed(make_scores(["a"], log2_steps(8)), 200)
