"""Forward passes and products never wait for their results: on a GPU that would leave it idle."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import phasefast as pf
from phasefast.engine import Engine
from phasefast.stages.statistics import accumulate
from tests.conftest import SmallNet

WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select"}


class Waits(TorchDispatchMode):
    """Counts the operators whose result the host has to see."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._schema.name in WAITING
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("batchnorm", ["recompute", "batch", "running"])
def test_the_host_waits_no_more_often_for_more_batches(
    net: SmallNet, probe_set: pf.ProbeSet, batchnorm: pf.types.BatchNormMode
) -> None:
    counts = []
    for batch_size in (150, 10):
        engine = Engine(net, probe_set, layers=["conv", "hidden"], batchnorm=batchnorm, batch_size=batch_size)
        engine.activations()
        with Waits() as waits:
            engine.activations()
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0


def test_products_wait_for_nothing(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    engine = Engine(net, probe_set, layers=["conv", "hidden"])
    cells = engine.activations()
    with Waits() as waits:
        accumulate(cells, engine.targets, torch.float32)
    assert waits.count == 0


@pytest.mark.cuda
def test_a_gpu_does_not_wait_either(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    net.cuda()
    counts = []
    for batch_size in (150, 10):
        engine = Engine(net, probe_set, layers=["conv", "hidden"], batch_size=batch_size)
        engine.activations()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                cells = engine.activations()
            torch.cuda.set_sync_debug_mode("error")
            accumulate(cells, engine.targets, torch.float32)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(warning.message) for warning in seen))
    assert counts[0] == counts[1]
