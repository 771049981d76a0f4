"""Memory is used again, never twice at a time, and what it held before changes no number."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import random
import resource
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.algebra import dense
from phasefast.algebra.workspace import Workspace, give_back, take

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lends huge pages")
MB, UNIT = 1 << 20, 1 << 16


def filled(workspace: Workspace, size: int, value: int) -> Tensor:
    pages = workspace.take(size)
    assert pages is not None
    return torch.frombuffer(pages, dtype=torch.uint8).fill_(value)


def test_freed_memory_is_taken_again_and_no_more_is_kept_than_was_in_use() -> None:
    workspace = Workspace()
    first = filled(workspace, 6 * MB, 1)
    place = first.data_ptr()
    view = first[:1]
    del first
    assert filled(workspace, 6 * MB, 2).data_ptr() != place  # a view is still there
    del view
    assert filled(workspace, 4 * MB, 3).data_ptr() == place
    assert workspace.kept == 12 * MB
    assert len(filled(workspace, 12 * MB, 4)) == 12 * MB
    assert len(filled(workspace, 13 * MB, 5)) == 13 * MB
    assert workspace.kept == 13 * MB


def test_beyond_its_limit_nothing_free_is_kept() -> None:
    workspace = Workspace(limit=10 * MB)
    first, second = filled(workspace, 6 * MB, 1), filled(workspace, 6 * MB, 2)
    del first
    third = filled(workspace, 2 * MB, 3)
    assert workspace.kept == 12 * MB - 4 * MB
    del second, third
    assert len(filled(workspace, MB, 4)) == MB
    assert workspace.kept == 8 * MB


def test_matrices_never_share_memory() -> None:
    draw, workspace, most = random.Random(0), Workspace(), 0
    alive: dict[int, Tensor] = {}
    for step in range(600):
        if len(alive) > 8 or (alive and draw.random() < 0.4):
            key = draw.choice(list(alive))
            tensor = alive.pop(key)
            assert bool((tensor == key % 251).all())
            del tensor
        else:
            alive[step] = filled(workspace, draw.choice([1, 100, MB, 3 * MB + 7, 5 * MB]), step % 251)
        most = max(most, sum(-(-len(tensor) // UNIT) * UNIT for tensor in alive.values()))
        assert workspace.kept <= 1.25 * most
    alive.clear()
    assert workspace.kept <= 1.25 * most


def test_only_matrices_made_inside_are_kept() -> None:
    workspace, shape = Workspace(), (3, 2 * MB)
    outside = dense.empty(shape, torch.float32, torch.device("cpu"))
    with workspace:
        assert workspace.kept == 0
        inside = dense.empty(shape, torch.float32, torch.device("cpu"))
        assert dense.empty((3,), torch.float32, torch.device("cpu")).shape == (3,)
    assert outside.shape == inside.shape == shape
    assert workspace.kept == 24 * MB
    inside.fill_(1.0)
    del workspace
    gc.collect()
    assert bool((inside == 1).all())  # outlives its workspace


def test_copies_have_memory_of_their_own() -> None:
    workspace = Workspace(limit=4 * MB)
    kept = filled(workspace, 6 * MB, 1)
    for copied in (copy.deepcopy(workspace), pickle.loads(pickle.dumps(workspace))):
        assert copied.kept == 0
        filled(copied, 6 * MB, 2)
        assert copied.kept == 0
    assert bool((kept == 1).all())


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_workers_do_not_inherit_free_pages() -> None:
    workspace = Workspace()
    used = filled(workspace, 2 * MB, 7)
    filled(workspace, 6 * MB, 1)
    assert workspace.kept == 8 * MB
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert workspace.kept == 2 * MB
    assert bool((used == 7).all())


def test_what_is_free_is_given_back_before_libraries_allocate() -> None:
    with Workspace() as workspace:
        filled(workspace, 6 * MB, 1)
        assert workspace.kept == 6 * MB
        give_back()
        assert workspace.kept == 0
    give_back()  # nothing to do


@pytest.mark.parametrize("rationed", ["ulimit", "overcommit"])
def test_no_address_space_is_reserved_where_it_is_rationed(monkeypatch: pytest.MonkeyPatch, rationed: str) -> None:
    if rationed == "ulimit":
        monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 40, 1 << 40))
    else:
        monkeypatch.setattr(Path, "read_text", lambda self, encoding: "2\n")
    assert Workspace().take(2 * MB) is None


def test_without_address_space_memory_is_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 1 << 28)
    with Workspace() as workspace:
        assert workspace.take(2 * MB) is None
        pages = take(2 * MB)
        assert len(pages or "") == 2 * MB
    monkeypatch.setattr(os, "sysconf", lambda name: 2048)
    with Workspace() as workspace:
        assert workspace.take(8 * MB) is None
        assert len(take(8 * MB) or "") == 8 * MB
        assert workspace.kept == 0


def test_what_memory_held_before_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 300), nn.ReLU())
    rows, labels = torch.randn(160, 12), torch.randint(3, (160,))
    probe_set = pf.ProbeSet.from_tensors(rows[:120], labels[:120], rows[120:], labels[120:])
    expected = pf.PhaseTracker(model, probe_set, out=None, on_error="raise").step(1)
    monkeypatch.setattr(dense, "_LARGE", 1)  # all memory is of the workspace
    tracker = pf.PhaseTracker(model, probe_set, out=None, on_error="raise")
    tracker.step(1)
    workspace = tracker._engine._workspace
    held = workspace.kept
    assert held > 0
    with workspace:
        everything = dense.empty((held,), torch.uint8, torch.device("cpu")).fill_(0xFF)  # NaN in every type
    del everything
    found = tracker.step(2)
    assert expected is not None
    assert found is not None
    for metric in ("fvu", "accuracy"):
        for split in ("fit", "heldout"):
            wanted, got = (each.filter(metric=metric, split=split).values_of("value") for each in (expected, found))
            assert got == wanted
