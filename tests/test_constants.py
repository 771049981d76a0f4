"""Tensors of a model that no checkpoint has: scores of other ones are told, what changes by itself is not."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from tests.quiet import no_warnings

WIDTH = 36  # of the samples
TOLD = r"the model's tensors \['drawn'\] are in no checkpoint, and differ from"


class Projected(nn.Module):
    """A head on features that are drawn when it is made."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        drawn = torch.randn(WIDTH, 4, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("drawn", drawn, persistent=False)
        self.head = nn.Linear(4, 4)
        nn.init.ones_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.seen = torch.zeros(2)

    def forward(self, x: Tensor) -> Tensor:
        self.rows = torch.ones(len(x))  # as caches of masks are made
        found: Tensor = self.head(x.flatten(1) @ self.drawn)
        return found


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.utils.spectral_norm(nn.Linear(WIDTH, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.found: Tensor = self.head(x.flatten(1))
        return self.found


def told(recorder: pytest.WarningsRecorder) -> int:
    return sum("no checkpoint" in str(each.message) for each in recorder)


@pytest.fixture
def states(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"step_{step}.pt" for step in range(4)]
    for path in paths:
        torch.save(Projected(0).state_dict(), path)
    return paths


def test_constants_that_another_job_has_drawn_otherwise_are_told(
    probe_set: pf.ProbeSet, states: list[Path], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    options: dict = {"out": tmp_path / "out", "alphas": [0.1], "targets": "input"}
    pf.sweep(Projected(0), states[:1], probe_set, **options)
    pf.sweep(Projected(0), states[:2], probe_set, **options)
    assert not told(recwarn)
    with pytest.warns(RuntimeWarning, match=TOLD):
        pf.sweep(Projected(1), states[:3], probe_set, **options)
    pf.sweep(Projected(1), states, probe_set, overwrite=True, **options)
    assert not told(recwarn)


def test_they_are_told_where_nothing_is_to_be_measured(
    probe_set: pf.ProbeSet, states: list[Path], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    options: dict = {"out": tmp_path / "out", "alphas": [0.1], "targets": "input"}
    for _ in range(2):
        pf.sweep(Projected(0), states, probe_set, **options)
    assert not told(recwarn)
    pf.sweep(Projected(1), states, probe_set, **options)
    assert told(recwarn) == 1


def test_what_a_forward_makes_is_no_constant(probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    states = [tmp_path / f"step_{step}.pt" for step in range(2)]
    for path in states:
        torch.save(Cached().state_dict(), path)
    options: dict = {"out": tmp_path / "out", "alphas": [0.1], "targets": "input", "layers": "head"}
    model = Cached()
    model(probe_set.fit_inputs)
    with no_warnings():
        warnings.filterwarnings("ignore", "dropout|.*weight_norm|.*spectral_norm", FutureWarning)
        pf.sweep(model, states[:1], probe_set, **options)
        pf.sweep(Cached(), states, probe_set, **options)


def updated(model: Projected) -> None:
    with torch.no_grad():
        model.head.weight += 1
    model.seen = model.seen + 1  # as some losses keep what they have met


def tracked(model: nn.Module, probe_set: pf.ProbeSet, out: Path) -> pf.PhaseTracker:
    return pf.PhaseTracker(model, probe_set, out=out, layers="head", alphas=[0.1])


@pytest.mark.parametrize("again", [2, 4], ids=["a stored step", "a later one"])
def test_a_tracker_that_goes_on_with_other_constants_tells(
    probe_set: pf.ProbeSet, tmp_path: Path, again: int, recwarn: pytest.WarningsRecorder
) -> None:
    model = Projected(0)
    tracker = tracked(model, probe_set, tmp_path)
    for step in range(3):
        tracker.step(step)
        updated(model)
    for seed, expected in ((0, 0), (1, 1)):
        resumed = Projected(seed)
        for _ in range(2):
            updated(resumed)
        shutil.copytree(tmp_path, out := tmp_path / f"resumed-{seed}", ignore=shutil.ignore_patterns("resumed-*"))
        assert tracked(resumed, probe_set, out).step(again) is not None
        assert told(recwarn) == expected


def test_what_changes_only_now_and_then_is_no_constant(
    probe_set: pf.ProbeSet, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model = Projected(0)
    tracker = tracked(model, probe_set, tmp_path)
    for step in (0, 1, 2, 4):
        if step == 4:
            model.drawn += 1
        tracker.step(step)
        with torch.no_grad():
            model.head.weight += 1
    resumed = Projected(0)
    resumed.load_state_dict(model.state_dict())
    tracked(resumed, probe_set, tmp_path).step(8)
    assert not told(recwarn)


def test_where_no_scores_are_stored_constants_are_not_compared(
    probe_set: pf.ProbeSet, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for seed in range(2):
        tracker = pf.PhaseTracker(Projected(seed), probe_set, out=tmp_path, layers="head", overwrite=True)
        for step in range(3):
            tracker.step(step)
    pf.PhaseTracker(Projected(2), probe_set, out=None, layers="head").step(0)
    assert not told(recwarn)
