"""What is stored is removed only for what can take its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import phasefast as pf
from phasefast.errors import SweepError
from tests.conftest import SmallNet


def stored(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture
def out(net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path) -> Path:
    for step in range(7):
        torch.save({"model": net.state_dict()}, tmp_path / f"step_{step}.pt")
    pf.sweep(net, tmp_path, probe_set, out=tmp_path / "out", layers="hidden")
    return tmp_path / "out"


@pytest.mark.parametrize("why", ["key", "model", "damaged"])
def test_a_sweep_that_can_load_nothing_removes_nothing(probe_set: pf.ProbeSet, out: Path, why: str) -> None:
    before, folder = stored(out), out.parent
    model, key = (nn.Sequential(nn.Flatten(), nn.Linear(36, 3)) if why == "model" else SmallNet()), None
    if why == "key":
        key = "emma"
    if why == "damaged":
        for path in folder.glob("step_*.pt"):
            path.write_bytes(b"damaged")
    with pytest.raises(SweepError, match=r"none was measured, so that .*out keeps what it had") as caught:
        pf.sweep(model, folder, probe_set, out=out, overwrite=True, key=key)
    assert caught.value.failed.keys() == set(range(7))
    assert stored(out) == before


@pytest.mark.parametrize("why", ["memory", "forward", "nan"])
def test_nor_does_one_that_can_measure_nothing(net: SmallNet, probe_set: pf.ProbeSet, out: Path, why: str) -> None:
    before, options = stored(out), {"memory": 1} if why == "memory" else {}
    if why == "forward":
        net.head.register_forward_hook(lambda *_: 1 / 0)
    if why == "nan":
        for step in range(7):
            state = {
                name: own * torch.nan if own.is_floating_point() else own for name, own in net.state_dict().items()
            }
            torch.save(state, out.parent / f"step_{step}.pt")
    with pytest.raises((SweepError, pf.errors.MemoryBudgetError, ZeroDivisionError)):
        pf.sweep(net, out.parent, probe_set, out=out, overwrite=True, **options)  # type: ignore[arg-type]
    assert stored(out) == before


def test_where_nothing_is_stored_failures_are(net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    for step in range(7):
        (tmp_path / f"step_{step}.pt").write_bytes(b"damaged")
    with pytest.raises(SweepError, match="none was measured"):
        pf.sweep(net, tmp_path, probe_set, out=tmp_path / "out", overwrite=True)
    assert pf.read_failures(tmp_path / "out").keys() == set(range(7))


def test_each_checkpoint_is_read_once(net: SmallNet, probe_set: pf.ProbeSet, out: Path) -> None:
    read = []

    def load(path: Path) -> dict[str, torch.Tensor]:
        read.append(path.name)
        return net.state_dict()

    pf.sweep(net, out.parent, probe_set, out=out, overwrite=True, layers="conv", load=load)
    assert sorted(read) == [f"step_{step}.pt" for step in range(7)]


@pytest.mark.parametrize("good", [0, 3, 5, 6])
def test_one_that_can_be_loaded_is_enough(net: SmallNet, probe_set: pf.ProbeSet, out: Path, good: int) -> None:
    for path in out.parent.glob("step_*.pt"):
        if path.name != f"step_{good}.pt":
            path.write_bytes(b"damaged")
    with pytest.raises(SweepError, match="6 of 7 checkpoints failed"):
        pf.sweep(net, out.parent, probe_set, out=out, overwrite=True, layers="conv")
    found = pf.read_scores(out)
    assert (found.steps, found.layers) == ([good], ["conv"])
    assert pf.read_failures(out).keys() == set(range(7)) - {good}


def test_what_is_removed_is_measured_anew(net: SmallNet, probe_set: pf.ProbeSet, out: Path) -> None:
    weights = [own.detach().clone() for own in net.parameters()]
    found = pf.sweep(net, out.parent, probe_set, out=out, overwrite=True, layers="conv", alphas=[0.1])
    assert found.layers == pf.read_scores(out).layers == ["conv"]
    assert found.steps == [*range(7)]
    assert all(map(torch.equal, net.parameters(), weights))
