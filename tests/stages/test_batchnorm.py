"""Which statistics BatchNorm layers normalise with: those of ranks that measure alone, and of frozen layers."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

import phasefast as pf
from tests.conftest import SmallNet
from tests.quiet import no_warnings
from tests.test_sweep import without_seconds


class WithActivation(nn.SyncBatchNorm):
    """As timm's: a forward of its own around that of SyncBatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def synchronised(net: SmallNet) -> nn.Module:
    """SyncBatchNorm, which refuses a CPU as soon as it looks for other ranks."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(net)


def derived(net: SmallNet) -> nn.Module:
    other = WithActivation(6)
    other.load_state_dict(net.norm.state_dict())
    net.norm = other  # type: ignore[assignment]
    return net


@pytest.mark.parametrize("batchnorm", ["recompute", "batch", "running"])
@pytest.mark.parametrize("convert", [synchronised, derived])
def test_one_rank_measures_without_the_others(
    net: SmallNet, probe_set: pf.ProbeSet, batchnorm: str, convert: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"layers": ["norm", "hidden"], "batchnorm": batchnorm}
    expected = without_seconds(pf.probe(net, probe_set, **options))
    model = convert(net)  # type: ignore[operator]
    forward = nn.SyncBatchNorm.forward
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    found = pf.probe(model, probe_set, **options)
    same = [{**row, "config_hash": None} for row in without_seconds(found)]  # of another module's name
    assert same == [{**row, "config_hash": None} for row in expected]
    assert nn.SyncBatchNorm.forward is forward
    with pytest.raises(ValueError, match="expected input tensor to be on"):
        model.train()(probe_set.fit_inputs)


def test_frozen_layers_are_told(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    net.train()
    net.norm.eval()
    tracker = pf.PhaseTracker(net, probe_set, out=None, on_error="raise", layers="hidden")
    with pytest.warns(RuntimeWarning, match=r"\['norm'\].*if they are frozen, give batchnorm='running'"):
        tracker.step(0)
    with no_warnings():
        tracker.step(1)  # told once
        pf.probe(net, probe_set, layers="hidden", batchnorm="running")
        pf.probe(net.eval(), probe_set, layers="hidden")


def settled(net: SmallNet, inputs: Tensor, batches: int) -> SmallNet:
    """After so many batches in training mode, of these inputs."""
    net.train()
    with torch.no_grad():
        for batch in inputs.repeat(1 + batches * 16 // len(inputs), 1, 1, 1).split(16)[:batches]:
            net(batch)
    return net.eval()


@pytest.mark.parametrize("change", [lambda x: x * 0.25, lambda x: x * 255, lambda x: x / 3 + 4])
def test_inputs_that_are_not_scaled_as_in_the_training_are_told(net: SmallNet, probe_set: pf.ProbeSet, change) -> None:  # type: ignore[no-untyped-def]
    settled(net, probe_set.fit_inputs, 150)
    options: dict[str, object] = {"layers": "hidden", "targets": "input", "alphas": [0.1]}
    with no_warnings():
        pf.probe(net, probe_set, **options)  # type: ignore[arg-type]
    other = pf.ProbeSet.from_tensors(change(probe_set.fit_inputs), None, change(probe_set.heldout_inputs), None)
    with pytest.warns(RuntimeWarning, match=r"running statistics of 'norm', the first BatchNorm, are far from those"):
        pf.probe(net, other, **options)  # type: ignore[arg-type]
    with no_warnings():
        pf.probe(net, other, batchnorm="running", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("batches", [0, 1, 20, 90])
def test_running_statistics_that_have_not_settled_tell_nothing(
    net: SmallNet, probe_set: pf.ProbeSet, batches: int
) -> None:
    settled(net, 255 * probe_set.fit_inputs, batches)
    with no_warnings():
        pf.probe(net, probe_set, layers="hidden", targets="input", alphas=[0.1])


def test_norms_with_more_buffers_or_another_average_are_measured(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    settled(net, probe_set.fit_inputs, 150)
    nn.utils.prune.l1_unstructured(net.norm, "weight", 0.5)
    with no_warnings():
        pf.probe(net, probe_set, layers="hidden", targets="input", alphas=[0.1])
    fresh = SmallNet()
    fresh.norm.momentum = None
    with no_warnings():
        pf.probe(fresh, probe_set, layers="hidden", targets="input", alphas=[0.1])


def test_features_that_are_constant_or_sparse_are_of_the_same_inputs() -> None:
    x = (torch.rand(600, 200) < 0.003).float()
    x[:, 100:] = 1.0
    net = nn.Sequential(nn.BatchNorm1d(200), nn.Linear(200, 3)).train()
    with torch.no_grad():
        for batch in x[:400].repeat(12, 1).split(32):
            net(batch)
    probe_set = pf.ProbeSet.from_tensors(x[400:550], None, x[550:], None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pf.probe(net.eval(), probe_set, layers="1", alphas=[0.1])
    assert not [each for each in caught if "running statistics" in str(each.message)]
