"""The command line itself: what all commands share."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from ..common.console import of_work
from ..engine import VERSION
from ..errors import PhasefastError

PROBE_SET = "File written by ProbeSet.save, or package.module:callable that makes a ProbeSet"

Directory = Annotated[Path, typer.Argument(help="Run directory: the one that holds scores/.", show_default=False)]
Device = Annotated[str | None, typer.Option(help="Device, such as cpu or cuda:0; by default CUDA if there is any.")]
Model = Annotated[
    str,
    typer.Argument(
        help="package.module:callable that makes a model, or a torchvision name, also as 'name(num_classes=10)'.",
        show_default=False,
    ),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="input, label, the name of one of the probe set's values, or package.module:target, such as a pf.Function "
        "or a list; may be repeated. By default all that the probe set has.",
    ),
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
    help="For every layer at every checkpoint: how much of the input can still be decoded, and its learning phase.",
)


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
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options of all commands; read by the group where an error arrives."""
