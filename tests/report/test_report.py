from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from phasefast.errors import ArgumentError, DataError, DependencyError, StoreError
from phasefast.phases.detect import detect_phases
from phasefast.report import read_phases, restrict, write_report
from phasefast.results.scores import Scores

from .synthetic import log2_steps, make_scores, of_widths, targets_apart, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", make_scores(["stage1", "features"], log2_steps(12)))


def test_report_writes_json_picture_and_table(run: Path) -> None:
    console = Console(width=100, file=io.StringIO())
    report = write_report(run, console)
    stored = json.loads((run / "phases.json").read_text())
    assert [cell["layer"] for cell in stored["cells"]] == [cell.layer for cell in report]
    assert {phase["kind"] for phase in stored["cells"][-2]["phases"]} == {"constant", "decrease", "increase"}
    assert (run / "phases.png").stat().st_size > 10_000
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "features" in text
    assert str(run / "phases.png") in text
    assert (run / "maps.png").stat().st_size > 10_000


def test_missing_directory_and_single_step_are_typed_errors(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no scores in"):
        read_phases(tmp_path / "absent")
    single = write_run(tmp_path / "single", make_scores(["a"], [0]))
    with pytest.raises(DataError, match="at least 2 steps"):
        read_phases(single)


def test_several_runs_in_one_directory_are_refused(tmp_path: Path) -> None:
    seeds = [make_scores([name], log2_steps(8)).with_column("run", name) for name in ("seed1", "seed2")]
    both = write_run(tmp_path, Scores.concat(seeds))
    with pytest.raises(DataError, match=r"expected the scores of one run, got those of 2 runs \(run seed1, seed2\)"):
        read_phases(both)


def test_targets_of_the_model_alone_are_shown_too(tmp_path: Path) -> None:
    scores, report = read_phases(write_run(tmp_path, targets_apart()))
    assert len(restrict(scores, report, targets=["*"])[0]) == len(scores)
    shown, cells = restrict(scores, report, targets=["lab*", "colour"])
    assert shown.values_of("target") == ["colour", "label"]
    assert {cell.target for cell in cells} == {"colour"}


def test_what_cannot_be_written_is_printed_before_the_error(run: Path) -> None:
    (run / "phases.json").mkdir()
    console = Console(width=100, file=io.StringIO())
    with pytest.raises(StoreError, match=r"cannot write .*phases\.json"):
        write_report(run, console)
    assert "Phases of target input" in console.file.getvalue()  # type: ignore[attr-defined]


def test_targets_that_are_not_drawn_are_told(tmp_path: Path) -> None:
    scores = make_scores(["a"], log2_steps(8))
    table = scores.filter(layer="a")
    more = [
        Scores(part.to_arrow()).with_column("target", name) for part, name in ((table.filter(target="label"), "kind"),)
    ]
    run = write_run(tmp_path / "several", Scores.concat([scores, *more]))
    console = Console(width=200, file=io.StringIO())
    write_report(run, console)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "phases.png leaves out ['kind']: --target kind draws it alone" in told
    assert "maps.png has" not in told
    more += [more[0].with_column("target", f"att{i:02}") for i in reversed(range(11))]
    run = write_run(tmp_path / "many", Scores.concat([scores, *more]))
    write_report(run, console)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "--target att00 draws it alone; maps.png has the first 12 targets, --target chooses others" in told


def test_without_matplotlib_all_but_the_picture_is_done(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    console = Console(width=100, file=io.StringIO())
    with pytest.raises(DependencyError, match=r"phasefast\[report\]"):
        write_report(run, console)
    assert (run / "phases.json").exists()
    assert "Phases of target input" in console.file.getvalue()  # type: ignore[attr-defined]
    assert not (run / "phases.png").exists()


def test_a_folder_of_runs_and_shards_of_other_names_are_told(run: Path) -> None:
    with pytest.raises(StoreError, match=r"no scores in .*, only in its folders run; give one, or compare them"):
        read_phases(run.parent)
    for path in (run / "scores").glob("step-*.parquet"):
        path.rename(path.with_name(f"of-{path.name}"))
    with pytest.raises(StoreError, match=r"expected files named step-\*.parquet, got \['of-step-0"):
        read_phases(run)
    with pytest.raises(ArgumentError, match="scores: expected those of one run, got list; for several runs see"):
        detect_phases([])  # type: ignore[arg-type]


def test_a_part_of_a_run_is_judged_by_its_features_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The input alone has no rows of the model, which tell how wide its output is."""
    run = write_run(tmp_path / "run", of_widths({"conv": 64, "features": 32, "head": 10}, 10, log2_steps(8)))
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: path.touch() or figures.append(figure))
    write_report(run, Console(file=io.StringIO()), targets=["input"])
    assert "shaded below: features" in " ".join(text.get_text() for text in figures[0].texts)
