"""The command line itself: what all commands share."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from ..common.console import of_work
from ..common.devices import fastest_device
from ..engine import VERSION
from ..errors import PhasefastError
from ..options import ProbeOptions

PROBE_SET = "File of ProbeSet.save, or package.module:callable that makes a ProbeSet"
_PLURALS = {"layer": "layers", "alpha": "alphas"}  # what the command line names once for each

Directory = Annotated[Path, typer.Argument(help="Run directory: the one that holds scores/.", show_default=False)]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda:0; CUDA if there is any.")]
Model = Annotated[
    str,
    typer.Argument(
        help="package.module:callable that makes a model, or a torchvision name; or 'name(num_classes=10)'.",
        show_default=False,
    ),
]
Layers = Annotated[
    list[str] | None, typer.Option("--layer", help="Glob of layers, or after ! of those left out; may be given again.")
]
Padding = Annotated[float | None, typer.Option(help="Value that marks padding in the inputs, such as 0.")]
Tokens = Annotated[str, typer.Option(help="Of sequences: flatten, mean, cls, last or each.")]
BatchNorm = Annotated[str, typer.Option(help="Statistics: recompute, batch or running.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Of the forward passes.")]
Pool = Annotated[int, typer.Option(help="Average images to this size; 0 keeps every position.")]
Memory = Annotated[str | None, typer.Option(help="Budget, such as 8GB; most of what is free by default.")]
Route = Annotated[str | None, typer.Option(help="Force primal, dual, eigen or target-free.")]
Splits = Annotated[str, typer.Option(help="both, or heldout: no scores on the fit rows.")]
Selection = Annotated[
    str | None,
    typer.Option(help="How penalties are chosen: gcv (default), folds (default with --tokens each) or loo."),
]
Alphas = Annotated[
    list[float] | None,
    typer.Option("--alpha", help="Relative ridge penalty; may be given again, and the best is chosen."),
]
Noise = Annotated[
    float | None, typer.Option(help="Instead of --alpha: standard deviation of noise on the activations.")
]
Classifier = Annotated[
    str | None, typer.Option(help="Of classes: ridge, the largest of one-hot predictions (default), lda, or balanced.")
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="input, label, a name of the probe set's values, or package.module:target, such as a pf.Function or a "
        "list; may be given again. All that the probe set has by default.",
    ),
]
PenaltyPer = Annotated[str, typer.Option(help="target, or column: each column of a regression chooses its own.")]
Precision = Annotated[str, typer.Option(help="exact, fast or double.")]
LayerSketch = Annotated[
    int | None, typer.Option(min=1, help="Random combinations of a wider layer's features that are decoded.")
]
Components = Annotated[
    int | None, typer.Option(min=1, help="Leading components of wide regression targets that are decoded.")
]
Checkpoints = Annotated[
    str,
    typer.Argument(
        help="Folder of checkpoints with their steps in their names, a glob in quotes, or hf://repository.",
        show_default=False,
    ),
]
Samples = Annotated[str, typer.Argument(help=f"{PROBE_SET}.", show_default=False)]
Key = Annotated[str | None, typer.Option(help="Key or prefix under which checkpoints keep the weights, such as ema.")]
Load = Annotated[str | None, typer.Option(help="package.module:function that reads a checkpoint: path -> state dict.")]
Trust = Annotated[bool, typer.Option("--trust", help="Unpickle whatever a checkpoint holds; it may run code.")]


class _Group(TyperGroup):
    """Shows phasefast's own errors and warnings as text; what else goes wrong is a fault and keeps its traceback."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        console = of_work()

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            console.print(Text(f"warning: {message}", style="yellow"), soft_wrap=True)

        with warnings.catch_warnings():
            warnings.showwarning = show  # type: ignore[assignment]
            try:
                return super().invoke(ctx)
            except (PhasefastError, RuntimeError) as error:
                notes = getattr(error, "__notes__", [])  # what the engine says of a model's own RuntimeError
                if ctx.params.get("debug") or not (notes or isinstance(error, PhasefastError)):
                    raise
                text = "\n".join(line.rstrip() for line in "\n".join([f"error: {error}", *notes]).splitlines())
                console.print(Text(text, style="red"), soft_wrap=True)
                raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="For every layer at every checkpoint: how much of the input can still be decoded, and in which phase it is.",
)


def probe_options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a command's parameters that are :class:`phasefast.ProbeOptions` and were given, and its device."""
    named = {_PLURALS.get(name, name): value for name, value in parameters.items()}
    given = {name: value for name, value in named.items() if name in ProbeOptions.__annotations__ and value is not None}
    return {**given, "device": given.get("device") or fastest_device()}


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"phasefast {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, not only its message.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options of all commands; read by the group where an error arrives."""
