"""Modules that get some of the samples: experts, to which a gate sends each sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.errors import LayerError
from phasefast.layers.defaults import default_names
from phasefast.results.failures import read_failures
from tests.quiet import no_warnings


class Experts(nn.Module):
    """The first samples all go to one expert, later ones to both, unless ``alone``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)
        self.alone = False

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x).relu()
        chosen = (x[:, 0] > 0) | self.alone
        mixed = torch.empty_like(hidden)
        for mask, expert in ((chosen, self.first), (~chosen, self.second)):
            if mask.any():
                mixed[mask] = expert(hidden[mask])
        found: Tensor = self.head(mixed)
        return found


def samples() -> pf.ProbeSet:
    x, y = torch.randn(130, 4), torch.randint(3, (130,))
    probe_set = pf.ProbeSet.from_tensors(x[:90], y[:90], x[90:], y[90:])
    probe_set.fit_inputs[:20, 0].abs_()
    return probe_set


@pytest.mark.parametrize("batch_size", [None, 16])
def test_an_expert_is_left_out_alone(tmp_path: Path, batch_size: int | None) -> None:
    model, probe_set = Experts(), samples()
    words = r"left out 1 at step 0: layer 'first': expected an output with a row of numbers for each sample, got shape"
    with pytest.warns(RuntimeWarning, match=words + ".*some of the samples only, as experts are"):
        scores = pf.sweep(model, {0: model.state_dict()}, probe_set, out=tmp_path, alphas=[0.1], batch_size=batch_size)
    assert scores.layers == ["stem", "head"]
    assert len(scores.filter(layer="model"))
    assert not read_failures(tmp_path)


def test_an_expert_that_stops_to_get_all_samples_is_lost_from_then_on(tmp_path: Path) -> None:
    model, probe_set = Experts(), samples()
    tracker = pf.PhaseTracker(model, probe_set, out=tmp_path, alphas=[0.1], steps=[0, 1, 2])
    model.alone = True
    tracker.step(0)
    model.alone = False
    for step in (1, 2):
        model.stem.weight.data += 0.1
        tracker.step(step)
    assert tracker.scores.steps == [0, 1, 2]
    assert [tracker.scores.filter(step=step).layers for step in (0, 1)] == [["stem", "first", "head"], ["stem", "head"]]


def test_what_has_no_axis_of_samples_is_no_expert() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(x + self.place(torch.ones(1, 3)))
            return found

    with pytest.warns(RuntimeWarning, match=r"got shape \(1, 4\) for 7 samples; it has no axis of samples"):
        assert pf.probe(Placed(), samples(), alphas=[0.1]).layers == ["head"]


def test_sparse_outputs_are_left_out() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turn, self.head = _ToSparse(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.turn(x).to_dense())
            return found

    with pytest.warns(RuntimeWarning, match="layer 'turn': expected a dense tensor as output, got torch.sparse_coo"):
        assert pf.probe(Sparse(), samples(), alphas=[0.1]).layers == ["head"]


class _ToSparse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to_sparse()


def test_an_expert_that_is_asked_for_is_an_error() -> None:
    with pytest.raises(LayerError, match=r"layer 'first': .* given some of the samples only, as experts are"):
        pf.probe(Experts(), samples(), layers=["stem", "first"], alphas=[0.1])


def test_by_default_the_module_around_experts_is_probed() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(6, 2)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 6)) for _ in "ab")

    small = nn.ModuleDict({"stem": nn.Linear(4, 6), "moe": Mixture(), "head": nn.Linear(6, 3)})
    whole = nn.Module()
    for name, part in small.items():
        whole.add_module(name, part)
    assert default_names(whole) == ["stem", "moe", "head"]
    assert default_names(Mixture()) == ["gate"]
    alone = nn.Module()
    alone.experts = nn.ModuleList(nn.Linear(4, 3) for _ in "ab")
    assert default_names(alone) == ["experts.0", "experts.1"]


def test_parameters_that_come_to_a_tracked_model_are_told(tmp_path: Path) -> None:
    model = Experts()
    tracker = pf.PhaseTracker(model, samples(), layers="stem", out=tmp_path, alphas=[0.1])
    tracker.step(0)
    model.more = nn.Linear(6, 2)
    with pytest.warns(RuntimeWarning, match=r"other parameters than at first, such as \['more.bias', 'more.weight'\]"):
        tracker.step(1)


class Cut(nn.Module):
    """One of its layers is narrower where a buffer says so, as where heads change."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.cut = nn.Linear(5, 6), nn.Identity()
        self.register_buffer("width", torch.tensor(6))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cut(self.a(x)[:, : int(self.width)])
        return out


@pytest.mark.parametrize("shards", [False, True])
def test_a_layer_that_is_gone_at_a_step_is_told_and_not_tried_again(tmp_path: Path, shards: bool) -> None:
    x = torch.randn(90, 5)
    probe_set = pf.ProbeSet.from_tensors(x[:60], None, x[60:], None)
    states = {step: Cut().state_dict() for step in range(5)}
    for step, state in states.items():
        state["a.weight"] = state["a.weight"] + step
        state["width"] = torch.tensor(4 if step == 3 else 6)
    parts = [{"shard": (i, 2)} for i in range(2)] if shards else [{}]

    def swept(**part: Any) -> pf.Scores:
        return pf.sweep(Cut(), states, probe_set, out=tmp_path, layers=["a", "cut"], **part)

    with pytest.warns(RuntimeWarning, match="layers: left out 1 at step 3: layer 'cut': expected 6 features"):
        _ = [swept(**part) for part in parts]
    with no_warnings():
        scores = swept()
    assert scores.select(["a"]).steps == [0, 1, 2, 3, 4]
    assert scores.select(["cut"]).steps == [0, 1, 2, 4]
    (failure,) = pf.read_failures(tmp_path).values()
    assert failure.partial
    assert "layer 'cut': expected 6 features of each sample, as at first, got 4" in failure.error


def test_many_experts_are_left_out_with_one_reason() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts, self.head = nn.ModuleList(nn.Linear(4, 4) for _ in range(24)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            rows = [expert(x[number % 5 : number % 5 + 3]) for number, expert in enumerate(self.experts)]
            found: Tensor = self.head(torch.cat(rows).new_tensor(0) + x)
            return found

    with pytest.warns(RuntimeWarning, match=r"left out 24: layer 'experts.0': .*; likewise 23 more: \[") as caught:
        pf.probe(Routed(), samples(), layers=["*"], alphas=[0.1])
    told = [str(each.message) for each in caught if "left out 24" in str(each.message)]
    assert len(told) == 1
    assert told[0].count("as experts are") == 1


class Branched(nn.Module):
    """One of its layers is called only where a buffer says so."""

    def __init__(self, called: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 6)
        self.register_buffer("called", torch.tensor(called))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(x)
        return self.b(out) if bool(self.called) else out


@pytest.mark.parametrize("resumed", [False, True])
def test_a_layer_that_is_gone_is_told_alike_when_a_sweep_is_resumed(tmp_path: Path, resumed: bool) -> None:
    x = torch.randn(90, 5)
    probe_set = pf.ProbeSet.from_tensors(x[:60], None, x[60:], None)
    states = {step: Branched(step < 2).state_dict() for step in range(4)}
    for step, state in states.items():
        state["a.weight"] = state["a.weight"] + step

    def swept(states: dict) -> pf.Scores:
        return pf.sweep(Branched(), states, probe_set, out=tmp_path, layers=["a", "b"], targets="input")

    if resumed:
        swept({step: states[step] for step in (0, 1)})
    with pytest.warns(RuntimeWarning, match="layers: left out 1 at step 2: layer 'b': "):
        swept(states)
    with no_warnings():
        scores = swept(states)
    assert scores.select(["a"]).steps == [0, 1, 2, 3]
    assert scores.select(["b"]).steps == [0, 1]
    failures = pf.read_failures(tmp_path)
    assert [*failures] == [2, 3]
    assert all("layer 'b': " in failure.error for failure in failures.values())


def test_a_tracker_goes_on_without_a_layer_that_is_gone(tmp_path: Path) -> None:
    x, model = torch.randn(90, 5), Branched()
    probe_set = pf.ProbeSet.from_tensors(x[:60], None, x[60:], None)
    options: dict = {"out": tmp_path, "layers": ["a", "b"], "targets": "input"}
    pf.PhaseTracker(model, probe_set, **options).step(0)
    model.called, model.a.weight.data = torch.tensor(False), model.a.weight.data + 1
    with pytest.warns(RuntimeWarning, match="layers: left out 1 at step 1: layer 'b': it has no rows any more"):
        scores = pf.PhaseTracker(model, probe_set, **options).step(1)
    assert scores is not None
    assert scores.layers == ["a"]
    with pytest.raises(LayerError, match="layer 'b': its forward hook never fired"):  # where it never was
        pf.PhaseTracker(model, probe_set, **(options | {"out": None})).step(0)
