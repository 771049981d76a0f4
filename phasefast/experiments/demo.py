"""The embedded experiment: train a small network on the digits and watch its layers pass the phases."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from ..common.console import of_results
from ..common.devices import fastest_device, resolve_device
from ..data.probe_set import ProbeSet
from ..data.target_types import Input, Label
from ..errors import ArgumentError
from ..phases.phase_report import PhaseReport
from ..reconstruction import Reconstructions, reconstruct
from ..report import plot_reconstructions, write_report
from ..results.store import RECONSTRUCTIONS
from ..track import PhaseTracker
from .checkpointing import log2_steps
from .datasets import digits
from .models import digits_net
from .training import cpu_threads, train

LAYERS = ("stage1", "stage2", "stage3", "stage4", "features")
PICTURED, SHOWN = ("stage3", "features"), 4  # layers and images of the reconstructions
# Tensors this small have little work for a second thread, and threads that share a core with another program wait for
# each other: on 2 busy cores, 2 threads took 23 s per probed step and 1 thread 1.4 s (idle: 0.9 s and 1.4 s).
_MOST_THREADS = 4


def run_demo(
    out: str | Path = "runs/demo",
    seed: int = 0,
    steps: int = 4096,
    device: str | torch.device | None = None,
    lr: float = 0.002,
    console: Console | None = None,
) -> PhaseReport:
    """Train ``digits_net`` on the digits and probe all layers at steps 0, 1, 2, 4, ..., ``steps``.

    Writes ``out/scores/``, ``out/phases.json`` and three pictures, and prints the
    tables. Scores of an earlier run in ``out/scores/``, its ``phases.json`` and pictures, are removed first; nothing
    else is.

    Args:
        seed: of the split of the data, the weights and the order of the batches.
        steps: at least 1.
        device: CUDA if there is any, else the CPU.
        console: where the tables go; standard output by default.

    Raises:
        ArgumentError: steps, learning rate or device cannot be used.
        DependencyError: scikit-learn or matplotlib is missing.
        StoreError: ``out`` cannot be written.
    """
    if steps < 1:
        raise ArgumentError(f"steps: expected at least 1, got {steps}")
    console = console or of_results()
    place = resolve_device(device, fastest_device())
    data = digits(seed)
    probe_set = ProbeSet.from_tensors(*data, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = digits_net().to(place)
    with cpu_threads(max(1, min(torch.get_num_threads() // 2, _MOST_THREADS))):
        tracker = PhaseTracker(
            model,
            probe_set,
            steps=log2_steps(steps),
            out=out,
            run="demo",
            overwrite=True,
            on_error="raise",
            layers=LAYERS,
            targets=[Input(), Label(10)],
            device=place,
        )
        inputs, labels = data.fit_inputs.to(place), data.fit_labels.to(place)
        known: list[Reconstructions] = []

        def look(step: int) -> None:
            if tracker.step(step) is not None:
                known.append(reconstruct(model, probe_set, samples=SHOWN, step=step, layers=PICTURED, device=place))

        seconds = train(model, inputs, labels, steps=steps, lr=lr, seed=seed, on_step=look)
    report = write_report(out, console)
    picture = Path(out) / f"{RECONSTRUCTIONS}.png"
    plot_reconstructions(Reconstructions.concat(known), picture)
    console.print(f"wrote {picture}", soft_wrap=True)
    console.print(f"training {seconds:.1f} s, probing {tracker.seconds:.1f} s")
    return report
