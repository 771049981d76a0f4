"""The command that shows what checkpoints still know of some inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..common.console import of_results
from ..reconstruction import reconstruct
from ..report import check_picture, need_matplotlib, plot_reconstructions
from .app import (
    Alphas,
    BatchNorm,
    BatchSize,
    Checkpoints,
    Device,
    Key,
    Layers,
    Load,
    Memory,
    Model,
    Noise,
    Padding,
    PenaltyPer,
    Pool,
    Precision,
    Route,
    Samples,
    Selection,
    Tokens,
    Trust,
    app,
    probe_options,
)
from .names import load_function, load_model, load_probe_set


@app.command("reconstruct")
def reconstruct_command(
    model: Model,
    checkpoints: Checkpoints,
    probe_set: Samples,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("reconstructions.png"),
    layer: Layers = None,
    step: Annotated[
        list[int] | None, typer.Option("--step", help="Only this checkpoint; may be given again. All by default.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="How many held-out images, the first ones; 4 by default.")
    ] = None,
    alpha: Alphas = None,
    noise: Noise = None,
    batchnorm: BatchNorm = "recompute",
    tokens: Tokens = "flatten",
    padding: Padding = None,
    pool: Pool = 0,
    precision: Precision = "exact",
    selection: Selection = None,
    penalty_per: PenaltyPer = "target",
    route: Route = None,
    batch_size: BatchSize = None,
    memory: Memory = None,
    device: Device = None,
    key: Key = None,
    load: Load = None,
    trust: Trust = False,
) -> None:
    """Draw held-out images as the decoders of each layer give them back, checkpoint after checkpoint."""
    check_picture(out)
    need_matplotlib()
    options = probe_options(locals())
    found = reconstruct(
        load_model(model),
        load_probe_set(probe_set),
        checkpoints,
        samples=samples,
        steps=step,
        key=key,
        load=load_function(load) if load else None,
        weights_only=not trust,
        **options,
    )
    plot_reconstructions(found, out)
    of_results().print(f"wrote {out}", soft_wrap=True)
