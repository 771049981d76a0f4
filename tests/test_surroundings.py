"""What a user's process, shell and settings may be: results are the same, and names are printed as they are."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from typer.testing import CliRunner

import phasefast as pf
from phasefast.cli.app import app
from phasefast.common.console import of_work
from phasefast.common.progress import progress
from phasefast.errors import ArgumentError
from phasefast.report import plot_phases, plot_reconstructions
from phasefast.report.drawn import Picture
from tests.conftest import SmallNet, images
from tests.report.synthetic import log2_steps, make_scores, write_run

ROOT = Path(__file__).parents[1]
OPTIONS: list[dict] = [
    {},
    {"alphas": [0.1], "precision": "double"},
    {"alphas": [0.1, 1.0], "route": "target-free", "splits": "heldout"},
    {"route": "dual"},
    {"selection": "loo"},
    {"selection": "folds"},
    {"penalty_per": "column"},
    {"alphas": [0.0, 0.1]},
    {"layer_sketch": 8},
    {"target_components": 5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_another_default_device_changes_nothing(net: SmallNet, probe_set: pf.ProbeSet, options: dict) -> None:
    layers = ["conv", "hidden"]
    expected = pf.probe(net, probe_set, layers=layers, **options).to_arrow()
    with torch.device("meta"):  # where nothing can be computed; the usual one is a GPU
        found = pf.probe(net, probe_set, layers=layers, **options).to_arrow()
    assert found.column("value").to_pylist() == expected.column("value").to_pylist()


def test_another_default_device_is_for_the_model_alone(net: SmallNet, tmp_path: Path) -> None:
    (x, y), (held, held_labels) = images(40, 1), images(20, 2)
    pairs, held_pairs = list(zip(x, y.tolist(), strict=True)), list(zip(held, held_labels.tolist(), strict=True))
    states = {step: copy.deepcopy(net.state_dict()) for step in (0, 1)}
    with torch.device("meta"):
        probe_set = pf.ProbeSet.from_tensors(x, y.tolist(), held, held_labels.numpy())
        drawn = pf.ProbeSet.from_dataset(pairs, held_pairs)
        assert {drawn.fit_inputs.device.type, drawn.fit_labels.device.type} == {"cpu"}
        scores = pf.sweep(net, states, probe_set, out=tmp_path, layers="conv")
        pf.reconstruct(net, probe_set, layers="conv")
        decoders = pf.fit_decoders(net, probe_set, layers="conv")
        assert decoders["conv", "label"].classes is not None
        assert decoders["conv", "label"].classes.tolist() == [0, 1, 2]
        pf.plan(net, (1, 6, 6), 40, 20, classes=3, layers=["conv", "hidden"])
    assert scores.steps == [0, 1]


def test_names_with_brackets_and_colons_are_names(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(net.state_dict(), tmp_path / "step_1.pt")
    torch.save(net.state_dict(), tmp_path / "step_2.pt")
    probe_set.save("probe_set.pt")
    for out in ("[seed=1]", "run[/x]:1", "a:b"):
        given = ["sweep", "tests.conftest:SmallNet", "step_*.pt", "probe_set.pt", "--layer", "hidden", "--out", out]
        done = CliRunner().invoke(app, given)
        assert done.exit_code == 0, done.output
        assert f"2 checkpoints are in {out}" in done.output
        done = CliRunner().invoke(app, ["report", out])
        assert f"wrote {out}/phases.json, {out}/phases.png and {out}/maps.png" in done.output
        assert pf.read_scores(out).steps == [1, 2]


def test_progress_may_be_silenced(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for value, printed in (("1", True), ("0", False)):
        monkeypatch.setenv("PHASEFAST_PROGRESS", value)
        with progress("sweeping", 2, "checkpoints") as update:
            update(1, "step 0")
        assert bool(capsys.readouterr().err) is printed


def test_progress_of_many_has_few_lines_but_all_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sweeping", 400, "checkpoints") as update:
        for done in range(1, 401):
            update(done, f"step {done}" + " failed: NaN" * (done == 300))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("sweeping 1/400 checkpoints, step 1, ETA ")
    assert sum("failed" in line for line in lines) == 1
    assert lines[-1] == "sweeping 400/400 checkpoints, step 400, ETA 0 s"
    assert len(lines) < 40


def test_progress_that_nobody_reads_any_more_does_not_stop_the_work() -> None:
    console = of_work()
    console.on_broken_pipe()
    console.print("in silence")
    assert console.quiet


def test_a_report_that_nobody_reads_to_its_end_writes_its_files(tmp_path: Path) -> None:
    layers = [f"a_layer_of_a_long_name.{i}" for i in range(40)]
    run = write_run(tmp_path / "run", make_scores(layers, log2_steps(9), accuracy=False))
    command = f"{sys.executable} -m phasefast report {run} | head -3; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"phases.json", "phases.png", "maps.png"} <= {path.name for path in run.iterdir()}


def test_lines_are_long_where_there_is_no_terminal(tmp_path: Path) -> None:
    layers = ["encoder.layer.0.c1", "encoder.layer.1.c1"]
    run = write_run(tmp_path / "run", make_scores(layers, [100_000 * step for step in log2_steps(9)]))
    given = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    command = [sys.executable, "-m", "phasefast", "phases", str(run)]
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=True)
    assert all(done.stdout.count(layer) >= 2 for layer in layers)


def test_pictures_do_not_depend_on_the_settings_of_matplotlib(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path
) -> None:
    scores = make_scores(["a", "b"], log2_steps(10))
    report, images_of = pf.detect_phases(scores), pf.reconstruct(net, probe_set, layers="conv")

    def files() -> list[bytes]:
        """Of both pictures, as they are written and as a notebook shows them."""
        drawn = plot_phases(scores, report, tmp_path / "a.png"), plot_reconstructions(images_of, tmp_path / "b.png")
        shown = [each._repr_png_()[0] for each in drawn if isinstance(each, Picture)]
        return [(tmp_path / name).read_bytes() for name in ("a.png", "b.png")] + shown

    before = files()
    assert before[:2] == before[2:]
    with mpl.rc_context({"text.usetex": True, "font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9}):
        assert files() == before
        assert mpl.rcParams["font.size"] == 30


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_pictures_are_of_the_kind_that_their_name_says(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path, suffix: str, start: bytes
) -> None:
    scores = make_scores(["a", "b"], log2_steps(10))
    plot_phases(scores, pf.detect_phases(scores), drawn := tmp_path / f"a.{suffix}")
    assert drawn.read_bytes().startswith(start)
    plot_reconstructions(pf.reconstruct(net, probe_set, layers="conv"), shown := tmp_path / f"b.{suffix}")
    assert shown.read_bytes().startswith(start)
    with pytest.raises(ArgumentError, match=r"expected a name that ends with .png, .pdf, .svg, got .*a\.jpg"):
        plot_phases(scores, pf.detect_phases(scores), tmp_path / "a.jpg")


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_work(
    probe_set: pf.ProbeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    given = ["reconstruct", "tests.conftest:SmallNet", str(tmp_path), "absent.pt", "--out", str(tmp_path / "a.png")]
    done = CliRunner().invoke(app, given)
    assert "pictures need matplotlib: pip install 'phasefast[report]'" in " ".join(done.output.split())


def test_results_can_be_compared_and_kept_in_sets(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    report = pf.detect_phases(make_scores(["a", "b"], log2_steps(10)))
    both = pf.compare_phases({"one": report, "other": report})
    assert len({*report, *report}) == len(report)
    assert len({report, both, *both}) == 2 + len(both)
    found = pf.reconstruct(net, probe_set, layers="conv")
    assert found != copy.deepcopy(found)
    assert isinstance(pf.Input(), pf.Target)


def test_the_version_is_told() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"phasefast {pf.__version__}\n")


def test_comparisons_are_printed_in_ascii_too(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        for step in (0, 1, 2, 4):
            make_scores(["x"], [step]).write_shard(tmp_path / name)
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "phasefast", "compare", "a", "b", "c"]
    done = subprocess.run(command, cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert "+- standard deviation" in " ".join(done.stdout.decode("ascii").split())


def test_a_source_distribution_is_whole(tmp_path: Path) -> None:
    copied = tmp_path / "source"
    folders = (".ci", "benchmarks", "csrc", "docs", "phasefast", "tests")
    alone = (".clang-format", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md")
    alone += ("constraints.txt", "pyproject.toml", "setup.py")
    found = [*(ROOT / name for name in alone), *(path for folder in folders for path in ROOT.glob(f"{folder}/**/*"))]
    files = [path for path in found if path.is_file() and path.suffix not in (".so", ".pyc")]
    names = {path.relative_to(ROOT).as_posix() for path in files}
    for name in names:
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-c", "import setuptools.build_meta as b; print(b.build_sdist('.'))"]
    environment = {**os.environ, "PHASEFAST_CUDA": "0"}
    subprocess.run(command, cwd=copied, env=environment, capture_output=True, check=True)
    (made,) = copied.glob("*.tar.gz")
    with tarfile.open(made) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert names <= inside


def test_a_training_that_changes_its_directory_keeps_its_scores_together(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    tracker = pf.PhaseTracker(net, probe_set, layers="hidden", out="runs/live")
    tracker.step(0)
    monkeypatch.chdir("elsewhere")
    tracker.step(1)
    assert pf.read_scores(tmp_path / "runs/live").steps == [0, 1]
    assert not list((tmp_path / "elsewhere").iterdir())
