"""The maps of all targets: what is in them, and where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from phasefast.errors import ArgumentError, DataError, StoreError
from phasefast.report import plot_maps
from phasefast.report.maps import _maps
from phasefast.results.scores import Scores

from .synthetic import log2_steps, make_scores, row, targets_apart


def test_there_is_a_map_of_each_target_with_the_models_own_row_last() -> None:
    of_input, of_label = _maps(make_scores(["a", "b"], log2_steps(6)))
    assert (of_input.target, of_input.metric, list(of_input.layers)) == ("input", "fvu", ["a", "b"])
    assert (of_label.target, of_label.metric, list(of_label.layers)) == ("label", "accuracy", ["a", "b", "model"])
    assert list(of_label.steps) == log2_steps(6)
    assert {each.target for each in _maps(targets_apart())} == {"input", "colour", "label"}


def test_the_best_is_bright_and_what_is_not_there_is_empty() -> None:
    there = (0, "a", 0.64), (0, "b", 0.04), (8, "a", 0.25)
    rows = [row(step, layer, "input", "fvu", np.full(9, value)) for step, layer, value in there]
    (found,) = _maps(Scores.from_rows(rows))
    np.testing.assert_allclose(found.goodness, [[0, 0.5], [1, np.nan]], atol=1e-6)
    assert found.losses[1, 1] == np.inf
    assert found.key == [".040", ".640"]
    (of_label,) = _maps(make_scores(["a", "b"], [0, 8], fvu=False, network=False))
    assert of_label.goodness[np.unravel_index(of_label.losses.argmin(), (2, 2))] == 1
    worst, best = of_label.ends
    assert worst == of_label.values.min() < best == of_label.values.max()


def test_decoders_that_fail_and_the_models_own_output_leave_the_colours_to_the_layers() -> None:
    there = (0, "a", 0.25), (0, "b", 1000.0), (8, "a", 0.5), (8, "b", np.inf)
    rows = [row(step, layer, "input", "fvu", np.full(9, value)) for step, layer, value in there]
    (found,) = _maps(Scores.from_rows(rows))
    np.testing.assert_allclose(found.goodness[1], [0, np.nan])
    np.testing.assert_allclose(found.goodness[0], [1, 1 - (0.5**0.5 - 0.5) / (1.25**0.5 - 0.5)], rtol=1e-6)
    assert found.key == [".250", "\u2265 1.25"]
    own = [("a", 0.8, 0.9), ("b", 0.85, 0.85), ("model", 0.1, 1.0)]
    (found,) = _maps(
        Scores.from_rows(
            row(step, name, "label", "accuracy", np.full(9, both[step])) for name, *both in own for step in (0, 1)
        )
    )
    np.testing.assert_allclose(found.goodness, [[0, 1], [0.5, 0.5], [0, 1]], atol=1e-6)
    assert found.key == ["\u2265 .900", "\u2264 .800"]


def test_what_rounding_leaves_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: path.touch() or figures.append(figure))
    levels = (("a", 4e-13), ("b", 0.25))
    rows = [row(step, name, "input", "fvu", np.full(9, value)) for name, value in levels for step in log2_steps(20)]
    plot_maps(Scores.from_rows(rows), tmp_path / "maps.png")
    texts = [each.get_text() for each in figures[0].findobj(Text)]
    assert texts.count("0") == 20
    assert texts.count(".250") >= 20


def test_values_that_are_all_the_same_have_a_map(tmp_path: Path) -> None:
    rows = [row(s, "a", "input", "fvu", np.full(9, 0.5)) for s in (0, 1)]
    plot_maps(Scores.from_rows(rows), tmp_path / "maps.svg")
    assert (tmp_path / "maps.svg").stat().st_size > 1000
    assert _maps(Scores.from_rows(rows))[0].goodness.tolist() == [[0.5, 0.5]]  # neither the worst nor the best
    for metric, value, share in (("fvu", 1.0, 0), ("fvu", 0.0, 1), ("accuracy", 1.0, 1), ("accuracy", 0.25, 0.25)):
        rows = [row(s, "a", "label", metric, np.full(8, value)) for s in (0, 1)]
        assert _maps(Scores.from_rows(rows))[0].goodness.tolist() == [[share, share]]


def test_the_models_own_values_have_colours_of_their_own_where_layers_are_all_the_same() -> None:
    rows = [
        row(s, name, "label", "accuracy", np.full(20, value))
        for name, values in (("a", (0.85, 0.85)), ("model", (0.2, 0.7)))
        for s, value in enumerate(values)
    ]
    (own,) = _maps(Scores.from_rows(rows))
    np.testing.assert_allclose(own.goodness, [[0.85, 0.85], [0.2, 0.7]], rtol=1e-6)
    assert own.key == ["1", "0"]


@pytest.mark.parametrize(
    ("best", "metric", "framed"),
    [(0.9, "fvu", 1), (0.9995, "fvu", 0), (0.4, "accuracy", 1), (0.31, "accuracy", 0)],  # 0.31 is so by chance
)
def test_what_is_no_better_than_a_constant_has_no_frame(best: float, metric: str, framed: int) -> None:
    worse = {"fvu": 1.2, "accuracy": 0.2}[metric]
    rows = [
        row(s, "a", "label", metric, np.arange(400) < 400 * share if metric != "fvu" else np.full(9, share))
        | {"baseline": 0.3 if metric != "fvu" else 1.0}
        for s, share in enumerate((worse, best))
    ]
    figure = plot_maps(Scores.from_rows(rows))
    assert (
        sum(isinstance(each, Rectangle) and each.get_linewidth() == 2 for each in figure.findobj(Rectangle)) == framed
    )


def test_accuracies_that_differ_by_chance_have_nearly_the_same_colour() -> None:
    rows = [
        row(s, "a", "label", "accuracy", np.arange(400) < hits) | {"baseline": 0.9} for s, hits in enumerate((359, 363))
    ]
    (own,) = _maps(Scores.from_rows(rows))
    np.testing.assert_allclose(own.goodness, [[359 / 400, 363 / 400]], rtol=1e-6)
    assert own.key == ["1", "0"]


def test_of_many_layers_steps_and_targets_some_are_drawn(tmp_path: Path) -> None:
    many = make_scores([f"layer{i}" for i in range(60)], list(range(80)), network=False)
    of_input, _ = _maps(many)
    assert of_input.values.shape == (45, 60)
    assert (of_input.layers[0], of_input.layers[-1]) == ("layer0", "layer59")
    assert (of_input.steps[0], of_input.steps[-1]) == (0, 79)
    rows = [row(s, "a", f"of $x^{t}", "fvu", np.full(9, 0.1 * (s + 1))) for s in (0, 1) for t in range(14)]
    plot_maps(Scores.from_rows(rows), path := tmp_path / "maps.pdf", "a title" * 40)
    assert path.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("layers", [["a"], [f"model.layers.{i}" for i in range(30)]])
def test_the_picture_is_as_wide_as_the_others(layers: list[str], tmp_path: Path) -> None:
    plot_maps(make_scores(layers, log2_steps(9)), path := tmp_path / "maps.png")
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    assert int.from_bytes(head[16:20], "big") == 1620


def test_what_cannot_be_drawn_is_told(tmp_path: Path) -> None:
    scores = make_scores(["a"], [0, 1])
    with pytest.raises(DataError, match="nothing to draw: expected finite held-out"):
        plot_maps(scores.filter(metric="mse"), tmp_path / "maps.png")
    with pytest.raises(ArgumentError, match="expected a name that ends with"):
        plot_maps(scores, tmp_path / "maps.doc")
    with pytest.raises(StoreError, match="cannot write the picture"):
        plot_maps(scores, tmp_path / "absent" / "maps.png")


def test_the_best_step_and_layer_of_many_are_drawn() -> None:
    rows = [
        row(s, f"layer{i}", "input", "fvu", np.full(3, 0.1 if (i, s) == (7, 17) else 0.5 + s / 1000))
        for s in range(70)
        for i in range(50)
    ]
    (found,) = _maps(Scores.from_rows(rows))
    assert found.values.shape == (45, 60)
    assert found.values.min() == pytest.approx(0.1)
    assert (list(found.layers).count("layer7"), list(found.steps).count(17)) == (1, 1)


def test_a_long_title_leaves_the_note_its_room() -> None:
    table = make_scores(["a", "b"], log2_steps(4), network=False).filter(target="label")
    scores = Scores.concat([table.with_column("target", f"t{i}") for i in range(13)])
    title = "What each layer gives back: " + "a recipe of some seeds " * 4
    figure = plot_maps(scores, title=title)
    line = [text for text in figure.findobj(Text) if text.get_text().startswith(("What", "the first 12 of 13"))]
    left, right = sorted((text.get_window_extent() for text in line), key=lambda box: box.x0)
    assert left.x1 < right.x0
    assert "…" in line[0].get_text() + line[1].get_text()
