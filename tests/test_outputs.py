"""What is made of the outputs of models and layers."""

from __future__ import annotations

import random
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal, RelaxedOneHotCategorical

import phasefast as pf
from phasefast.errors import LayerError
from tests.conftest import SmallNet
from tests.quiet import no_warnings


@dataclass
class Output:
    loss: torch.Tensor | None
    hidden: torch.Tensor
    logits: torch.Tensor


@pytest.mark.parametrize(
    "form",
    [
        tuple,
        list,
        lambda pair: {"hidden": pair[1], "logits": pair[0]},
        lambda pair: Output(None, pair[1], pair[0]),
        lambda pair: (pair[0].mean(), pair[0]),
        lambda pair: namedtuple("Named", "hidden logits")(pair[1], pair[0]),
        lambda pair: [(pair[0].mean(), {"hidden": pair[1], "logits": (pair[0],)})],
        lambda pair: (None, pair[0]),
        lambda pair: ({"loss": pair[0].mean()}, pair[0]),
        lambda pair: {"logits": None, "scores": pair[0]},
        lambda pair: (pair[0].mean(1), pair[0].argmax(1, keepdim=True), pair[0]),  # a loss per sample, and classes
    ],
)
def test_the_models_own_scores_are_found_among_several_outputs(
    net: SmallNet, probe_set: pf.ProbeSet, form: Callable[[Any], Any]
) -> None:
    class Several(SmallNet):
        def forward(self, x: torch.Tensor) -> Any:
            return form((super().forward(x), x))

    several = Several()
    several.load_state_dict(net.state_dict())
    own = [pf.probe(model, probe_set, layers="hidden", alphas=[0.1]).filter(layer="model") for model in (net, several)]
    assert len(own[0]) == 4
    assert own[0].to_arrow().column("value").equals(own[1].to_arrow().column("value"))


class Table(SmallNet):
    """Gives a table before its outputs, as large as no first batch, or alone."""

    alone = False

    def forward(self, x: torch.Tensor) -> Any:
        output = super().forward(x)
        return torch.ones(4, 3) if self.alone else (torch.ones(4, 3), output)


def test_a_table_is_no_output_of_samples(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    table = Table()
    table.load_state_dict(net.state_dict())
    for batch_size in (None, 4):  # as large as some batches
        both = [
            pf.probe(each, probe_set, layers="hidden", alphas=[0.1], batch_size=batch_size) for each in (net, table)
        ]
        expected, found = (each.filter(layer="model").to_arrow().column("value") for each in both)
        assert len(found) == 4
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    table.alone = True
    for batch_size in (None, 4):
        scores = pf.probe(table, probe_set, layers="hidden", alphas=[0.1], batch_size=batch_size)
        assert len(scores.filter(layer="model")) == 0


def test_similarities_of_the_samples_of_a_batch_are_no_output_of_classes(probe_set: pf.ProbeSet) -> None:
    class Similarities(SmallNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (own := super().forward(x)) @ own.T

    scores = pf.probe(Similarities(), probe_set, layers="hidden", alphas=[0.1], batch_size=13)
    assert (scores.layers, len(scores.filter(layer="model"))) == (["hidden"], 0)


def test_a_model_that_gives_nan_knows_no_class(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    with torch.no_grad():
        net.head.bias.fill_(float("nan"))
    with pytest.warns(RuntimeWarning, match="left out 1 at step 0: layer 'model': NaN or Inf in the model's outputs"):
        scores = pf.probe(net, probe_set, layers="conv")
    assert scores.values_of("layer") == ["conv"]


@pytest.mark.parametrize("draw", [lambda: float(torch.rand([])), random.random, np.random.rand])
def test_a_model_that_draws_random_numbers_is_told(probe_set: pf.ProbeSet, draw: Callable[[], float]) -> None:
    class Scaled(SmallNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * draw())

    model, found = Scaled(), []
    for _ in range(2):
        draw()  # the training's own
        with pytest.warns(RuntimeWarning, match="the model's outputs depend on random numbers, which its forward"):
            found.append(pf.probe(model, probe_set, layers="hidden", alphas=[0.1]).to_arrow().drop_columns("seconds"))
    assert found[0].equals(found[1])


def test_dropout_draws_none_in_evaluation_mode(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    with no_warnings():
        pf.probe(torch.nn.Sequential(torch.nn.Dropout(0.5), net), probe_set, layers="1.hidden")


def test_random_numbers_that_change_nothing_are_not_told(probe_set: pf.ProbeSet) -> None:
    class Skips(SmallNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            skip = torch.rand([]) < 0.5 and self.training  # as of layers that are dropped in training
            return super().forward(0 * x if skip else x)

    with no_warnings():
        pf.probe(Skips(), probe_set, layers="hidden")


def test_a_number_for_each_sample_asks_for_an_axis(probe_set: pf.ProbeSet) -> None:
    class Scalar(SmallNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[:, 0]

    with pytest.raises(LayerError, match=r"layer '0': .* got shape \(7,\) for 7 samples; give it a second axis"):
        pf.probe(torch.nn.Sequential(Scalar()), probe_set, layers="0")


@pytest.mark.filterwarnings("ignore:no rows of layer 'model'")
def test_a_model_may_return_one_number(probe_set: pf.ProbeSet) -> None:
    class Loss(SmallNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).mean()

    assert pf.probe(Loss(), probe_set, layers="hidden").layers == ["hidden"]


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float16, 6), (torch.bfloat16, 3), (torch.bfloat16, 40), (torch.float64, 300)]
)
@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_probabilities_of_all_types_are_known_as_such(dtype: torch.dtype, scale: int, batch_size: int) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(160, 5), torch.randint(10, (160,))
    probe_set = pf.ProbeSet.from_tensors(x[:100], y[:100], x[100:], y[100:])

    class Rounded(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (scale * super().forward(x)).double().softmax(1).to(dtype)

    model = nn.Sequential(nn.Linear(5, 5), Rounded(5, 10))
    scores = pf.probe(model, probe_set, layers="0", batch_size=batch_size)
    with torch.no_grad():
        own = model(probe_set.heldout_inputs).double().gather(1, probe_set.heldout_labels[:, None])
    expected = -own.log().mean()
    assert scores.value(layer="model", metric="loss", split="heldout") == pytest.approx(float(expected), rel=1e-6)


def test_logits_that_sum_to_one_are_no_probabilities(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    class Centred(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 30 * (x - x.mean(1, keepdim=True)) + 1 / 3

    scores = pf.probe(nn.Sequential(net, Centred()), probe_set, layers="0.hidden", batchnorm="running")
    with torch.no_grad():
        expected = nn.functional.cross_entropy(30 * net.eval()(probe_set.heldout_inputs), probe_set.heldout_labels)
    assert scores.value(layer="model", metric="loss", split="heldout") == pytest.approx(float(expected), rel=1e-5)


def test_one_class_that_is_nan_loses_the_models_rows(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    class Lost(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, torch.full_like(x[:, :1], torch.nan)], 1)

    with pytest.warns(RuntimeWarning, match="NaN or Inf in the model's outputs"):
        scores = pf.probe(nn.Sequential(net, Lost()), probe_set, layers="0.hidden", targets=[pf.Label(4)])
    assert not len(scores.filter(layer="model"))


def test_the_loss_of_certain_logits_in_float64_is_not_negative(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    class Certain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot((1000.3 * x).argmax(1), 3) * 1000.3 + x

    wide = pf.ProbeSet(probe_set.fit_inputs.double(), None, probe_set.heldout_inputs.double(), None)
    net = net.double().eval()
    with torch.no_grad():
        own = [net(each).argmax(1) for each in (wide.fit_inputs, wide.heldout_inputs)]
    sure = pf.ProbeSet(wide.fit_inputs, own[0], wide.heldout_inputs, own[1])
    scores = pf.probe(nn.Sequential(net, Certain()), sure, layers="0.hidden", batchnorm="running")
    assert scores.value(layer="model", metric="loss", split="heldout") == 0


def test_nan_in_one_split_leaves_the_probabilities_of_the_other(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    model = nn.Sequential(net, nn.Softmax(1))
    held = probe_set.heldout_inputs

    class Lost(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = model(x)
            return found / 0 * 0 if torch.equal(x[0], held[0]) else found

    usual, whole = pf.probe(model, probe_set, layers="0.hidden"), Lost()
    whole.add_module("inside", model)
    with pytest.warns(RuntimeWarning, match="NaN or Inf in the model's outputs for 'label' on the heldout rows"):
        scores = pf.probe(whole, probe_set, layers="inside.0.hidden")
    fit = {"layer": "model", "metric": "loss", "split": "fit"}
    assert scores.value(**fit) == pytest.approx(usual.value(**fit), rel=1e-6)
    assert not len(scores.filter(layer="model", split="heldout"))


def test_the_loss_of_a_probability_that_was_rounded_to_0_is_finite(probe_set: pf.ProbeSet) -> None:
    class Certain(SmallNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot(super().forward(x).argmax(1), 3).float()

    scores = pf.probe(Certain(), probe_set, layers="hidden", alphas=[0.1])
    wrong = 1 - scores.value(layer="model", metric="accuracy", split="heldout")
    tiny = np.log(np.finfo(np.float32).smallest_subnormal)
    assert scores.value(layer="model", metric="loss", split="heldout") == pytest.approx(-wrong * tiny, rel=1e-6)


@pytest.mark.parametrize("form", ["logits", "probabilities", "logarithms"])
@pytest.mark.parametrize("batch_size", [5, 64])
def test_the_loss_is_the_cross_entropy_of_logits_or_probabilities(
    net: SmallNet, probe_set: pf.ProbeSet, form: str, batch_size: int
) -> None:
    last = {"logits": nn.Identity(), "probabilities": nn.Softmax(1), "logarithms": nn.LogSoftmax(1)}[form]
    with torch.no_grad():
        net.head.weight *= 30
        logits = net.eval()(probe_set.heldout_inputs).double()
    expected = nn.functional.cross_entropy(logits, probe_set.heldout_labels)
    with no_warnings():
        scores = pf.probe(
            nn.Sequential(net, last), probe_set, layers="0.hidden", batch_size=batch_size, batchnorm="running"
        )
    assert scores.value(layer="model", metric="loss", split="heldout") == pytest.approx(float(expected), rel=1e-4)


class Policy(SmallNet):
    """Gives a distribution over actions, and a value."""

    def __init__(self, of: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: torch.Tensor) -> Any:
        logits = super().forward(x)
        return self.of(logits), logits[:, :1]


def test_distributions_are_their_logits_or_means(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    expected = pf.probe(net, probe_set, layers="hidden", alphas=[0.1])
    for of in (
        lambda logits: Categorical(logits=logits),
        lambda logits: {"pi": Independent(Normal(logits, 1.0), 1)},
        lambda logits: RelaxedOneHotCategorical(torch.tensor(1.0), logits=logits),
    ):
        model = Policy(of)
        model.load_state_dict(net.state_dict())
        found = pf.probe(model, probe_set, layers="hidden", alphas=[0.1])
        for metric in ("accuracy", "loss"):
            own = {"layer": "model", "metric": metric, "split": "heldout"}
            assert found.value(**own) == pytest.approx(expected.value(**own), rel=1e-5)


def test_a_model_that_predicts_none_of_the_targets_has_no_rows(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    with no_warnings():
        for model in (net, nn.Sequential(net, nn.Linear(3, 2))):
            scores = pf.probe(model, probe_set, predicts="none", layers="*hidden")
            assert "model" not in scores.values_of("layer")
