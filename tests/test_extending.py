"""Layers and targets that are added to a sweep later: measured alone, as if they had been there from the first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.engine import Engine
from phasefast.errors import (
    ArgumentError,
    DataError,
    LayerError,
    MemoryBudgetError,
    NonFiniteError,
    StoreError,
    SweepError,
)
from phasefast.report import read_phases
from phasefast.results.failures import Failure, keep_failures, lost_layers, read_failures
from phasefast.results.scores import Scores
from phasefast.results.shards import read_shard
from phasefast.results.store import Store, write_step
from tests.quiet import no_warnings

from .conftest import SmallNet, images

States = dict[int, dict[str, Tensor]]


def mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


@pytest.fixture
def states() -> States:
    torch.manual_seed(1)
    return {step: {name: value.clone() for name, value in SmallNet().state_dict().items()} for step in (0, 1, 2)}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[str]]]:
    """Steps and layers that are measured."""
    found, measure = [], Engine.measure

    def listed(engine: Engine, step: int, *args: Any, **kwargs: Any) -> pf.Scores:
        scores = measure(engine, step, *args, **kwargs)
        found.append((step, scores.layers))
        return scores

    monkeypatch.setattr(Engine, "measure", listed)
    return found


def values(scores: pf.Scores) -> dict[tuple[Any, ...], float]:
    keys = ("step", "layer", "target", "split", "metric")
    return {tuple(row[key] for key in keys): row["value"] for row in scores.to_arrow().to_pylist()}


def assert_same(scores: pf.Scores, expected: pf.Scores) -> None:
    found, wanted = values(scores), values(expected)
    assert (scores.layers, scores.targets) == (expected.layers, expected.targets)
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose([found[key] for key in wanted], list(wanted.values()), rtol=1e-5)


def test_what_a_sweep_lacks_is_measured_and_nothing_else(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, measured: list, tmp_path: Path
) -> None:
    task = pf.Function(mean, name="mean")
    expected = pf.sweep(net, states, probe_set, out=tmp_path / "whole", layers=["conv", "hidden", "head"])
    with_task = pf.sweep(
        net, states, probe_set, out=tmp_path / "task", layers=["conv", "hidden"], targets=["input", "label", task]
    )
    measured.clear()
    out = tmp_path / "run"
    first = pf.sweep(net, states, probe_set, out=out, layers=["hidden", "head"])
    kept = values(first)
    with pytest.warns(RuntimeWarning, match="left out .'unused'."):
        found = pf.sweep(net, states, probe_set, out=out, layers=["*"])
    assert {tuple(layers) for _, layers in measured[3:]} == {("conv", "norm", "relu", "relu:1", "drop")}
    assert found.layers == ["conv", "norm", "relu", "hidden", "relu:1", "drop", "head"]
    assert values(found).items() >= kept.items()
    assert_same(found.select(["conv", "hidden", "head"]), expected)
    assert_same(pf.read_scores(out).select(["conv", "hidden", "head"]), expected)
    measured.clear()
    found = pf.sweep(net, states, probe_set, out=out, layers=["conv", "hidden"], targets=task)
    assert {tuple(layers) for _, layers in measured} == {("conv", "hidden")}
    assert_same(found.select(["conv", "hidden"]), with_task)
    measured.clear()
    for layers, targets in (("hidden", ["input", "label"]), (["conv", "hidden"], ["label", task])):
        assert_same(pf.sweep(net, states, probe_set, out=out, layers=layers, targets=targets), found)
    with pytest.warns(RuntimeWarning, match="left out .'unused'."):
        assert_same(pf.sweep(net, states, probe_set, out=out, layers=["*"]), found)
    assert measured == []
    assert read_phases(out)[0].layers == found.layers


def test_a_sweep_that_is_stopped_while_it_adds_goes_on(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, measured: list, tmp_path: Path
) -> None:
    pf.sweep(net, states, probe_set, out=tmp_path, layers="hidden")
    part = {step: states[step] for step in (0, 2)}
    assert pf.sweep(net, part, probe_set, out=tmp_path, layers="conv").layers == ["conv", "hidden"]
    measured.clear()
    found = pf.sweep(net, states, probe_set, out=tmp_path, layers=["conv", "hidden"])
    assert measured == [(1, ["conv"])]
    steps, _ = found.curve("conv", "input", "fvu")
    assert steps.tolist() == [0, 1, 2]


def test_other_weights_and_other_values_are_refused(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, measured: list, tmp_path: Path
) -> None:
    task = {"layers": "hidden", "out": tmp_path}
    before = pf.sweep(net, states, probe_set, targets=[pf.Function(mean, name="task")], **task)
    measured.clear()
    with pytest.raises(StoreError, match="step 0 is stored already, but was measured on other weights"):
        pf.sweep(net, {0: states[1]}, probe_set, out=tmp_path, layers="conv")
    with pytest.raises(StoreError, match=r"another configuration: target 'task' had other values.*another name"):
        pf.sweep(net, states, probe_set, targets=[pf.Function(lambda x: mean(x) + x[:, :, 0, 0], name="task")], **task)
    assert measured == []
    assert values(pf.read_scores(tmp_path)) == values(before)


def test_samples_may_get_further_values_but_no_other_ones(
    net: nn.Module, states: States, measured: list, tmp_path: Path
) -> None:
    (x, y), (held, held_y) = images(150, 1), images(60, 2)
    plain = pf.ProbeSet.from_tensors(x, None, held, None)
    labelled = pf.ProbeSet.from_tensors(x, y, held, held_y, values={"sum": (x.sum((1, 2, 3)), held.sum((1, 2, 3)))})
    pf.sweep(net, states, plain, out=tmp_path, layers="hidden")
    found = pf.sweep(net, states, labelled, out=tmp_path, layers="hidden")
    assert found.targets == ["input", "label", "sum"]
    assert_same(found, pf.sweep(net, states, labelled, out=tmp_path / "whole", layers="hidden"))
    measured.clear()
    other = pf.ProbeSet.from_tensors(x, 2 - y, held, 2 - held_y)
    with pytest.raises(StoreError, match="target 'label' had other values"):
        pf.sweep(net, states, other, out=tmp_path, layers="hidden")
    assert pf.sweep(net, states, other, out=tmp_path, layers="hidden", targets="input").targets == found.targets
    assert measured == []


def test_jobs_that_ran_together_on_other_values_are_told(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, tmp_path: Path
) -> None:
    for step, function in ((0, mean), (1, lambda x: mean(x) ** 2)):
        part, out = {step: states[step]}, tmp_path / f"{step}"
        pf.sweep(net, part, probe_set, out=out, layers="hidden", targets=pf.Function(function, name="task"))
    (tmp_path / "1/scores/step-000000000001.parquet").rename(tmp_path / "0/scores/step-000000000001.parquet")
    with pytest.raises(
        DataError, match=r"0: scores of run 'run', target 'task': expected .* different values; .*its own out="
    ):
        read_phases(tmp_path / "0")


def test_layers_that_are_lost_are_not_tried_again(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, measured: list, tmp_path: Path
) -> None:
    states[1]["hidden.weight"] *= float("nan")
    with pytest.warns(RuntimeWarning, match="left out 3 at step 1"):
        pf.sweep(net, states, probe_set, out=tmp_path, layers=["conv", "hidden", "head"])
    assert lost_layers(tmp_path)[1].keys() == {"hidden", "head", "model (label)"}
    before = read_failures(tmp_path)
    measured.clear()
    found = pf.sweep(net, states, probe_set, out=tmp_path, layers=["conv", "hidden", "head", "norm"])
    assert measured == [(step, ["norm"]) for step in states]
    assert found.layers == ["conv", "norm", "hidden", "head"]
    assert read_failures(tmp_path) == before
    with pytest.warns(RuntimeWarning, match="left out 1 at step 1"):
        pf.sweep(net, states, probe_set, out=tmp_path, layers=["drop"])
    assert lost_layers(tmp_path)[1].keys() == {"hidden", "head", "model (label)", "drop"}
    failure = read_failures(tmp_path)[1]
    assert failure.error.startswith(f"{before[1].error}; layer 'drop': NaN or Inf")
    step = pf.read_scores(tmp_path).filter(step=1)
    (hash_,) = step.values_of("config_hash")
    write_step(Store(tmp_path, hash_, {}, {}), step, {"hidden": NonFiniteError("as another rank has it")})
    assert read_failures(tmp_path)[1] == failure


@pytest.mark.filterwarnings("ignore:layers. left out")
@pytest.mark.parametrize("targets", [None, "input"])
def test_a_layer_that_is_added_may_be_lost_where_all_others_are_stored(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, measured: list, tmp_path: Path, targets: str | None
) -> None:
    states[1]["head.weight"] *= float("nan")
    pf.sweep(net, states, probe_set, out=tmp_path, layers="hidden", targets=targets)
    before = pf.read_scores(tmp_path).filter(step=1)
    found = pf.sweep(net, states, probe_set, out=tmp_path, layers=["hidden", "head"], targets=targets)
    assert found.layers == ["hidden", "head"]
    assert found.filter(step=1).to_arrow().equals(before.to_arrow())
    assert "head" in lost_layers(tmp_path)[1]
    measured.clear()
    pf.sweep(net, states, probe_set, out=tmp_path, layers=["hidden", "head"], targets=targets)
    assert measured == []


def test_what_was_stored_stays_where_a_checkpoint_cannot_be_read_any_more(
    net: nn.Module, probe_set: pf.ProbeSet, states: Mapping[int, Any], tmp_path: Path
) -> None:
    paths = {step: tmp_path / f"{step}.pt" for step in states}
    for step, path in paths.items():
        torch.save(states[step], path)
    out = tmp_path / "run"
    before = pf.sweep(net, paths, probe_set, out=out, layers="hidden")
    paths[1].write_bytes(b"damaged")
    with pytest.raises(SweepError, match="1 of 3 checkpoints failed, the other 2 are stored"):
        pf.sweep(net, paths, probe_set, out=out, layers=["hidden", "conv"])
    assert list(read_failures(out)) == [1]
    assert read_failures(out)[1].partial
    assert "1.pt: cannot be read" in read_phases(out)[1].failed[1].error
    torch.save(states[1], paths[1])
    pf.sweep(net, {1: paths[1]}, probe_set, out=out, layers=["conv"])
    assert read_failures(out) == {}
    keep_failures(out, {2: Failure("2.pt", "by a job that failed while another one measured", partial=True)})
    assert list(read_failures(out)) == [2]
    pf.sweep(net, paths, probe_set, out=out, layers=["hidden", "conv"])
    assert read_failures(out) == {}
    paths[1].write_bytes(b"damaged")
    paths[2] = tmp_path / "2"
    paths[2].mkdir()
    (paths[2] / "model.safetensors.index.json").write_text("{")  # of which not even a fingerprint can be had
    with pytest.raises(SweepError, match="2 of 3 checkpoints failed"):
        pf.sweep(net, paths, probe_set, out=out, layers=["hidden", "head"])
    found = pf.read_scores(out)
    assert values(found).items() >= values(before).items()
    assert found.curve("conv", "input", "fvu")[0].tolist() == [0, 1, 2]
    assert found.curve("head", "input", "fvu")[0].tolist() == [0]


def test_a_training_that_is_resumed_may_look_at_more(
    net: nn.Module, probe_set: pf.ProbeSet, measured: list, tmp_path: Path
) -> None:
    pf.PhaseTracker(net, probe_set, out=tmp_path, layers="hidden", on_error="raise").step(1)
    more = pf.PhaseTracker(net, probe_set, out=tmp_path, layers=["conv", "head"], on_error="raise")
    assert more.step(1) is None
    more.step(2)
    assert measured == [(1, ["hidden"]), (2, ["conv", "head"])]
    assert pf.read_scores(tmp_path).filter(step=2).layers == ["conv", "head"]


def test_jobs_that_do_the_same_work_are_told_once(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beside(engine: Engine, step: int, *args: Any, **kwargs: Any) -> pf.Scores:
        monkeypatch.setattr(Engine, "measure", measure)
        pf.sweep(SmallNet(), states, probe_set, out=tmp_path, layers="hidden")
        return measure(engine, step, *args, **kwargs)

    measure = Engine.measure
    monkeypatch.setattr(Engine, "measure", beside)
    with pytest.warns(RuntimeWarning, match=r"another job has stored step 0 meanwhile.*shard=") as caught:
        pf.sweep(net, states, probe_set, out=tmp_path, layers="hidden")
    assert sum("another job" in str(each.message) for each in caught) == 1


def test_sweeps_are_kept_in_a_directory(net: nn.Module, probe_set: pf.ProbeSet, states: States) -> None:
    with pytest.raises(ArgumentError, match="out: expected a directory, got None"):
        pf.sweep(net, states, probe_set, out=None)  # type: ignore[arg-type]


def test_names_that_no_layer_answers_to_are_refused_beside_others_too(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, tmp_path: Path
) -> None:
    pf.sweep(net, states, probe_set, out=tmp_path, layers="hidden")
    with pytest.raises(LayerError, match="layer 'unused': its forward hook never fired"):
        pf.sweep(net, states, probe_set, out=tmp_path, layers="unuse?")


def test_layers_are_in_the_order_of_the_model_whoever_adds_them_when(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, tmp_path: Path
) -> None:
    tracker = pf.PhaseTracker(net, probe_set, out=tmp_path / "live", layers="hidden", on_error="raise")
    pf.sweep(net, {1: net.state_dict()}, probe_set, out=tmp_path / "live", layers=["conv", "relu", "head"])
    tracker.step(1)
    tracker.step(2)
    expected = ["conv", "relu", "hidden", "relu:1", "head"]
    assert pf.read_scores(tmp_path / "live").layers == expected
    assert pf.read_scores(tmp_path / "live").filter(step=1).layers == expected
    rows = pf.read_scores(tmp_path / "live").to_arrow().to_pylist()
    older = Scores.from_rows([{**row, "place": None} for row in rows])  # by the step that has most
    assert older.layers == expected


def test_what_fails_alike_everywhere_is_raised_at_once(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, measured: list, tmp_path: Path
) -> None:
    pf.sweep(net, states, probe_set, out=tmp_path, layers="hidden")
    measured.clear()
    with pytest.raises(MemoryBudgetError, match="layer 'conv'"):
        pf.sweep(net, states, probe_set, out=tmp_path, layers="conv", memory="20kB")


def test_files_that_are_known_are_not_read_again(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    for step, state in states.items():
        torch.save(state, tmp_path / f"a/step_{step}.pt")
    out = tmp_path / "run"
    pf.sweep(net, states, probe_set, out=out, layers="hidden")
    pf.sweep(net, tmp_path / "a", probe_set, out=out, layers="conv")
    (tmp_path / "a").rename(tmp_path / "b")
    read: list[Any] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: read.append(args) or load(*args, **options))
    with no_warnings():
        pf.sweep(net, tmp_path / "b", probe_set, out=out, layers=["conv", "hidden"])
        assert read == []
        pf.sweep(net, tmp_path / "b", probe_set, out=out, layers="head")  # of another folder, but the same training
    assert len(read) == len(states)


def test_a_model_that_runs_with_trained_weights_alone_gets_further_layers(
    probe_set: pf.ProbeSet, tmp_path: Path
) -> None:
    class Fitted(SmallNet):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("fitted", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            if not self.fitted:
                raise RuntimeError("not fitted")
            return super().forward(x)

    states = {step: {**Fitted().state_dict(), "fitted": torch.ones(1)} for step in (0, 1)}
    for layers in ("hidden", "conv"):
        found = pf.sweep(Fitted(), states, probe_set, out=tmp_path, layers=layers)
    assert found.layers == ["conv", "hidden"]


def test_steps_that_lack_what_was_added_are_named(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, tmp_path: Path
) -> None:
    pf.sweep(net, states, probe_set, out=tmp_path, layers="hidden", targets="input")
    assert read_phases(tmp_path)[1].failed == {}
    pf.sweep(net, {2: states[2]}, probe_set, out=tmp_path, layers="conv", targets="input")
    failed = read_phases(tmp_path)[1].failed
    assert list(failed) == [0, 1]
    assert all(
        each.partial and each.error == "['input'] of layers ['conv'] was not measured; another sweep may add it"
        for each in failed.values()
    )
    pf.sweep(net, states, probe_set, out=tmp_path, layers="conv", targets="input")
    assert read_phases(tmp_path)[1].failed == {}


def test_scores_of_another_version_are_told_as_such(
    net: nn.Module, probe_set: pf.ProbeSet, states: States, tmp_path: Path
) -> None:
    pf.sweep(net, states, probe_set, out=tmp_path, layers="hidden")
    (path,) = (tmp_path / "scores").glob("_settings-*.json")
    older = {"names": ["hidden"], "targets": "0123456789abcdef"}
    (tmp_path / "scores/_settings-0.json").write_text(json.dumps(older))
    path.unlink()
    for shard in (tmp_path / "scores").glob("step-*"):
        read_shard(shard).with_column("config_hash", "0").write_shard(tmp_path)
    with pytest.raises(StoreError, match="another configuration, by another version of phasefast; give the same"):
        pf.sweep(net, states, probe_set, out=tmp_path, layers="hidden")


def test_a_layer_that_some_batches_do_not_call_is_refused_where_it_is_asked_for(
    probe_set: pf.ProbeSet, states: States, measured: list, tmp_path: Path
) -> None:
    class Sometimes(SmallNet):
        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.norm(self.conv(x)))
            x = self.hidden(x.flatten(1))
            return self.head(self.drop(x) if len(x) < 20 else x)

    with pytest.warns(RuntimeWarning, match="its hook fired for 0 of 150 fit rows"):
        pf.sweep(Sometimes(), states, probe_set, out=tmp_path, layers="[cd]*")
    measured.clear()
    assert pf.sweep(Sometimes(), states, probe_set, out=tmp_path, layers="[cd]*").layers == ["conv"]
    assert measured == []
    assert read_failures(tmp_path) == {}
    with pytest.raises(LayerError, match="layer 'drop': its hook fired for 0 of 150 fit rows"):
        pf.sweep(Sometimes(), states, probe_set, out=tmp_path, layers="drop")
