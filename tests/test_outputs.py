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
    """Gives a table beside its outputs, as large as no batch."""

    def forward(self, x: torch.Tensor) -> Any:
        return torch.ones(4, 3), super().forward(x)


def test_a_table_is_no_output_of_samples(probe_set: pf.ProbeSet) -> None:
    for batch_size in (None, 4):  # as large as some batches
        scores = pf.probe(Table(), probe_set, layers="hidden", alphas=[0.1], batch_size=batch_size)
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
