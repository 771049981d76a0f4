"""Steps that a ``PhaseTracker`` is called for: counted anew, rolled back, of a model that is no longer trained."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import phasefast as pf
from phasefast.errors import ArgumentError, LayerError, StoreError
from tests.conftest import SmallNet
from tests.quiet import no_warnings


def test_steps_that_are_counted_anew_in_each_epoch_are_told_once(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    tracker = pf.PhaseTracker(net, probe_set, layers="head", out=None)
    strict = pf.PhaseTracker(net, probe_set, layers="head", out=None, on_error="raise")
    for step in range(3):
        tracker.step(step), strict.step(step)
    with torch.no_grad():
        net.head.weight.add_(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [tracker.step(step) for _ in range(2) for step in range(3)] == [None] * 6
    (told,) = (str(each.message) for each in caught)
    assert told.startswith("step: 0 came after 2")
    assert "goes on through all epochs" in told
    with pytest.raises(ArgumentError, match="step: 1 came after 2"):
        strict.step(1)
    assert tracker.step(4) is not None


def test_steps_before_the_last_are_not_measured_on_later_weights(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    tracker = pf.PhaseTracker(net, probe_set, layers="head", out=None)
    strict = pf.PhaseTracker(net, probe_set, layers="head", out=None, on_error="raise")
    assert tracker.step(1000, force=True) is not None
    assert strict.step(1000, force=True) is not None
    with pytest.warns(RuntimeWarning, match="step: 0 came after 1000"):
        assert tracker.step(0) is None
    with pytest.raises(ArgumentError, match="step: 0 came after 1000"):
        strict.step(0)
    assert tracker.step(3) is None
    assert tracker.step(0, force=True) is not None
    assert tracker.scores.steps == [0, 1000]


def test_a_model_that_is_no_longer_trained_is_told_once(probe_set: pf.ProbeSet) -> None:
    model, trained = SmallNet(), SmallNet()  # as by a notebook's cell that is run again
    trackers = [pf.PhaseTracker(own, probe_set, layers="hidden", out=None) for own in (model, trained)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(9):
            for tracker in trackers:
                tracker.step(step)
            if step > 0:  # a warm-up begins with a learning rate of 0
                with torch.no_grad():
                    trained.head.weight.add_(1)
    (told,) = (str(each.message) for each in caught if "the weights are" in str(each.message))
    assert told.startswith("step 8: the weights are those of step 1: is this model the one that is trained?")
    with no_warnings():
        trackers[0].step(16)
    with torch.no_grad():
        model.head.weight.add_(1)
    with no_warnings():
        trackers[0].step(32)
    with pytest.warns(RuntimeWarning, match="step 64: the weights are those of step 32: is this model"):
        trackers[0].step(64)  # again


def test_a_head_that_is_exchanged_is_lost_alone(probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    net = SmallNet()
    tracker = pf.PhaseTracker(net, probe_set, layers=["hidden", "head"], out=tmp_path, steps=[0, 1, 2])
    assert tracker.step(0) is not None
    net.head = torch.nn.Linear(20, 4)
    with pytest.warns(RuntimeWarning) as caught:
        scores = tracker.step(1)
    texts = "".join(str(each.message) for each in caught)
    assert "layer 'head': expected 3 features of each sample, as at first, got 4; if the network has changed" in texts
    assert "rows, where 3 numbers of each were predictions at first" in texts
    assert scores is not None
    assert scores.values_of("layer") == ["hidden"]
    net.head = torch.nn.Identity()
    with torch.no_grad():
        net.hidden.weight.add_(1)
    assert tracker.step(2) is not None
    assert pf.read_scores(tmp_path).select(["hidden"]).steps == [0, 1, 2]
    failed = pf.read_failures(tmp_path)
    assert [(step, each.partial) for step, each in failed.items()] == [(1, True), (2, True)]
    assert "'head': expected 3 features" in failed[1].error


def test_a_layer_that_is_asked_for_is_needed_at_first(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    tracker = pf.PhaseTracker(net, probe_set, layers=["hidden", "head"], out=None)
    assert "head" in tracker._engine.modules  # which has three outputs
    net.head = torch.nn.Linear(20, 4)
    with pytest.raises(LayerError, match="'head': expected 3 features"):
        tracker.step(0)


def test_stored_steps_that_lack_a_target_are_told(net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    first = pf.PhaseTracker(net, probe_set, layers="hidden", out=tmp_path, steps=range(3))
    for step in range(2):
        assert first.step(step) is not None
        before = net.hidden.weight.detach().clone()
        with torch.no_grad():
            net.hidden.weight.add_(0.1)
    own = torch.randn(probe_set.n_fit), torch.randn(probe_set.n_heldout)
    resumed = pf.PhaseTracker(net, probe_set.with_values({"own": own}), layers="hidden", out=tmp_path, steps=range(3))
    with torch.no_grad():
        net.hidden.weight.copy_(before)
    with pytest.warns(RuntimeWarning, match="step 1: .* holds scores of it without all layers and targets"):
        assert resumed.step(1) is None
    with torch.no_grad():
        net.hidden.weight.add_(0.1)
    with no_warnings():
        assert resumed.step(2) is not None
    assert resumed.scores.filter(target="own").steps == [2]


@pytest.mark.parametrize("layers", ["h*", ["hidden", "head"], ["!conv", "!norm", "!relu", "!drop", "!unused"], None])
def test_stored_steps_are_given_back_however_layers_are_asked_for(
    layers: str | list[str] | None, net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path
) -> None:
    before = {name: own.clone() for name, own in net.state_dict().items()}
    for out in (None, tmp_path):
        net.load_state_dict(before)
        tracker = pf.PhaseTracker(net, probe_set, layers=layers, out=out, steps=[0, 1])
        first = tracker.step(0)
        assert first is not None
        with torch.no_grad():
            net.hidden.weight.add_(1)
        assert tracker.step(1) is not None
        net.load_state_dict(before)
        again = tracker if out is None else pf.PhaseTracker(net, probe_set, layers=layers, out=out, steps=[0, 1])
        with no_warnings():
            stored = again.step(0)
        assert stored is not None
        assert stored.to_arrow().equals(first.to_arrow())


def test_a_model_whose_weights_are_frozen_is_told_of_as_such(probe_set: pf.ProbeSet) -> None:
    tracker = pf.PhaseTracker(SmallNet().requires_grad_(False), probe_set, layers="hidden", out=None)
    tracker.step(1)
    with pytest.warns(
        RuntimeWarning, match="step 8: the weights are those of step 1: none of them requires a gradient"
    ):
        tracker.step(8)


def test_a_warning_that_is_an_error_loses_no_scores(probe_set: pf.ProbeSet) -> None:
    tracker = pf.PhaseTracker(SmallNet(), probe_set, layers="hidden", out=None)
    tracker.step(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*the weights are")
        with pytest.raises(RuntimeWarning, match="step 8: the weights are those of step 1"):
            tracker.step(8)
    assert tracker.scores.steps == [1, 8]


def test_stored_scores_that_lack_a_layer_are_not_given_for_all(probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    net = SmallNet()
    for layers, given in ((["hidden"], True), (["hidden", "conv"], False), (["hidden"], True)):
        tracker = pf.PhaseTracker(net, probe_set, layers=layers, out=tmp_path)
        assert (tracker.step(0) is not None) is given


def test_stored_scores_without_a_layer_that_was_lost_are_given(probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    net = SmallNet()
    with torch.no_grad():
        net.hidden.weight.fill_(torch.nan)
    for layers in (["conv", "hidden"], ["conv", "hidden"]):
        tracker = pf.PhaseTracker(net, probe_set, layers=layers, out=tmp_path)
        found = tracker.step(0)
        assert found is not None
        assert found.layers == ["conv"]


def test_the_best_weights_at_the_end_are_not_taken_for_anothers(probe_set: pf.ProbeSet) -> None:
    net = SmallNet()
    tracker = pf.PhaseTracker(net, probe_set, layers="hidden", out=None)
    tracker.step(16)
    with no_warnings():
        tracker.step(21, force=True)


def test_other_weights_at_the_same_step_are_told_if_they_are_to_be_measured(probe_set: pf.ProbeSet) -> None:
    net = SmallNet()
    tracker = pf.PhaseTracker(net, probe_set, layers="hidden", out=None, batchnorm="running")
    tracker.step(16)
    with no_warnings():
        assert tracker.step(16, force=True) is None
    with torch.no_grad():
        net.head.weight.mul_(0.5)
    with no_warnings():
        assert tracker.step(16) is None
    with pytest.warns(RuntimeWarning, match="step 16 was measured on other weights, and is not again"):
        assert tracker.step(16, force=True) is None


def test_a_step_that_is_repeated_takes_no_look_at_the_weights(
    probe_set: pf.ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, hashed = pf.PhaseTracker(SmallNet(), probe_set, layers="hidden", out=None), []
    tracker.step(16)
    monkeypatch.setattr("phasefast.track.weights_hash", hashed.append)
    for _ in range(3):  # micro-batches whose gradients accumulate
        assert tracker.step(16) is None
    assert not hashed


def test_a_training_in_anothers_directory_is_refused_at_each_step(probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    net, other = SmallNet(), SmallNet()
    tracker = pf.PhaseTracker(net, probe_set, layers="hidden", out=tmp_path)
    for step in range(9):
        tracker.step(step)
        with torch.no_grad():
            net.head.weight.add_(1)
    again, stored = pf.PhaseTracker(other, probe_set, layers="hidden", out=tmp_path), [0, 1, 2, 4, 8]
    for step in range(12):  # a loop that goes on after errors
        with pytest.raises(StoreError, match="was measured on other weights") if step in stored else nullcontext():
            assert again.step(step) is None
    assert pf.read_scores(tmp_path).steps == stored


def test_steps_that_are_counted_anew_in_a_resumed_training_are_not_measured(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path
) -> None:
    first = pf.PhaseTracker(net, probe_set, out=tmp_path, layers="head")
    assert [step for step in range(0, 101, 10) if first.step(step) is not None] == [0, 10, 20, 40, 70]
    with torch.no_grad():
        net.head.weight.add_(1)
    second = pf.PhaseTracker(net, probe_set, out=tmp_path, layers="head")
    assert second.step(105) is None
    with pytest.warns(RuntimeWarning, match="step: 15 came after 70"):
        assert [second.step(step) for step in (5, 15, 25, 35)] == [None] * 4
    with no_warnings():
        assert second.step(130) is not None


def test_steps_after_a_roll_back_are_measured(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    tracker = pf.PhaseTracker(net, probe_set, steps=[0, 100, 200, 300], layers="head", out=None)
    good = net.head.weight.detach().clone()
    assert tracker.step(0) is not None
    assert tracker.step(100) is not None
    with torch.no_grad():
        net.head.weight.fill_(torch.nan)
    with pytest.warns(RuntimeWarning, match="step 200 was not measured"):
        assert tracker.step(300 - 100) is None
    with torch.no_grad():
        net.head.weight.copy_(good * 2)
    assert tracker.step(150) is None
    assert tracker.step(200) is not None
