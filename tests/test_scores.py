"""What is asked of scores."""

from __future__ import annotations

import pytest

import phasefast as pf
from phasefast.scores import Scores, in_order

from .conftest import SmallNet
from .report.synthetic import make_scores


def test_curves_that_are_not_there_are_named(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    scores = pf.probe(net, probe_set, layers="conv", step=3)
    value = scores.value(layer="conv", target="input", metric="fvu", split="heldout")
    assert [part.tolist() for part in scores.curve("conv", "input", "fvu")] == [[3], [value]]
    assert scores.has_curve("conv", "input", "mse", "fit")
    assert not scores.has_curve("conv", "input", "accuracy")
    for given, message in (
        (("cov", "input", "fvu"), r"no scores of layer 'cov': expected one of \['model', 'conv'\]"),
        (("conv", "inputs", "fvu"), r"no scores of target 'inputs': expected one of \['input', 'label'\]"),
        (("conv", "input", "accuracy"), r"no scores of metric 'accuracy': expected one of \["),
        (("conv", "input", "fvu", "test"), r"no scores of split 'test': expected one of \['heldout', 'fit'\]"),
    ):
        with pytest.raises(LookupError, match=message):
            scores.curve(*given)
    both = pf.Scores.concat([scores, scores.with_column("run", "other")])
    with pytest.raises(LookupError, match=r"expected the scores of one run, got those of \['run', 'other'\]"):
        both.curve("conv", "input", "fvu")
    assert both.filter(run="other").curve("conv", "input", "fvu")[1].tolist() == [value]


def test_layers_are_in_the_order_of_a_step_that_lost_none() -> None:
    assert in_order([(0, "b"), (0, "c"), (1, "a"), (1, "b"), (1, "c"), (2, "d")]) == ["a", "b", "c", "d"]
    assert in_order([]) == []
    lost = make_scores(["a", "b", "c"], [0, 1]).to_arrow().to_pylist()
    scores = Scores.from_rows([row for row in lost if row["step"] == 1 or row["layer"] != "a"])
    assert scores.layers == ["a", "b", "c"]
