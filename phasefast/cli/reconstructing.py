"""The command that shows what checkpoints still know of some inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.console import of_results
from ..errors import StoreError
from ..reconstruction import reconstruct
from ..report import check_picture, need_matplotlib, plot_reconstructions
from ..results.store import RECONSTRUCTIONS
from .app import Checkpoints, Key, Load, Model, Samples, Trust, app
from .measuring import measuring
from .names import load_function, load_model, load_probe_set

_PICTURE = f"{RECONSTRUCTIONS}.png"


@app.command("reconstruct")
@measuring("splits", "predicts", "classifier", "target_components", "layer_sketch")  # which change no picture
def reconstruct_command(
    model: Model,
    checkpoints: Checkpoints,
    probe_set: Samples,
    out: Annotated[Path, typer.Option(help="File of the picture, or a folder for it, which is made.")] = Path(_PICTURE),
    step: Annotated[
        list[int] | None, typer.Option("--step", help="Only this checkpoint; may be repeated. All by default.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Number of held-out images, from the first on; 4 by default.")
    ] = None,
    options: Any = None,
    key: Key = None,
    load: Load = None,
    trust: Trust = False,
) -> None:
    """Draw held-out images as the decoders of each layer give them back, checkpoint after checkpoint."""
    if out.is_dir() or not out.suffix:
        out = out / _PICTURE
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {out.parent}: {error.strerror}; choose another place") from error
    check_picture(out)
    need_matplotlib()
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
