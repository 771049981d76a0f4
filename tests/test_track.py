"""``PhaseTracker`` inside a training loop."""

from __future__ import annotations

import copy
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import phasefast as pf
from phasefast.errors import ArgumentError, LayerError, NonFiniteError, StoreError
from tests.conftest import SmallNet
from tests.quiet import no_warnings
from tests.test_sweep import without_seconds


def train(net: SmallNet, probe_set: pf.ProbeSet, steps: int, tracker: pf.PhaseTracker | None) -> dict[int, dict]:
    torch.manual_seed(5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    states = {}
    for step in range(steps + 1):
        if tracker is not None:
            tracker.step(step)
        states[step] = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        rows = torch.randint(0, probe_set.n_fit, (32,))
        net.train()
        loss = torch.nn.functional.cross_entropy(net(probe_set.fit_inputs[rows]), probe_set.fit_labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return states


def test_live_equals_offline_and_does_not_disturb_training(probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(SmallNet())
    tracker = pf.PhaseTracker(nets[0], probe_set, out=tmp_path / "live", layers="hidden", on_error="raise")
    states = train(nets[0], probe_set, 8, tracker)
    undisturbed = train(nets[1], probe_set, 8, None)
    assert all(torch.equal(states[8][name], undisturbed[8][name]) for name in states[8])
    assert tracker.scores.steps == [0, 1, 2, 4, 8]
    assert tracker.seconds > 0
    chosen = {step: states[step] for step in (0, 1, 2, 4, 8)}
    offline = pf.sweep(nets[1], chosen, probe_set, out=tmp_path / "offline", layers="hidden")
    assert without_seconds(tracker.scores) == without_seconds(offline)
    assert without_seconds(pf.read_scores(tmp_path / "live")) == without_seconds(offline)


@pytest.mark.parametrize(
    ("every", "steps", "measured"),
    [
        (100, "log2", [0, 100, 200, 300, 600]),
        (3, "log2", [0, 3, 6, 9, 18, 33, 66, 129, 258, 513]),
        (7, [5, 6, 21, 100], [7, 21, 105]),
        (1, [5, 21], [5, 21]),
    ],
)
def test_rare_calls_measure_at_the_first_one_after(
    net: SmallNet, probe_set: pf.ProbeSet, every: int, steps: Any, measured: list[int]
) -> None:
    tracker = pf.PhaseTracker(net, probe_set, steps=steps, out=None, layers="hidden", alphas=[0.1])
    for step in range(0, 700, every):
        tracker.step(step)
    assert tracker.scores.steps == measured


def test_a_first_call_in_the_middle_is_measured_unless_what_came_before_it_is_stored(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path
) -> None:
    def measured(steps: str | list[int], out: Path | None, *calls: int) -> list[int]:
        tracker = pf.PhaseTracker(net, probe_set, steps=steps, out=out, layers="hidden", alphas=[0.1])  # type: ignore[arg-type]
        return [step for step in calls if tracker.step(step) is not None]

    assert measured("log2", tmp_path / "a", 500, 510, 520) == [500, 520]
    assert measured("log2", tmp_path / "a", 530, 1000, 1040) == [1040]
    assert measured("log2", None, 3, 3, 6, 7, 9) == [3, 6, 9]
    assert measured([10, 20, 30], None, 5, 14, 18, 25) == [14, 25]
    assert measured([10, 20, 30], tmp_path / "b", 14) == [14]
    assert measured([10, 20, 30], tmp_path / "b", 16, 20) == [20]
    assert measured([], None, 7) == []


def test_resumes_and_takes_given_steps(net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    first = pf.PhaseTracker(net, probe_set, steps=[3, 5], out=tmp_path, layers="hidden")
    assert first.step(0) is None
    measured = first.step(3)
    assert measured is not None
    second = pf.PhaseTracker(net, probe_set, steps=[3, 5], out=tmp_path, layers="hidden")
    stored = second.step(3)  # so that a loop that looks at its scores does as it did before
    assert stored is not None
    assert stored.to_arrow().equals(measured.to_arrow())
    assert second.seconds == 0
    assert second.step(3) is None
    assert second.step(5) is not None
    assert second.step(7, force=True) is not None
    assert second.scores.steps == [3, 5, 7]
    assert f"PhaseTracker(of SmallNet, scores in {tmp_path}: steps [3, 5, 7], " in repr(second)


def test_another_training_in_the_same_directory_is_refused(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path
) -> None:
    pf.PhaseTracker(net, probe_set, out=tmp_path, layers="hidden").step(0)
    again = pf.PhaseTracker(net, probe_set, out=tmp_path, layers="hidden")
    assert again.step(0) is not None
    assert again.seconds == 0
    torch.manual_seed(1)
    other = pf.PhaseTracker(SmallNet(), probe_set, out=tmp_path, layers="hidden")
    with pytest.raises(StoreError, match="other weights"):
        other.step(0)
    fresh = pf.PhaseTracker(SmallNet(), probe_set, out=tmp_path, layers="hidden", overwrite=True)
    assert fresh.step(0) is not None


def test_a_resumed_training_that_went_another_way_is_warned_of_and_goes_on(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path
) -> None:
    first = pf.PhaseTracker(net, probe_set, out=tmp_path, layers="hidden")
    for step in (1, 2, 4):
        first.step(step)
    for start in (0, 1):  # not resumed
        other = pf.PhaseTracker(SmallNet(), probe_set, out=tmp_path, layers="hidden", steps=[2])
        other.step(start)
        with pytest.raises(StoreError, match="step 2 is stored already"):
            other.step(2)
    resumed = pf.PhaseTracker(SmallNet(), probe_set, out=tmp_path, layers="hidden")
    resumed.step(3)
    with pytest.warns(RuntimeWarning, match="step 4 is stored already, but was measured on other weights"):
        assert resumed.step(4) is None
    assert resumed.step(8) is not None
    strict = pf.PhaseTracker(SmallNet(), probe_set, out=tmp_path, layers="hidden", on_error="raise")
    strict.step(3)
    with pytest.raises(StoreError, match="other weights"):
        strict.step(4)


def test_failure_warns_and_training_goes_on(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    tracker = pf.PhaseTracker(net, probe_set, out=None, layers="hidden")
    tracker.step(0)
    with torch.no_grad():
        net.hidden.weight.fill_(torch.nan)
    with pytest.warns(RuntimeWarning, match=r"step 1 was not measured.*hidden"):
        assert tracker.step(1) is None
    assert tracker.scores.steps == [0]
    strict = pf.PhaseTracker(net, probe_set, out=None, layers="hidden", on_error="raise")
    with pytest.raises(NonFiniteError):
        strict.step(0)


def test_what_will_not_heal_raises_at_the_first_measurement(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    net.add_module("unused", torch.nn.Linear(2, 2))
    tracker = pf.PhaseTracker(net, probe_set, out=None, layers=["hidden", "unused"])
    with pytest.raises(LayerError, match="never fired"):
        tracker.step(0)


def test_bad_arguments(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    with pytest.raises(ArgumentError, match="log2"):
        pf.PhaseTracker(net, probe_set, steps="log10", out=None)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="collection of integers, got 5"):
        pf.PhaseTracker(net, probe_set, steps=5, out=None)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"steps: expected numbers of updates, integers >= 0, got 2.5"):
        pf.PhaseTracker(net, probe_set, steps=[1, 2.5], out=None)  # type: ignore[list-item]
    with pytest.raises(ArgumentError, match="integers >= 0, got -1"):
        pf.PhaseTracker(net, probe_set, steps=[1, -1], out=None)
    with pytest.raises(ArgumentError, match="integers >= 0, got None"):
        pf.PhaseTracker(net, probe_set, steps=[None], out=None)  # type: ignore[list-item]
    with pytest.raises(ArgumentError, match="integers >= 0, got '1'"):
        pf.PhaseTracker(net, probe_set, steps=["1"], out=None)  # type: ignore[list-item]
    with pytest.raises(ArgumentError, match="integers >= 0, got True"):
        pf.PhaseTracker(net, probe_set, steps=[True], out=None)
    assert pf.PhaseTracker(net, probe_set, steps=[1.0], out=None, layers="hidden", targets="label").step(1) is not None
    assert pf.PhaseTracker(net, probe_set, steps=[], out=None, layers="hidden").step(1) is None
    with pytest.raises(ArgumentError, match="-1"):
        pf.PhaseTracker(net, probe_set, out=None, layers="hidden").step(-1)
    with pytest.raises(ArgumentError, match="got '1'"):
        pf.PhaseTracker(net, probe_set, out=None, layers="hidden").step("1")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"an integer >= 0, got tensor\(1.5"):
        pf.PhaseTracker(net, probe_set, out=None, layers="hidden").step(torch.tensor(1.5))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="on_error"):
        pf.PhaseTracker(net, probe_set, on_error="ignore", out=None)  # type: ignore[arg-type]


def test_a_step_that_is_given_again_while_gradients_accumulate_is_measured_once(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path
) -> None:
    tracker = pf.PhaseTracker(net, probe_set, out=tmp_path, layers="hidden")
    net.train()
    assert tracker.step(1) is not None
    net(probe_set.fit_inputs[:32])  # BatchNorm's statistics move, no weight does
    assert tracker.step(1) is None
    assert tracker.step(2) is not None
    with torch.no_grad():
        net.hidden.weight.add_(1)
    with pytest.warns(RuntimeWarning, match="step: 1 came after 2; expected the number of updates"):
        assert tracker.step(1) is None


@pytest.mark.parametrize("error", [ValueError, KeyError, MemoryError])
def test_what_a_model_raises_later_does_not_end_the_training(
    net: SmallNet, probe_set: pf.ProbeSet, error: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise error("of the model")

    tracker = pf.PhaseTracker(net, probe_set, out=None, layers="hidden")
    tracker.step(0)
    handle = net.hidden.register_forward_hook(fail)
    with pytest.warns(RuntimeWarning, match=r"step 1 was not measured.*of the model"):
        assert tracker.step(1) is None
    first = pf.PhaseTracker(net, probe_set, out=None, layers="hidden")
    with pytest.raises(error) if error is not MemoryError else pytest.warns(RuntimeWarning, match="of the model"):
        first.step(0)
    handle.remove()
    assert tracker.step(2) is not None


def test_running_out_of_memory_on_a_device_does_not_end_the_training(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    tracker = pf.PhaseTracker(net, probe_set, out=None, layers="hidden")
    handle = net.hidden.register_forward_hook(fail)
    with pytest.warns(RuntimeWarning, match="out of memory"):
        assert tracker.step(0) is None
    handle.remove()
    assert tracker.step(1) is not None


def test_two_trackers_that_write_into_one_directory_are_told(probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    first, second = SmallNet(), SmallNet()
    with torch.no_grad():
        second.hidden.weight.add_(0.5)
    common = {"out": tmp_path / "run", "on_error": "raise"}
    one = pf.PhaseTracker(first, probe_set, layers=["hidden"], **common)
    same = pf.PhaseTracker(second, probe_set, layers=["hidden"], **common)
    other = pf.PhaseTracker(second, probe_set, layers=["conv"], **common)
    one.step(0)
    for tracker, step in ((same, 0), (other, 1)):
        with pytest.raises(
            StoreError, match=r"another training, or another .* has stored scores there .* give each its own out="
        ):
            tracker.step(step)
    one.step(1)
    assert pf.read_scores(tmp_path / "run").layers == [*one.scores.layers]
    assert pf.read_scores(tmp_path / "run").steps == [0, 1]


def test_a_training_that_goes_on_elsewhere_stops_the_one_before(probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    net = SmallNet()
    options = {"layers": ["hidden"], "out": tmp_path}
    killed = pf.PhaseTracker(net, probe_set, **options)
    killed.step(0)
    resumed = pf.PhaseTracker(net, probe_set, on_error="raise", **options)
    assert resumed.step(0) is not None
    assert resumed.seconds == 0
    resumed.step(1)
    with pytest.warns(RuntimeWarning, match="step 2 was not stored: .* another training, or another"):
        killed.step(2)
    assert list((tmp_path / "scores").glob("_failed-*")) == []
    assert pf.read_scores(tmp_path).steps == [0, 1]
    again = pf.PhaseTracker(net, probe_set, on_error="raise", overwrite=True, **options)
    again.step(0)
    with pytest.warns(RuntimeWarning, match="step 4 was not stored: .* another training, or another"):
        killed.step(4)
    assert pf.read_scores(tmp_path).steps == [0]
    shutil.rmtree(tmp_path / "scores")
    again.step(1)
    assert pf.read_scores(tmp_path).steps == [1]


def test_settings_of_a_job_that_stored_nothing_stop_nobody(probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    tracker = pf.PhaseTracker(SmallNet(), probe_set, layers=["hidden"], out=tmp_path, on_error="raise")
    stale = tmp_path / "scores/_settings-0123456789abcdef.json"
    for step in (0, 1):
        stale.write_text("{}", encoding="utf-8")
        tracker.step(step)
        assert not stale.exists()


def test_threads_share_a_tracker(net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    tracker = pf.PhaseTracker(net, probe_set, layers=["hidden"], out=None, on_error="raise")
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda step: tracker.step(step, force=True), range(6)))
    assert len({each.values_of("state_hash")[0] for each in found if each is not None}) == 1


def test_threads_measure_one_model_in_turn(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    expected = pf.probe(net, probe_set, layers=["conv", "hidden"]).to_arrow()["value"].to_pylist()
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(pf.probe, net, probe_set, layers=["conv", "hidden"]) for _ in range(6)]
        found = [job.result().to_arrow()["value"].to_pylist() for job in jobs]
    assert all(each == pytest.approx(expected, rel=1e-5) for each in found)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert net.conv.training


def test_a_copy_that_stores_scores_too_is_another_training(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path
) -> None:
    tracker = pf.PhaseTracker(net, probe_set, out=tmp_path, layers="hidden", targets="input", on_error="raise")
    tracker.step(0)
    other = copy.deepcopy(tracker)
    tracker.step(1)
    other.step(2)  # as of one that was restored
    with pytest.raises(StoreError, match="another training, or another tracker of this one"):
        tracker.step(4)
    assert pf.read_scores(tmp_path).steps == [0, 1, 2]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda tracker: pickle.loads(pickle.dumps(tracker))])
def test_a_copy_measures_its_own_model(net: SmallNet, probe_set: pf.ProbeSet, copied: Any) -> None:
    tracker = pf.PhaseTracker(net, probe_set, out=None, layers="hidden", targets="input")
    first = tracker.step(0)
    other = copied(tracker)
    with torch.no_grad():
        other._engine.model.conv.weight.add_(torch.randn(other._engine.model.conv.weight.shape))
    same, changed = tracker.step(1), other.step(1)
    value = {"layer": "hidden", "metric": "fvu", "split": "heldout"}
    assert first is not None
    assert same is not None
    assert changed is not None
    assert same.value(**value) == first.value(**value) != changed.value(**value)


def test_a_measurement_that_takes_long_is_told_once(
    net: SmallNet, probe_set: pf.ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = pf.PhaseTracker(net, probe_set, layers="hidden", alphas=[0.1], out=None)
    monkeypatch.setattr("phasefast.track._LONG", 0.0)
    with pytest.warns(RuntimeWarning, match=r"measuring step 0 took \d+ s, .* pf.plan\(model, probe_set, ...\)"):
        tracker.step(0)
    with no_warnings():
        tracker.step(1, force=True)
