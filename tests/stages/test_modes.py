"""Modules that change their weights with their mode, such as layers that merge adapters in evaluation."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import phasefast as pf
from phasefast.stages.preserve import on_device
from tests.quiet import no_warnings

LAYERS = ["act"]


class Adapted(nn.Linear):
    """A linear layer with an adapter, which is a part of its weight in evaluation (arXiv 2106.09685, section 4.1)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after)
        self.down, self.up = nn.Parameter(torch.randn(4, before)), nn.Parameter(torch.randn(after, 4))
        self.weight.requires_grad_(False)
        self.merged = False

    def train(self, mode: bool = True) -> Adapted:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * self.up @ self.down
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y if self.merged else y + F.linear(F.linear(x, self.down), self.up)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.head = Adapted(8, 12), nn.Tanh(), Adapted(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.first(x)))


@pytest.fixture
def given() -> pf.ProbeSet:
    x = torch.randn(90, 8)
    y = x[:, :3].argmax(1)
    return pf.ProbeSet.from_tensors(x[:60], y[:60], x[60:], y[60:])


def numbers(scores: pf.Scores) -> list[float]:
    return scores.to_arrow().column("value").to_pylist()


def expected(model: Network, probe_set: pf.ProbeSet) -> list[float]:
    """Of a network of plain layers with the same function."""
    plain = copy.deepcopy(model)
    for name in ("first", "head"):
        layer, own = getattr(model, name), nn.Linear(*reversed(getattr(model, name).weight.shape))
        extra = 0 if layer.merged else layer.up @ layer.down
        own.load_state_dict({"weight": layer.weight + extra, "bias": layer.bias})
        setattr(plain, name, own)
    return numbers(pf.probe(plain, probe_set, layers=LAYERS))


def state_of(model: nn.Module) -> list[Tensor]:
    return [own.detach().clone() for own in model.parameters()]


@pytest.mark.parametrize("training", [True, False])
def test_what_is_merged_for_a_measurement_is_taken_out_again(given: pf.ProbeSet, training: bool) -> None:
    model = Network().train(training)
    before, flags, output = state_of(model), [model.first.merged, model.head.merged], model(given.heldout_inputs)
    wanted = expected(model, given)
    with no_warnings():
        tracker = pf.PhaseTracker(model, given, out=None, layers=LAYERS, on_error="raise")
        for step in range(3):
            assert numbers(tracker.step(step, force=True)) == pytest.approx(wanted, rel=1e-5)  # type: ignore[arg-type]
            assert numbers(pf.probe(model, given, layers=LAYERS)) == pytest.approx(wanted, rel=1e-5)
            assert [model.first.merged, model.head.merged] == flags
            assert all(map(torch.equal, state_of(model), before))
            assert torch.equal(model(given.heldout_inputs), output)
            assert [own.training for own in model.modules()] == [training] * 4
    model.train(not training).train(training)
    assert all(torch.allclose(own, old, atol=1e-6) for own, old in zip(state_of(model), before, strict=True))


def test_of_parts_in_different_modes_each_is_left_as_it_was(given: pf.ProbeSet) -> None:
    model = Network().train()
    model.head.eval()
    before, wanted = state_of(model), expected(model, given)
    assert numbers(pf.probe(model, given, layers=LAYERS)) == pytest.approx(wanted, rel=1e-5)
    assert (model.first.merged, model.head.merged) == (False, True)
    assert (model.training, model.first.training, model.head.training) == (True, True, False)
    assert all(map(torch.equal, state_of(model), before))


@pytest.mark.parametrize("training", [True, False])
def test_checkpoints_are_loaded_into_modules_in_training(given: pf.ProbeSet, tmp_path: Path, training: bool) -> None:
    stored, model = [Network() for _ in range(3)], Network().train(training)
    before, flags = state_of(model), (model.first.merged, model.head.merged)
    with no_warnings():
        found = pf.sweep(
            model, {step: own.state_dict() for step, own in enumerate(stored)}, given, layers=LAYERS, out=tmp_path
        )
    for step, own in enumerate(stored):
        assert numbers(found.filter(step=step)) == pytest.approx(expected(own, given), rel=1e-5)
    assert (model.first.merged, model.head.merged) == flags
    assert all(map(torch.equal, state_of(model), before))


class Around(nn.Module):
    """Merges into a layer inside it; ``train`` has no default."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.base, self.more = nn.Linear(before, after), nn.Parameter(torch.randn(after, before))
        self.merged = False

    def train(self, mode: bool) -> Around:  # type: ignore[override]
        super().train(mode)
        if mode == self.merged:
            self.base.weight.data += (-1 if mode else 1) * self.more
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y if self.merged else y + F.linear(x, self.more)


class Fused(nn.Module):
    """Keeps in evaluation what it makes of its weights."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(before, after), nn.Linear(before, after)
        self.kept: Tensor | None = None

    def train(self, mode: bool = True) -> Fused:
        super().train(mode)
        self.kept = None if mode else (self.one.weight + self.other.weight).detach()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.one.weight + self.other.weight if self.kept is None else self.kept)


class Refusing(Adapted):
    """Cannot be trained."""

    def train(self, mode: bool = True) -> Adapted:
        if mode:
            raise RuntimeError("inference only")
        return super().train(mode)


class Bound(nn.Linear):
    """Has a ``train`` of its own, which is not its class's."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after)
        self.merged = False
        self.train = types.MethodType(Bound.switched, self)  # type: ignore[assignment]

    def switched(self, mode: bool = True) -> Bound:
        nn.Module.train(self, mode)
        if mode == self.merged:
            self.weight.data += -1.0 if mode else 1.0
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight if self.merged else self.weight + 1, self.bias)


@pytest.mark.parametrize("kind", [Around, Fused, Bound])
@pytest.mark.parametrize("training", [True, False])
def test_so_it_is_with_others_that_do_so(
    given: pf.ProbeSet, tmp_path: Path, kind: Callable[[int, int], nn.Module], training: bool
) -> None:
    models = [nn.Sequential(kind(8, 12), nn.Tanh(), nn.Linear(12, 3)) for _ in range(3)]
    outputs = [model(given.heldout_inputs).detach() for model in models]
    states = [copy.deepcopy(model.state_dict()) for model in models]
    model = models[0].train(training)
    with no_warnings():
        alone = [numbers(pf.probe(own, given, layers="1")) for own in models]
        tracker = pf.PhaseTracker(model, given, out=None, layers="1", on_error="raise")
        assert [numbers(tracker.step(step, force=True)) for step in range(2)] == [alone[0]] * 2  # type: ignore[arg-type]
        found = pf.sweep(model, dict(enumerate(states)), given, layers="1", out=tmp_path)
    assert [numbers(found.filter(step=step)) for step in range(3)] == [pytest.approx(own, rel=1e-5) for own in alone]
    torch.testing.assert_close(model(given.heldout_inputs), outputs[0])
    assert model.training == training
    torch.testing.assert_close(model.train()(given.heldout_inputs), outputs[0])


def test_those_that_cannot_be_trained_are_told_and_others_put_back(given: pf.ProbeSet, tmp_path: Path) -> None:
    model = nn.Sequential(Refusing(8, 9), nn.Tanh(), Adapted(9, 3))
    before = model(given.heldout_inputs)
    with pytest.warns(RuntimeWarning, match=r"Refusing.train\(\) has failed after a measurement.*: inference only"):
        pf.probe(model, given, layers="1")
    assert not model[2].merged
    model[0].merged = False  # type: ignore[union-attr]
    torch.testing.assert_close(model(given.heldout_inputs), before)
    model.eval()
    with no_warnings():
        pf.sweep(model, {0: model.state_dict()}, given, layers="1", out=tmp_path)


class Alone(nn.Linear):
    """Merges when its own ``eval()`` is called, not when that of a model around it is."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after)
        self.merged = False

    def eval(self) -> Alone:
        super().eval()
        if not self.merged:
            self.weight.data += 1
            self.merged = True
        return self

    def train(self, mode: bool = True) -> Alone:
        super().train(mode)
        if mode and self.merged:
            self.weight.data -= 1
            self.merged = False
        return self

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight if self.merged else self.weight + 1, self.bias)


@pytest.mark.parametrize("merged", [True, False])
def test_parts_whose_own_eval_was_called_are_left_so(given: pf.ProbeSet, tmp_path: Path, merged: bool) -> None:
    model, other = (nn.Sequential(Alone(8, 12), nn.Tanh(), nn.Linear(12, 3)) for _ in range(2))
    expected = numbers(pf.probe(other, given, layers="1"))
    model.eval()
    if merged:
        model[0].eval()
    before = model(given.heldout_inputs)
    found = pf.sweep(model, {1: other.state_dict()}, given, layers="1", out=tmp_path)
    assert numbers(found) == pytest.approx(expected, rel=1e-5)
    assert model[0].merged == merged
    assert torch.equal(model(given.heldout_inputs), before)


def test_a_shared_part_in_evaluation_stays_so(given: pf.ProbeSet) -> None:
    class Parent(nn.Module):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.part = part

        def train(self, mode: bool = True) -> Parent:
            super().train(mode)
            return self

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.part(x))

    shared = Adapted(8, 8)
    model = nn.Sequential(Parent(shared), Parent(shared)).train()
    shared.eval()
    before = state_of(model)
    pf.probe(model, given, layers="0")
    assert shared.merged
    assert all(map(torch.equal, state_of(model), before))


@pytest.mark.parametrize("own", [True, False])
def test_what_forward_changes_is_told_of_modules_that_have_a_train_of_their_own(given: pf.ProbeSet, own: bool) -> None:
    class Averaging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.mean = nn.Linear(8, 4), nn.Buffer(torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            self.mean.lerp_(x.mean(0), 0.1)
            return self.act(x - self.mean)

    class Own(Averaging):
        def train(self, mode: bool = True) -> Own:
            super().train(mode)
            return self

    with pytest.warns(RuntimeWarning, match=r"forward changes the buffers \['mean'\]"):
        pf.probe(Own() if own else Averaging(), given, layers=LAYERS)


def test_what_forward_changes_beside_it_is_told_still(given: pf.ProbeSet) -> None:
    class Counting(Network):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.PReLU()

        def forward(self, x: Tensor) -> Tensor:
            self.act.weight.data += 1
            return super().forward(x)

    with pytest.warns(RuntimeWarning, match=r"forward changes the parameters \['act.weight'\] in"):
        pf.probe(Counting(), given, layers=LAYERS)


def test_parameters_that_were_moved_get_their_memory_and_gradients_back() -> None:
    model = Network()
    model(torch.randn(5, 8)).sum().backward()
    model.share_memory()
    before = [(own.data_ptr(), own.grad, own.detach().clone()) for own in model.parameters()]
    with on_device(model, torch.device("meta")):
        assert {own.device.type for own in model.parameters()} == {"meta"}
    for own, (place, grad, values) in zip(model.parameters(), before, strict=True):
        assert own.data_ptr() == place
        assert own.grad is grad
        assert own.is_shared()
        assert torch.equal(own, values)
