"""The rows above the curves: what is drawn for which layer, and the stop window in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from phasefast.phases.phase_report import CellPhases, Phase, PhaseReport
from phasefast.report.curves import Look
from phasefast.report.phase_map import Row, map_height
from phasefast.report.scales import StepAxis

from .synthetic import figure_of, log2_steps, make_scores

STEPS = log2_steps(14)
AXIS = StepAxis(np.array(STEPS))
COLOURS = {"constant": "#8c8c8c", "decrease": "#009E73", "increase": "#D55E00"}
STOP = "#0072B2"


def cell(
    layer: str, *phases: tuple[str, int, int], window: tuple[int, int] | None = None, steps: Sequence[int] = STEPS
) -> CellPhases:
    named = tuple(Phase(kind, start, end, 0.1, (0.0, 0.2)) for kind, start, end in phases)  # type: ignore[arg-type]
    return CellPhases(layer, "input", "fvu", named, 64, (64, 64), window, {"steps": list(steps)})


FULL = (("constant", 0, 8), ("decrease", 8, 64), ("increase", 64, 4096))


def strips(cells: Sequence[CellPhases], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Axes, Axes, Axes]:
    """The key, the rows and the stop window."""
    scores = make_scores([cell.layer for cell in cells], STEPS[:2] + STEPS[-1:], accuracy=False)
    steps = make_scores(["unused"], STEPS, fvu=False, accuracy=False)
    figure = figure_of(type(scores).concat([scores, steps]), PhaseReport(tuple(cells)), folder, monkeypatch)
    key, rows, bar, *_ = figure.axes
    return key, rows, bar


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def segments(rows: Axes, index: int, count: int) -> list[tuple[str, float, float]]:
    """Kind, start and end of the segments of one row."""
    height, found = map_height(count) / count, []
    for patch in rows.patches:
        middle = patch.get_y() + patch.get_height() / 2
        if abs(middle - (index + 0.5) * height) < 1e-6:
            kind = next(
                kind
                for kind, colour in COLOURS.items()
                if np.allclose(patch.get_facecolor()[:3], 0.7 + 0.3 * np.array(to_rgb(colour)))
            )
            found.append((kind, patch.get_x(), patch.get_x() + patch.get_width()))
    return found


@pytest.mark.parametrize("count", [3, 12, 40])
def test_every_layer_has_a_row_of_its_own_phases(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [cell(f"l{i}", *FULL[i % 4 :]) for i in range(count)]
    _, rows, _ = strips(cells, tmp_path, monkeypatch)
    for i, each in enumerate(cells):
        wanted = [(phase.kind, AXIS.at(phase.start_step), AXIS.at(phase.end_step)) for phase in each.phases]
        assert segments(rows, i, count) == [(kind, *map(pytest.approx, ends)) for kind, *ends in wanted]
    named = [text for text in texts(rows) if text.startswith("l")]
    assert f"l{count - 1}" in named
    assert len(named) == count if count <= 12 else 10 < len(named) < count
    (chosen,) = (text for text in rows.texts if text.get_weight() == "bold")
    assert chosen.get_text() == f"l{count - 1}"


def test_of_very_many_layers_some_have_rows_and_the_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [cell(f"l{i}", *FULL) for i in range(100)]
    _, rows, _ = strips(cells, tmp_path, monkeypatch)
    assert len(rows.patches) == 3 * 45
    assert "phases of input fvu, 45 of 100 layers; shaded below: l99" in [text.get_text() for text in rows.figure.texts]
    assert "l0" in texts(rows)


def test_a_layer_without_phases_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, rows, bar = strips([cell("a", *FULL), cell("b")], tmp_path, monkeypatch)
    assert texts(rows).count("no phase") == 1
    assert segments(rows, 1, 2) == []
    assert "no phase" in texts(key)
    assert texts(bar) == ["no stop window in b"]
    key, rows, _ = strips([cell("a", *FULL)], tmp_path, monkeypatch)
    assert "no phase" not in texts(rows) + texts(key)


@pytest.mark.parametrize(
    ("phases", "gaps"),
    [
        (FULL, False),
        (FULL[1:], True),
        (FULL[:2], True),
        ((), True),
        ((("constant", 0, 4096),), False),
        ((("constant", 0, 8), ("decrease", 16, 4096)), True),
    ],
)
def test_steps_in_no_phase_are_dotted(
    phases: Sequence[tuple[str, int, int]], gaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Row(Look("a", "black"), cell("a", *phases)).has_gaps is gaps
    key, rows, _ = strips([cell("a", *phases)], tmp_path, monkeypatch)
    assert ("no phase" in texts(key)) is gaps
    assert dotted(rows) == [(-1, 12)] * gaps


def dotted(rows: Axes) -> list[tuple[float, float]]:
    return [tuple(line.get_xdata()) for line in rows.lines if line.get_color() == "#b0b0b0"]


def test_steps_at_which_a_layer_was_not_measured_are_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    early = cell("a", *FULL[:2], steps=STEPS[:8])
    key, rows, _ = strips([early, cell("b", *FULL)], tmp_path, monkeypatch)
    assert dotted(rows) == []
    assert "no phase" not in texts(key)
    _, rows, _ = strips([cell("a", steps=STEPS[:8]), cell("b", *FULL)], tmp_path, monkeypatch)
    assert dotted(rows) == [(-1, 6)]
    (words,) = (text for text in rows.texts if text.get_text() == "no phase")
    assert words.get_position()[0] == 2.5


@pytest.mark.parametrize(("count", "chosen"), [(3, 1), (40, 18), (60, 0), (60, 30), (100, 96)])
def test_the_chosen_layer_has_a_row_and_a_bold_name(
    count: int, chosen: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = make_scores([f"l{i}" for i in range(count)], STEPS, accuracy=False)
    cells = [cell(f"l{i}", *FULL[:2]) for i in range(chosen)] + [cell(f"l{chosen}", *FULL[2:])]
    figure = figure_of(scores, PhaseReport(tuple(cells)), tmp_path, monkeypatch)
    rows, panel = figure.axes[1], figure.axes[3]
    (name,) = (text for text in rows.texts if text.get_weight() == "bold")
    assert name.get_text() == f"l{chosen}"
    shown = min(count, 45)
    height = map_height(shown) / shown
    index = round(name.get_position()[1] / height - 0.5)
    assert [kind for kind, *_ in segments(rows, index, shown)] == ["increase"]
    assert f"l{chosen}" in texts(panel)
    places = sorted(text.get_position()[1] for text in rows.texts if text.get_text().startswith("l"))
    assert np.diff(places).min() > 0.16


@pytest.mark.parametrize("count", [15, 24])
def test_each_of_as_many_layers_as_networks_usually_have_is_named(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = make_scores([f"l{i}" for i in range(count)], STEPS, accuracy=False)
    report = PhaseReport(tuple(cell(f"l{i}", *FULL) for i in range(count)))
    rows = figure_of(scores, report, tmp_path, monkeypatch).axes[1]
    assert {f"l{i}" for i in range(count)} <= set(texts(rows))


def test_layers_that_were_not_analysed_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = make_scores(["a", "b"], STEPS, accuracy=False)
    figure = figure_of(scores, PhaseReport((cell("b", *FULL),)), tmp_path, monkeypatch)
    assert texts(figure.axes[1]).count("not analysed") == 1
    early = figure_of(scores, PhaseReport((cell("a", *FULL, window=(16, 64)),)), tmp_path, monkeypatch)
    assert "phases of input fvu; shaded below: a" in [text.get_text() for text in early.texts]
    assert texts(early.axes[2]) == ["a: stop window 16 to 64"]
    alone = figure_of(scores, PhaseReport(()), tmp_path, monkeypatch)
    assert texts(alone.axes[0]) == ["phases were not analysed"]


@pytest.mark.parametrize(
    ("window", "words", "closed"),
    [
        ((16, 64), "stop window 16 to 64", True),
        ((32, 32), "stop at 32", True),
        ((64, 4096), "stop window 64 to 4096, open", False),
        ((0, 4096), "stop window 0 to 4096, open", False),
    ],
)
def test_the_stop_window_and_whether_it_is_open(
    window: tuple[int, int], words: str, closed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = FULL if closed else FULL[:2]
    key, rows, bar = strips([cell("a", *kinds, window=window)], tmp_path, monkeypatch)
    assert texts(bar) == [f"a: {words}"]
    assert ("open" in texts(key)) is not closed
    for axes in (rows, bar):
        lines = [line for line in axes.lines if line.get_color() == STOP]
        assert [line.get_marker() for line in lines].count(">") == (0 if closed else 1)
        low, high = lines[0].get_xdata()
        assert low == pytest.approx(AXIS.at(window[0]), abs=0.1)
        assert high == pytest.approx(AXIS.at(window[1]), abs=0.1)
        assert high > low
