"""What each stage of a measurement takes, by the profiler: host, device, and how often it is entered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sweeps import STAGES, Run
from timing import Size, seconds
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

import phasefast as pf
from phasefast.common.timeline import PREFIX


def stage_seconds(run: Callable[[], Any], device: str = "cpu") -> dict[str, dict[str, float]]:
    """By stage: seconds of the host, of the device's kernels, and calls; of stages inside others only once."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities, acc_events=True) as recorded:
        run()
    found: dict[str, dict[str, float]] = {}

    def add(name: str, event: FunctionEvent, sign: int) -> None:
        own = found.setdefault(name, {"host": 0.0, "device": 0.0, "calls": 0})
        own["host"] += sign * event.cpu_time_total / 1e6
        own["device"] += sign * event.device_time_total / 1e6
        own["calls"] += sign > 0

    for event in recorded.events():
        if event.name.startswith(PREFIX) and event.device_type == torch.autograd.DeviceType.CPU:
            add(event.name.removeprefix(PREFIX), event, 1)
            around = event.cpu_parent
            while around is not None and not around.name.startswith(PREFIX):
                around = around.cpu_parent
            if around is not None:
                add(around.name.removeprefix(PREFIX), event, -1)
    return found


def section(size: Size, file: str | None, weights: str | None) -> dict[str, Any]:
    """One checkpoint of VGG-8, choosing among the default penalties and with one penalty, after one that warms up."""
    smoke = size == Size.SMOKE
    n, m = (300, 60) if smoke else (10_000, 2_000)
    run = Run(n, m, 1, stages=STAGES[-2:] if smoke else STAGES, file=file, weights=weights)
    run.model.load_state_dict(run.checkpoints[0])
    whole, parts = {}, {}
    for name, alphas in (("choosing", None), ("one penalty", 1e-2)):
        options = {"layers": run.stages, "batchnorm": "running", "out": None, "on_error": "raise", "alphas": alphas}
        tracker = pf.PhaseTracker(run.model, run.probe_set, **options)
        tracker.step(0, force=True)
        parts[name] = stage_seconds(lambda tracker=tracker: tracker.step(1, force=True))
        whole[name] = seconds(lambda tracker=tracker: tracker.step(2, force=True))
    kind = "random" if weights is None else "trained"
    return {"n": n, "m": m, "stages": run.stages, "weights": kind, "seconds": whole, "parts": parts}
