"""Layers that are asked for: by globs and names; what is left out, what matches nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.errors import LayerError
from phasefast.layers.selection import select_layers


class Odd(nn.Module):
    """Children of which one gives integers, one no rows, and one several tensors of which the first is usable."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.pair, self.index, self.total = Pair(), Index(), Total()
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        self.index(hidden), self.total(hidden)
        return self.head(self.pair(hidden)[0])


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.relu(), x


class Index(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1)


class Total(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum()


def test_layers_are_left_out_of_a_model() -> None:
    assert select_layers(Odd(), "!head") == ["body", "pair", "index", "total"]
    assert select_layers(nn.Sequential(Odd()), ["0.*", "!*.[it]*"]) == ["0.body", "0.pair", "0.head"]
    with pytest.raises(LayerError, match=r"no layer matches '!heed' among 5 module names; closest: \['head'\]"):
        select_layers(Odd(), ["*", "!heed"])
    with pytest.raises(LayerError, match="'!head:1' is one call of 'head'; all calls of a module are probed, or none"):
        select_layers(Odd(), ["*", "!head:1"])
    with pytest.raises(LayerError, match=r"\['head', '!head'\] leave none of 5 modules to probe"):
        select_layers(Odd(), ["head", "!head"])


def test_children_whose_outputs_are_no_rows_are_left_out_and_named() -> None:
    probe_set = pf.ProbeSet.from_tensors(torch.randn(40, 6), None, torch.randn(20, 6), None)
    for layers in (None, "*", ["body", "[!b]*"]):
        with pytest.warns(
            RuntimeWarning, match="left out 2: layer 'index': .*got torch.int64; layer 'total': .* shape"
        ):
            assert pf.probe(Odd(), probe_set, layers=layers).layers == ["body", "pair", "head"]
    assert pf.probe(Odd(), probe_set, layers="!?[no]*").layers == ["pair", "head"]
    for layers in (["index", "*"], "in*"):
        with pytest.raises(LayerError, match="layer 'index': expected a floating-point tensor"):
            pf.probe(Odd(), probe_set, layers=layers)


def test_a_module_whose_name_is_a_glob_is_the_one_that_is_probed() -> None:
    model = nn.ModuleDict({"block[0]": nn.Linear(6, 6), "block0": nn.Linear(6, 5)})
    assert select_layers(model, model["block[0]"]) == select_layers(model, "block[0]") == ["block[0]"]
