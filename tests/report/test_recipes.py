"""Recipes of several seeds in tables and in a picture."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from rich.console import Console

import phasefast as pf
from phasefast.errors import ArgumentError, DataError, LayerError
from phasefast.report import write_comparison, write_report
from phasefast.report.recipes import split_runs
from phasefast.results.scores import Scores
from tests.quiet import no_warnings
from tests.test_cli import fails, invoke

from .synthetic import log2_steps, make_scores, write_run

LAYERS = ["stage1", "features"]
GLOBS = ["wide-*", "narrow-*"]


@pytest.fixture
def scores() -> dict[str, dict[str, Scores]]:
    """Two recipes; the FVU of the second is larger by a half, and one of its runs lacks step 2."""
    found: dict[str, dict[str, Scores]] = {}
    for recipe, scale in (("wide", 0.4), ("narrow", 0.6)):
        found[recipe] = {
            f"{recipe}-{seed}": make_scores(LAYERS, log2_steps(12), scale=scale * factor)
            for seed, factor in enumerate([0.9, 1.0, 1.1])
        }
    last = found["narrow"]["narrow-2"]
    found["narrow"]["narrow-2"] = Scores.concat([last.filter(step=step) for step in last.steps if step != 2])
    return found


@pytest.fixture
def directories(scores: dict[str, dict[str, Scores]], tmp_path: Path) -> list[Path]:
    return [write_run(tmp_path / run, own) for of in scores.values() for run, own in of.items()]


def test_the_command_compares_recipes(directories: list[Path], tmp_path: Path) -> None:
    options = [option for glob in GLOBS for option in ("--recipe", glob)]
    result = invoke("compare", *directories, *options, "--picture", tmp_path / "recipes.png")
    assert result.exit_code == 0, result.output
    assert "Held-out fvu of target input, by recipe" in result.stdout
    assert "wide-*: 3 runs, wide-0, wide-1, wide-2" in result.stdout
    assert "wrote" in result.stdout
    assert (tmp_path / "recipes.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads(invoke("compare", *directories, *options, "--json").stdout)["cells"]
    assert [row["recipe"] for row in rows[:2]] == GLOBS
    assert rows[-1]["runs"] == 3
    text = invoke("compare", *directories, *options, "--csv", "--layer", "features", "--target", "input").stdout
    assert [line.split(",")[:4] for line in text.splitlines()[1:]] == [
        ["features", "input", "fvu", glob] for glob in GLOBS
    ]
    assert "matches none of ['wide-*']" in fails("compare", *directories, "--recipe", "wide-*")


def test_tables_have_means_and_differences(directories: list[Path]) -> None:
    console = Console(width=140, file=io.StringIO())
    found = write_comparison(directories, console, recipes=GLOBS, layers=["features"], targets=["input"])
    assert isinstance(found, pf.RecipeComparison)
    lines = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    wide, narrow = (next(line for line in lines if glob in line) for glob in GLOBS)
    cells = [found.cell("features", "input", glob).row() for glob in GLOBS]
    assert wide[:3] == ["features", "wide-*", f"{cells[0]['best']:.4g}"]
    assert narrow[:2] == ["narrow-*", f"{cells[1]['best']:.4g}"]
    assert f"{cells[1]['best_difference']:+.3g}" in narrow
    assert cells[1]["best"] == pytest.approx(1.5 * cells[0]["best"], rel=0.01)


def test_runs_are_told_apart_by_the_ends_of_their_paths() -> None:
    runs = {f"{recipe}/s{seed}": Path("/data/wide", recipe, f"s{seed}") for recipe in "ab" for seed in range(2)}
    assert split_runs(runs, ["a/*", "b/s?"]) == {"a/*": ["a/s0", "a/s1"], "b/s?": ["b/s0", "b/s1"]}
    for patterns, text in (
        (["a/*"], r"got /data/wide/b/s0, which matches none of \['a/\*'\]"),
        (["a/*", "*/*"], "got /data/wide/a/s0, which matches both 'a/\\*' and '\\*/\\*'"),
        (["a/*", "b/s0", "b/s1"], r"--recipe 'b/s0': expected two runs or more, got \['b/s0'\]"),
        (["a/*", "a/*"], "expected a different glob for each recipe"),
        (["a/*", ""], "--recipe: expected a glob, such as 'wide-\\*', got ''"),
        ([".", "b/*"], r"--recipe: expected a glob, such as 'wide-\*', got '\.'"),
    ):
        with pytest.raises(ArgumentError, match=text):
            split_runs(runs, patterns)


def test_the_picture_has_means_and_bands(scores: dict[str, dict[str, Scores]], tmp_path: Path) -> None:
    with no_warnings():
        figure = pf.plot_recipes(scores, tmp_path / "recipes.svg")
    assert isinstance(figure, Figure)
    assert (tmp_path / "recipes.svg").read_text().startswith("<?xml")
    assert figure.texts[1].get_text() == "Recipes: layer features"
    upper, lower = figure.axes
    steps = [step for step in log2_steps(12) if step != 2]
    for axes, target, metric in ((upper, "input", "fvu"), (lower, "label", "accuracy")):
        bands = [each for each in axes.collections if isinstance(each, PolyCollection)]
        lines = [line for line in axes.lines if len(line.get_xdata()) == len(steps) and line.get_linestyle() == "-"]
        assert len(bands) == len(lines) == 2
        for band, line, own in zip(bands, lines, scores.values(), strict=True):
            tables = [dict(zip(*each.curve("features", target, metric), strict=True)) for each in own.values()]
            values = np.array([[table[step] for step in steps] for table in tables])
            assert line.get_ydata() == pytest.approx(values.mean(0))
            corners = band.get_paths()[0].vertices[:, 1]
            assert corners.min() == pytest.approx((values.mean(0) - values.std(0, ddof=1)).min())
            bottom, top = axes.get_ylim()
            assert bottom < corners.min() <= corners.max() < top
    assert {text.get_text() for text in upper.texts} == {"wide", "narrow"}
    numbered = pf.plot_recipes(dict(enumerate(scores.values())))  # type: ignore[arg-type]
    assert {text.get_text() for text in numbered.axes[0].texts} == {"0", "1"}


def test_the_picture_has_the_layer_that_is_asked_for(scores: dict[str, dict[str, Scores]]) -> None:
    assert pf.plot_recipes(scores, layer="stage1").texts[1].get_text() == "Recipes: layer stage1"
    assert len(pf.plot_recipes(scores, layer="model").axes) == 1  # which decodes labels only
    with pytest.raises(LayerError, match=r"layer 'stage2': expected one of \['features', 'stage1'\]"):
        pf.plot_recipes(scores, layer="stage2")


def test_the_axis_has_room_for_means_beside_wide_bands() -> None:
    scores = {
        recipe: {f"s{seed}": make_scores(LAYERS, log2_steps(12), scale=scale) for seed, scale in enumerate(scales)}
        for recipe, scales in (("wide", (1e-11, 0.6)), ("narrow", (1e-11, 0.55)))
    }
    upper = pf.plot_recipes(scores).axes[0]
    assert upper.get_yscale() == "linear"
    assert upper.get_ylim()[0] < 0 < 0.3 < upper.get_ylim()[1]


def test_estimates_are_hollow_and_baselines_that_differ_left_out(
    scores: dict[str, dict[str, Scores]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def legends() -> list[list[str]]:
        found = [axes.get_legend() for axes in pf.plot_recipes(scores).axes]
        return [[text.get_text() for text in each.get_texts()] if each else [] for each in found]

    wide, constant = scores["wide"], "most frequent class"
    monkeypatch.setattr(Scores, "baseline", lambda *_: 0.2)
    assert legends() == [[], [constant]]
    wide["wide-0"] = wide["wide-0"].with_column("approximation", "sketch of 8 of 64 features")
    assert legends() == [["estimate"], ["estimate", constant]]
    monkeypatch.setattr(Scores, "baseline", lambda own, *_: 0.1 if own is wide["wide-1"] else 0.2)
    assert legends() == [["estimate"], ["estimate"]]


def test_what_cannot_be_drawn_is_told(scores: dict[str, dict[str, Scores]]) -> None:
    for given in (
        {"wide": scores["wide"]},
        {"wide": scores["wide"], "narrow": {}},
        scores["wide"],
        {"a": 1, "b": 2},
        3,
    ):
        with pytest.raises(DataError, match="expected two recipes or more, each of the scores of two runs or more"):
            pf.plot_recipes(given)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"a different name for each recipe, got \[1, '1'\]"):
        pf.plot_recipes({1: scores["wide"], "1": scores["narrow"]})  # type: ignore[dict-item]
    with pytest.raises(LayerError, match=r"layer \['features'\]: expected one of"):
        pf.plot_recipes(scores, layer=["features"])  # type: ignore[arg-type]
    late = {run: own.filter(step=own.steps[-1]) for run, own in scores["narrow"].items()}
    early = {run: own.filter(step=0) for run, own in scores["wide"].items()}
    with pytest.raises(DataError, match="no finite held-out 'fvu' or 'accuracy' of layer 'features' at a step of all"):
        pf.plot_recipes({"wide": early, "narrow": late})
    mixed = Scores.concat([own.with_column("run", run) for run, own in scores["wide"].items()])
    with pytest.raises(DataError, match="expected the scores of one run"):
        pf.plot_recipes({"wide": {"a": mixed, "b": mixed}, "narrow": scores["narrow"]})
    with pytest.raises(ArgumentError, match="picture: expected a name that ends with"):
        pf.plot_recipes(scores, "recipes.txt")


def test_runs_may_be_links(directories: list[Path], tmp_path: Path) -> None:
    links = [tmp_path / f"{'AB'[i // 3]}{i % 3}" for i in range(6)]
    for link, directory in zip(links, directories, strict=True):
        link.symlink_to(directory)
    text = invoke("compare", *links, "--recipe", "A*", "--recipe", "B*", "--target", "input").stdout
    assert "A*: 3 runs, A0, A1, A2" in text
    assert "is given twice" in fails("compare", *links, directories[0])


def test_names_of_layers_are_no_markup(scores: dict[str, dict[str, Scores]], tmp_path: Path) -> None:
    console, places = Console(width=140, file=io.StringIO()), []
    for of in scores.values():
        for run, own in of.items():
            part = own.select(layers=["features"])
            places.append(write_run(tmp_path / run, part.with_column("layer", "blk[red]x[/b]")))
    for recipes in (GLOBS, None):
        write_comparison(places, console, recipes=recipes, targets=["input"])
    write_report(places[0], console, targets=["input"])
    assert console.file.getvalue().count("blk[red]x[/b]") > 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 140])
def test_a_table_is_not_cut_off(directories: list[Path], width: int) -> None:
    console = Console(width=width, file=io.StringIO())
    found = write_comparison(directories, console, recipes=GLOBS, targets=["input"])
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(found, pf.RecipeComparison)
    for cell in found:
        assert [part for each in cell.texts("±", "\n") for part in each.split("\n") if part not in text] == []
    assert ("\n" + " " * 20 in text) or width == 140
