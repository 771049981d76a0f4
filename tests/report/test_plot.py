from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from phasefast.errors import DataError, DependencyError, StoreError
from phasefast.phases.detect import detect_phases
from phasefast.phases.phase_report import PhaseReport
from phasefast.report import plot_phases, with_best
from phasefast.report.curves import telling_layers
from phasefast.report.panel import _marked
from phasefast.report.scales import StepAxis
from phasefast.results.failures import Failure
from phasefast.results.scores import Scores

from .synthetic import figure_of, log2_steps, make_scores, of_widths, row, targets_apart

NOTHING = PhaseReport(())
LONG = [f"module.encoder.blocks.{i}.feed_forward.down_projection" for i in range(5)]
NAMES = [f"layer{i}" for i in range(20)]


def draw(scores: Scores, report: PhaseReport, folder: Path) -> np.ndarray:
    """The picture [h, w, 3] with values 0..1."""
    plot_phases(scores, report, path := folder / "phases.png")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return imread(path)[..., :3]


def has_colour(image: np.ndarray, colour: str, alpha: float) -> bool:
    """Whether a visible area is painted in a colour laid over white."""
    wanted = alpha * np.array(to_rgb(colour)) + 1 - alpha
    return (np.abs(image - wanted).max(axis=2) < 0.01).sum() > 1000


def drawn(scores: Scores, folder: Path, monkeypatch: pytest.MonkeyPatch, report: PhaseReport = NOTHING) -> list[Axes]:
    """The panels, upper one first."""
    return figure_of(scores, report, folder, monkeypatch).axes[3 if len(report) else 1 :]


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
    assert 900 < height < 2100
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
            expected[StepAxis(np.array([0, 1, 2, 4])).at(int(step)), float(value)] = step in hollow
    assert found == expected


def test_a_run_is_judged_by_its_features_not_by_its_output() -> None:
    widths = {"conv": 64, "features": 32, "head": 10, "softmax": 10}
    assert telling_layers(of_widths(widths, 10)) == ["features", "conv", "softmax", "head"]
    assert telling_layers(of_widths(widths, 7))[0] == telling_layers(of_widths(widths, None))[0] == "softmax"
    assert telling_layers(of_widths({"a": 10, "b": 10}, 10)) == ["b", "a"]
    assert telling_layers(of_widths({"trunk": 64, "actor": 10, "critic": 1}, 10)) == ["trunk", "critic", "actor"]
    assert telling_layers(of_widths({"trunk": 64, "score": 1}, None)) == ["score", "trunk"]
    assert telling_layers(of_widths({"a": 10, "score": 1}, 10)) == ["score", "a"]
    assert telling_layers(of_widths({"a": 10, "b": 20}, 10))[0] == "b"


def test_steps_that_failed_are_dotted_lines_and_on_the_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = make_scores(["a", "b"], [0, 1, 2, 4])
    failed = replace(NOTHING, failed={step: Failure(f"step {step}", "damaged") for step in (3, 8)})
    axis, legends = StepAxis(np.array([0, 1, 2, 3, 4, 8])), []
    for panel in drawn(scores, tmp_path, monkeypatch, failed):
        legends.append(panel.get_legend())
        dashed = [line for line in panel.lines if line.is_dashed() and len(line.get_xdata())]
        assert {float(line.get_xdata()[0]) for line in dashed} >= {axis.at(3), axis.at(8)}
        assert panel.get_xlim()[1] > axis.at(8)
    assert legends[:-1] == [None] * (len(legends) - 1)
    assert legends[-1] is not None
    assert [text.get_text() for text in legends[-1].get_texts()] == ["not measured"]


@pytest.mark.parametrize(("first", "shown"), [(0.6, True), (0.9, False)])
def test_the_best_point_has_a_ring_where_training_gained_by_it(
    first: float, shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    luck = np.random.default_rng(0).random(300)
    shares = {0: first, 1: 0.7, 2: 0.9, 4: 0.8}
    scores = Scores.from_rows(row(step, "a", "label", "accuracy", luck < share) for step, share in shares.items())
    panel = drawn(scores, tmp_path, monkeypatch, with_best(scores, detect_phases(scores)))[-1]
    (value,) = (value for step, value in zip(*scores.curve("a", "label", "accuracy")) if step == 2)
    rings = [
        line.get_xydata().tolist() for line in panel.lines if line.get_markersize() == 10 and len(line.get_xdata())
    ]
    at = StepAxis(np.array([0, 1, 2, 4])).at(2)
    assert rings == ([[pytest.approx([at, value], rel=1e-6)]] if shown else [])
    texts = [text.get_text() for text in panel.get_legend().get_texts()] if panel.get_legend() else []
    assert texts == (["best: a at 2"] if shown else [])


def test_a_panel_has_the_best_of_its_own_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    luck, errors = np.random.default_rng(0).random((2, 300))
    rows = [row(step, "b", "angle", "fvu", errors * value) for step, value in {0: 1.2, 1: 0.4, 2: 0.2}.items()]
    rows += [row(step, "a", "label", "accuracy", luck < value) for step, value in {0: 0.6, 1: 0.7, 2: 0.9}.items()]
    scores = Scores.from_rows(rows)
    report = with_best(scores, detect_phases(scores))
    assert {best.target: best.layer for best in report.best} == {"angle": "b", "label": "a"}
    legends = [panel.get_legend() for panel in drawn(scores, tmp_path, monkeypatch, report)]
    assert ["best: a at 2"] in [[text.get_text() for text in legend.get_texts()] for legend in legends if legend]


def texts(panel: Axes) -> list[str]:
    return [text.get_text() for text in panel.texts]


def test_all_layers_are_named_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upper, lower = drawn(make_scores(NAMES[:10], [0, 1, 2]), tmp_path, monkeypatch)
    assert set(texts(upper)) == set(NAMES[:10])
    assert set(texts(lower)) == {*NAMES[:10], "model"}
    assert len(texts(drawn(make_scores(NAMES, [0, 1, 2]), tmp_path, monkeypatch)[0])) == 20


def test_layers_without_a_name_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"layer{i}" for i in range(40)]
    for panel, named in zip(drawn(make_scores(names, [0, 1, 2]), tmp_path, monkeypatch), (25, 10), strict=True):
        found = [text for text in texts(panel) if text in names]
        assert len(found) == named
        assert {"layer0", "layer39"} <= set(found)
        assert f"{40 - named} more" in texts(panel)
        heights = sorted(text.get_position()[1] for text in panel.texts)
        assert min(np.diff(heights)) * panel.get_position().height * panel.figure.get_figheight() > 0.16


def test_values_that_are_not_finite_leave_a_gap(tmp_path: Path) -> None:
    scores = make_scores(["a", "b"], [0, 1, 2], accuracy=False)
    rows = scores.to_arrow().to_pylist()
    for entry in rows:
        if entry["step"] == 1 or entry["layer"] == "b":
            entry["value"] = float("nan")
    assert (draw(Scores.from_rows(rows), NOTHING, tmp_path) < 0.5).any()


def test_values_beyond_the_axis_are_drawn_at_its_ends_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = {"none": [0.0, 0.0, 0.0, 0.0], "some": [0.002] * 4, "much": [900.0, 0.3, 0.3, 0.3]}
    scores = Scores.from_rows(
        [
            row(step, layer, "input", "fvu", np.full(3, samples[layer][index]))
            for index, step in enumerate([0, 1, 2, 4])
            for layer in samples
        ]
    )
    (panel,) = drawn(scores, tmp_path, monkeypatch)
    assert panel.get_title(loc="left") == "log axis, empty parts cut out, values above 1.25 are drawn there"
    assert panel.get_yticklabels()[0].get_text() == "\u22641e-4"
    floor, ceiling = 1e-4, 1.25
    values = np.concatenate([line.get_ydata() for line in panel.lines if line.get_transform() == panel.transData])
    assert (values.min(), values.max()) == pytest.approx((floor, ceiling))
    foot = panel.transAxes.inverted().transform(panel.transData.transform((0, floor)))[1]
    (name,) = (text for text in panel.texts if text.get_text() == "none")
    assert name.get_position()[1] == pytest.approx(foot)


def test_a_cut_axis_is_broken_where_no_curve_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = {"a": 0.002, "b": 0.02, "c": 0.4}
    rows = [
        row(step, layer, "input", "fvu", np.full(3, (1 + 0.1 * (step == 1)) * level))
        for step in (0, 1, 2)
        for layer, level in levels.items()
    ]
    (panel,) = drawn(Scores.from_rows(rows), tmp_path, monkeypatch)
    gaps = sorted((patch.get_y(), patch.get_y() + patch.get_height()) for patch in panel.patches)
    ends = panel.transAxes.inverted().transform(
        [panel.transData.transform((0, level * high)) for level in levels.values() for high in (1, 1.1)]
    )[:, 1]
    assert len(gaps) == 2
    for (low, high), below, above in zip(gaps, ends[1::2], ends[2::2]):
        assert below < low < high < above
    strokes = [line for line in panel.lines if min(line.get_xdata(), default=0) == -0.009]
    assert sorted(float(np.mean(line.get_ydata())) for line in strokes) == pytest.approx(sorted(sum(gaps, ())))
    assert all(patch.get_facecolor() == (1, 1, 1, 1) and not patch.get_clip_on() for patch in panel.patches)


def test_axes_without_such_values_have_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for panel in drawn(make_scores(["a"], [0, 1, 2]), tmp_path, monkeypatch):
        assert panel.get_title(loc="left") == ""
    flat = Scores.from_rows([row(step, "a", "input", "fvu", np.linspace(0.9, 1, 30)) for step in range(4)])
    assert [panel.get_title(loc="left") for panel in drawn(flat, tmp_path, monkeypatch)] == ["axis does not begin at 0"]


def test_axes_name_their_target_as_far_as_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fvu, accuracy = drawn(make_scores(["a"], [0, 1, 2]), tmp_path, monkeypatch)
    assert fvu.get_ylabel() == "input variance not decodable (FVU)"
    assert accuracy.get_ylabel() == "held-out accuracy, label"
    (panel,) = drawn(targets_apart().select(targets=["colour"]), tmp_path, monkeypatch)
    assert panel.get_ylabel() == "held-out accuracy, colour"
    assert "model" not in texts(panel)


def test_one_value_of_the_models_own_is_a_cross(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for steps, crosses in (([4], 1), ([2, 4], 0)):
        panel = drawn(make_scores([], steps), tmp_path, monkeypatch)[-1]
        assert [line.get_marker() for line in panel.lines].count("x") == crosses


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


@pytest.mark.parametrize("labels", [True, False])
def test_only_the_panel_of_the_analysed_target_is_shaded(
    labels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = make_scores(NAMES[:3], log2_steps(14), fvu=not labels)
    report = detect_phases(scores)
    cell = report.cell("layer2", "label" if labels else "input")
    assert cell.stop_window is not None
    shaded, *others = drawn(scores, tmp_path, monkeypatch, report)
    assert len([patch for patch in shaded.patches if patch.get_alpha() == 0.08]) == len(cell.phases) > 0
    assert [len(panel.patches) for panel in others] == ([] if labels else [0])
    ends = sorted(StepAxis(np.array(scores.steps)).at(step) for step in cell.stop_window)
    for panel in (shaded, *others):
        lines = [line for line in panel.lines if line.get_color() == "#0072B2"]
        assert sorted(float(line.get_xdata()[0]) for line in lines) == ends


def test_the_header_names_what_is_shaded_and_gives_the_note_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = make_scores(LONG, log2_steps(9))
    report = detect_phases(scores)
    title, note = sorted(
        figure_of(scores, report, tmp_path, monkeypatch, title="run " * 40).texts, key=lambda text: text.get_position()
    )
    assert note.get_text() == "phases of input fvu; shaded below: …4.feed_forwar…wn_projection"
    assert title.get_text().startswith("run run")
    assert "…" in title.get_text()
    assert title.get_window_extent().x1 < note.get_window_extent().x0
    short = figure_of(scores, report, tmp_path, monkeypatch, title="run").texts
    assert "run" in [text.get_text() for text in short]


def falling(layers: list[str]) -> Scores:
    """Layers whose FVU falls late and stays low, in steps up to 4096."""
    rng = np.random.default_rng(0)
    hard = rng.gamma(20.0, 1 / 20.0, 200)
    return Scores.from_rows(
        [
            row(step, layer, "input", "fvu", (0.4 - 0.02 * k / (1 + np.exp(6 - index))) * hard)
            for index, step in enumerate(log2_steps(14))
            for k, layer in enumerate(layers)
        ]
    )


@pytest.mark.parametrize(
    "scores",
    [
        make_scores(NAMES[:12], log2_steps(14)),
        make_scores([f"blocks.{i}" for i in range(40)], log2_steps(9), accuracy=False),
        make_scores(NAMES[:4], log2_steps(14), fvu=False),
        make_scores(LONG, log2_steps(9)),
        make_scores(NAMES[:2], [0, 1, 2]),
        falling(NAMES[:5]),
        make_scores(["m" * 28, "W" * 60], log2_steps(9)),
        targets_apart("what_the_background_of_a_picture_is_made_of"),
    ],
    ids=["twelve", "forty", "labels", "long", "few", "open", "wide", "target"],
)
def test_no_text_covers_another_or_leaves_the_page(
    scores: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = figure_of(scores, detect_phases(scores), tmp_path, monkeypatch)
    figure.canvas.draw()
    beyond = [text for axes in figure.axes for text in beyond_the_ends(axes)]  # which are not drawn
    found = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible() and text not in beyond]
    boxes = [text.get_window_extent() for text in found]
    assert len(boxes) > 20
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 < box.x0 < box.x1 < figure.bbox.x1, found[i]
        assert figure.bbox.y0 < box.y0 < box.y1 < figure.bbox.y1, found[i]
        for j in range(i):
            assert not shrunk(box).overlaps(shrunk(boxes[j])), (found[i], found[j])


def beyond_the_ends(axes: Axes) -> list[Text]:
    """The numbers of a vertical axis that lie beyond its ends."""
    low, high = axes.get_ylim()
    return [text for place, text in zip(axes.get_yticks(), axes.get_yticklabels()) if not low <= place <= high]


def shrunk(box: Bbox) -> Bbox:
    """A text's box without the little that letters leave empty at its edges."""
    return box.padded(-3)


@pytest.mark.parametrize(("count", "marked"), [(30, 30), (300, 40)])
def test_the_markers_of_many_steps_do_not_hide_the_line(
    count: int, marked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upper, *_ = drawn(make_scores(["a"], range(count)), tmp_path, monkeypatch)
    (markers,) = [line for line in upper.lines if line.get_marker() not in ("", "None") and len(line.get_xdata())]
    assert 20 < len(markers.get_xdata()) <= marked
    (curve,) = [line for line in upper.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == count]
    assert markers.get_xdata()[0] == curve.get_xdata()[0]
    assert markers.get_xdata()[-1] == curve.get_xdata()[-1]


def test_a_point_without_a_line_beside_it_has_its_marker() -> None:
    finite = np.zeros(300, dtype=bool)
    finite[[131, 200, 201]] = True
    assert np.flatnonzero(_marked(np.arange(300.0), finite)).tolist() == [131, 200, 201]
    assert _marked(np.arange(300.0), np.ones(300, dtype=bool)).sum() == 40
    estimated = np.arange(300) == 131
    assert np.flatnonzero(_marked(np.arange(300.0), estimated)).tolist() == [131]
    assert not _marked(np.arange(300.0), np.zeros(300, dtype=bool)).any()
