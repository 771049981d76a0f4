"""Forward passes and products never wait for their results: on a GPU that would leave it idle."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

import phasefast as pf
from phasefast import certificates, scanning
from phasefast.engine import Engine
from phasefast.scoring import score_cells
from phasefast.stages import evaluate, gcv
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
    assert counts == [0, 0]  # whether all is finite is one copy


def test_products_wait_for_nothing(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    engine = Engine(net, probe_set, layers=["conv", "hidden"])
    cells = engine.activations()
    with Waits() as waits:
        accumulate(cells, engine.targets, torch.float32)
    assert waits.count == 0


class Device(TorchDispatchMode):
    """As if some tensors, and what is made of them, were on a GPU: counts copies to the host and values it looks at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.count, self._there = 0, [tensor.untyped_storage() for tensor in tensors]
        for module in (certificates, gcv, scanning, evaluate):
            monkeypatch.setattr(module, "fetched", self._fetched)
        for name in ("cpu", "tolist"):
            monkeypatch.setattr(torch.Tensor, name, self._copying(getattr(torch.Tensor, name)))

    def _is_there(self, tensor: torch.Tensor) -> bool:
        own = tensor.untyped_storage().data_ptr()
        return any(own == storage.data_ptr() for storage in self._there)

    def _fetched(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        self.count += any(map(self._is_there, tensors))
        with _disable_current_modes():
            return [tensor.double().clone() for tensor in tensors]

    def _copying(self, method: Any) -> Any:
        def copy(tensor: torch.Tensor) -> Any:
            self.count += self._is_there(tensor)
            with _disable_current_modes():
                return method(tensor.clone())

        return copy

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        out = func(*args, **(kwargs or {}))
        if any(map(self._is_there, given)):
            self.count += func._schema.name in WAITING
            changed = [args[i] for i, own in enumerate(func._schema.arguments[: len(args)]) if own.is_write]
            made = tree_leaves((out, changed, (kwargs or {}).get("out")))
            self._there += [each.untyped_storage() for each in made if isinstance(each, torch.Tensor)]
        return out


@pytest.mark.parametrize(("alphas", "most"), [((1e-2,), 4), ((1e-4, 1e-2, 1.0), 8)])
def test_the_host_waits_few_times_for_a_cell(
    monkeypatch: pytest.MonkeyPatch, net: SmallNet, probe_set: pf.ProbeSet, alphas: tuple[float, ...], most: int
) -> None:
    """For the penalty's scale; its errors, by all rows and some; certificates and the factor's facts; scores."""
    engine = Engine(net, probe_set, layers=["hidden"], alphas=alphas)
    cells, targets = engine.activations(), engine.targets
    inputs = [cells[0].fit, cells[0].heldout, cells[0].sums, targets.fit, targets.heldout, targets.sketch.fit]
    probes = [part for probe in targets.probes for part in (probe.directions, probe.fit, probe.heldout)]
    with monkeypatch.context() as patch, Device(patch, [*inputs, *probes]) as device:
        scores = list(score_cells(cells, targets, engine.method))
    assert len(scores) == 6
    assert 0 < device.count <= most


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
