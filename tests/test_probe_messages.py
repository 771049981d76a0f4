"""What ``probe`` says of models and data that do not go together."""

from __future__ import annotations

import pytest
import torch

import phasefast as pf
from tests.conftest import SmallNet


def test_a_model_that_cannot_take_the_samples_says_what_it_was_given(net: SmallNet) -> None:
    x, y = torch.randint(0, 255, (60, 1, 6, 6), dtype=torch.uint8), torch.randint(0, 3, (60,))
    with pytest.raises(RuntimeError) as caught:
        pf.probe(net, pf.ProbeSet.from_tensors(x[:40], y[:40], x[40:], y[40:]), layers="hidden")
    assert "samples of shape (1, 6, 6), torch.uint8" in caught.value.__notes__[0]


def test_labels_that_the_model_was_not_trained_on_are_said_once(net: SmallNet) -> None:
    x, y = torch.randn(60, 1, 6, 6), torch.randint(1, 4, (60,))  # from 1 to 3, where the model has three outputs
    probe_set = pf.ProbeSet.from_tensors(x[:40], y[:40], x[40:], y[40:])
    with pytest.warns(RuntimeWarning, match="the model has 3 outputs, target 'label' 4 classes") as caught:
        scores = pf.probe(net, probe_set, layers="hidden")
    assert len(caught) == 1
    assert "model" not in scores.to_pandas()["layer"].tolist()
