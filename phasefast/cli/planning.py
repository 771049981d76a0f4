"""Commands about one's own model: its layers, and what measuring them takes."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from torch import nn

from ..common.console import of_results
from ..common.tables import counted
from ..data.probe_set import ProbeSet
from ..errors import ArgumentError
from ..layers.selection import select_layers
from ..planning import COLUMNS, plan
from .app import PROBE_SET, Model, Targets, app
from .measuring import measuring
from .names import load_model, load_probe_set, load_targets


@app.command()
def layers(
    model: Model,
    pattern: Annotated[
        list[str] | None, typer.Option("--layer", "--pattern", help="Glob of names; may be repeated.")
    ] = None,
) -> None:
    """List the modules of a model; * marks those that are probed by default, or that match --layer."""
    network = load_model(model)
    chosen = set(select_layers(network, pattern))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("layer", overflow="fold")
    table.add_column("class", overflow="fold")
    # Containers are never called themselves.
    modules = [(n, m) for n, m in network.named_modules() if n and not isinstance(m, (nn.ModuleList, nn.ModuleDict))]
    for name, module in modules:
        if pattern is None or name in chosen:
            table.add_row("*" if name in chosen else "", Text(name), Text(type(module).__name__))
    console = of_results()
    console.print(table)
    marked = "match" if pattern else "are probed by default"
    console.print(f"{len(chosen.intersection(dict(modules)))} of {len(modules)} modules {marked}")


@app.command("plan")
@measuring()
def plan_command(
    model: Model,
    sample: Annotated[str, typer.Option(help="Shape of one input.")] = "3,32,32",
    fit: Annotated[int, typer.Option(help="Number of rows that decoders are fitted on.")] = 4000,
    heldout: Annotated[int, typer.Option(help="Number of rows that decoders are scored on.")] = 1000,
    classes: Annotated[int, typer.Option(help="Number of classes of the label; 0 for no label.")] = 10,
    probe_set: Annotated[str | None, typer.Option(help=f"{PROBE_SET}; instead of the four sizes above.")] = None,
    checkpoints: Annotated[int, typer.Option(min=1, help="Number of checkpoints in the sweep.")] = 1,
    target: Targets = None,
    options: Any = None,
) -> None:
    """Show route, work, memory and expected time of each layer, estimated from small cells on this machine."""
    samples: ProbeSet | list[int] = _shape(sample)
    if probe_set is not None:
        samples = load_probe_set(probe_set)
        options |= {"targets": load_targets(target, samples, options["tokens"] == "each")} if target else {}
    elif target:
        raise ArgumentError("--target: without --probe-set only the input and a label (--classes) are planned for")
    network = load_model(model)
    if isinstance(samples, ProbeSet):
        found = plan(network, samples, **options)
    else:
        found = plan(network, samples, fit, heldout, classes=classes, **options)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    name, *others = COLUMNS
    table.add_column(name, overflow="fold")
    for title in others:
        table.add_column(title, justify="right")
    for entry in found:
        table.add_row(*map(Text, entry.texts))
    console = of_results()
    console.print(table)
    console.print("pass: the forward pass over the data in which the layer is captured")
    if options["precision"] == "exact":
        console.print(
            "seconds: in float32; layers that are nearly invertible, as first ones can be, need float64 too: 5 times "
            "as long on a CPU",
        )
    if "layer_sketch" in options:
        console.print("layers are planned without a sketch, the way they are decoded if it fails")
    if found.forward_passes > found[-1].forward_pass:
        console.print("one forward pass over the fit rows is for the BatchNorm statistics (--batchnorm)")
    if any(entry.cost.target_free for entry in found):
        console.print("target-free routes give held-out scores only")
    times = counted(checkpoints, "checkpoint")
    forward = counted(checkpoints * found.forward_passes, "forward pass", "es")
    seconds, of_model = checkpoints * found.seconds, checkpoints * found.forward_seconds
    console.print(f"{times}: {seconds:.2f} s expected, and {of_model:.2f} s for {forward}")


def _shape(text: str) -> list[int]:
    try:
        return [int(size) for size in text.split(",")]
    except ValueError as error:
        raise ArgumentError(f"--sample: expected sizes such as 3,32,32, got {text!r}") from error
