"""Checkpoints that could not be measured are told wherever their run is looked at, until they are."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.common.files import alone
from phasefast.errors import DataError, SolveError, StoreError, SweepError, without_frames
from phasefast.phases.phase_report import PhaseReport
from phasefast.report import read_phases, read_runs
from phasefast.results.failures import Failure, keep_failures, listed, read_failures, settle_failures
from phasefast.results.scores import Scores
from phasefast.results.store import write_step

from ..test_cli import fails, invoke

STEPS = (0, 1, 2, 4, 8)
States = Mapping[int, Mapping[str, Tensor]]


def test_failures_that_differ_by_a_name_share_a_line() -> None:
    failures = {step: Failure(f"net_{step}.pt", f"net_{step}.pt: damaged") for step in range(3)}
    failures[7] = Failure("net_7.pt", "net_7.pt: too short")
    failures |= {step: Failure(f"net_{step}.pt", f"step {step} is stored already") for step in (30, 31)}
    assert list(listed(failures)) == [
        "step 0: net_0.pt: damaged; likewise 2 more: 1, 2",
        "step 7: net_7.pt: too short",
        "step 30: is stored already; likewise 1 more: 31",
    ]
    alone = {24: Failure("step 24 b.pt", "step 24 b.pt does not fit"), 8: Failure("step 8", "step 8 is stored")}
    assert list(listed(alone)) == ["step 24: step 24 b.pt does not fit", "step 8: is stored"]


@pytest.fixture
def states(net: nn.Module) -> dict[int, dict[str, Tensor]]:
    return {step: {name: value + 0.01 * step for name, value in net.state_dict().items()} for step in STEPS}


@pytest.fixture
def swept(net: nn.Module, probe_set: pf.ProbeSet, states: States, tmp_path: Path) -> Path:
    """A sweep that lacks step 2, of weights that are not finite, and step 8, of another model."""
    broken = {**states, 2: {name: value * float("nan") for name, value in states[2].items()}, 8: {"w": torch.ones(1)}}
    with pytest.raises(SweepError, match="2 of 5 checkpoints failed") as caught:
        pf.sweep(net, broken, probe_set, out=tmp_path / "run", layers=["hidden", "head"])
    assert caught.value.failed == read_failures(tmp_path / "run")
    return tmp_path / "run"


def test_what_failed_is_kept_until_it_is_measured(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, swept: Path
) -> None:
    failures = read_failures(swept)
    assert list(failures) == [2, 8]
    assert "NaN or Inf" in failures[2].error
    assert failures[8].checkpoint == "step 8"
    part = {step: states[step] for step in (0, 1, 2, 4)}
    pf.sweep(net, part, probe_set, out=swept, layers=["hidden", "head"])
    assert list(read_failures(swept)) == [8]
    pf.sweep(net, part, probe_set, out=swept, layers=["hidden", "head"], overwrite=True)
    assert read_failures(swept) == {}


def test_reports_name_and_mark_them(swept: Path) -> None:
    _, report = read_phases(swept)
    assert list(report.failed) == [2, 8]
    assert "Not measured: step 8: " in str(report)
    printed = " ".join(invoke("report", swept).stdout.split())
    assert "Not measured: step 2: layer 'hidden': NaN or Inf" in printed
    written = json.loads((swept / "phases.json").read_text())["failed"]
    assert [(each["step"], each["checkpoint"]) for each in written] == [(2, "step 2"), (8, "step 8")]
    assert "step 2 was not measured: layer 'hidden'" in fails("scores", swept, "--step", 2)


@pytest.fixture
def again(swept: Path, tmp_path: Path) -> Path:
    """Another directory with the same scores."""
    return Path(shutil.copytree(swept, tmp_path / "again"))


def test_comparisons_warn_of_them(swept: Path, again: Path) -> None:
    with pytest.warns() as caught:
        read_runs([swept, again])
    *told, (same, _) = [str(each.message).partition(": ")[::2] for each in caught]
    assert [run for run, _ in told] == ["run", "run", "again", "again"]
    assert same == "run and again have the same weights at 2 steps after 0"
    assert all(text.startswith(("Not measured: step 2: ", "Not measured: step 8: ")) for _, text in told)


def test_a_training_keeps_them_too(net: nn.Module, probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    tracker = pf.PhaseTracker(net, probe_set, out=tmp_path, layers=["hidden"])
    tracker.step(0)
    with torch.no_grad():
        net.get_parameter("hidden.weight").fill_(float("nan"))
    with pytest.warns(RuntimeWarning, match="step 1 was not measured"):
        tracker.step(1)
    assert list(read_failures(tmp_path)) == [1]


def test_layers_that_are_finite_are_measured_and_the_others_told(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, tmp_path: Path
) -> None:
    broken = {step: dict(state) for step, state in states.items()}
    broken[4]["head.weight"] = broken[4]["head.weight"] * float("inf")
    with pytest.warns(RuntimeWarning, match="layers: left out 2 at step 4: layer 'head': NaN or Inf"):
        scores = pf.sweep(net, broken, probe_set, out=tmp_path, layers=["hidden", "head"])
    assert scores.filter(layer="hidden").steps == list(STEPS)
    assert scores.filter(layer="head").steps == [0, 1, 2, 8]
    assert read_failures(tmp_path)[4].error.startswith("layer 'head': NaN or Inf")
    pf.sweep(net, broken, probe_set, out=tmp_path, layers=["hidden", "head"])  # nothing left to measure
    assert list(read_failures(tmp_path)) == [4]
    _, report = read_phases(tmp_path)
    assert len(report.cell("head").evidence["steps"]) == 4
    assert "Measured in part: step 4: layer 'head': NaN or Inf" in str(report)


def test_layers_that_diverge_cost_the_others_neither_order_nor_phases(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, tmp_path: Path
) -> None:
    broken = {step: dict(state) for step, state in states.items()}
    for step in STEPS[:-1]:  # all but one: too few for phases
        broken[step]["hidden.weight"] = broken[step]["hidden.weight"] * float("inf")
    with pytest.warns(RuntimeWarning, match="layers: left out"):
        scores = pf.sweep(net, broken, probe_set, out=tmp_path, layers=["conv", "hidden"])
    assert scores.layers == ["conv", "hidden"]  # though the first steps have the first alone
    report = pf.detect_phases(scores)
    assert {cell.layer for cell in report} == {"conv"}
    cut = pf.detect_phases(Scores(scores.to_arrow().filter(pc.field("step") < 4))).cell("conv")
    both = PhaseReport((*report, dataclasses.replace(cut, layer="early")))
    assert "Measured to an earlier step only: early, input to 2." in str(both)
    with pytest.raises(DataError, match="at least 2 steps"):
        pf.detect_phases(scores, layers=["hidden"])


def test_what_cannot_be_read_is_kept_though_nothing_else_is_there(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, tmp_path: Path
) -> None:
    (tmp_path / "ck").mkdir()
    torch.save(states[1], tmp_path / "ck/step_1.pt")
    pf.sweep(net, tmp_path / "ck", probe_set, out=tmp_path / "run", layers=["hidden"])
    (tmp_path / "ck/step_1.pt").unlink()  # measured, to save space
    (tmp_path / "ck/step_2.pt").write_bytes(b"damaged")
    with pytest.raises(SweepError, match="1 of 1 checkpoints failed"):
        pf.sweep(net, tmp_path / "ck", probe_set, out=tmp_path / "run", layers=["hidden"])
    assert list(read_failures(tmp_path / "run")) == [2]


def test_a_disk_that_is_full_hides_no_failure(tmp_path: Path) -> None:
    (tmp_path / "scores").write_text("a file where a folder should be")
    with pytest.warns(RuntimeWarning, match="cannot write what failed"):
        keep_failures(tmp_path, {3: Failure("step 3", "damaged")})


def test_what_another_job_has_measured_did_not_fail(swept: Path) -> None:
    keep_failures(swept, {1: Failure("step 1", "damaged, when this job read it")})
    assert list(read_failures(swept)) == [2, 8]


def test_nothing_is_kept_of_checkpoints_of_another_model(net: nn.Module, probe_set: pf.ProbeSet, swept: Path) -> None:
    others = {step: {"w": torch.ones(1)} for step in range(100, 112)}
    with pytest.raises(SweepError, match="12 of 12 checkpoints failed"):
        pf.sweep(net, others, probe_set, out=swept, layers=["hidden", "head"])
    assert list(read_failures(swept)) == [2, 8]


def test_a_sweep_that_is_stopped_keeps_what_failed(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: object) -> None:
        if args[1].steps == [4]:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        write_step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(sys.modules["phasefast.sweep"], "write_step", stopped)
    broken = {**states, 2: {"w": torch.ones(1)}}
    with pytest.raises(KeyboardInterrupt):
        pf.sweep(net, broken, probe_set, out=tmp_path, layers=["hidden"])
    assert list(read_failures(tmp_path)) == [2]


def test_a_sweep_that_is_killed_has_kept_what_failed_before_it_measured(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    wrote: list[set[int]] = []

    def written(out: Path, failures: Mapping[int, Failure]) -> None:
        wrote.append(set(failures))
        keep_failures(out, failures)

    monkeypatch.setattr(sys.modules["phasefast.sweep"], "keep_failures", written)

    def watched(*args: object) -> Scores:
        seen.append(list(read_failures(tmp_path)))
        return write_step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(sys.modules["phasefast.sweep"], "write_step", watched)
    broken = {**states, 1: {"w": torch.ones(1)}, 4: {"w": torch.ones(1)}}
    with pytest.raises(SweepError):
        pf.sweep(net, broken, probe_set, out=tmp_path, layers=["hidden"])
    assert seen == [[], [1], [1, 4]]
    assert list(read_failures(tmp_path)) == [1, 4]
    assert wrote == [{1}, {4}]


def test_a_damaged_file_is_named(swept: Path) -> None:
    path = swept / "scores" / "_failed-000000000002.json"
    path.write_text("{")
    with pytest.raises(StoreError, match=r"_failed-000000000002\.json, a record of what failed"):
        read_failures(swept)


@pytest.mark.parametrize("command", ["scores", "phases", "compare"])
def test_numbers_as_comma_separated_values(command: str, swept: Path, again: Path) -> None:
    runs = [swept, again] if command == "compare" else [swept]
    found = invoke(command, *runs, "--csv")
    assert found.exit_code == 0, found.output
    table = list(csv.DictReader(io.StringIO(found.stdout)))
    scores, report = read_phases(swept)
    if command == "scores":
        assert len(table) == len(scores)
        assert np.array_equal([float(row["value"]) for row in table], scores.to_arrow().column("value").to_numpy())
        assert {row["jitter"] for row in table if row["layer"] == "model"} == {""}
        one = list(csv.DictReader(io.StringIO(invoke(command, *runs, "--csv", "--step", 1).stdout)))
        assert {row["step"] for row in one} == {"1"}
    else:
        assert len(table) == len(report) * len(runs)
        assert [row["layer"] for row in table][:2] == [cell.layer for cell in report][:2]
        assert "give only one of them" in fails(command, *runs, "--csv", "--json")


def test_values_of_no_layer_are_no_lines(swept: Path) -> None:
    found = invoke("phases", swept, "--csv", "--layer", "model")
    assert (found.exit_code, found.stdout) == (0, "")


def test_phases_are_written_where_nobody_reads_to_the_end(swept: Path) -> None:
    command = f"{sys.executable} -m phasefast phases {swept} --csv | head -1"
    subprocess.run(["bash", "-c", command], cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert (swept / "phases.json").exists()


def test_failures_are_written_by_one_job_at_a_time(swept: Path) -> None:
    partial = Failure("step 1", "", partial=True)
    with ThreadPoolExecutor(2) as pool:
        with alone(swept / "scores" / ".lock"):
            jobs = [pool.submit(keep_failures, swept, {1: partial}), pool.submit(settle_failures, swept, [1])]
            assert not wait(jobs, timeout=0.5).done
        for job in jobs:
            job.result(timeout=60)


def test_an_error_that_is_kept_holds_nothing() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def solve() -> None:
        gram = torch.zeros(3)
        held.append(weakref.ref(gram))
        raise RuntimeError("no convergence")

    def fail() -> None:
        try:
            solve()
        except RuntimeError as error:
            raise SolveError("no eigendecomposition") from error

    kept = None
    try:
        fail()
    except SolveError as error:
        kept = without_frames(error)
    assert str(kept) == "no eigendecomposition"
    assert held[0]() is None


def test_what_was_handled_before_a_sweep_keeps_its_traceback(
    net: nn.Module, probe_set: pf.ProbeSet, tmp_path: Path
) -> None:
    state = net.state_dict()
    broken = {name: tensor * float("nan") for name, tensor in state.items()}
    states = {1: {name: tensor.clone() for name, tensor in state.items()}, 2: broken}

    def train() -> None:
        try:
            _ = 1 / 0
        except ZeroDivisionError:
            with pytest.raises(SweepError):
                pf.sweep(net, states, probe_set, out=tmp_path, layers="hidden")
            raise

    with pytest.raises(ZeroDivisionError) as caught:
        train()
    assert str(caught.traceback[-1].statement).strip() == "_ = 1 / 0"


def test_memory_that_runs_out_is_no_matter_of_convergence(
    net: nn.Module, probe_set: pf.ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def eigh(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    with pytest.raises(torch.OutOfMemoryError):
        pf.probe(net, probe_set, layers="hidden", route="eigen")
