"""``probe`` on real models: right numbers, nothing left behind, errors that name the culprit."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

import phasefast as pf
from phasefast.engine import Engine
from phasefast.errors import ArgumentError, DataError, LayerError, MemoryBudgetError, NonFiniteError, PhasefastError
from phasefast.layers.selection import select_layers
from tests.conftest import SmallNet, images
from tests.oracle import mean_diagonal, ridge_heldout_error, rows64

LAYERS = ["conv", "relu", "hidden"]


def test_numbers_match_scikit_learn_on_the_activations_of_the_model(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    scores = pf.probe(net, probe_set, layers=["conv", "hidden"], alphas=[0.01], batchnorm="running")
    net.eval()
    with torch.no_grad():
        for layer in ("conv", "hidden"):
            rows: list[torch.Tensor] = []
            handle = getattr(net, layer).register_forward_hook(lambda _m, _i, out, kept=rows: kept.append(out.clone()))
            net(probe_set.fit_inputs)
            net(probe_set.heldout_inputs)
            handle.remove()
            t_fit, t_heldout = probe_set.fit_inputs.flatten(1), probe_set.heldout_inputs.flatten(1)
            error = ridge_heldout_error(rows[0], rows[1], t_fit, t_heldout, 0.01)
            select = {"layer": layer, "target": "input", "split": "heldout"}
            assert scores.value(metric="mse", **select) == pytest.approx(error / t_heldout.numel(), rel=1e-5)
            deviation = float((t_heldout - t_fit.mean(0)).double().square().sum())
            assert scores.value(metric="fvu", **select) == pytest.approx(error / deviation, rel=1e-5)


def test_scores_are_complete_and_tidy(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    scores = pf.probe(net, probe_set, layers=LAYERS, step=7, run="mine")
    assert scores.layers == ["conv", "relu", "hidden", "relu:1"]  # as they are computed
    assert scores.targets == ["input", "label"]
    assert scores.steps == [7]
    table = scores.to_pandas()
    assert set(table["run"]) == {"mine"}
    assert len(table) == 4 * (4 + 2) + 4
    probed = table[table["layer"] != "model"]
    # Which only checkpoint files have, and only what is not exact.
    elsewhere = ["source_hash", "approximation", "low", "high", "dropped"]
    assert probed[elsewhere].isna().all(axis=None)
    assert not probed.drop(columns=elsewhere).isna().any(axis=None)
    of_solve = ["alpha", "route", "dtype", "jitter", "rank", "dof", "condition", "error_estimate"]
    assert not table.drop(columns=[*elsewhere, *of_solve, "baseline", "place"]).isna().any(axis=None)
    assert (probed["dof"] <= probed["rank"] + 1e-6).all()
    for layer, metric in (("hidden", "fvu"), ("hidden", "accuracy")):
        target = "input" if metric == "fvu" else "label"
        _, samples = scores.samples(layer, target, metric)
        value = scores.value(layer=layer, target=target, split="heldout", metric=metric)
        assert samples.mean() == pytest.approx(value, rel=1e-5)


def test_label_and_model_accuracy_are_those_of_plain_code(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    scores = pf.probe(net, probe_set, layers="hidden", batchnorm="running")
    net.eval()
    logits = net(probe_set.heldout_inputs).detach()
    expected = float((logits.argmax(1) == probe_set.heldout_labels).double().mean())
    assert scores.value(layer="model", metric="accuracy", split="heldout") == pytest.approx(expected)
    loss = float(nn.functional.cross_entropy(logits, probe_set.heldout_labels))
    assert scores.value(layer="model", metric="loss", split="heldout") == pytest.approx(loss, rel=1e-5)


def test_penalty_to_zero_with_more_features_than_rows_fits_exactly() -> None:
    model = nn.Sequential(nn.Linear(36, 300), nn.Tanh())
    data = [x.flatten(1) if x.dim() > 1 else x for x in (*images(100, 3), *images(30, 4))]
    data[0], data[2] = torch.tanh(data[0]) ** 3, torch.tanh(data[2]) ** 3
    probe_set = pf.ProbeSet.from_tensors(*data)
    for alpha in (0.0, 1e-13):
        scores = pf.probe(model, probe_set, layers=["1"], alphas=[alpha], targets=[pf.Input()])
        fit, heldout = (scores.value(split=split, metric="fvu") for split in ("fit", "heldout"))
        assert fit < 1e-9, alpha
        assert heldout > 1e-4


def test_functions_of_the_input_are_targets(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    def brightness(x: torch.Tensor) -> torch.Tensor:
        return x.mean((1, 2, 3))

    def brighter_half(x: torch.Tensor) -> torch.Tensor:
        return (x[..., :3].sum((1, 2, 3)) > x[..., 3:].sum((1, 2, 3))).long()

    targets = [pf.Function(brightness), pf.Function(brighter_half, kind="classes"), pf.Input()]
    scores = pf.probe(net, probe_set, layers="conv", targets=targets)
    assert scores.targets == ["brightness", "brighter_half", "input"]
    # Outputs of a convolution without ReLU: a mean of pixels is linear in them.
    assert scores.value(target="brightness", split="heldout", metric="fvu") < 0.2
    assert scores.value(target="brighter_half", split="heldout", metric="accuracy") > 0.7


def test_noise_is_an_absolute_penalty(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    options = {"layers": "hidden", "targets": [pf.Input()]}
    quiet, loud = (pf.probe(net, probe_set, noise=sigma, **options) for sigma in (1e-3, 10.0))
    select = {"split": "heldout", "metric": "fvu"}
    assert quiet.value(**select) < loud.value(**select)
    assert loud.value(**select) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("batchnorm", ["recompute", "batch", "running"])
def test_model_is_left_as_found(net: SmallNet, probe_set: pf.ProbeSet, batchnorm: str) -> None:
    net.train()
    net.drop.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    pf.probe(net, probe_set, layers=LAYERS, batchnorm=batchnorm)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert modes == [module.training for module in net.modules()]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert net.norm.momentum == 0.1
    assert all(not module._forward_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("calls_before_failing", [0, 1, 2, 4])
def test_model_is_left_as_found_when_it_raises_midway(
    net: SmallNet, probe_set: pf.ProbeSet, calls_before_failing: int
) -> None:
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        torch.rand(3), random.random(), np.random.rand()
        calls += 1
        if calls > calls_before_failing:
            raise RuntimeError("out of luck")

    handle = net.hidden.register_forward_pre_hook(fail)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with pytest.raises(RuntimeError, match="out of luck"):
        pf.probe(net, probe_set, layers=LAYERS, batch_size=50)
    handle.remove()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert net.training
    assert net.norm.momentum == 0.1
    assert all(not module._forward_hooks for module in net.modules())
    assert torch.is_grad_enabled()


def test_recomputed_batchnorm_is_another_function_than_running(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    kinds = ("recompute", "batch", "running")
    scores = {b: pf.probe(net, probe_set, layers=["norm"], alphas=[0.1], batchnorm=b, batch_size=150) for b in kinds}
    fvu = {b: s.value(layer="norm", metric="fvu", split="fit") for b, s in scores.items()}
    assert fvu["recompute"] == pytest.approx(fvu["batch"], rel=0.02)
    assert abs(fvu["running"] / fvu["recompute"] - 1) > 1e-3


def test_result_does_not_depend_on_batch_size_groups_or_compilation(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    options = {"layers": LAYERS, "alphas": [0.01], "batchnorm": "running"}

    def fvu(model: nn.Module, **more: object) -> np.ndarray:
        return pf.probe(model, probe_set, **options, **more).filter(split="heldout", metric="fvu").to_pandas()["value"]

    whole = fvu(net)
    assert np.allclose(whole, fvu(net, batch_size=7), rtol=1e-5)
    assert np.allclose(whole, fvu(nn.DataParallel(net), memory="400KB"), rtol=1e-6)
    assert np.allclose(whole, fvu(torch.compile(net)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_in_other_dtypes(net: SmallNet, probe_set: pf.ProbeSet, dtype: torch.dtype) -> None:
    expected = pf.probe(net, probe_set, layers="hidden", alphas=[0.1])
    got = pf.probe(net.to(dtype), probe_set, layers="hidden", alphas=[0.1])
    select = {"split": "heldout", "metric": "fvu"}
    assert got.value(**select) == pytest.approx(expected.value(**select), rel=1e-5 if dtype == torch.float64 else 3e-2)


def test_precisions_agree(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    exact, fast, double = (
        pf.probe(net, probe_set, layers="hidden", precision=p).value(split="heldout", metric="fvu")
        for p in ("exact", "fast", "double")
    )
    assert exact == pytest.approx(double, rel=1e-4)
    assert fast == pytest.approx(double, rel=2e-3)  # rows may be rounded to bfloat16


class Sequence(nn.Module):
    """Tokens [b, t, f] and a tuple as output."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(6, 5)
        self.rnn = nn.GRU(5, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(self.lift(x.squeeze(1)))[0][:, -1]


@pytest.mark.parametrize(("tokens", "dim"), [("flatten", 24), ("mean", 4), ("cls", 4), ("last", 4)])
def test_token_outputs(probe_set: pf.ProbeSet, tokens: str, dim: int) -> None:
    scores = pf.probe(Sequence(), probe_set, layers="rnn", tokens=tokens)
    assert scores.to_pandas()["dim"].iloc[-1] == dim


def test_pooling_is_an_option(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    assert pf.probe(net, probe_set, layers="conv").to_pandas()["dim"].max() == 54
    dims = [
        int(pf.probe(net, probe_set, layers="conv", pool=pool).to_pandas()["dim"].max()) for pool in (1, 2, 3, 4, 9)
    ]
    assert dims == [6, 24, 54, 54, 54]  # no map is made larger


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"layers": ["convv"]}, LayerError, ["convv", "conv"]),
        ({"layers": []}, LayerError, ["at least one"]),
        ({"layers": ["unused"]}, LayerError, ["unused", "never fired"]),
        ({"batchnorm": "eval"}, ArgumentError, ["batchnorm", "eval", "recompute"]),
        ({"precision": "half"}, ArgumentError, ["precision", "half"]),
        ({"alpha": [1.0]}, ArgumentError, ["alpha", "alphas"]),
        ({"alphas": [-1.0]}, ArgumentError, ["-1.0"]),
        ({"alphas": [1.0], "noise": 1.0}, ArgumentError, ["noise"]),
        ({"tokens": "first"}, ArgumentError, ["tokens", "first"]),
        ({"batch_size": 0}, ArgumentError, ["batch_size"]),
        ({"memory": "lots"}, ArgumentError, ["lots"]),
        ({"memory": "10KB", "layers": ["conv"]}, MemoryBudgetError, ["conv", "54", "budget"]),
        ({"targets": [pf.Label(2)]}, DataError, ["label", "0 to 1"]),
        ({"targets": []}, ArgumentError, ["at least one"]),
        ({"targets": [pf.Function(lambda x: torch.ones(len(x)), name="one")]}, DataError, ["one", "constant"]),
        ({"targets": ["inputs"]}, ArgumentError, ["inputs", "'input', 'label'"]),
        ({"alphas": "small"}, ArgumentError, ["small"]),
        ({"noise": "loud"}, ArgumentError, ["loud"]),
        ({"device": "gpu"}, ArgumentError, ["gpu", "cuda"]),
        ({"pool": "2"}, ArgumentError, ["pool", "2"]),
        ({"memory": "1.2.3GB"}, ArgumentError, ["1.2.3GB"]),
        ({"targets": [pf.Input(), pf.Input()]}, ArgumentError, ["different names"]),
        ({"targets": [pf.Function(lambda x: x[:3].mean((1, 2, 3)), name="short")]}, DataError, ["short"]),
        ({"targets": [pf.Function(lambda x: x.mean((1, 2, 3)).log(), name="log")]}, DataError, ["log", "NaN"]),
    ],
)  # fmt: skip
def test_bad_options_are_typed_errors(
    net: SmallNet, probe_set: pf.ProbeSet, options: dict, error: type[PhasefastError], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        pf.probe(net, probe_set, **{"layers": ["hidden"], **options})
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_activations_that_are_not_finite_name_the_layer(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    with torch.no_grad():
        net.hidden.weight[3] = torch.inf
    with pytest.raises(NonFiniteError, match=r"'hidden'.*features"):
        pf.probe(net, probe_set, layers=["hidden"])
    with pytest.warns(
        RuntimeWarning, match="layers: left out 2 at step 0: layer 'hidden': NaN or Inf in 1 of 20 features"
    ):
        scores = pf.probe(net, probe_set, layers=["conv", "hidden"])
    assert scores.layers == ["conv"]


def test_outputs_that_are_no_rows_name_the_layer(probe_set: pf.ProbeSet) -> None:
    class Scalar(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean()

    with pytest.raises(LayerError, match=r"'0'.*a row of numbers"):
        pf.probe(nn.Sequential(Scalar()), probe_set)


def test_layer_that_fires_only_sometimes_is_an_error(probe_set: pf.ProbeSet) -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = nn.Flatten(), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.inner(x) if self.calls < 3 else x.flatten(1)

    with pytest.raises(LayerError, match=r"'inner'.*of 150 fit rows"):
        pf.probe(Moody(), probe_set, layers="inner", batch_size=50)


def test_label_accuracy_matches_scikit_learn_when_classes_are_unbalanced() -> None:
    inputs, labels = images(400, 7)
    keep = (labels > 0) | (torch.arange(400) % 6 == 0)
    inputs, labels = inputs[keep].flatten(1) + 1.5 * torch.randn(int(keep.sum()), 36), labels[keep]
    model = nn.Sequential(nn.Linear(36, 12), nn.ReLU())
    probe_set = pf.ProbeSet.from_tensors(inputs[:150], labels[:150], inputs[150:], labels[150:])
    scores = pf.probe(model, probe_set, layers="1", alphas=[0.01])
    with torch.no_grad():
        fit, heldout = model(probe_set.fit_inputs), model(probe_set.heldout_inputs)
    one_hot = torch.eye(3)[probe_set.fit_labels].numpy()
    oracle = Ridge(alpha=0.01 * mean_diagonal(fit)).fit(rows64(fit), one_hot)
    for split, rows, expected in (("fit", fit, probe_set.fit_labels), ("heldout", heldout, probe_set.heldout_labels)):
        accuracy = float((oracle.predict(rows64(rows)).argmax(1) == expected.numpy()).mean())
        assert scores.value(target="label", metric="accuracy", split=split, layer="1") == pytest.approx(accuracy)


@pytest.mark.parametrize("sigma", [1e-3, 0.3])
def test_noise_and_fit_errors_match_scikit_learn(net: SmallNet, probe_set: pf.ProbeSet, sigma: float) -> None:
    scores = pf.probe(net, probe_set, layers="hidden", noise=sigma, batchnorm="running")
    net.eval()
    with torch.no_grad():
        kept: list[torch.Tensor] = []
        handle = net.hidden.register_forward_hook(lambda _m, _i, out: kept.append(out.clone()))
        net(probe_set.fit_inputs)
        handle.remove()
    rows, wanted = rows64(kept[0]), probe_set.fit_inputs.flatten(1).double().numpy()
    oracle = Ridge(alpha=len(rows) * sigma**2).fit(rows, wanted)
    expected = float(((oracle.predict(rows) - wanted) ** 2).mean())
    assert scores.value(target="input", split="fit", metric="mse") == pytest.approx(expected, rel=1e-5)


def test_model_and_function_that_write_into_their_input_change_nothing(probe_set: pf.ProbeSet) -> None:
    class Writer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat = nn.Flatten()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.flat(x.mul_(2))

    def negative(x: torch.Tensor) -> torch.Tensor:
        return x.neg_().mean((1, 2, 3))

    inputs, labels = images(60, 2)
    own = pf.ProbeSet.from_tensors(*images(150, 1), inputs, labels)
    before = own.fit_inputs.clone(), own.heldout_inputs.clone(), inputs.clone()
    pf.probe(Writer(), own, targets=[pf.Input(), pf.Function(negative)], alphas=[0.1])
    assert torch.equal(before[0], own.fit_inputs)
    assert torch.equal(before[1], own.heldout_inputs)
    assert torch.equal(before[2], inputs)


def test_probing_between_forward_and_backward_is_harmless(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    gradients = []
    for disturb in (False, True):
        net.zero_grad()
        torch.manual_seed(3)
        loss = net(probe_set.fit_inputs[:20]).sum()
        if disturb:
            pf.probe(net, probe_set, layers="hidden", alphas=[0.1])
        loss.backward()
        gradients.append(net.conv.weight.grad.clone())
    assert torch.equal(*gradients)


def test_unusual_buffers_and_settings_are_restored(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    net.register_buffer("wide", torch.zeros(1).expand(4))
    net.register_buffer("cache", None)
    net.hidden.register_forward_hook(lambda *_: setattr(net, "cache", torch.ones(2)))
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu"):
            got = pf.probe(net, probe_set, layers="conv", alphas=[0.1])
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.backends.cuda.matmul.fp32_precision = "none"
    assert net.cache is None
    assert net.training
    expected = pf.probe(net, probe_set, layers="conv", alphas=[0.1])
    select = {"target": "input", "split": "heldout", "metric": "fvu"}
    assert got.value(**select) == expected.value(**select)
    # What accelerate makes of a model that it prepares.
    net._original_forward = net.forward
    net.forward = prepared = torch.autocast("cpu")(net.forward)
    for whole, layer in ((net, "conv"), (nn.Sequential(net), "0.conv")):  # or of what is wrapped then
        assert pf.probe(whole, probe_set, layers=layer, alphas=[0.1]).value(**select) == expected.value(**select)
    assert net.forward is prepared


def test_module_named_model_does_not_mix_with_the_models_own_metrics(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x)

    assert pf.probe(Wrapper(), probe_set, layers="model.h*", alphas=[0.1]).layers == ["model.hidden", "model.head"]
    assert "model" not in select_layers(Wrapper(), "*")
    assert select_layers(Wrapper())[0] == "model.conv"
    with pytest.raises(LayerError, match=r"model\.\*"):
        pf.probe(Wrapper(), probe_set, layers="model")


def test_stochastic_models_give_the_same_numbers_each_time(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    net.drop.register_forward_hook(lambda _m, _i, out: out + torch.rand_like(out))
    engine = Engine(net, probe_set, layers=["head"], alphas=[0.1])
    first, second = (engine.measure(0).value(target="input", split="heldout", metric="fvu") for _ in range(2))
    assert first == second
