"""Pictures as figures: of scores alone, without a file, and as a notebook shows them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.text import Text

import phasefast as pf
from phasefast.errors import ArgumentError, DataError, LayerError
from phasefast.report import page, with_best
from phasefast.results.failures import Failure

from .synthetic import log2_steps, make_scores, row


def pixels(figure: Figure) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def runs(layers: tuple[str, ...] = ("a", "b")) -> dict[str, pf.Scores]:
    return {f"seed {i}": make_scores(list(layers), log2_steps(10), scale=0.4 + 0.1 * i) for i in range(2)}


def test_phases_are_found_where_none_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scores = make_scores(["a", "b"], log2_steps(10))
    given = pf.plot_phases(scores, with_best(scores, pf.detect_phases(scores)))
    assert pixels(pf.plot_phases(scores)) == pixels(given) == pixels(pf.plot_phases(scores, pf.detect_phases(scores)))
    assert not list(tmp_path.iterdir())
    assert pixels(pf.plot_phases(scores, path=tmp_path / "a.png")) == (tmp_path / "a.png").read_bytes()


def test_pictures_made_in_python_show_what_failed(tmp_path: Path) -> None:
    scores = make_scores(["a", "b"], [0, 1, 2, 4])
    failed = {8: Failure("step 8", "damaged")}
    report = pf.detect_phases(scores, failed=failed)
    assert report.failed == failed
    assert "Not measured: step 8: damaged" in str(report)
    texts = {text.get_text() for text in pf.plot_phases(scores, report).findobj(Text)}
    assert "not measured" in texts
    assert "not measured" not in {text.get_text() for text in pf.plot_phases(scores).findobj(Text)}


@pytest.mark.parametrize("layers", [["lyaer"], "c", ["a", "c"]])
def test_layers_that_no_scores_are_of_are_no_layers_to_be_judged_by(layers: list[str]) -> None:
    scores = make_scores(["a", "b"], log2_steps(6))
    with pytest.raises(LayerError, match=r"layer pattern '(lyaer|c)' matches nothing in the scores"):
        pf.plot_phases(scores, layers=layers)
    assert pixels(pf.plot_phases(scores, layers="a")) == pixels(pf.plot_phases(scores, layers=["[ac]", "b"]))
    pf.plot_phases(scores, layers=[])


def test_a_report_of_more_than_there_is_to_draw_is_no_error() -> None:
    scores = make_scores(["a", "b"], log2_steps(8))
    report = pf.detect_phases(scores)
    for part in (
        scores.select(["a"]),
        scores.filter(target="input"),
        scores.filter(metric="fvu"),
        scores.without_samples,
        scores.filter(layer="model"),
    ):
        pf.plot_phases(part, report)


def test_letters_in_a_pdf_are_of_fonts_that_publishers_take(tmp_path: Path) -> None:
    scores = make_scores(["a"], log2_steps(6))
    pf.plot_phases(scores, path=tmp_path / "phases.pdf")
    pf.plot_maps(scores, tmp_path / "maps.pdf")
    for name in ("phases", "maps"):
        found = (tmp_path / f"{name}.pdf").read_bytes()
        assert b"/Subtype /Type3" not in found
        assert b"/Subtype /Type0" in found


def test_balanced_accuracies_keep_their_target_and_have_chance_beside_them() -> None:
    rows = [
        row(step, "a", "label", "balanced_accuracy", np.arange(90) % 10 < 2 + step) | {"baseline": 1 / 3}
        for step in range(4)
    ]
    texts = [text.get_text() for text in pf.plot_phases(pf.Scores.from_rows(rows)).findobj(Text)]
    assert "label: balanced accuracy" in texts
    assert "chance" in texts
    assert not any("most frequent" in text for text in texts)


def test_a_notebook_shows_a_figure_at_half_its_pixels() -> None:
    figure = pf.plot_maps(make_scores(["a"], log2_steps(4)))
    image, shown = figure._repr_png_()  # type: ignore[attr-defined]
    assert imread(io.BytesIO(image)).shape[1] == 1620
    assert shown == {"width": 900}


def test_a_layer_of_several_runs_is_drawn_without_directories() -> None:
    scores = runs()
    texts = [text.get_text() for text in pf.plot_comparison(scores).findobj(Text)]
    assert {"Learning phases: layer b", "seed 0", "seed 1"} <= set(texts)
    comparison = pf.compare_phases({run: pf.detect_phases(own) for run, own in scores.items()})
    assert pixels(pf.plot_comparison(scores, comparison, layer="a")) != pixels(pf.plot_comparison(scores))


def test_what_cannot_be_compared_in_a_picture_is_told() -> None:
    with pytest.raises(LayerError, match=r"layer 'c': expected one of \['a', 'b'\], which all runs have"):
        pf.plot_comparison(runs(), layer="c")
    for wrong in ({"seed 0": runs()["seed 0"]}, runs()["seed 0"], {"seed 0": None, "seed 1": None}):
        with pytest.raises(DataError, match="expected the scores of two runs or more by name"):
            pf.plot_comparison(wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no layer and target in common"):
        pf.plot_comparison({"one": runs()["seed 0"], "other": runs(("x",))["seed 1"]})


@pytest.mark.parametrize("draw", [pf.plot_phases, pf.plot_maps, lambda scores: pf.plot_comparison(runs())])
def test_figures_can_be_pickled(draw: Callable[[pf.Scores], Figure]) -> None:
    figure = draw(make_scores(["a", "b"], log2_steps(10)))
    assert pixels(pickle.loads(pickle.dumps(figure))) == pixels(figure)


def test_a_name_of_no_picture_is_told_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "blank", None)
    for draw in (pf.plot_phases, pf.plot_maps):
        with pytest.raises(ArgumentError, match=r"expected a name that ends with \.png, \.pdf, \.svg, got a\.doc"):
            draw(make_scores(["a"], log2_steps(4)), path="a.doc")


def test_a_value_of_the_models_own_between_others_that_are_lost_is_a_cross() -> None:
    whole = make_scores([], [0, 1, 2, 4, 8, 16])
    lost = {step: Failure(f"step {step}", "", partial=True, layers={"model (label)": "NaN"}) for step in (4, 16)}
    scores = pf.Scores.concat([whole.select(steps=[each]) for each in whole.steps if each not in lost])
    figure = pf.plot_phases(scores, pf.PhaseReport((), failed=lost))
    (crosses,) = (line for axes in figure.axes for line in axes.lines if line.get_marker() == "x")
    assert crosses.get_ydata() == pytest.approx(scores.curve("model", "label", "accuracy")[1][-1:])


def test_an_untrained_models_own_error_presses_no_curve_flat() -> None:
    scores = make_scores(["a"], log2_steps(8), network=False)
    untrained = [row(step, "model", "input", "fvu", np.full(200, 50.0 / (step + 1) + 0.1)) for step in log2_steps(8)]
    figure = pf.plot_phases(pf.Scores.concat([scores, pf.Scores.from_rows(untrained)]))
    (upper,) = (axes for axes in figure.axes if "FVU" in axes.get_ylabel())
    last = 50.0 / (log2_steps(8)[-1] + 1) + 0.1
    assert max(1, last) < upper.get_ylim()[1] < 2
    assert "are drawn there" in upper.get_title(loc="left")
    alone = [
        row(step, "model", "input", "fvu", np.full(200, 0.9 / (place + 1))) for place, step in enumerate(log2_steps(8))
    ]
    figure = pf.plot_phases(pf.Scores.concat([scores.filter(target="label"), pf.Scores.from_rows(alone)]))
    (upper,) = (axes for axes in figure.axes if "FVU" in axes.get_ylabel())
    assert upper.get_ylim()[1] > 0.9


def test_nothing_that_looks_like_values_follows_a_curve_that_ends_before_others() -> None:
    """Its name stands at the right all the same."""
    ends = {"a": 6, "b": 3}
    rows = [row(s, name, "input", "fvu", np.full(9, 0.5 / (s + 1))) for name, end in ends.items() for s in range(end)]
    figure = pf.plot_phases(pf.Scores.from_rows(rows))
    leaders = [each for each in figure.findobj(Line2D) if not each.get_clip_on() and each.get_linewidth() in (0.8, 0.9)]
    dotted = [each for each in leaders if each.is_dashed()]
    assert (len(leaders), len(dotted)) == (3, 1)
    assert dotted[0].get_xdata()[0] < 0.9
    assert all(each.get_xdata()[0] > 0.9 for each in leaders if not each.is_dashed())
