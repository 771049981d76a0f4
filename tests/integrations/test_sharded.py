"""A model whose parameters lie in shards on several ranks is measured where all of them do it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import phasefast as pf
from tests.conftest import images

LAYERS = ["1", "3"]


def new_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 3))


def rank_main(rank: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    model, mesh = new_model(), init_device_mesh("cpu", (2,))
    for index in (1, 3):
        fully_shard(model[index], mesh=mesh)
    fully_shard(model, mesh=mesh)
    probe_set = pf.ProbeSet.from_tensors(*images(150, 1), *images(60, 2))
    out = f"{folder}/run" if rank == 0 else None
    tracker = pf.PhaseTracker(model, probe_set, layers=LAYERS, out=out, on_error="raise")
    for step in (0, 1):
        tracker.step(step)
        loss = nn.functional.cross_entropy(model(probe_set.fit_inputs), probe_set.fit_labels)
        loss.backward()
    found = tracker.scores.to_arrow().select(["value", "state_hash"]).to_pylist()
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # what gloo leaves behind need not be waited for


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_all_ranks_measure_the_whole_and_one_stores_it(probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    ranks = [context.Process(target=rank_main, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        process.kill()
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert found[0] == found[1]
    alone = pf.PhaseTracker(new_model(), probe_set, layers=LAYERS, out=None)
    for step in (0, 1):
        alone.step(step)
    expected = alone.scores.to_arrow().select(["value", "state_hash"]).to_pylist()
    assert [row["state_hash"] for row in found[0]] == [row["state_hash"] for row in expected]
    assert [row["value"] for row in found[0]] == pytest.approx([row["value"] for row in expected], rel=1e-5)
    assert pf.read_scores(tmp_path / "run").steps == [0, 1]
