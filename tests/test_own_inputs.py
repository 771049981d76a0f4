"""Predictions that a model writes into its inputs, and tensors that several targets share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from tests.quiet import no_warnings
from tests.test_own_places import Heads, samples


def in_place(x: Tensor) -> Tensor:
    return x.mul_(2).sub_(1)


def errors(model: nn.Module, probe_set: pf.ProbeSet, predicts: str | list[str]) -> dict[str, float]:
    scores = pf.probe(model, probe_set, layers="body", predicts=predicts, alphas=[0.1]).filter(layer="model")
    rows = scores.filter(metric="mse", split="heldout").to_arrow().to_pylist()
    return {row["target"]: row["value"] for row in rows}


@pytest.mark.parametrize(
    ("form", "tells"),
    [
        (lambda x, z: {"value": in_place(x), "hidden": z}, ""),
        (lambda x, z: (in_place(x), z[:, :3]), ""),
        (lambda x, z: in_place(x), ""),
        (lambda x, z: (in_place(x), z), "2 tensors that may be what it predicts"),
        (lambda x, z: {"other": [in_place(x)], "hidden": z}, "2 tensors that may be what it predicts"),
    ],
)
def test_what_is_written_into_the_inputs_is_a_prediction(form: Callable[[Tensor, Tensor], Any], tells: str) -> None:
    probe_set = samples(value=lambda x: 2 * x - 1)
    with pytest.warns(RuntimeWarning, match=tells) if tells else no_warnings():
        assert errors(Heads(form), probe_set, "value") == {"value": pytest.approx(0, abs=1e-12)}


def test_so_is_what_a_module_writes_there() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.body = nn.ReLU(inplace=True), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.act(x)
            return x, self.body(x)

    assert errors(First(), samples(value=torch.relu), "value") == {"value": 0.0}


def test_inputs_that_are_given_back_as_they_were_are_none() -> None:
    with no_warnings():
        found = errors(Heads(lambda x, z: (x, 2 * x - 1)), samples(value=lambda x: 2 * x - 1), "value")
    assert found == {"value": 0.0}


@pytest.mark.parametrize(
    "form",
    [lambda x, y: {"input": x, "recon": y}, lambda x, y: {"x": x, "recon": y}, lambda x, y: (x, y), lambda x, y: y],
)
def test_inputs_that_were_normalised_in_place_are_no_reconstructions(form: Callable[[Tensor, Tensor], Any]) -> None:
    with no_warnings():
        found = errors(Heads(lambda x, z: form(x.sub_(0.1), 0 * z)), samples(), "input")
    assert found["input"] > 0.9


@pytest.mark.parametrize(
    "others",
    [
        lambda x: {},
        lambda x: {"a": x[:, :2].mean(), "b": x[:, 2:4].mean()},  # losses by the names of the targets
        lambda x: {"a": x[:, :2].long(), "b": x[:, 2:4].long()},
    ],
)
def test_one_tensor_for_several_targets_is_told(others: Callable[[Tensor], dict[str, Tensor]]) -> None:
    probe_set = samples(a=lambda x: x[:, :2], b=lambda x: x[:, 2:4])
    with pytest.warns(RuntimeWarning, match=r"\['a', 'b'\] are all compared with the same tensor"):
        found = errors(Heads(lambda x, z: {**others(x), "q": x[:, :2]}), probe_set, ["a", "b"])
    assert found["a"] == 0 < found["b"]


def test_a_tensor_of_both_names_is_not() -> None:
    probe_set = samples(a=lambda x: x[:, :2], b=lambda x: x[:, 2:4])

    def form(x: Tensor, z: Tensor) -> dict[str, Tensor]:
        one = z[:, :2]
        return {"a": one, "b": one}

    with no_warnings():
        assert errors(Heads(form), probe_set, ["a", "b"]).keys() == {"a", "b"}


def test_a_logit_written_over_a_probability_is_none() -> None:
    def form(x: Tensor, z: Tensor) -> Tensor:
        share = torch.sigmoid(5 * x[:, :1])
        return torch.logit(share, out=share)

    probe_set = samples(labels=lambda x: (x[:, 0] > 0).long())
    found = [
        pf.probe(Heads(each), probe_set, layers="body", alphas=[0.1])
        .filter(layer="model", metric="loss")
        .to_arrow()
        .column("value")
        .to_pylist()
        for each in (form, lambda x, z: 5 * x[:, :1])
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
