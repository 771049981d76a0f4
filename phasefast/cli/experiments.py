"""Commands that train: the demo, the paper's experiments and its theory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..common.console import of_results
from ..data.target_types import Function, Target
from ..experiments.demo import run_demo
from ..experiments.figures import plot_theory
from ..experiments.reproduce import reproduce as run_reproduce
from ..experiments.theory import run_theory
from .app import Device, app
from .names import load_function


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory for scores, phases.json and pictures.")] = Path("runs/demo"),
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of data split, weights and order of the batches.")
    ] = 0,
    steps: Annotated[int, typer.Option(help="Training steps; probed at 0, 1, 2, 4, ... and the last.")] = 4096,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.002,
    device: Device = None,
) -> None:
    """Train a small network on the 8x8 digits and show its three learning phases."""
    run_demo(out, seed=seed, steps=steps, device=device, lr=lr)


@app.command()
def reproduce(
    name: Annotated[
        str, typer.Argument(help="MODEL-DATA such as vgg8-cifar10; digits-vgg is the small one.", show_default=False)
    ],
    data: Annotated[
        Path | None, typer.Option(help="An .npz of images and labels instead of torchvision's data set.")
    ] = None,
    root: Annotated[Path, typer.Option(help="Directory of torchvision's data sets.")] = Path("data"),
    out: Annotated[Path, typer.Option(help="Directory for checkpoints, scores, results.json and figures.")] = Path(
        "runs/reproduce"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Number of trainings, with seeds 0, 1, ...")] = 1,
    steps: Annotated[int | None, typer.Option(help="Training steps; the setting's own by default.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Transfer task: a data set, an .npz, or rest; may be repeated.")
    ] = None,
    function: Annotated[
        list[str] | None,
        typer.Option(help="Transfer task: package.module:function of a batch of images that gives classes."),
    ] = None,
    fit: Annotated[int, typer.Option(min=2, help="Number of fit images to measure.")] = 10_000,
    heldout: Annotated[int, typer.Option(min=1, help="Number of held-out images to measure.")] = 2_000,
    all_rows: Annotated[
        bool, typer.Option("--all-rows", help="Measure the authors' way on all images, as they do.")
    ] = False,
    wide: Annotated[bool, typer.Option(help="Measure layers of more than 2048 features too.")] = True,
    decoders: Annotated[bool, typer.Option("--decoders", help="Train the paper's decoders too (minutes).")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with status 1 if a claim does not hold.")] = False,
    device: Device = None,
) -> None:
    """Train, sweep, detect phases, back-test the advice: an experiment of the paper, with its published figures."""
    functions: list[Target] = [Function(load_function(given), kind="classes") for given in function or ()]
    results = run_reproduce(
        name,
        out,
        seeds=range(seeds),
        steps=steps,
        file=data,
        root=root,
        tasks=task or (),
        functions=functions,
        rows=(fit, heldout),
        all_rows=all_rows,
        wide=wide,
        decoders=decoders,
        device=device,
    )
    if check and not all(claim["holds"] for claim in results["claims"]):
        raise typer.Exit(1)


@app.command()
def theory(
    out: Annotated[Path, typer.Option(help="Directory for theory.json and theory.png.")] = Path("runs/theory"),
) -> None:
    """The paper's theory: one softmax layer, its exact reconstruction loss, and where each phase exists (a minute)."""
    found = run_theory(out)
    holds = sum(row["holds"] for row in found["rows"])
    picture = plot_theory(found, out / "theory.png")
    console = of_results()
    console.print(f"the statement holds at {holds} of {len(found['rows'])} points of the grid")
    console.print(f"wrote {out / 'theory.json'} and {picture}", soft_wrap=True)
