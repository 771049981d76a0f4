"""Profiles tell what each stage takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import phasefast as pf
from phasefast.common.timeline import PREFIX
from phasefast.engine import Engine
from phasefast.scoring import score_cells


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alphas": [1e-9]},
        {"route": "target-free", "splits": "heldout"},
        {"target_components": 16},
        {"precision": "double", "alphas": [1e-8]},
    ],
    ids=str,
)
def test_all_work_on_a_cell_lies_in_a_stage(options: dict) -> None:
    torch.manual_seed(0)
    x = torch.randn(700, 200)
    probe_set = pf.ProbeSet.from_tensors(x[:500], torch.arange(500) % 5, x[500:], torch.arange(200) % 5)
    engine = Engine(torch.nn.Sequential(torch.nn.Linear(200, 120), torch.nn.Tanh()), probe_set, layers="0", **options)
    cells = engine.activations()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        list(score_cells(cells, engine.targets, engine.method))

    def stages(event: Any) -> list[str]:
        above = [] if event.cpu_parent is None else stages(event.cpu_parent)
        return above + [event.name] * event.name.startswith(PREFIX)

    events = profiled.events()
    outside = sum(event.self_cpu_time_total for event in events if not stages(event))
    assert outside < 0.03 * sum(event.self_cpu_time_total for event in events)
