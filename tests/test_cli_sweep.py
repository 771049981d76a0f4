"""``phasefast sweep``: the same numbers as the function, in shares, and as checkpoints arrive."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import phasefast as pf

from .conftest import SmallNet
from .test_cli import fails, invoke

NET = "tests.conftest:SmallNet"


@pytest.fixture
def place(probe_set: pf.ProbeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with three checkpoints and a probe set."""
    (tmp_path / "checkpoints").mkdir()
    for step in (0, 10, 200):
        torch.manual_seed(step)
        torch.save(SmallNet().state_dict(), tmp_path / f"checkpoints/step_{step}.pt")
    probe_set.save(tmp_path / "probe_set.pt")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


def swept(place: Path, *arguments: str) -> str:
    given = [NET, place / "checkpoints", place / "probe_set.pt", "--out", place / "out", *arguments]
    result = invoke("sweep", *given)
    assert result.exit_code == 0, result.output
    return result.stdout


def rows(scores: pf.Scores) -> list[dict]:
    return scores.to_arrow().drop_columns(["seconds"]).to_pylist()


def test_gives_the_numbers_of_the_function(place: Path, probe_set: pf.ProbeSet) -> None:
    options = "--layer", "hid*", "--layer", "conv", "--alpha", "0.1", "--alpha", "1e-3", "--batchnorm", "batch"
    text = swept(place, *options, "--precision", "double", "--splits", "heldout", "--run", "a", "--batch-size", "50")
    assert "3 checkpoints are in" in text
    how = {"layers": ["hid*", "conv"], "alphas": [0.1, 1e-3], "batchnorm": "batch", "batch_size": 50}
    how |= {"precision": "double", "splits": "heldout", "run": "a"}
    expected = pf.sweep(SmallNet(), place / "checkpoints", probe_set, out=place / "expected", **how)
    assert rows(pf.read_scores(place / "out")) == rows(expected)
    assert "report" in text
    assert invoke("report", place / "out").exit_code == 0


def test_a_dry_run_lists_what_is_stored_and_measures_nothing(place: Path) -> None:
    (place / "checkpoints/step_200.pt").rename(place / "kept.pt")
    (place / "checkpoints/step_200.pt").write_bytes(b"damaged")
    given = "sweep", NET, place / "checkpoints", "absent.pt", "--out", place / "out", "--dry-run"
    assert "3 checkpoints: 0 stored" in invoke(*given).stdout
    assert not (place / "out").exists()
    invoke("sweep", NET, place / "checkpoints", place / "probe_set.pt", "--out", place / "out", "--layer", "hidden")
    listed = invoke(*given).stdout.splitlines()
    states = [line.split()[0] + " " + " ".join(line.split()[2:]) for line in listed if "step_" in line]
    assert states == ["0 stored", "10 stored", "200 to measure, failed before"]
    assert listed[-1].startswith("3 checkpoints: 2 stored in ")
    assert listed[-1].endswith(", 1 to measure")
    assert "3 to measure" in invoke(*given, "--overwrite").stdout
    assert "1 checkpoint: 1 stored" in invoke(*given, "--shard", "1/3").stdout
    assert "nothing matches it" in fails("sweep", NET, place / "nowhere", "absent.pt", "--dry-run")


def test_targets_have_names(place: Path, probe_set: pf.ProbeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import phasefast as pf\n\n\ndef bright(x):\n    return (x.mean((1, 2, 3)) > 0).long()\n\n\n"
    code += "task = pf.Function(bright, kind='classes')\nnothing = 3\nseveral = [task, 'input']\n"
    (place / "own_tasks.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(place)
    given = NET, place / "checkpoints", place / "probe_set.pt", "--out", place / "out", "--target"
    done = invoke("sweep", *given, "label", "--target", "own_tasks:task", "--layer", "hidden", "--layer-sketch", "15")
    assert "layer_sketch=15 was too small" in " ".join(done.output.split())
    assert pf.read_scores(place / "out").targets == ["label", "bright"]
    several = NET, place / "checkpoints", place / "probe_set.pt", "--out", place / "several", "--layer", "hidden"
    assert invoke("sweep", *several, "--target", "own_tasks:several").exit_code == 0
    assert pf.read_scores(place / "several").targets == ["bright", "input"]
    assert "target 'own_tasks:nothing': expected a Target, got int" in fails("sweep", *given, "own_tasks:nothing")
    assert "target 'own_tasks:absent': expected package.module:callable" in fails("sweep", *given, "own_tasks:absent")
    assert "target 'labels': expected one of ['input', 'label'], or package.module" in fails("sweep", *given, "labels")


def test_values_of_the_probe_set_and_functions_are_targets_by_name(
    place: Path, probe_set: pf.ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    brightness = probe_set.fit_inputs.mean((1, 2, 3)), probe_set.heldout_inputs.mean((1, 2, 3))
    both = probe_set.fit_inputs, probe_set.fit_labels, probe_set.heldout_inputs, probe_set.heldout_labels
    pf.ProbeSet.from_tensors(*both, values={"brightness": brightness}).save(place / "with_values.pt")
    (place / "own_functions.py").write_text("def fn(x):\n    return x.mean((1, 2, 3))\n", encoding="utf-8")
    monkeypatch.syspath_prepend(place)
    given = NET, place / "checkpoints", place / "with_values.pt", "--layer", "hidden", "--out"
    assert invoke("sweep", *given, place / "one", "--target", "brightness").exit_code == 0
    assert pf.read_scores(place / "one").targets == ["brightness"]
    assert invoke("sweep", *given, place / "all").exit_code == 0
    assert pf.read_scores(place / "all").targets == ["input", "label", "brightness"]
    words = "target 'own_functions:fn': expected a target, got a function; give pf.Function(fn)"
    assert words in fails("sweep", *given, place / "no", "--target", "own_functions:fn")


def test_weights_are_chosen_by_key_or_read_by_a_function(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "both").mkdir()
    for path in sorted((place / "checkpoints").glob("*.pt"))[:2]:
        state = torch.load(path)
        torch.save(
            {"net": state, "ema": {name: value * 0 for name, value in state.items()}}, place / "both" / path.name
        )
    code = "import torch\n\n\ndef read(path):\n    return torch.load(path)['net']\n"
    (place / "own_reader.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(place)
    given = NET, place / "both", place / "probe_set.pt", "--layer", "hidden", "--out"
    assert invoke("sweep", *given, place / "key", "--key", "net").exit_code == 0
    assert invoke("sweep", *given, place / "load", "--load", "own_reader:read").exit_code == 0
    found = [pf.read_scores(place / name).to_arrow().column("value") for name in ("key", "load")]
    assert found[0].equals(found[1])
    assert "one of ['ema', 'net']" in " ".join(invoke("sweep", *given, place / "no").output.split())


def test_shares_are_given_or_torchruns(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "share 1 of 2: 1 checkpoint is in" in swept(place, "--shard", "1/2", "--layer", "hidden")
    assert pf.read_scores(place / "out").steps == [10]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    swept(place, "--layer", "hidden")
    assert pf.read_scores(place / "out").steps == [0, 10, 200]
    assert "what other shards write" in fails(
        "sweep", NET, place / "checkpoints", place / "probe_set.pt", "--overwrite", "--out", place / "out"
    )


def test_checkpoints_with_more_than_tensors_are_read_only_where_they_are_trusted(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.load(place / "checkpoints/step_10.pt")
    state["hidden.weight"] = state["hidden.weight"].to(torch.float8_e4m3fn)  # made by a function of torch's own
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.1)}, place / "checkpoints/step_10.pt")
    given = [NET, place / "checkpoints", place / "probe_set.pt", "--layer", "hidden", "--out"]
    refused = invoke("sweep", *given, place / "out")
    assert refused.exit_code == 1
    assert "error: 1 of 3 checkpoints failed" in refused.stderr
    assert refused.stderr.splitlines()[-1].endswith("pass weights_only=False (--trust)")
    assert "3 checkpoints" in swept(place, "--layer", "hidden", "--trust")

    def no_more(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", no_more)
    watched = invoke("sweep", *given, place / "watched", "--watch", "1")
    assert "2 checkpoints to step 200" in watched.stdout
    assert "warning: step 10 is tried 2 more times, and again once it has changed" in watched.stderr
    trusted = invoke("sweep", *given, place / "trusted", "--watch", "1", "--trust")
    assert "3 checkpoints to step 200" in trusted.stdout


def test_a_sweep_that_is_broken_off_says_what_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = sys.modules["phasefast.sweep"]
    write = module.write_step

    def write_one(*args: Any) -> None:
        write(*args)
        raise KeyboardInterrupt

    given = [NET, place / "checkpoints", place / "probe_set.pt", "--layer", "hidden", "--out", place / "out"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_step", write_one)
        broken = invoke("sweep", *given)
    assert broken.exit_code == 130
    assert "out has 1 checkpoints, run again to continue" in " ".join(broken.output.split())
    assert "3 checkpoints" in swept(place, "--layer", "hidden")


def test_each_process_of_torchrun_has_a_device_of_its_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setenv("LOCAL_RANK", "99")
    given = NET, place / "checkpoints", place / "probe_set.pt", "--out", place / "out"
    assert "device 'cuda:99' cannot be used" in fails("sweep", *given)
    assert "features need" in fails("sweep", *given, "--device", "cpu", "--layer", "hidden", "--memory", "1KB")


def test_watching_tells_the_phases_of_what_is_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(seconds: float) -> None:
        assert seconds == 5
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", no_more)
    given = NET, place / "checkpoints", place / "probe_set.pt", "--layer", "hidden", "--out", place / "out"
    result = invoke("sweep", *given, "--watch", "5")
    assert "3 checkpoints to step 200" in result.stdout
    assert "hidden" in result.stdout
    assert result.exit_code == 130


@pytest.mark.parametrize("given", [("--noise", "0.1"), ("--penalty-per", "column")])
def test_penalties_of_noise_and_of_columns(place: Path, probe_set: pf.ProbeSet, given: tuple[str, str]) -> None:
    swept(place, "--layer", "hidden", *given)
    how = {"noise": 0.1} if given[0] == "--noise" else {"penalty_per": "column"}
    expected = pf.sweep(SmallNet(), place / "checkpoints", probe_set, out=place / "expected", layers="hidden", **how)
    assert rows(pf.read_scores(place / "out")) == rows(expected)


@pytest.mark.parametrize("command", ["phases", "report", "scores"])
def test_where_every_checkpoint_failed_nothing_is_advised_but_to_look(place: Path, command: str) -> None:
    for path in (place / "checkpoints").iterdir():
        torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    assert invoke("sweep", NET, place / "checkpoints", place / "probe_set.pt", "--out", place / "out").exit_code == 1
    line = fails(command, place / "out")
    assert "measuring began there, but stored nothing: every checkpoint failed, or it was stopped" in line
    assert "demo" not in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((NET, "checkpoints", "nothing.pt"), "probe set 'nothing.pt': expected a file written by ProbeSet.save or"),
        ((NET, "checkpoints", "tests.conftest:SmallNet"), "expected a ProbeSet, got SmallNet"),
        ((NET, "missing", "probe_set.pt"), "missing: expected a folder of checkpoints"),
        ((NET, "checkpoints", "probe_set.pt", "--shard", "1-2"), "--shard: expected i/n, such as 0/4, got '1-2'"),
        ((NET, "checkpoints", "probe_set.pt", "--shard", "2/2"), "0 <= i < n"),
        ((NET, "checkpoints", "probe_set.pt", "--watch", "1", "--shard", "0/2"), "--watch runs alone and"),
        ((NET, "checkpoints", "probe_set.pt", "--watch", "1", "--overwrite"), "--watch runs alone and"),
        ((NET, "checkpoints", "probe_set.pt", "--precision", "best"), "precision: expected one of"),
        ((NET, "checkpoints", "probe_set.pt", "--penalty-per", "row"), "penalty_per: expected one of"),
        ((NET, "checkpoints", "probe_set.pt", "--alpha", "1", "--noise", "1"), "alphas and noise exclude each other"),
    ],
)
def test_what_cannot_be_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(place)
    assert words in fails("sweep", *arguments)


def test_samples_that_the_model_does_not_take_are_told_without_a_traceback(place: Path) -> None:
    x = torch.randn(60, 3, 6, 6)
    pf.ProbeSet.from_tensors(x[:40], None, x[40:], None).save(place / "colour.pt")
    result = invoke("sweep", NET, place / "checkpoints", place / "colour.pt", "--out", place / "out")
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    assert "samples of shape (3, 6, 6), torch.float32: does the probe set hold what it takes?" in result.stderr
