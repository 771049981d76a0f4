"""The command line: ``phasefast demo | reproduce | layers | plan | phases | report | info``."""

from __future__ import annotations

import difflib
import importlib
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from typer.core import TyperGroup

from .engine import VERSION
from .errors import ArgumentError, PhasefastError
from .experiments.demo import run_demo
from .experiments.figures import plot_theory
from .experiments.reproduce import reproduce as run_reproduce
from .experiments.theory import run_theory
from .ops._extension import build_info
from .planning import plan
from .report import print_report, restrict, write_phases, write_report
from .stages.layers import select_layers
from .stages.targets import Function, Target

_EXTRAS = {"torchvision": "vision", "matplotlib": "report", "pandas": "report", "scikit-learn": "demo"}
_Directory = Annotated[Path, typer.Argument(help="Run directory: the one that holds scores/.", show_default=False)]
_Layers = Annotated[
    list[str] | None, typer.Option("--layer", help="Show only layers that match this glob; may be given again.")
]
_Targets = Annotated[
    list[str] | None, typer.Option("--target", help="Show only targets that match this glob; may be given again.")
]


class _Group(TyperGroup):
    """Shows phasefast's own errors as one line; whatever else goes wrong is a fault and keeps its traceback."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except PhasefastError as error:
            if ctx.params.get("debug"):
                raise
            message = " ".join(f"error: {error}".split())
            Console(stderr=True).print(Text(message, style="red"), soft_wrap=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="For every layer at every checkpoint: how much of the input can still be decoded, and in which phase it is.",
)


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, not only its message.")
    ] = False,
) -> None:
    """Options of all commands; read by the group where an error arrives."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory for scores, phases.json and phases.png.")] = Path("runs/demo"),
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of the data split, the weights and the order of the batches.")
    ] = 0,
    steps: Annotated[int, typer.Option(help="Training steps; probed at 0, 1, 2, 4, ... and the last.")] = 4096,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.002,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0; CUDA if there is any.")] = None,
) -> None:
    """Train a small network on the 8x8 digits and show its three learning phases."""
    run_demo(out, seed=seed, steps=steps, device=device, lr=lr)


@app.command()
def reproduce(
    name: Annotated[
        str, typer.Argument(help="MODEL-DATA such as vgg8-cifar10, or digits-vgg, the small one.", show_default=False)
    ],
    data: Annotated[
        Path | None, typer.Option(help="An .npz of images and labels instead of torchvision's data set.")
    ] = None,
    root: Annotated[Path, typer.Option(help="Where torchvision finds, or puts, its data sets.")] = Path("data"),
    out: Annotated[Path, typer.Option(help="Directory for checkpoints, scores, results.json and figures.")] = Path(
        "runs/reproduce"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="How many trainings, with seeds 0, 1, ...")] = 1,
    steps: Annotated[int | None, typer.Option(help="Training steps; the setting's own by default.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Transfer task: a data set, an .npz, or rest; more than once.")
    ] = None,
    function: Annotated[
        list[str] | None,
        typer.Option(help="Transfer task: package.module:function of a batch of images that gives classes."),
    ] = None,
    fit: Annotated[int, typer.Option(min=2, help="Fit images that are measured.")] = 10_000,
    heldout: Annotated[int, typer.Option(min=1, help="Held-out images that are measured.")] = 2_000,
    all_rows: Annotated[
        bool, typer.Option("--all-rows", help="Measure the authors' way on all images, as they do.")
    ] = False,
    wide: Annotated[bool, typer.Option(help="Measure layers of more than 2048 features too.")] = True,
    decoders: Annotated[bool, typer.Option("--decoders", help="Train the paper's decoders too (minutes).")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where a claim does not hold.")] = False,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0; CUDA if there is any.")] = None,
) -> None:
    """Train, sweep, detect phases, back-test the advice: an experiment of the paper, beside its published figures."""
    functions: list[Target] = [Function(_function(given), kind="classes") for given in function or ()]
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
    console = Console()
    console.print(f"the statement holds at {holds} of {len(found['rows'])} points of the grid", highlight=False)
    console.print(f"wrote {out / 'theory.json'} and {picture}", highlight=False, soft_wrap=True)


@app.command()
def info() -> None:
    """Versions, how the extension was built or why it is not used, and what there is to compute on."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in _facts():
        table.add_row(name, Text(value))
    Console().print(table)


@app.command()
def layers(
    model: Annotated[
        str,
        typer.Argument(help="package.module:callable that makes a model, or a torchvision name.", show_default=False),
    ],
    pattern: Annotated[
        list[str] | None, typer.Option("--pattern", help="Glob of names; may be given more than once.")
    ] = None,
) -> None:
    """List the modules of a model that can be probed; * marks those that are probed by default, or match."""
    network = _load_model(model)
    chosen = set(select_layers(network, pattern))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("layer", overflow="fold")
    table.add_column("class", overflow="fold")
    for name, module in network.named_modules():
        if name and (pattern is None or name in chosen):
            table.add_row("*" if name in chosen else "", Text(name), Text(type(module).__name__))
    console = Console()
    console.print(table)
    marked = "match" if pattern else "are probed by default"
    console.print(
        f"{len(chosen)} of {sum(1 for name, _ in network.named_modules() if name)} modules {marked}", highlight=False
    )


@app.command("plan")
def plan_command(
    model: Annotated[
        str,
        typer.Argument(help="package.module:callable that makes a model, or a torchvision name.", show_default=False),
    ],
    sample: Annotated[str, typer.Option("--sample", help="Shape of one input.")] = "3,32,32",
    fit: Annotated[int, typer.Option("--fit", help="Rows that decoders are fitted on.")] = 4000,
    heldout: Annotated[int, typer.Option("--heldout", help="Rows that they are scored on.")] = 1000,
    classes: Annotated[int, typer.Option("--classes", help="Classes of the label; 0 for no label.")] = 10,
    checkpoints: Annotated[int, typer.Option("--checkpoints", min=1, help="Of the sweep.")] = 1,
    layer: Annotated[list[str] | None, typer.Option("--layer", help="Glob of layers; may be given again.")] = None,
    pool: Annotated[int, typer.Option("--pool", help="Average images to this size; 0 keeps every position.")] = 0,
    memory: Annotated[str | None, typer.Option("--memory", help="Budget, such as 8GB.")] = None,
    route: Annotated[str | None, typer.Option("--route", help="Force primal, dual, eigen or target-free.")] = None,
    splits: Annotated[str, typer.Option("--splits", help="both, or heldout: no scores on the fit rows.")] = "both",
    selection: Annotated[str, typer.Option("--selection", help="folds, or loo: leave-one-out errors.")] = "folds",
    target_components: Annotated[
        int | None, typer.Option("--target-components", min=1, help="Leading components of the input that are decoded.")
    ] = None,
) -> None:
    """Route, work and memory of each layer, and its expected time at the rate of this machine's matrix products."""
    try:
        shape = [int(size) for size in sample.split(",")]
    except ValueError as error:
        raise ArgumentError(f"--sample: expected sizes such as 3,32,32, got {sample!r}") from error
    how: dict[str, Any] = {"layers": layer, "pool": pool, "memory": memory, "route": route, "splits": splits}
    how |= {"selection": selection, "target_components": target_components}
    found = plan(_load_model(model), shape, fit, heldout, classes=classes, **how)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("layer", overflow="fold")
    for title in ("features", "route", "GFLOP", "GB", "seconds", "penalty by", "pass"):
        table.add_column(title, justify="right")
    for entry in found:
        cost = entry.cost
        numbers = (
            f"{cost.flops / 1e9:.1f}",
            f"{cost.bytes / 1e9:.3f}",
            f"{entry.seconds:.3f}",
            f"{cost.choosing}",
            f"{entry.forward_pass}",
        )
        table.add_row(Text(entry.layer.name), f"{entry.layer.dim}", cost.route, *numbers)
    console = Console()
    console.print(table)
    console.print(
        "penalty by: errors on folds, of rows left out one by one (all, or so many), or nothing where one is given; "
        "pass: of the data through the model",
        highlight=False,
    )
    passes, seconds = found[-1].forward_pass, checkpoints * sum(entry.seconds for entry in found)
    if any(entry.cost.target_free for entry in found):
        console.print("target-free routes give held-out scores only", highlight=False)
    console.print(
        f"{checkpoints} checkpoints: {seconds:.2f} s expected, beside {checkpoints * passes} forward passes",
        highlight=False,
    )


@app.command()
def phases(
    directory: _Directory,
    layer: _Layers = None,
    target: _Targets = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, as in phases.json, instead of tables.")] = False,
) -> None:
    """Detect the phases of a run: write phases.json, with all cells, into its directory and print the tables."""
    scores, found = restrict(*write_phases(directory), layer, target)
    if json:
        typer.echo(found.to_json())
    else:
        print_report(scores, found, Console())


@app.command()
def report(directory: _Directory, layer: _Layers = None, target: _Targets = None) -> None:
    """Like phases, and draw phases.png; the last layer's phases shade its panels."""
    write_report(directory, layers=layer, targets=target)


def main() -> None:
    """Entry point of the command ``phasefast``."""
    app(prog_name="phasefast")


def _facts() -> list[tuple[str, str]]:
    """What ``info`` shows: (name, value)."""
    build = build_info()
    facts = [("phasefast", VERSION), ("Python", platform.python_version()), ("torch", torch.__version__)]
    facts.append(("extension", "compiled" if build["compiled"] else f"not used: {build['problem']}"))
    for key, value in build.items():
        if key not in ("compiled", "problem"):
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            facts.append((f"  {key.replace('_', ' ')}", "none" if text in ("", "None") else text))
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts.append(("CUDA devices", ", ".join(devices) or "none"))
    facts.append(
        ("CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    )
    return facts + [(package, _version(package, extra)) for package, extra in _EXTRAS.items()]


def _version(package: str, extra: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return f"missing: pip install 'phasefast[{extra}]'"


def _load_model(name: str) -> nn.Module:
    """The model that ``package.module:callable`` or a torchvision name stands for; ArgumentError if there is none."""
    made = _call(name) if ":" in name else _torchvision(name)
    if not isinstance(made, nn.Module):
        raise ArgumentError(f"model {name!r}: expected a torch.nn.Module, got {type(made).__name__}")
    return made


def _call(name: str) -> object:
    found = _import(name, "model")
    if isinstance(found, nn.Module) or not callable(found):
        return found
    try:
        return found()
    except TypeError as error:
        raise ArgumentError(f"model {name!r}: expected a callable without required arguments; {error}") from error


def _function(name: str) -> Callable[[Tensor], Tensor]:
    found = _import(name, "function")
    if not callable(found):
        raise ArgumentError(f"function {name!r}: expected a callable, got {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def _import(name: str, what: str) -> object:
    """The object that ``package.module:name`` stands for."""
    module_name, _, attribute = name.partition(":")
    # An installed command, unlike `python -m`, does not look for modules where it is called.
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ArgumentError(f"{what} {name!r}: expected package.module:callable; {error}") from error


def _torchvision(name: str) -> nn.Module:
    try:
        from torchvision.models import get_model, list_models
    except ImportError as error:
        raise ArgumentError(
            f"model {name!r}: expected package.module:callable; names of torchvision models need torchvision: "
            "pip install 'phasefast[vision]'"
        ) from error
    known = list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "no torchvision model has such a name"
        raise ArgumentError(f"model {name!r}: expected package.module:callable or a torchvision name; {hint}")
    model: nn.Module = get_model(name, weights=None)
    return model
