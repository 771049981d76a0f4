"""What is told of samples: transforms that are random, or of one split only; and values that are added later."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import phasefast as pf
from phasefast.errors import DataError
from tests.conftest import SmallNet, images
from tests.quiet import no_warnings


class Flipped:
    """Images that may be flipped, by each generator that transforms draw from."""

    def __init__(self, inputs: Tensor, by: str) -> None:
        self.inputs, self.by = inputs, by

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        drawn = {"torch": torch.rand(()).item(), "numpy": np.random.rand(), "python": random.random(), "": 0.0}
        return (self.inputs[i].flip(-1) if drawn[self.by] > 0.5 else self.inputs[i]), i % 3


@pytest.mark.parametrize("by", ["torch", "numpy", "python"])
def test_random_transforms_are_told(by: str) -> None:
    fit, heldout = images(40, 1)[0], images(20, 2)[0]
    with pytest.warns(RuntimeWarning, match="fit: the data set gives other inputs each time, as random transforms do"):
        pf.ProbeSet.from_dataset(Flipped(fit, by), Flipped(heldout, ""))
    with pytest.warns(RuntimeWarning, match="heldout: the data set gives other inputs"):
        pf.ProbeSet.from_dataset(Flipped(fit, ""), Flipped(heldout, by))


def test_random_states_stay_as_they_are() -> None:
    fit, heldout = images(40, 1)[0], images(20, 2)[0]
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    with no_warnings():
        pf.ProbeSet.from_dataset(Flipped(fit, ""), Flipped(heldout, ""))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (str(np.random.get_state()), random.getstate()) == before[1:]


class Made:
    """Samples that are made when they are asked for."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.randn(4), i % 3


def test_splits_of_samples_that_are_drawn_are_not_the_same() -> None:
    with pytest.warns(RuntimeWarning, match="the data set gives other inputs each time"):
        probe_set = pf.ProbeSet.from_dataset(Made(), Made())
    assert not set(probe_set.fit_inputs[:, 0].tolist()) & set(probe_set.heldout_inputs[:, 0].tolist())


@pytest.mark.parametrize(
    ("scale", "shift"), [(255.0, 0.0), (1 / 255, 0.0), (0.25, 0.5), (1.0, 1.5), (1.0, -1.5), (2.2, 0.0), (0.45, 0.0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_splits_that_were_normalised_in_different_ways_are_told(scale: float, shift: float, dtype: torch.dtype) -> None:
    x = torch.randn(60, 3, 8, 8)
    fit, heldout = x[:40].to(dtype), (x[40:] * scale + shift).to(dtype)
    with pytest.warns(RuntimeWarning, match="held-out inputs have mean .*, fit inputs mean .*: if"):
        pf.ProbeSet.from_tensors(fit, None, heldout, None)


@pytest.mark.parametrize("seed", range(20))
def test_splits_of_one_kind_are_not_told(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for count in (2, 7, 8, 30):
        plain = torch.randn(50 + count, 3, 4, 4, generator=g)
        dark = plain * torch.randn(50 + count, 1, 1, 1, generator=g).exp() + torch.randn(
            50 + count, 1, 1, 1, generator=g
        )
        heavy = plain.tan()
        one = torch.zeros(50 + count, 9).scatter_(1, torch.randint(9, (50 + count, 1), generator=g), 1.0)
        columns = plain.flatten(1) * torch.logspace(-3, 6, 48)
        one = one + 1e-3 * torch.randn(one.shape, generator=g)
        with no_warnings():
            for x in (plain, dark, heavy, one, columns):
                pf.ProbeSet.from_tensors(x[:50], None, x[50:], None)


@pytest.mark.parametrize("seed", range(10))
def test_subjects_that_differ_are_not_told(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    subjects = torch.arange(24).repeat_interleave(torch.randint(5, 30, (24,), generator=g))
    gains = torch.randn(24, generator=g).exp()
    x = torch.randn(len(subjects), 6, generator=g) * gains[subjects, None] + gains.flip(0)[subjects, None]
    for first in (14, 23):  # held out are ten, or one
        own = subjects < first
        groups = subjects[own], subjects[~own]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            pf.ProbeSet.from_tensors(x[own], None, x[~own], None, groups=groups)
        assert [str(each.message)[:9] for each in told] == ["groups: 1"] * (first == 23)
    mild = torch.randn(len(x), 6, generator=g) * gains[subjects, None] ** 0.25
    for first in (4, 12, 20):
        own = subjects < first
        groups = subjects[own], subjects[~own]
        for held in (255 * mild[~own], mild[~own] / 255, 58 * mild[~own] + 120):
            with pytest.warns(RuntimeWarning, match="held-out inputs have mean"):
                pf.ProbeSet.from_tensors(mild[own], None, held, None, groups=groups)


def test_values_that_are_added_later_are_of_the_same_samples(tmp_path: Path) -> None:
    (x, labels), net = images(120, 1), SmallNet()
    own = torch.randn(120)
    probe_set = pf.ProbeSet.from_tensors(x[:80], labels[:80], x[80:], labels[80:], values={"own": (own[:80], own[80:])})
    before = pf.sweep(net, {0: net.state_dict()}, probe_set, out=tmp_path, layers="hidden", targets="label")
    first = (probe_set.fit_labels == 0, probe_set.heldout_labels == 0)
    more = probe_set.with_values({"first": first})
    assert torch.equal(more.fit_inputs, probe_set.fit_inputs)
    assert sorted(more.fit_values) == ["first", "own"]
    assert sorted(probe_set.fit_values) == ["own"]
    after = pf.sweep(net, {0: net.state_dict()}, more, out=tmp_path, layers="hidden", targets=["label", "first"])
    assert after.targets == ["label", "first"]
    assert after.value(layer="hidden", target="first", metric="accuracy", split="heldout") > 0.9
    one = {"layer": "hidden", "target": "label", "metric": "accuracy", "split": "heldout"}
    assert after.value(**one) == before.value(**one)
    with pytest.raises(DataError, match="values 'first': expected numbers"):
        probe_set.with_values({"first": (first[0][:5], first[1])})
    with pytest.raises(DataError, match=r"values: expected .* got Tensor for 'first'"):
        probe_set.with_values({"first": first[0]})  # type: ignore[dict-item]


def test_what_is_no_data_set_of_samples_and_labels_is_told_with_what_to_give() -> None:
    x, labels = images(30, 1)
    data = TensorDataset(x, labels)
    with pytest.raises(DataError, match=r"got DataLoader; give its data set, loader.dataset"):
        pf.ProbeSet.from_dataset(DataLoader(data), data)
    one_hot = torch.nn.functional.one_hot(labels, 3).float()
    with pytest.raises(DataError, match=r"got \(3,\) torch.float32; of one-hot labels give label.argmax\(\)"):
        pf.ProbeSet.from_dataset(TensorDataset(x, one_hot), data)
    with pytest.raises(DataError, match=r"got torch.float32; .*; of one-hot labels give labels.argmax\(1\)"):
        pf.ProbeSet.from_tensors(x, one_hot, x, one_hot)
    with pytest.raises(
        pf.errors.ArgumentError, match=r"probe_set: expected a ProbeSet, got TensorDataset; ProbeSet.from_dataset"
    ):
        pf.probe(SmallNet(), data)  # type: ignore[arg-type]


def test_functions_of_labels_are_told_what_to_do() -> None:
    x, labels = images(40, 1)
    probe_set = pf.ProbeSet.from_tensors(x[:30], labels[:30], x[30:], labels[30:])
    target = pf.Function(lambda x, y: y, "classes", "task")  # type: ignore[misc, arg-type]
    with pytest.raises(TypeError) as caught:
        pf.probe(SmallNet(), probe_set, layers="hidden", targets=target)
    assert "for what is made of labels see ProbeSet.with_values" in "".join(caught.value.__notes__)
