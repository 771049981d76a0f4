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
    options = {"layers": LAYERS, "out": f"{folder}/run", "on_error": "raise"}
    tracker = pf.PhaseTracker(model, probe_set, **options)
    tracker.step(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # of what is sharded, although a measurement has gathered
    nn.functional.cross_entropy(model(probe_set.fit_inputs), probe_set.fit_labels).backward()
    tracker.step(1, force=True)
    optimizer.step()
    tracker.step(2)
    resumed = pf.PhaseTracker(model, probe_set, **options)
    assert resumed.step(2) is not None
    assert resumed.seconds == 0
    assert resumed.step(3, force=True) is not None
    found = resumed.scores.to_arrow().select(["step", "value", "state_hash"]).to_pylist()
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # what gloo leaves behind need not be waited for


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_all_ranks_measure_the_whole_and_train_as_one_does(probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    ranks = [context.Process(target=rank_main, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in ranks] == [0, 0]
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert found[0] == found[1]
    model = new_model()
    alone = pf.PhaseTracker(model, probe_set, layers=LAYERS, out=None)
    alone.step(0)
    alone.step(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(probe_set.fit_inputs), probe_set.fit_labels).backward()
    optimizer.step()
    alone.step(2)
    alone.step(3, force=True)
    expected = alone.scores.to_arrow().select(["step", "value", "state_hash"]).to_pylist()
    assert [row["value"] for row in found[0]] == pytest.approx([row["value"] for row in expected], rel=1e-5)
    start = [row["state_hash"] for row in expected if row["step"] < 2]
    assert [row["state_hash"] for row in found[0] if row["step"] < 2] == start
    assert pf.read_scores(tmp_path / "run").steps == [0, 1, 2, 3]
