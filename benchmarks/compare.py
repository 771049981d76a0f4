"""Ours against what people use instead, in one process, on the same data, with as many threads: `make bench`.

Each section can be run alone (`--only cell,sweep`); all of a day go into one file of benchmarks/results.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import json
import math
import platform
import re
import time
from pathlib import Path
from typing import Annotated, Any

import approximations
import cells
import figure
import growth
import routing
import selecting
import stages
import sweeps
import tables
import torch
import typer
from rich.console import Console
from timing import Size, product_rate

from phasefast import build_info, ops

ROOT = Path(__file__).parents[1]
SECTIONS = ("cell", "sweep", "stages", "choosing", "approximations", "inputs", "routes", "growth")
_RATED = {"float32": torch.float32, "float64": torch.float64}
if ops.bfloat16_is_fast(torch.device("cpu")):  # without instructions for it, one such product takes minutes
    _RATED["bfloat16"] = torch.bfloat16


def main(
    only: Annotated[str, typer.Option(help="sections to run, separated by commas")] = ",".join(SECTIONS),
    size: Annotated[
        Size, typer.Option(help="smoke: figures that mean nothing; full: those of the documents")
    ] = Size.QUICK,
    data: Annotated[str | None, typer.Option(help="an .npz of CIFAR-10 images for the sweep")] = None,
    weights: Annotated[str | None, typer.Option(help="a folder of VGG-8 checkpoints for the sweep")] = None,
    checkpoints: Annotated[int | None, typer.Option(help="of the sweep; 13 in full, else 1")] = None,
    repeats: Annotated[
        int | None, typer.Option(help="of cells, choosing, inputs and growth; 3 in full, else 2")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="on all sides; as many as torch takes by default")] = None,
    out: Annotated[Path, typer.Option(help="folder of the result")] = ROOT / "benchmarks/results",
    picture: Annotated[
        Path | None, typer.Option(help="where growth is drawn; beside the result unless in full")
    ] = None,
) -> None:
    """Measure, print tables, and merge what was measured into a JSON file."""
    chosen = [name.strip() for name in only.split(",")]
    if unknown := [name for name in chosen if name not in SECTIONS]:
        raise typer.BadParameter(f"{unknown}; there are {SECTIONS}", param_hint="--only")
    count, full = threads or torch.get_num_threads(), size == Size.FULL
    checkpoints, repeats = checkpoints or (13 if full else 1), repeats or (3 if full else 2)
    run = {
        "cell": lambda: cells.section(size, repeats),
        "sweep": lambda: sweeps.section(size, checkpoints, data, weights),
        "stages": lambda: stages.section(size, data, weights),
        "choosing": lambda: selecting.section(size, repeats),
        "approximations": lambda: approximations.section(size, repeats, data, weights),
        "inputs": lambda: sweeps.inputs(size, repeats),
        "routes": lambda: routing.section(size),
        "growth": lambda: growth.section(size, repeats),
    }
    machine = {"processor": processor(), "threads": count, "torch": torch.__version__}
    machine |= {"python": platform.python_version(), "compiled": build_info()["compiled"]}
    machine |= {"instructions": build_info().get("products", "blas")}
    today = datetime.date.today().isoformat()
    out.mkdir(parents=True, exist_ok=True)
    kind = "" if full else f"-{size}"
    path = out / f"cpu-{re.sub('[^a-z0-9]+', '-', processor().lower()).strip('-')}-{today}{kind}.json"
    picture = picture or (ROOT / "docs/performance.png" if full else path.with_suffix(".png"))
    console = Console(width=max(Console().width, 120))
    with threads_everywhere(count):
        for name in chosen:
            start = time.perf_counter()
            rates = {kind: product_rate(dtype, repeats=3) for kind, dtype in _RATED.items()}
            measured = {"date": today, "machine": machine, "size": size, "products": rates, **run[name]()}
            measured["took"] = time.perf_counter() - start
            merge(path, name, measured)
            tables.show(console, name, measured)
            if name == "growth":
                figure.draw(measured, picture)
    console.print(f"{path.name}: {', '.join(chosen)}")


def merge(path: Path, name: str, measured: dict[str, Any]) -> None:
    """Put one section into the file, at once: a later section that fails takes nothing with it."""
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"sections": {}}
    whole |= {"date": measured["date"], "machine": measured["machine"]}
    whole["sections"][name] = measured
    path.write_text(json.dumps(_rounded(whole), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    """Six digits: more would only make the file long."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value


def processor() -> str:
    """Name of the processor, without what all names have."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        name = next((line.split(":", 1)[1] for line in lines if line.startswith("model name")), name)
    return " ".join(re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|@.*", " ", name, flags=re.IGNORECASE).split())


@contextlib.contextmanager
def threads_everywhere(count: int) -> Any:
    """So many threads in torch, and in the libraries that NumPy and scikit-learn call."""
    torch.set_num_threads(count)
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # nor is scikit-learn there, which needs it
        yield
        return
    with contextlib.suppress(ImportError):  # only libraries that are loaded can be limited
        importlib.import_module("sklearn.linear_model")
    with threadpool_limits(count):
        yield


if __name__ == "__main__":
    typer.run(main)
