"""Several runs in tables and in a picture."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from phasefast.errors import ArgumentError, LayerError
from phasefast.report import read_runs, write_comparison
from phasefast.report.compared import print_comparison, run_names
from phasefast.results.scores import Scores
from tests.quiet import no_warnings

from .synthetic import log2_steps, make_scores, row, write_run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three runs whose FVU differs by a known factor; the last one lacks step 2."""
    made = []
    for seed, factor in enumerate([0.9, 1.0, 1.1]):
        scores = make_scores(["stage1", "features"], log2_steps(12), scale=0.4 * factor)
        scores = Scores.concat([scores.filter(step=step) for step in scores.steps if (seed, step) != (2, 2)])
        made.append(write_run(tmp_path / f"seed{seed}", scores))
    return made


def printed(runs: list[Path], **options: object) -> str:
    console = Console(width=120, file=io.StringIO())
    write_comparison(runs, console, **options)  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_tables_count_phases_and_average_curves_at_the_steps_of_all(runs: list[Path]) -> None:
    text = printed(runs, layers=["features"], targets=["input"])
    line = next(line for line in text.splitlines() if line.startswith("features"))
    assert line.split()[1:10] == ["3", "of", "3", "3", "of", "3", "3", "of", "3"]
    header, _, mean, deviation = text[text.index("step ") :].splitlines()[:4]
    assert header.split() == ["step", *(str(step) for step in log2_steps(12) if step != 2)]
    values = [Scores.concat([read(run)]).curve("features", "input", "fvu")[1][0] for run in runs]
    assert float(mean.split()[1]) == pytest.approx(np.mean(values), abs=5e-4)
    assert float(deviation.split()[2]) == pytest.approx(np.std(values, ddof=1), abs=5e-4)
    assert "stage1" not in text
    assert "label" not in text


def test_the_curves_of_two_runs_stand_beside_each_other(runs: list[Path]) -> None:
    text = printed(runs[:2], layers=["features"], targets=["input"])
    assert "Held-out fvu of target input: seed0, seed1" in text
    lines = [line.split() for line in text.splitlines() if line.startswith("features seed")]
    assert [line[1] for line in lines] == ["seed0", "seed1"]
    for line, run in zip(lines, runs, strict=False):
        assert float(line[2]) == pytest.approx(read(run).curve("features", "input", "fvu")[1][0], abs=5e-4)


def read(run: Path) -> Scores:
    return read_runs([run, run.parent / "seed1" if run.name != "seed1" else run.parent / "seed0"])[1][run.name]


def test_the_picture_has_a_row_and_a_curve_for_each_run(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: path.touch() or figures.append(figure))
    assert "wrote seeds.png, of layer features" in printed(runs, picture="seeds.png")
    comparison, *_ = read_runs(runs)
    (figure,) = figures
    texts = [text.get_text() for text in figure.texts]
    assert "Learning phases: layer features" in texts
    assert "phases of input fvu; marked: all runs" in texts
    names = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert all(names.count(f"seed{seed}") >= 2 for seed in range(3))
    window = comparison.agreement("features").stop_window
    assert window is not None
    assert any(text.startswith("all runs: stop ") and str(window[0]) in text for text in names)


def test_runs_are_named_by_the_ends_of_their_paths(tmp_path: Path) -> None:
    assert run_names([tmp_path / "a", str(tmp_path / "b")]) == ["a", "b"]
    assert run_names([tmp_path / "a/scores1", tmp_path / "b/scores1"]) == ["a/scores1", "b/scores1"]
    assert run_names([tmp_path / "x/model", tmp_path / "x/b"]) == ["x/model", "x/b"]
    with pytest.raises(ArgumentError, match="a is given twice"):
        run_names([tmp_path / "a", tmp_path / "b/../a"])


def test_runs_that_were_measured_otherwise_are_told_apart(runs: list[Path]) -> None:
    for seed, run in enumerate(runs):
        settings = {"run": f"seed{seed}", "penalties": [[0.1], None], "precision": "fast" if seed == 2 else "exact"}
        (run / "scores" / "_settings-0.json").write_text(json.dumps(settings))
    with pytest.warns(
        RuntimeWarning, match='seed2 was not measured as seed0: precision seed0 "exact", there "fast"'
    ) as caught:
        read_runs(runs)
    assert len(caught) == 1
    (runs[1] / "scores" / "_settings-0.json").write_text((runs[2] / "scores" / "_settings-0.json").read_text())
    with pytest.warns(RuntimeWarning, match="seed1, seed2 were not measured as seed0: precision") as caught:
        read_runs(runs)
    assert len(caught) == 1
    (runs[1] / "scores" / "_settings-0.json").write_text("{")
    (runs[2] / "scores" / "_settings-0.json").write_text("{")
    with no_warnings():
        read_runs(runs)


def test_runs_of_one_training_or_of_other_targets_are_told(tmp_path: Path) -> None:
    scores = make_scores(["features"], log2_steps(12))
    for name, weights, target in (("a", "1", "x"), ("b", "1", "x"), ("c", "2", "y")):
        write_run(tmp_path / name, scores.with_column("state_hash", weights).with_column("target_hash", target))
    with pytest.warns(RuntimeWarning) as caught:
        read_runs([tmp_path / name for name in "abc"])
    assert [str(each.message) for each in caught] == [
        "c was not measured as a: other values of ['input', 'label']",
        f"a and b have the same weights at {len(scores.steps) - 1} steps after 0: are they the same training, or "
        "parts of one with the same beginning?",
    ]


def test_steps_that_lack_a_layer_are_told_of_each_run(tmp_path: Path) -> None:
    scores = make_scores(["features", "head"], log2_steps(12))
    part = Scores.concat([scores.select(["features"], steps=[4, 8]), scores.select(steps=[0, 1, 2, *scores.steps[5:]])])
    runs = [write_run(tmp_path / "whole", scores), write_run(tmp_path / "part", part)]
    with pytest.warns(RuntimeWarning) as caught:
        read_runs(runs)
    texts = [str(each.message) for each in caught]
    assert [text.partition(" of ")[0] for text in texts if text.startswith("part: ")] == [
        "part: Measured in part: step 4: ['input', 'label']"
    ]
    assert not any(text.startswith("whole: ") for text in texts)


def test_what_is_not_in_all_runs_is_told(runs: list[Path], tmp_path: Path) -> None:
    short = make_scores(["features"], log2_steps(8), accuracy=False)
    other = write_run(tmp_path / "short", short)
    with pytest.warns(
        RuntimeWarning,
        match="not compared, as not all runs have their phases: .'features/label', 'stage1/input', 'stage1/lab",
    ):
        text = printed([runs[0], other])
    assert "at the 8 of 12 steps that all runs have" in text
    assert "All runs, by features and target input: " in text
    with pytest.raises(LayerError, match="short: layer pattern 'stage1' matches nothing"):
        read_runs([runs[0], other], layers=["stage1"])


def test_a_picture_is_checked_before_anything_is_computed(runs: list[Path], tmp_path: Path) -> None:
    for picture, words in (
        ("seeds.jpg", r"a name that ends with \.png, \.pdf, \.svg"),
        ("absent/seeds.png", "an existing folder"),
    ):
        with pytest.raises(ArgumentError, match=f"picture: expected {words}"):
            write_comparison(runs, picture=tmp_path / picture)


def test_many_steps_are_thinned_in_tables(tmp_path: Path) -> None:
    many = [write_run(tmp_path / name, make_scores(["a"], range(150), accuracy=False, network=False)) for name in "xy"]
    text = printed(many)
    assert "60 of 150 steps; the scores have them all" in text
    shown = [int(word) for line in text.splitlines() if line.startswith("step ") for word in line.split()[1:]]
    assert (len(shown), shown[0], shown[-1]) == (60, 0, 149)


def test_the_last_line_is_of_the_target_that_is_drawn(tmp_path: Path) -> None:
    scores = make_scores(["features"], log2_steps(12))
    turned = Scores.concat([scores.filter(target=target) for target in ("label", "input")])
    assert turned.targets == ["label", "input"]
    text = printed([write_run(tmp_path / name, turned) for name in "xy"])
    assert "All runs, by features and target input: stop at " in text


def test_the_best_of_runs_is_among_what_is_compared(tmp_path: Path) -> None:
    scores = make_scores(["features"], log2_steps(12))
    perfect = row(4, "once", "label", "accuracy", np.ones(200))
    both = Scores.concat([scores, Scores.from_rows([perfect])])
    directories = [write_run(tmp_path / name, both) for name in "xy"]
    with pytest.warns(RuntimeWarning, match=r"not all runs have their phases: \['once/label'\]"):
        comparison, _, _ = read_runs(directories)
    assert [each.layer for each in comparison.best] == ["features"]


@pytest.mark.parametrize("without", [0, 1, 3])
def test_a_best_that_is_no_better_than_the_constant_is_not_named(tmp_path: Path, without: int) -> None:
    directories = []
    for run in range(3):
        right = (np.arange(200) < (100 if run < without else 150)).astype(float)
        rows = [{**row(step, "features", "label", "accuracy", right), "baseline": 0.5} for step in (0, 1)]
        directories.append(write_run(tmp_path / f"seed{run}", Scores.from_rows(rows)))
    console = Console(width=400, file=io.StringIO())
    comparison, scores, telling = read_runs(directories)
    print_comparison(comparison, scores, telling, console)
    last = console.file.getvalue().splitlines()[-1]  # type: ignore[attr-defined]
    chance = "no layer is better than the most frequent class by more than chance"
    if without == 3:
        assert last == f"All runs, target label: {chance}, so none is named best"
    else:
        assert "All runs, target label: best is features at step 0, accuracy ." in last
        assert last.endswith(f"In seed0 {chance}") == bool(without)


def test_the_models_own_curve_stands_below_those_of_layers(runs: list[Path]) -> None:
    lines = printed(runs).splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("Held-out accuracy of target label"))
    names = [line.split()[0] for line in lines[start + 4 : start + 10]]
    assert names == ["stage1", "stage1", "features", "features", "model", "model"]


def test_single_runs_name_no_best_that_is_no_better_than_the_constant(tmp_path: Path) -> None:
    directories = []
    for run, (first, second) in enumerate([(100, 104), (190, 120), (190, 120)]):
        right = {"a": first, "b": second}
        rows = [
            {**row(0, layer, "label", "accuracy", (np.arange(200) < count).astype(float)), "baseline": 0.5}
            for layer, count in right.items()
        ]
        again = [{**each, "step": 1} for each in rows]
        directories.append(write_run(tmp_path / f"seed{run}", Scores.from_rows(rows + again)))
    last = printed(directories).replace("\n", " ")
    assert "target label: best is a at step 0" in last
    assert "single runs" not in last
    assert "In seed0 no layer is better than" in last
