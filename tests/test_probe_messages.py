"""What ``probe`` says of models and data that do not go together."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import phasefast as pf
from phasefast.engine import Engine
from phasefast.errors import ArgumentError, DataError, LayerError
from tests.conftest import SmallNet
from tests.quiet import no_warnings


def test_a_model_that_cannot_take_the_samples_says_what_it_was_given(net: SmallNet) -> None:
    x, y = torch.randint(0, 255, (60, 1, 6, 6), dtype=torch.uint8), torch.randint(0, 3, (60,))
    with pytest.raises(RuntimeError) as caught:
        pf.probe(net, pf.ProbeSet.from_tensors(x[:40], y[:40], x[40:], y[40:]), layers="hidden")
    assert "samples of shape (1, 6, 6), torch.uint8" in caught.value.__notes__[0]


def test_samples_that_leave_nothing_to_decode_say_why(net: SmallNet) -> None:
    x = torch.randint(0, 255, (60, 1, 6, 6), dtype=torch.uint8)
    with pytest.raises(ArgumentError, match=r"the samples are torch.uint8.*x.float\(\) / 255.*no labels"):
        pf.probe(net, pf.ProbeSet.from_tensors(x[:40], None, x[40:], None), layers="hidden")


@pytest.mark.parametrize(("dtype", "count"), [(torch.uint8, 1), (torch.int64, 0)])
def test_images_whose_type_is_not_decoded_are_warned_of_and_tokens_are_not(dtype: torch.dtype, count: int) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.float())

    x, y = torch.randint(0, 9, (60, 5), dtype=dtype), torch.arange(60) % 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = pf.probe(Net(), pf.ProbeSet.from_tensors(x[:40], y[:40], x[40:], y[40:]))
    told = [warning for warning in caught if "so they are not decoded themselves" in str(warning.message)]
    assert [warning.filename for warning in told] == [__file__] * count
    assert scores.targets == ["label"]


def test_a_function_that_gives_no_numbers_is_named(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    with pytest.raises(DataError, match=r"target 'word': expected numbers, got text"):
        pf.probe(net, probe_set, layers="hidden", targets=pf.Function(lambda x: ["a"] * len(x), name="word"))


def test_samples_that_are_not_decoded_themselves_need_a_target_or_labels() -> None:
    x, model = torch.randint(0, 9, (60, 5)), torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten())
    probe_set = pf.ProbeSet.from_tensors(x[:40], None, x[40:], None)
    mean = pf.Function(lambda x: x.float().mean(1, keepdim=True), name="mean")
    assert pf.probe(model, probe_set, layers="1", targets=mean).targets == ["mean"]


def test_labels_that_the_model_was_not_trained_on_are_said_once(net: SmallNet) -> None:
    x, y = torch.randn(60, 1, 6, 6), torch.randint(1, 4, (60,))  # from 1 to 3, where the model has three outputs
    probe_set = pf.ProbeSet.from_tensors(x[:40], y[:40], x[40:], y[40:])
    with pytest.warns(RuntimeWarning, match="the model has 3 outputs, but target 'label' has 4 classes") as caught:
        scores = pf.probe(net, probe_set, layers="hidden")
    assert len(caught) == 1
    assert "model" not in scores.to_pandas()["layer"].tolist()


def test_a_layer_that_says_nothing_is_told(probe_set: pf.ProbeSet) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 4))
    torch.nn.init.zeros_(model[1].weight)
    with pytest.warns(
        RuntimeWarning, match=r"layers \['1'\]: nothing is decoded at step 0, since their activations are the same"
    ):
        scores = pf.probe(model, probe_set, layers=["0", "1"], targets="input")
    assert scores.value(layer="1", metric="fvu", split="heldout") == pytest.approx(1.0)


def test_a_model_without_logits_has_no_accuracy_of_its_own_and_says_so(probe_set: pf.ProbeSet) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Unflatten(1, (1, 2)))
    with pytest.warns(
        RuntimeWarning,
        match="no rows of layer 'model': the model's output has no row of numbers, such as logits, for each sample",
    ):
        scores = pf.probe(model, probe_set, layers="0")
    assert scores.values_of("layer") == ["0"]
    with no_warnings():
        pf.probe(model, probe_set, layers="0", targets="input")


@pytest.mark.parametrize(
    ("n", "options", "words"),
    [
        (80, {"layer_sketch": 54}, "layer_sketch=54 was not needed: no layer has more features; all scores are exact"),
        (80, {"layer_sketch": 8}, "layer_sketch=8 was too small for every layer at step 0: all were decoded exactly"),
        (80, {"target_components": 9}, "target_components=9 was not needed: no regression target has more than 73"),
        (40, {"target_components": 9}, "target_components=9 was not needed: 40 fit rows need only 41 columns"),
    ],
)
def test_an_approximation_that_was_not_made_is_said_once(
    n: int, options: dict, words: str, net: SmallNet, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x = torch.randn(n + 20, 1, 6, 6)
    targets = [pf.Input(), pf.Function(lambda x: x.flatten(1).repeat(1, 3 if n == 40 else 1), name="repeated")]
    probe_set = pf.ProbeSet.from_tensors(x[:n], None, x[n:], None)
    states = {step: copy.deepcopy(net.state_dict()) for step in (0, 1, 2)}
    shared = {"layers": "conv", "targets": targets, "alphas": [1e-3]}
    with pytest.warns(RuntimeWarning) as caught:
        scores = pf.sweep(net, states, probe_set, out=tmp_path, **shared, **options)
    (warning,) = caught
    assert str(warning.message).startswith(words)
    assert warning.filename == __file__
    assert scores.values_of("approximation") == ["none"]


def test_a_narrow_layer_that_is_added_is_not_taken_for_one_that_a_sketch_was_too_small_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1200, 6)
    noisy = x + torch.randn(1200, 6)
    model = torch.nn.Sequential(torch.nn.Linear(6, 400), torch.nn.Tanh(), torch.nn.Linear(400, 5))
    values = {"noisy": (noisy[:1000], noisy[1000:])}
    probe_set = pf.ProbeSet.from_tensors(x[:1000], None, x[1000:], None, values=values)
    shared = {"targets": "noisy", "alphas": [1e-2], "layer_sketch": 200, "out": tmp_path}
    scores = pf.sweep(model, [model.state_dict()], probe_set, layers="0", **shared)
    assert scores.values_of("approximation") == ["sketch of 200 of 400 features"]
    with pytest.warns(RuntimeWarning, match="layer_sketch=200 was not needed: no layer has more features") as caught:
        pf.sweep(model, [model.state_dict()], probe_set, layers=["0", "2"], **shared)
    assert len(caught) == 1


def test_an_approximation_that_was_made_is_not_warned_of(net: SmallNet) -> None:
    torch.manual_seed(0)
    x = torch.randn(120, 1, 6, 6)
    probe_set = pf.ProbeSet.from_tensors(x[:100], None, x[100:], None)
    wide = pf.Function(lambda x: x.flatten(1).repeat(1, 3), name="wide")
    with no_warnings():
        scores = pf.probe(net, probe_set, layers="hidden", targets=wide, alphas=[1e-3], target_components=9)
        pf.probe(net, probe_set, layers="hidden", targets=wide, alphas=[1e-3])
    assert scores.values_of("approximation") == ["9 of 108 components"]


def test_modules_of_a_glob_that_are_not_used_are_left_out(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    for layers in ("*", None):
        with pytest.warns(RuntimeWarning, match=r"left out \['unused'\], whose forward hooks never fired") as caught:
            scores = pf.probe(net, probe_set, layers=layers, alphas=[0.1])
        assert scores.layers == ["conv", "norm", "relu", "hidden", "relu:1", *(["drop"] if layers else []), "head"]
        assert caught[0].filename == __file__
    with pytest.raises(LayerError, match="'unused': its forward hook never fired"):
        pf.probe(net, probe_set, layers="unus*")


def test_layers_may_be_modules(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    for layers in (net.hidden, [net.hidden], ["hidden"]):
        assert pf.probe(net, probe_set, layers=layers, alphas=[0.1]).layers == ["hidden"]
    for layers, words in (([torch.nn.Linear(3, 3)], "got Linear, which is not in it"), ([3], "got int")):
        with pytest.raises(LayerError, match=f"expected names, globs or modules of the model, {words}"):
            pf.probe(net, probe_set, layers=layers)  # type: ignore[arg-type]


def test_torchscript_is_refused(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    scripted = torch.jit.script(net)
    with pytest.raises(ArgumentError, match="model: it is TorchScript"):
        pf.probe(scripted, probe_set)
    with pytest.raises(ArgumentError, match="model: its module '0' is TorchScript"):
        pf.probe(torch.nn.Sequential(scripted), probe_set)


def test_a_model_without_memory_is_refused(probe_set: pf.ProbeSet) -> None:
    with torch.device("meta"):
        model = SmallNet()
    with pytest.raises(ArgumentError, match=r"model: its module .* is on the meta device, .*; give model.to_empty"):
        pf.probe(model, probe_set)


def test_a_model_without_a_forward_is_refused(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    both = torch.nn.ModuleDict({"generator": net, "discriminator": SmallNet()})
    parts = r"ModuleDict has no forward; give one of its parts, \['generator', 'discriminator'\]"
    with pytest.raises(ArgumentError, match=f"model: {parts}"):
        pf.probe(both, probe_set)

    class CallOnly(SmallNet):
        forward = torch.nn.Module.forward

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return SmallNet.forward(self, x)

    assert pf.probe(CallOnly(), probe_set, layers="hidden", alphas=[0.1]).layers == ["hidden"]


def test_arrays_are_taken_as_inputs(net: SmallNet) -> None:
    x, y = torch.randn(60, 1, 6, 6), torch.randint(0, 3, (60,))
    options: dict[str, Any] = {"layers": "hidden", "alphas": [0.1]}
    given = [
        pf.ProbeSet.from_tensors(x[:40], y[:40], x[40:], y[40:]),
        pf.ProbeSet.from_tensors(x[:40].numpy(), y[:40].numpy(), x[40:].numpy(), y[40:].numpy()),  # type: ignore[arg-type]
    ]
    assert given[0].digest == given[1].digest
    own = [pf.probe(net, each, **options).to_arrow().column("value") for each in given]
    assert own[0].equals(own[1])


class Gradient(torch.nn.Module):
    """Differentiates in its forward pass."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.inside, self.body, self.head = inside, torch.nn.Linear(36, 4), torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(self.inside or torch.is_grad_enabled()):
            x = x.flatten(1).requires_grad_()
            return self.head(torch.autograd.grad(self.body(x).square().sum(), x)[0])


def test_models_that_need_gradients_are_told_how(probe_set: pf.ProbeSet) -> None:
    with pytest.raises(RuntimeError) as caught:
        pf.probe(Gradient(False), probe_set)
    assert "use torch.enable_grad() in the forward" in caught.value.__notes__[0]
    assert pf.probe(Gradient(True), probe_set, alphas=[0.1]).layers == ["body", "head"]


def test_options_that_change_nothing_are_warned_of(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    with pytest.warns(RuntimeWarning, match=r"pool=2 changes nothing: no layer's output is \[b, c, h, w\]"):
        pf.probe(net, probe_set, layers="hidden", pool=2, alphas=[0.1])
    with pytest.warns(RuntimeWarning, match=r"tokens='last' changes nothing: no layer's output is \[b, t, f\]"):
        pf.probe(net, probe_set, layers="conv", tokens="last", alphas=[0.1])


class Tokens(torch.nn.Module):
    """Its layer gives the first token 0, and the last 2."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(torch.stack([0 * x, x, x + 2 * torch.arange(len(x[0]))], 1)).mean(1)


def test_the_token_that_stands_for_a_sequence_is_the_one_asked_for(probe_set: pf.ProbeSet) -> None:
    x = torch.randn(60, 4)
    given = pf.ProbeSet.from_tensors(x[:40], None, x[40:], None)
    rows = {mode: Engine(Tokens(), given, tokens=mode).activations()[0] for mode in ("cls", "last", "mean")}
    inputs = given.fit_inputs
    expected = {"cls": 0 * inputs, "last": inputs + 2 * torch.arange(4)}
    expected["mean"] = (expected["cls"] + inputs + expected["last"]) / 3
    for mode, own in rows.items():
        torch.testing.assert_close(own.fit + own.shift, expected[mode])


class Uncalled(torch.nn.Module):
    """Its statistics are used, but its BatchNorm is not called as a module."""

    def __init__(self, through: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.head = torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2)
        self.norm.running_mean += 0.3
        self.norm.running_var *= 2
        self.through = through

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        if self.through == "forward":
            h = self.norm.forward(h)
        elif self.through == "function":
            h = torch.nn.functional.batch_norm(h, self.norm.running_mean, self.norm.running_var)
        else:
            h = self.norm(h)
        return self.head(h.relu())


@pytest.mark.parametrize("through", ["forward", "function"])
def test_statistics_that_cannot_be_recomputed_are_kept_aloud(through: str) -> None:
    x = torch.randn(90, 4, generator=torch.Generator().manual_seed(1))
    given = pf.ProbeSet.from_tensors(x[:60], None, x[60:], None)
    options: dict[str, Any] = {"layers": "head", "alphas": [0.1]}
    expected = pf.probe(Uncalled("call"), given, batchnorm="running", **options)
    with pytest.warns(
        RuntimeWarning, match=r"'recompute': \['norm'\] keep their statistics, as the model does not call"
    ):
        scores = pf.probe(model := Uncalled(through), given, **options)
    assert scores.to_arrow().column("value").equals(expected.to_arrow().column("value"))
    assert scores.values_of("state_hash") == expected.values_of("state_hash")
    assert float(model.norm.running_mean[0]) == pytest.approx(0.3)


def test_targets_have_an_order(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    with pytest.raises(ArgumentError, match=r"targets: expected a list, which keeps its order, got {"):
        pf.probe(net, probe_set, targets={"input", "label"})  # type: ignore[arg-type]


def test_another_name_of_a_module_is_told(probe_set: pf.ProbeSet) -> None:
    net = SmallNet()
    net.other = net.hidden
    with pytest.raises(LayerError, match="'other' is the same module as 'hidden': give it by that name"):
        pf.probe(net, probe_set, layers=["other"])
    assert pf.probe(net, probe_set, layers=net.other, alphas=[0.1]).layers == ["hidden"]
