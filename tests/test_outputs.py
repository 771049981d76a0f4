"""What is made of the outputs of models and layers."""

from __future__ import annotations

import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import phasefast as pf
from tests.conftest import SmallNet


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
    with pytest.warns(RuntimeWarning, match="left out 1 at step 0: layer 'model': NaN in the model's outputs"):
        scores = pf.probe(net, probe_set, layers="conv")
    assert scores.values_of("layer") == ["conv"]


def test_a_model_that_draws_random_numbers_is_told(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    class Masked(SmallNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * (torch.rand(x.shape) > 0.5))

    model = torch.nn.Sequential(torch.nn.Dropout(0.5), net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pf.probe(model, probe_set, layers="1.hidden")
    with pytest.warns(RuntimeWarning, match="forward draws random numbers in evaluation mode too"):
        pf.probe(Masked(), probe_set, layers="hidden")


def test_a_number_for_each_sample_is_a_row() -> None:
    class Scalar(torch.nn.Module):
        def __init__(self, flat: bool) -> None:
            super().__init__()
            self.flat, self.body = flat, torch.nn.Linear(8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)[:, 0] if self.flat else self.body(x)

    x = torch.randn(60, 8)
    probe_set = pf.ProbeSet.from_tensors(x[:40], None, x[40:], None)
    torch.manual_seed(0)
    members = torch.nn.ModuleList([Scalar(True), Scalar(False)])
    members[1].load_state_dict(members[0].state_dict())
    found = []
    for member in members:
        found.append(pf.probe(torch.nn.Sequential(member), probe_set, layers="0", alphas=[0.1]))
    assert [each.value(layer="0", metric="fvu", split="heldout") for each in found] == [
        found[0].value(layer="0", metric="fvu", split="heldout")
    ] * 2
