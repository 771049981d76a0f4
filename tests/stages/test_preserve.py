"""What a model does while it is measured leaves no trace in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.stages.preserve import preserved
from tests.conftest import SmallNet
from tests.quiet import no_warnings
from tests.test_sweep import without_seconds

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


class Momentum(nn.Module):
    """An encoder that follows another one, as that of MoCo v1 does, in ``forward``."""

    def __init__(self, update: Callable[[nn.Parameter, Tensor], Any], always: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key = nn.Linear(36, 3), nn.Linear(36, 3)
        self.key.requires_grad_(False)
        self.update, self.always = update, always

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.always:
            with torch.no_grad():
                self.update(self.key.weight, self.query.weight)
        return self.query(x.flatten(1)) - self.key(x.flatten(1))


def in_place(key: nn.Parameter, query: Tensor) -> None:
    key.mul_(0.9).add_(query, alpha=0.1)


def through_data(key: nn.Parameter, query: Tensor) -> None:
    key.data.mul_(0.9).add_(query.data, alpha=0.1)


def replaced(key: nn.Parameter, query: Tensor) -> None:
    key.data = 0.9 * key.data + 0.1 * query.data


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("update", [in_place, through_data, replaced])
def test_parameters_that_forward_updates_are_put_back(
    probe_set: pf.ProbeSet, update: Callable[[nn.Parameter, Tensor], Any], device: str
) -> None:
    model = Momentum(update).to(device)
    before, memory = model.key.weight.clone(), model.key.weight.data_ptr()
    tracker = pf.PhaseTracker(model, probe_set, out=None, on_error="raise")
    with pytest.warns(RuntimeWarning, match=r"forward changes the parameters \['key.weight'\]"):
        tracker.step(0)
    assert torch.equal(model.key.weight, before)
    with no_warnings():
        tracker.step(1)  # told once
    assert torch.equal(model.key.weight, before)
    assert model.key.weight.data_ptr() == memory


def test_updates_that_begin_later_are_put_back_too(probe_set: pf.ProbeSet) -> None:
    model = Momentum(in_place)
    model.key.load_state_dict(model.query.state_dict())
    model.update = lambda key, query: key.lerp_(query, 0.1)  # nothing changes while both are the same
    tracker = pf.PhaseTracker(model, probe_set, out=None, on_error="raise")
    tracker.step(0)
    with torch.no_grad():
        model.query.weight += 0.1
    before = model.key.weight.clone()
    with pytest.warns(RuntimeWarning, match="forward changes the parameters"):
        tracker.step(1)
    assert torch.equal(model.key.weight, before)


def test_a_plan_changes_no_parameter() -> None:
    model = Momentum(in_place)
    before = model.key.weight.clone()
    pf.plan(model, (1, 6, 6), 20, 10)
    assert torch.equal(model.key.weight, before)


def test_long_rows_of_an_embedding_stay_long() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 4, max_norm=1.0), nn.Flatten(), nn.Linear(24, 3))
    with torch.no_grad():
        model[0].weight[49] = 9
    tokens = torch.randint(0, 49, (90, 6))
    tokens[60, 0] = 49  # not among the first samples
    labels = torch.arange(90) % 3
    before = model[0].weight.clone()
    with pytest.warns(RuntimeWarning, match=r"\['0.weight'\]"):
        pf.probe(model, pf.ProbeSet.from_tensors(tokens[:70], labels[:70], tokens[70:], labels[70:]))
    assert torch.equal(model[0].weight, before)


class Freezing(nn.Sequential):
    """Its forward decides which parameters train."""

    def forward(self, x: Tensor) -> Tensor:
        self.requires_grad_(self.training)
        return super().forward(x)


def test_parameters_that_forward_freezes_train_on(probe_set: pf.ProbeSet) -> None:
    model = Freezing(nn.Flatten(), nn.Linear(36, 3))
    model[1].bias.requires_grad_(False)
    pf.probe(model, probe_set)
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False]


def test_models_made_in_inference_mode_are_measured(probe_set: pf.ProbeSet) -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    assert pf.probe(model, probe_set).layers


class Replacing(nn.Module):
    """Its forward puts new parameters in the place of old ones, and changes a buffer that a list holds too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(36, 3)
        self.register_buffer("seen", torch.zeros(3))
        self.all_seen = [self.seen]

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x.flatten(1))
        self.linear.weight = nn.Parameter(0.9 * self.linear.weight)
        self.linear.extra = nn.Parameter(torch.zeros(1))
        self.all_seen[0] += 1
        return out


def test_parameters_that_forward_replaces_and_buffers_with_another_name_are_put_back(probe_set: pf.ProbeSet) -> None:
    model = Replacing()
    before, values = model.linear.weight, model.linear.weight.detach().clone()
    pf.probe(model, probe_set, layers="linear")
    assert model.linear.weight is before
    assert torch.equal(model.linear.weight, values)
    assert [name for name, _ in model.named_parameters()] == ["linear.weight", "linear.bias"]
    assert not model.seen.any()


def test_buffers_can_be_resized_after_a_measurement(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    net.register_buffer("scale", torch.ones(1))
    pf.probe(net, probe_set, layers="hidden")
    net.scale.resize_(4)


@pytest.mark.parametrize(
    "buffer", [torch.eye(6).to_sparse(), torch.quantize_per_tensor(torch.eye(6), 0.1, 0, torch.qint8)]
)
def test_buffers_that_are_sparse_or_quantised_are_left_alone(
    net: SmallNet, probe_set: pf.ProbeSet, buffer: Tensor
) -> None:
    net.register_buffer("edges", buffer, persistent=False)
    pf.probe(net, probe_set, layers="hidden")
    assert net.edges is buffer


@pytest.mark.parametrize("options", [{"alphas": [0.1]}, {}], ids=str)
def test_a_compiled_training_step_may_measure(probe_set: pf.ProbeSet, tmp_path: Path, options: dict) -> None:
    model = Block(36, 3)
    tracker = pf.PhaseTracker(model, probe_set, out=tmp_path, on_error="raise", **options)

    @torch.compile(backend="eager")
    def step(x: Tensor, i: int) -> Tensor:
        out = model(x)
        tracker.step(i)
        seen.append(tracker.scores.filter(target="input", metric="fvu", split="heldout"))
        return out

    torch._dynamo.reset()
    seen: list[pf.Scores] = []
    step(probe_set.fit_inputs, 0)
    step(probe_set.fit_inputs, 1)
    assert tracker.scores.steps == seen[-1].steps == [0, 1]


def test_updates_in_training_alone_are_no_news(probe_set: pf.ProbeSet) -> None:
    with no_warnings():
        pf.probe(Momentum(in_place, always=False).train(), probe_set)


def test_what_changed_is_named_and_put_back_after_errors_too() -> None:
    torch.manual_seed(0)
    parameters = nn.ParameterDict({name: nn.Parameter(torch.randn(3, 4)) for name in ("same", "other", "nan")})
    parameters["nan"].data[0, 0] = torch.nan
    parameters["turned"] = nn.Parameter(torch.randn(4, 3).T)
    before = {name: each.detach().clone() for name, each in parameters.items()}
    seen = []

    def fail() -> None:
        with preserved(parameters, torch.device("cpu"), torch.device("cpu")) as changed:
            seen.append(changed)
            parameters["other"].data[1, 2] += 1
            parameters["turned"].data.zero_()
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail()
    (changed,) = seen
    assert changed == {"parameters": ["other", "turned"], "buffers": []}
    assert all(torch.equal(each.nan_to_num(7.0), before[name].nan_to_num(7.0)) for name, each in parameters.items())
    assert parameters["turned"].stride() == before["turned"].stride()


class Block(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x.flatten(1)))


def compiled_blocks(model: nn.Sequential, backend: Callable[..., Any]) -> nn.Module:
    for block in model:
        block.compile(backend=backend, fullgraph=True)
    return model


def compiled_in_place(model: nn.Sequential, backend: Callable[..., Any]) -> nn.Module:
    model.compile(backend=backend, fullgraph=True)
    return model


def compiled_around(model: nn.Sequential, backend: Callable[..., Any]) -> nn.Module:
    return torch.compile(model, backend=backend, fullgraph=True)  # type: ignore[return-value]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("compiled", [compiled_blocks, compiled_in_place, compiled_around])
def test_compiled_models_are_measured_as_others_and_stay_compiled(
    probe_set: pf.ProbeSet, compiled: Callable[..., nn.Module], device: str
) -> None:
    runs = 0

    def backend(module: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            nonlocal runs
            runs += 1
            return module(*args)

        return run

    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(Block(36, 16), Block(16, 3)).to(device)
    inputs = probe_set.fit_inputs.to(device)
    expected = without_seconds(pf.probe(model, probe_set, layers="*"))
    model_compiled = compiled(model, backend)
    tracker = pf.PhaseTracker(model_compiled, probe_set, layers="*", out=None, on_error="raise")
    for step in (0, 1):
        model_compiled(inputs)
        before = runs
        assert before > 0
        found = tracker.step(step)
        assert runs == before
        assert found is not None
        assert without_seconds(found.filter(step=step)) == without_seconds(
            pf.probe(model, probe_set, layers="*", step=step)
        )
    model_compiled(inputs)
    assert runs > before
    assert expected == without_seconds(pf.probe(model, probe_set, layers="*"))


def test_lazy_modules_are_named_before_they_have_shapes(probe_set: pf.ProbeSet) -> None:
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    for use in (
        lambda: pf.probe(lazy, probe_set),
        lambda: pf.PhaseTracker(lazy, probe_set, out=None),
        lambda: pf.plan(lazy, (1, 6, 6), 20, 10),
    ):
        with pytest.raises(pf.errors.ArgumentError, match=r"its module '1' is lazy.*call the model once"):
            use()
    lazy(probe_set.fit_inputs)
    assert pf.probe(lazy, probe_set).layers == ["0", "1"]


def test_the_momentum_of_batchnorm_layers_is_as_it_was(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    net.norm.momentum = 0.3
    pf.probe(net, probe_set, layers="hidden")
    assert net.norm.momentum == 0.3


def test_what_other_libraries_put_in_the_place_of_a_forward_is_the_model(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    own = net.hidden.forward
    net.hidden._original_forward = own  # type: ignore[assignment]
    expected = pf.probe(net, probe_set, layers="head", alphas=[0.1]).to_dict()
    net.hidden.forward = lambda x: 0 * own(x)  # type: ignore[method-assign]
    patched = net.hidden.forward
    changed = pf.probe(net, probe_set, layers="head", alphas=[0.1]).to_dict()
    assert changed["model/label/loss"] != expected["model/label/loss"]
    assert net.hidden.forward is patched
