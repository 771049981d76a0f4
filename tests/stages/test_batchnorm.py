"""Which statistics BatchNorm layers normalise with: those of ranks that measure alone, and of frozen layers."""

from __future__ import annotations

import pytest
import torch
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
