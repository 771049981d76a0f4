"""``watch``: measures what arrives, once, and waits for what is not finished."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import phasefast as pf
from phasefast.errors import CheckpointError
from tests.conftest import SmallNet


class Done(Exception):
    """The end of a test's rounds."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "checkpoints"
    made.mkdir()
    return made


def between_rounds(monkeypatch: pytest.MonkeyPatch, actions: list[Callable[[], object]]) -> list[float]:
    """Do one of ``actions`` instead of each sleep; the seconds that would have been slept."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if not actions:
            raise Done
        actions.pop(0)()

    monkeypatch.setattr("time.sleep", sleep)
    return slept


def test_yields_whenever_there_are_new_checkpoints(
    net: SmallNet, probe_set: pf.ProbeSet, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def write(step: int) -> None:
        torch.save({name: tensor + 0.1 * step for name, tensor in state.items()}, folder / f"step_{step}.pt")

    def nothing() -> None:
        pass

    slept = between_rounds(
        monkeypatch,
        [nothing, lambda: write(0), nothing, lambda: (write(1), write(3)), (folder / "step_0.pt").unlink, nothing],
    )
    seen = []
    with contextlib.suppress(Done):
        for scores in pf.watch(net, folder, probe_set, out=tmp_path / "out", every=7, layers="hidden"):
            seen.append(scores.steps)
            assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert seen == [[0], [0, 1, 3]]  # a checkpoint that is deleted stays measured
    assert slept == [7] * 7
    write(2)
    swept = pf.sweep(net, folder, probe_set, out=tmp_path / "swept", layers="hidden")
    again = next(pf.watch(net, folder, probe_set, out=tmp_path / "out", layers="hidden"))
    assert again.steps == [0, 1, 2, 3]
    for step in (1, 2, 3):
        expected, got = (each.filter(step=step).to_arrow().drop_columns(["seconds"]) for each in (swept, again))
        assert got == expected


def test_an_unfinished_checkpoint_is_read_again_when_it_has_changed(
    net: SmallNet, probe_set: pf.ProbeSet, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.pt"
    torch.save(net.state_dict(), whole)
    path = folder / "step_5.pt"
    path.write_bytes(whole.read_bytes()[:2000])
    between_rounds(monkeypatch, [lambda: None, lambda: None, lambda: path.write_bytes(whole.read_bytes())])
    with pytest.warns(RuntimeWarning, match=r"step 5 is tried again when it has changed: .*step_5.pt") as caught:
        scores = next(pf.watch(net, folder, probe_set, out=tmp_path / "out", layers="hidden"))
    assert scores.steps == [5]
    assert sum("tried again" in str(warning.message) for warning in caught) == 1


def test_a_folder_that_is_not_there_is_named_at_once(net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing: expected a folder to watch"):
        pf.watch(net, tmp_path / "missing", probe_set, out=tmp_path / "out")
