from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from phasefast.errors import DataError, DependencyError, StoreError
from phasefast.report import plot_phases
from phasefast.report.plot import _limits, _own_accuracy, _spread, _StepAxis
from phasefast.scores import Scores
from phasefast.stages.phases import detect_phases
from phasefast.types import PhaseReport

from .synthetic import log2_steps, make_scores, row

NOTHING = PhaseReport(())
LONG = [f"module.encoder.blocks.{i}.feed_forward.down_projection" for i in range(5)]
NAMES = [f"layer{i}" for i in range(20)]


def draw(scores: Scores, report: PhaseReport, folder: Path) -> np.ndarray:
    """The picture [h, w, 3] with values 0..1."""
    path = plot_phases(scores, report, folder / "phases.png")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return imread(path)[..., :3]


def has_colour(image: np.ndarray, colour: str, alpha: float) -> bool:
    """Whether a visible area is painted in a colour laid over white."""
    wanted = alpha * np.array(to_rgb(colour)) + 1 - alpha
    return (np.abs(image - wanted).max(axis=2) < 0.01).sum() > 1000


def drawn(scores: Scores, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The panels, upper one first."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    plot_phases(scores, NOTHING, folder / "phases.png")
    return figures[0].axes[1:]


@pytest.mark.parametrize(
    ("layers", "steps"),
    [
        (NAMES[:1], [0]),
        (NAMES[:1], [1000]),
        (NAMES[:1], log2_steps(20)),
        (NAMES, [0, 1]),
        (NAMES, log2_steps(20)),
        (LONG, log2_steps(9)),
        (NAMES[:3], [50_000, 60_000, 70_000]),
        (NAMES[:3], list(range(0, 20_000, 1000))),
    ],
)
def test_fits_the_page_for_any_number_of_layers_and_steps(layers: list[str], steps: list[int], tmp_path: Path) -> None:
    scores = make_scores(layers, steps)
    image = draw(scores, detect_phases(scores) if len(steps) > 1 else NOTHING, tmp_path)
    height, width, _ = image.shape
    assert width == 1620
    assert 900 < height < 1500
    assert (image < 0.9).any(axis=2).mean() > 0.005
    inner = image[8:-8, 8:-8]
    assert (inner < 0.5).any()
    for edge in (image[:8], image[-8:], image[:, :8], image[:, -8:]):
        assert (edge == 1).all(), "something is clipped at the edge of the page"


def test_three_phases_are_shaded(tmp_path: Path) -> None:
    scores = make_scores(NAMES[:3], log2_steps(14))
    image = draw(scores, detect_phases(scores), tmp_path)
    for colour in ("#8c8c8c", "#009E73", "#D55E00"):
        assert has_colour(image, colour, 0.30)
        assert has_colour(image, colour, 0.08)


def test_absent_phases_are_not_shaded(tmp_path: Path) -> None:
    scores = make_scores(NAMES[:3], log2_steps(14), scale=1e-5, accuracy=False)
    image = draw(scores, detect_phases(scores), tmp_path)
    assert has_colour(image, "#8c8c8c", 0.30)
    assert not has_colour(image, "#009E73", 0.30)
    assert not has_colour(image, "#D55E00", 0.30)


def test_panels_without_data_are_left_out(tmp_path: Path) -> None:
    steps = log2_steps(8)
    both = draw(make_scores(NAMES[:2], steps), NOTHING, tmp_path)
    upper = draw(make_scores(NAMES[:2], steps, accuracy=False, network=False), NOTHING, tmp_path)
    lower = draw(make_scores(NAMES[:2], steps, fvu=False), NOTHING, tmp_path)
    own = draw(make_scores(NAMES[:2], steps, fvu=False, accuracy=False), NOTHING, tmp_path)
    assert len(both) > len(upper) > len(lower) == len(own)


def test_estimates_have_hollow_markers_and_a_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = make_scores(["a", "b"], [0, 1, 2, 4])
    assert all(panel.get_legend() is None for panel in drawn(scores, tmp_path, monkeypatch))
    rows = scores.to_arrow().to_pylist()
    for entry in rows:
        if entry["layer"] == "b" and entry["metric"] == "fvu" and entry["step"] in (0, 4):
            entry["approximation"] = "sketch of 8 of 64 features"
    scores = Scores.from_rows(rows)
    upper, lower = drawn(scores, tmp_path, monkeypatch)
    legend = upper.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["estimate"]
    assert lower.get_legend() is None
    marked = [line for line in upper.lines if line.get_marker() not in ("", "None") and len(line.get_xdata())]
    found = {
        (float(place), float(value)): line.get_markerfacecolor() == "white"
        for line in marked
        for place, value in zip(line.get_xdata(), line.get_ydata())
    }
    expected = {}
    for layer, hollow in (("a", ()), ("b", (0, 4))):
        for step, value in zip(*scores.curve(layer, "input", "fvu")):
            expected[_StepAxis(np.array([0, 1, 2, 4])).at(int(step)), float(value)] = step in hollow
    assert found == expected


def texts(panel: Axes) -> list[str]:
    return [text.get_text() for text in panel.texts]


def test_all_layers_are_named_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upper, lower = drawn(make_scores(NAMES[:10], [0, 1, 2]), tmp_path, monkeypatch)
    assert set(texts(upper)) == set(NAMES[:10])
    assert set(texts(lower)) == {*NAMES[:10], "model"}
    assert len(texts(drawn(make_scores(NAMES, [0, 1, 2]), tmp_path, monkeypatch)[0])) == 20


def test_layers_without_a_name_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"layer{i}" for i in range(40)]
    for panel, named in zip(drawn(make_scores(names, [0, 1, 2]), tmp_path, monkeypatch), (20, 10), strict=True):
        found = [text for text in texts(panel) if text in names]
        assert len(found) == named
        assert {"layer0", "layer39"} <= set(found)
        assert f"{40 - named} more layers" in texts(panel)
        heights = sorted(text.get_position()[1] for text in panel.texts)
        assert min(np.diff(heights)) * panel.get_position().height * panel.figure.get_figheight() > 0.16


def test_values_that_are_not_finite_leave_a_gap(tmp_path: Path) -> None:
    scores = make_scores(["a", "b"], [0, 1, 2], accuracy=False)
    rows = scores.to_arrow().to_pylist()
    for entry in rows:
        if entry["step"] == 1 or entry["layer"] == "b":
            entry["value"] = float("nan")
    assert (draw(Scores.from_rows(rows), NOTHING, tmp_path) < 0.5).any()


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    scores = Scores.from_rows([row(0, "a", "input", "mse", np.ones(3))])
    with pytest.raises(DataError, match="nothing to draw"):
        plot_phases(scores, NOTHING, tmp_path / "phases.png")


def test_unwritable_path_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write the picture"):
        plot_phases(make_scores(["a"], [0, 1]), NOTHING, tmp_path / "absent" / "phases.png")


def test_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DependencyError, match=r"phasefast\[report\]"):
        plot_phases(make_scores(["a"], [0, 1]), NOTHING, tmp_path / "phases.png")


def test_step_axis_is_log2_with_zero_one_octave_below() -> None:
    axis = _StepAxis(np.array([0, 1, 2, 4, 8]))
    assert [axis.at(step) for step in (0, 1, 2, 4, 8)] == [-1, 0, 1, 2, 3]
    assert _StepAxis(np.array([0, 1024])).at(0) == 9
    assert _StepAxis(np.array(log2_steps(14))).ticks(6.5)[::-1] == log2_steps(14)
    crowded = _StepAxis(np.arange(0, 100_001, 5000)).ticks(6.5)
    assert crowded[0] == 100_000
    assert 3 < len(crowded) < 15


def test_far_outliers_are_cut_but_a_bad_layer_is_not() -> None:
    curves = _own_accuracy(make_scores(["a"], [0, 1, 2]))
    usual = np.array([0.3, 0.4, 0.5])
    for values, top in ((usual, 0.52), (usual * 1e-6, 0.52e-6), ([0.3, 0.4, 900], 1.25), ([40, 50, 60], 62.4)):
        object.__setattr__(curves[0], "values", np.asarray(values, dtype=float))
        assert _limits(curves, "fvu")[1] == pytest.approx(top)


@pytest.mark.parametrize(
    ("wanted", "gap"), [([0.5], 0.1), ([0.0] * 10, 0.1), ([1.0] * 5, 0.1), ([0.2, 0.21, 0.8], 0.05)]
)
def test_names_are_moved_apart_as_little_as_needed(wanted: list[float], gap: float) -> None:
    places = _spread(np.array(wanted), gap)
    assert (np.diff(places) >= gap - 1e-12).all()
    assert places.min() >= 0
    assert places.max() <= 1 + 1e-12
    if len(wanted) == 3:
        assert places == pytest.approx([0.18, 0.23, 0.8])
