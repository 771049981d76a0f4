"""Commands that look at runs that are there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import phasefast as pf
from phasefast.errors import ArgumentError
from phasefast.results.scores import Scores

from .report.synthetic import log2_steps, make_scores, write_run
from .test_cli import fails, invoke


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", make_scores(["stage1", "features"], log2_steps(12)))


def test_phases_prints_tables_and_writes_json(run: Path) -> None:
    result = invoke("phases", run)
    assert result.exit_code == 0
    assert "Phases of target input" in result.stdout
    assert json.loads((run / "phases.json").read_text())["cells"]
    assert not (run / "phases.png").exists()


def test_phases_as_json_prints_nothing_else(run: Path) -> None:
    result = invoke("phases", run, "--json")
    assert json.loads(result.stdout) == json.loads((run / "phases.json").read_text())


@pytest.mark.parametrize("command", ["phases", "report"])
def test_a_single_step_has_scores_and_no_phases(command: str, tmp_path: Path) -> None:
    directory = write_run(tmp_path / "one", make_scores(["stage1"], [8]))
    assert f"expected at least 2 steps, got [8]: phases need a training; phasefast scores {directory}" in fails(
        command, directory
    )
    assert "step 8" in invoke("scores", directory).stdout
    other = write_run(tmp_path / "other", make_scores(["stage1"], [0, 8]))
    assert f"{directory}: expected at least 2 steps, got [8]" in fails("compare", other, directory)


def test_report_draws_the_picture(run: Path) -> None:
    result = invoke("report", run)
    assert result.exit_code == 0
    assert "Phases of target label" in result.stdout
    assert (run / "phases.png").read_bytes().startswith(b"\x89PNG")


def test_reports_may_be_written_elsewhere(run: Path, tmp_path: Path) -> None:
    before, place = sorted(run.iterdir()), tmp_path / "somewhere/else"
    (no_folder := tmp_path / "file").touch()
    assert f"cannot write the phases to {no_folder / 'phases.json'}" in fails("report", run, "--out", no_folder)
    for command, made in (("phases", {"phases.json"}), ("report", {"phases.json", "phases.png", "maps.png"})):
        assert invoke(command, run, "--out", place).exit_code == 0
        assert {path.name for path in place.iterdir()} == made
    assert sorted(run.iterdir()) == before


def test_pictures_of_a_report_may_be_drawn_for_a_paper(run: Path) -> None:
    pytest.importorskip("matplotlib")
    found = invoke("report", run, "--format", "pdf")
    assert found.exit_code == 0, found.output
    assert "maps.pdf" in found.stdout
    assert (run / "phases.pdf").read_bytes()[:5] == (run / "maps.pdf").read_bytes()[:5] == b"%PDF-"
    assert not (run / "phases.png").exists()
    assert "form (--format): expected png, pdf or svg, got 'gif'" in fails("report", run, "--format", "gif")


@pytest.mark.parametrize("command", ["phases", "report"])
def test_only_some_layers_and_targets_are_shown_and_all_are_written(command: str, run: Path) -> None:
    result = invoke(command, run, "--layer", "feat*", "--target", "input")
    assert result.exit_code == 0, result.output
    assert "features" in result.stdout
    assert "stage1" not in result.stdout
    assert "target label" not in result.stdout
    both = invoke(command, run, "--layer", "stage?", "--layer", "features")
    assert "stage1" in both.stdout
    assert "model" in both.stdout
    written = json.loads((run / "phases.json").read_text())["cells"]
    assert {(cell["layer"], cell["target"]) for cell in written} == {
        (layer, target) for layer in ("stage1", "features") for target in ("input", "label")
    }
    assert "layer pattern 'fc*' matches nothing" in fails(command, run, "--layer", "fc*")
    assert "target pattern 'colour' matches nothing" in fails(command, run, "--target", "colour")


@pytest.mark.parametrize("command", ["phases", "report"])
def test_several_runs_in_one_directory_are_refused(command: str, tmp_path: Path) -> None:
    seeds = [make_scores([f"fc{i}"], log2_steps(6)).with_column("run", f"seed{i}") for i in (1, 2)]
    directory = write_run(tmp_path / "both", Scores.concat(seeds))
    assert "expected the scores of one run, got those of 2 runs (run seed1, seed2)" in fails(command, directory)


def test_the_picture_and_json_are_of_the_layers_shown(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(
        "phasefast.report.writing.plot_phases", lambda scores, report, *_, **__: shown.append((scores, report))
    )
    invoke("report", run, "--layer", "stage1")
    ((scores, found),) = shown
    assert scores.layers == ["stage1"]
    assert {cell.layer for cell in found} == {"stage1"}
    cells = json.loads(invoke("phases", run, "--json", "--layer", "stage1").stdout)["cells"]
    assert [cell["layer"] for cell in cells] == ["stage1", "stage1"]


def test_scores_prints_a_checkpoint(run: Path) -> None:
    scores = pf.read_scores(run)
    last = invoke("scores", run, "--target", "input").stdout
    assert last.splitlines()[0].endswith(f"step {scores.steps[-1]}, the last of {len(scores.steps)}, held-out rows")
    assert "label" not in last
    first = invoke("scores", run, "--step", scores.steps[0], "--layer", "stage1").stdout
    assert [line.split()[0] for line in first.splitlines()[1:]] == ["layer", "stage1", "model"]
    assert (
        f"{scores.value(layer='stage1', step=scores.steps[0], target='input', metric='fvu', split='heldout'):.4g}"
        in first
    )
    assert "has no step 99999, only " in fails("scores", run, "--step", "99999")


def test_the_models_own_scores_are_shown_by_name(run: Path) -> None:
    lines = invoke("scores", run, "--layer", "model").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["layer", "model"]
    shown = invoke("phases", run, "--layer", "model").stdout
    assert "Held-out accuracy of target label" in shown
    assert "Phases of" not in shown
    assert invoke("report", run, "--layer", "model").exit_code == 0
    assert "\nmodel " not in invoke("scores", run, "--layer", "!model").stdout
    both = "--layer", "model", "--target", "input"
    assert "no scores of layers ['model'], targets ['input']; they have steps " in fails("scores", run, *both)
    assert "layer pattern 'fc' matches nothing in the scores; they have" in fails("scores", run, "--layer", "fc")


def test_the_stop_window_is_as_wide_as_asked(run: Path) -> None:
    def windows(*options: object) -> list[list[int]]:
        cells = json.loads(invoke("phases", run, "--json", "--target", "input", *options).stdout)["cells"]
        return [cell["stop_window"] for cell in cells if cell["stop_window"]]

    usual, wide = windows(), windows("--window", 0.9)
    assert usual == windows("--window", 0.25)
    assert all(out[0] <= part[0] <= part[1] <= out[1] for out, part in zip(wide, usual, strict=True))
    assert wide != usual
    invoke("report", run, "--window", 0.9)
    kept = json.loads((run / "phases.json").read_text())["cells"]
    assert [cell["stop_window"] for cell in kept if cell["stop_window"] and cell["target"] == "input"] == wide
    assert {cell["evidence"]["window"] for cell in kept} == {0.9}
    other = shutil.copytree(run, run.parent / "other")
    (cell,) = json.loads(
        invoke("compare", run, other, "--json", "--target", "input", "--layer", "features", "--window", 0.9).stdout
    )["cells"]
    assert cell["stop_windows"] == dict.fromkeys(("run", "other"), wide[0])
    for bad in ("nan", "inf", "-0.1"):
        assert f"window: expected a number >= 0, got {bad}" in fails("phases", run, "--window", bad)
    for name, value in (("fewest", "4"), ("permutations", 2000.5), ("permutations", 0)):
        with pytest.raises(ArgumentError, match=f"{name}: expected a positive integer, got {value!r}"):
            pf.PhaseRules(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="change: expected a number >= 0, got True"):
        pf.PhaseRules(change=True)
    rules = pf.PhaseRules(fewest=np.int64(7), window=np.float32(0.5))  # type: ignore[arg-type]
    assert json.loads(pf.detect_phases(pf.read_scores(run), rules=rules).to_json())["cells"]
    assert (type(rules.fewest), type(rules.window)) == (int, float)
    open_to_the_end = invoke("phases", run, "--target", "input", "--window", 0).stdout
    assert ("+ open: no certain rise of 0 of the decrease" in open_to_the_end) == ("+\n" in open_to_the_end)


def test_a_report_of_some_layers_keeps_the_picture_of_all(run: Path) -> None:
    invoke("report", run)
    picture, selected, maps = (run / f"{name}.png" for name in ("phases", "phases-selected", "maps-selected"))
    whole = picture.read_bytes()
    assert not selected.exists()
    for chosen in (("--layer", "stage1"), ("--target", "input")):
        text = invoke("report", run, *chosen).stdout
        assert text.splitlines()[-1] == f"wrote {run / 'phases.json'}, {selected} and {maps}"
        assert picture.read_bytes() == whole
        assert selected.read_bytes().startswith(b"\x89PNG")
        assert selected.read_bytes() != whole
        selected.unlink()
    assert "phases-selected.png" in invoke("report", "--help").stdout


@pytest.mark.parametrize(("count", "told"), [(2, True), (3, True), (4, False), (7, False)])
def test_of_a_few_steps_it_is_said_that_they_tell_no_phases(count: int, told: bool, tmp_path: Path) -> None:
    steps = write_run(tmp_path, make_scores(["a"], log2_steps(count)))
    for command in ("phases", "report"):
        shown = invoke(command, steps).stdout
        shown = " ".join(shown.split())
        assert (f"{count} steps show changes from step to step, not phases" in shown) is told
        assert ("Fewer than 8 steps" in shown) is not told


def test_events_are_drawn(run: Path) -> None:
    plain = invoke("report", run)
    before = (run / "phases.png").read_bytes()
    drawn = invoke("report", run, "--event", "lower rate=32", "--event", "a=b=64")
    assert (drawn.exit_code, drawn.stdout) == (0, plain.stdout)
    assert (run / "phases.png").read_bytes() != before
    once = (run / "phases.png").read_bytes()
    assert invoke("report", run, "--event", "lower rate=32", "--event", "lower rate=64").exit_code == 0
    assert (run / "phases.png").read_bytes() not in (before, once)
    for text in ("32", "rate=", "=32", " =32", "rate=x", "rate=-1", f"rate={'9' * 5000}"):
        assert f"--event: expected NAME=STEP, such as 'lower rate=30000', got {text!r}" in fails(
            "report", run, "--event", text
        )


def test_runs_are_compared(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    picture = tmp_path / "both.png"
    result = invoke("compare", run, other, "--target", "input", "--picture", picture)
    assert result.exit_code == 0, result.output
    assert "Phases of target input in 2 runs" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(invoke("compare", run, other, "--layer", "features", "--json").stdout)
    assert [(cell["layer"], cell["target"]) for cell in found["cells"]] == [
        ("features", "input"),
        ("features", "label"),
    ]
    (best,) = found["best"]
    (alone,) = json.loads(invoke("phases", run, "--layer", "features", "--json").stdout)["best"]
    assert (best["target"], best["layer"], best["step"]) == ("label", "features", alone["step"])
    assert best["values"] == {"run": pytest.approx(alone["value"]), "other": pytest.approx(alone["value"])}
    assert best["deviation"] == 0
    text = " ".join(invoke("compare", run, other).stdout.split())
    assert f"All runs, target label: best is stage1 at step {alone['step']}, accuracy " in text
    assert "expected the directories of two runs or more" in fails("compare", run)


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_a_comparison_is_drawn_in_whatever_form_it_is_printed(run: Path, tmp_path: Path, form: str) -> None:
    other, picture = shutil.copytree(run, tmp_path / "other"), tmp_path / "both.png"
    result = invoke("compare", run, other, form, "--picture", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert result.stdout == invoke("compare", run, other, form).stdout
