"""Decoders that are given away have the scores that are told, and are those of scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

import phasefast as pf
from phasefast.errors import ArgumentError
from tests.test_reconstruction import ROUTES, network

LAYERS = ["1", "2", "3"]


def samples(n: int, m: int, shape: tuple[int, ...], classes: int = 4) -> pf.ProbeSet:
    g = torch.Generator().manual_seed(1)
    base = torch.randn(6, *shape, generator=g).flatten(1)
    inputs = (torch.randn(n + m, 6, generator=g) @ base).unflatten(1, shape)
    inputs = 3 + inputs + 0.3 * torch.randn(n + m, *shape, generator=g)
    labels = inputs.flatten(1)[:, :2].argsort(1)[:, 0] + 2 * (inputs.flatten(1)[:, 2] > 3).long()
    labels = torch.where(labels == 3, classes - 1, labels)
    values = {
        "count": (10**9 + 1000 * inputs.flatten(1)[:, 3]).long(),
        "pair": inputs.flatten(1)[:, 4:6].double() + 1e6,
    }
    parts = {name: (own[:n], own[n:]) for name, own in values.items()}
    return pf.ProbeSet.from_tensors(inputs[:n], labels[:n], inputs[n:], labels[n:], values=parts)


@contextmanager
def kept(model: nn.Module, layers: list[str]) -> Iterator[dict[str, Tensor]]:
    """The outputs of modules, as hooks of the user's own have them."""
    outputs: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: outputs.update({name: out}))
        for name in layers
    ]
    yield outputs
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("n", "shape", "width", "options"),
    [
        *ROUTES,
        (100, (12,), 300, {"classifier": "lda", "memory": "100MB"}),
        (100, (12,), 16, {"classifier": "balanced"}),
    ],
)
def test_predictions_have_the_errors_of_the_scores_and_come_from_the_activations(
    n: int, shape: tuple[int, ...], width: int, options: dict[str, Any]
) -> None:
    probe_set = samples(n, 60, shape)
    model = network(probe_set.fit_inputs[0].numel(), width).eval()
    targets = ["input", "label", probe_set.target("count", kind="regression"), "pair"]
    found = pf.fit_decoders(model, probe_set, layers=LAYERS, targets=targets, **options)
    scores = pf.probe(model, probe_set, layers=LAYERS, targets=targets, **options).filter(split="heldout")
    assert list(found) == [(layer, target) for layer in LAYERS for target in ("input", "label", "count", "pair")]
    with kept(model, LAYERS) as outputs, torch.no_grad():
        model(probe_set.heldout_inputs)
    truth = {
        "input": probe_set.heldout_inputs.flatten(1).double(),
        "count": probe_set.heldout_values["count"][:, None].double(),
        "pair": probe_set.heldout_values["pair"],
    }
    fit_mean = {name: own.double().mean(0) for name, own in probe_set.fit_values.items()}
    fit_mean["input"] = probe_set.fit_inputs.flatten(1).double().mean(0)
    for (layer, target), decoder in found.items():
        assert (decoder.layer, decoder.target) == (layer, target)
        (row,) = scores.filter(layer=layer, target=target, metric=decoder.metric).to_arrow().to_pylist()
        assert (decoder.value, decoder.alpha) == (row["value"], row["alpha"])
        own = decoder(outputs[layer])
        assert own.dtype == torch.float64
        scale = float(own.std(0).max())
        torch.testing.assert_close(own.to(decoder.predictions.dtype), decoder.predictions, rtol=2e-6, atol=1e-4 * scale)
        if target == "label":
            assert decoder.classes is not None
            hits = decoder.classes[own.argmax(1)] == probe_set.heldout_labels
            if decoder.metric == "accuracy":
                assert float(hits.double().mean()) == pytest.approx(decoder.value, abs=1e-12)
            continue
        assert decoder.classes is None
        error = (own - truth[target]).square().sum() / (truth[target] - fit_mean[target]).square().sum()
        assert float(error) == pytest.approx(decoder.value, rel=2e-5, abs=1e-12)


@pytest.mark.cuda
def test_a_gpu_gives_the_same_decoders() -> None:
    probe_set = samples(80, 30, (3, 16, 16))
    model = network(768, 400)
    targets = ["input", "label", probe_set.target("count", kind="regression"), "pair"]
    options: dict[str, Any] = {"layers": LAYERS, "targets": targets, "alphas": [0.1]}
    expected = pf.fit_decoders(model, probe_set, **options)
    for place, decoder in pf.fit_decoders(model, probe_set, **options, device="cuda").items():
        torch.testing.assert_close(decoder.predictions, expected[place].predictions, rtol=1e-3, atol=1e-3)
        assert decoder.weight.device.type == "cpu"


def test_discriminants_are_scikit_learns_and_their_softmax_its_probabilities() -> None:
    probe_set, model = samples(300, 60, (12,)), network(12, 8).eval()
    options: dict[str, Any] = {"layers": "1", "targets": "label", "classifier": "lda", "alphas": [1e-9]}
    decoder = pf.fit_decoders(model, probe_set, **options)["1", "label"]
    with torch.no_grad():
        fit, held = (model[1](own).double().numpy() for own in (probe_set.fit_inputs, probe_set.heldout_inputs))
    exact = LinearDiscriminantAnalysis(solver="lsqr").fit(fit, probe_set.fit_labels)
    np.testing.assert_allclose(decoder(torch.from_numpy(held)).softmax(1), exact.predict_proba(held), atol=2e-4)


def test_it_is_a_module_too_and_says_what_it_takes() -> None:
    probe_set = samples(100, 30, (12,))
    model = network(12, 16)
    before = {name: own.clone() for name, own in model.state_dict().items()}
    decoder = pf.fit_decoders(model, probe_set, layers="2", targets="input")["2", "input"]
    assert all(torch.equal(own, before[name]) for name, own in model.state_dict().items())
    activations = torch.randn(3, 7, 16)
    module = decoder.linear()
    assert module.weight.dtype == torch.float32
    torch.testing.assert_close(module(activations).double(), decoder(activations), rtol=1e-4, atol=1e-4)
    assert decoder.linear(torch.float64)(activations.double()).equal(
        nn.functional.linear(activations.double(), decoder.weight, decoder.bias)
    )
    with pytest.raises(
        ArgumentError, match=r"'input' from layer '2': expected activations \[..., 16\], got \(3, 2, 8\)"
    ):
        decoder(torch.zeros(3, 2, 8))


def test_labels_that_encode_otherwise_and_defaults_that_are_given() -> None:
    class Halves(pf.Label):
        def encoded(self, values: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
            return super().encoded(values // 2, held // 2)

    probe_set, defaults = samples(200, 50, (12,)), {"splits": "both", "target_components": None}
    found = pf.fit_decoders(network(12, 16), probe_set, layers="1", targets=Halves(2), **defaults)["1", "label"]  # type: ignore[arg-type]
    assert found.classes is not None
    assert probe_set.heldout_labels is not None
    hits = found.classes[found.predictions.argmax(1)] == probe_set.heldout_labels // 2
    assert float(hits.double().mean()) == pytest.approx(found.value)


@pytest.mark.parametrize("option", [{"splits": "heldout"}, {"target_components": 4}, {"layer_sketch": 9}])
def test_decoders_are_of_whole_targets_and_all_features(option: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"{next(iter(option))}: decoders give whole targets"):
        pf.fit_decoders(network(12, 16), samples(50, 20, (12,)), targets="input", **option)
    with pytest.raises(ArgumentError, match="target-free"):
        pf.fit_decoders(network(12, 16), samples(50, 20, (12,)), targets="input", route="target-free")


def test_rows_of_many_classes_name_theirs() -> None:
    given = samples(300, 60, (12,), classes=5000)
    labels = torch.cat([torch.tensor([70]), given.heldout_labels[1:]])  # of which no fit sample is
    probe_set = pf.ProbeSet.from_tensors(given.fit_inputs, given.fit_labels, given.heldout_inputs, labels)
    targets = [pf.Label(5000), pf.Function(lambda x: (x[:, 0] > 3).long() * 2, kind="classes", name="side")]
    found = pf.fit_decoders(network(12, 16), probe_set, layers="1", targets=targets)
    decoder = found["1", "label"]
    assert decoder.classes is not None
    assert decoder.classes.tolist() == [0, 1, 2, -1, 4999]
    hits = decoder.classes[decoder.predictions.argmax(1)] == probe_set.heldout_labels
    assert float(hits.double().mean()) == pytest.approx(decoder.value)
    assert found["1", "side"].classes is not None
    assert found["1", "side"].classes.tolist() == [0, -1, 2]


def test_named_variants_of_targets_are_in_the_units_that_are_given() -> None:
    class Sum(pf.Function):
        pass

    class Word(pf.Label):
        pass

    probe_set = samples(300, 60, (12,), classes=5000)
    targets = [Sum(lambda x: x.double().sum(1) + 1000, name="sum"), Word(5000)]
    found = pf.fit_decoders(network(12, 16), probe_set, layers="1", targets=targets)
    truth = probe_set.heldout_inputs.double().sum(1, keepdim=True) + 1000
    assert (found["1", "sum"].predictions - truth).abs().mean() < 0.1 * (truth - truth.mean()).abs().mean()
    assert found["1", "label"].classes is not None
    assert found["1", "label"].classes.tolist() == [0, 1, 2, 4999]


def test_targets_of_the_users_own_are_as_they_give_them() -> None:
    class Sums:
        name, kind = "sums", "regression"

        def columns(self, fit: Any, heldout: Any) -> tuple[Tensor, Tensor]:
            return fit[0].sum(1, keepdim=True) + 100, heldout[0].sum(1, keepdim=True) + 100

    class Signs:
        name, kind = "signs", "classes"

        def columns(self, fit: Any, heldout: Any) -> tuple[Tensor, Tensor]:
            both = ((own[0].sum(1) > 36).long() for own in (fit, heldout))
            of_fit, held = (nn.functional.one_hot(own, 2).float() for own in both)
            return of_fit, held

    probe_set = samples(200, 50, (12,))
    found = pf.fit_decoders(network(12, 16), probe_set, layers="1", targets=[Sums(), Signs()])  # type: ignore[list-item]
    own = found["1", "sums"].predictions.double()
    truth = probe_set.heldout_inputs.sum(1, keepdim=True).double() + 100
    deviation = truth - (probe_set.fit_inputs.double().sum(1).mean() + 100)
    assert float((own - truth).square().sum() / deviation.square().sum()) == pytest.approx(
        found["1", "sums"].value, rel=1e-3, abs=1e-9
    )
    assert found["1", "signs"].classes is not None
    assert found["1", "signs"].classes.tolist() == [0, 1]


def test_tokens_are_rows_of_their_own() -> None:
    torch.manual_seed(0)
    ids = torch.randint(1, 9, (60, 5))
    ids[:, 4] = torch.where(torch.rand(60) > 0.5, 0, ids[:, 4])
    probe_set = pf.ProbeSet.from_tensors(ids[:40], ids[:40] % 3, ids[40:], ids[40:] % 3)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 6))
    found = pf.fit_decoders(model, probe_set, layers="1", targets=["label"], tokens="each", padding=0)["1", "label"]
    real = probe_set.heldout_inputs != 0
    assert found.predictions.shape == (int(real.sum()), 3)
    assert found.classes is not None
    assert probe_set.heldout_labels is not None
    hits = found.classes[found.predictions.argmax(1)] == probe_set.heldout_labels[real]
    assert float(hits.double().mean()) == pytest.approx(found.value)
    with torch.no_grad():
        own = found(model(probe_set.heldout_inputs))[real]
    torch.testing.assert_close(own.float(), found.predictions, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "options"), [(12, {}), (300, {}), (12, {"route": "dual"}), (300, {"route": "primal"})]
)
def test_decoders_of_a_layer_that_is_the_same_for_all_samples_give_the_mean(
    width: int, options: dict[str, Any]
) -> None:
    probe_set = samples(40, 20, (6,))
    model = network(6, width).eval()
    with torch.no_grad():
        model[1].bias.copy_(model[1].weight.new_full((width,), -1e4))  # behind it a rectifier
    decoder = pf.fit_decoders(model, probe_set, layers=["2"], targets=["input"], **options)["2", "input"]
    mean = probe_set.fit_inputs.double().mean(0)
    assert not decoder.weight.any()
    torch.testing.assert_close(decoder.bias, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(decoder.predictions.double(), mean.expand(20, 6), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_targets_far_from_zero_keep_their_digits(dtype: torch.dtype) -> None:
    x = torch.rand(300, 2, dtype=dtype)
    pressure = torch.sin(x[:, :1].double() * 6) * 0.1 + 1e5
    probe_set = pf.ProbeSet.from_tensors(x[:200], None, x[200:], None, values={"p": (pressure[:200], pressure[200:])})
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh()).to(dtype)
    decoder = pf.fit_decoders(model, probe_set, layers="1", targets="p", alphas=[1e-6])["1", "p"]

    def fvu(predicted: Tensor) -> float:
        return float(
            (predicted - pressure[200:]).square().sum() / (pressure[200:] - pressure[:200].mean()).square().sum()
        )

    assert decoder.predictions.dtype == torch.float64  # of the target
    assert decoder.dtype == decoder.linear().weight.dtype == dtype  # of the layer
    assert fvu(decoder.predictions) == pytest.approx(decoder.value, rel=1e-3)
    with torch.no_grad():
        features = model(probe_set.heldout_inputs)
        assert fvu(decoder.linear(torch.float64)(features.double())) == pytest.approx(decoder.value, rel=1e-3)
        assert nn.Sequential(model, decoder.linear())(probe_set.heldout_inputs).dtype == dtype
