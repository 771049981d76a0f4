"""Commands that look at what is there: a run's scores, and the installation."""

from __future__ import annotations

import io
import math
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from csv import writer as csv_writer
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from rich.text import Text

from ..common.console import of_results, put
from ..engine import VERSION
from ..errors import ArgumentError, StoreError
from ..ops._extension import build_info
from ..phases.comparing import Comparison
from ..phases.phase_report import PhaseReport
from ..phases.recipes import RecipeComparison
from ..phases.rules import DEFAULT_RULES, PhaseRules
from ..report import print_report, read_phases, restrict, write_comparison, write_phases, write_report
from ..results.failures import read_failures
from ..results.scores import PER_SAMPLE
from ..results.shards import list_shards, read_scores, read_shard
from .app import Directory, app

ShownLayers = Annotated[
    list[str] | None, typer.Option("--layer", help="Show only layers that match this glob; may be repeated.")
]
ShownTargets = Annotated[
    list[str] | None, typer.Option("--target", help="Show only targets that match this glob; may be repeated.")
]
Csv = Annotated[bool, typer.Option("--csv", help="Print comma-separated values instead, for a spreadsheet.")]
Window = Annotated[
    float,
    typer.Option(help="How far the stop window goes above the minimum, as a share of the decrease before it."),
]
Place = Annotated[
    Path | None,
    typer.Option("--out", help="A directory to write into instead of the run's own; made if there is none."),
]
_STEP = re.compile(r"[0-9]{1,18}")
_EXTRAS = {
    "torchvision": "vision",
    "huggingface-hub": "hub",
    "safetensors": "hub",
    "matplotlib": "report",
    "pandas": "report",
    "scikit-learn": "demo",
    "lightning": "lightning",
    "transformers": "hf",
    "accelerate": "hf",
}


@app.command()
def phases(
    directory: Directory,
    layer: ShownLayers = None,
    target: ShownTargets = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, as in phases.json, instead of tables.")] = False,
    csv: Csv = False,
    window: Window = DEFAULT_RULES.window,
    out: Place = None,
) -> None:
    """Detect the phases of a run: write phases.json, with all cells, into its directory and print the tables."""
    show = _as_text(json, csv)
    scores, report = read_phases(directory, PhaseRules(window=window))
    part, found = restrict(scores, report, layer, target)
    try:
        if show is not None:
            show(found)
        else:
            print_report(part, found, of_results())
    finally:  # also where nobody reads to the end
        write_phases(directory if out is None else out, report)


@app.command()
def report(
    directory: Directory,
    layer: ShownLayers = None,
    target: ShownTargets = None,
    form: Annotated[str, typer.Option("--format", help="Format of the pictures: png, pdf or svg.")] = "png",
    window: Window = DEFAULT_RULES.window,
    out: Place = None,
    event: Annotated[
        list[str] | None,
        typer.Option("--event", help="What happened at a step, such as 'lower rate=30000', is drawn; may be repeated."),
    ] = None,
) -> None:
    """Do what phases does, and draw phases.png and maps.png, or with --layer or --target phases-selected.png and
    maps-selected.png.

    The phases of the last layer, or of the last one before the heads, shade the upper curves; its stop window is marked
    in all of them.
    """
    rules, events = PhaseRules(window=window), _events(event or [])
    write_report(directory, layers=layer, targets=target, rules=rules, form=form, out=out, events=events)


def _events(given: Sequence[str]) -> dict[str, list[int]]:
    """Steps by what happened there; ArgumentError names what is not ``NAME=STEP``."""
    found: dict[str, list[int]] = {}
    for text in given:
        name, _, step = text.rpartition("=")
        if not name.strip() or not _STEP.fullmatch(step.strip()):
            raise ArgumentError(f"--event: expected NAME=STEP, such as 'lower rate=30000', got {text!r}")
        found.setdefault(name.strip(), []).append(int(step))
    return found


@app.command()
def compare(
    directories: Annotated[list[Path], typer.Argument(help="Directories of two runs or more, such as seeds.")],
    layer: ShownLayers = None,
    target: ShownTargets = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw the last layer, or the last one before the heads, in all runs, into this file."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    csv: Csv = False,
    window: Window = DEFAULT_RULES.window,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe",
            help="A glob, such as 'wide-*', of the runs of one recipe; repeated, recipes are compared with the first.",
        ),
    ] = None,
) -> None:
    """Show what the phases of several runs have in common, their stop window, and mean curves, or those of two runs.

    With --recipe: by how much several recipes, each trained with several seeds, differ in their best and last scores.
    """
    rules = PhaseRules(window=window)
    show = _as_text(json, csv)
    write_comparison(directories, layers=layer, targets=target, picture=picture, rules=rules, show=show, recipes=recipe)


@app.command("scores")
def scores_command(
    directory: Directory,
    step: Annotated[int | None, typer.Option("--step", help="Which checkpoint; the last by default.")] = None,
    layer: ShownLayers = None,
    target: ShownTargets = None,
    csv: Annotated[
        bool,
        typer.Option(
            "--csv", help="Print all columns but samples, of all checkpoints or --step, as comma-separated values."
        ),
    ] = False,
) -> None:
    """Print the held-out scores of one checkpoint."""
    shards = list_shards(directory)
    if step is not None and step not in shards and (failure := read_failures(directory).get(step)):
        raise StoreError(f"--step: step {step} was not measured: {failure.error}")
    if step is not None and shards and step not in shards:
        raise ArgumentError(f"--step: {directory} has no step {step}, only {', '.join(map(str, shards))}")
    scores = read_shard(shards[step]) if step in shards else read_scores(directory)
    found = scores.select(layer, target)
    if csv:
        _print_csv(found.without_samples.to_arrow().drop_columns(PER_SAMPLE).to_pylist())
    else:
        put(f"{found}\n")


def _as_text(json: bool, csv: bool) -> Callable[[PhaseReport | Comparison | RecipeComparison], None] | None:
    """What prints phases as JSON or CSV; None for tables."""
    if json and csv:
        raise ArgumentError("--json and --csv: give only one of them")
    if json:
        return lambda found: put(f"{found.to_json()}\n")
    return (lambda found: _print_csv(found.rows())) if csv else None


def _print_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each row below the names of the columns; what is not there is empty, lists are parted by blanks."""
    written = io.StringIO()
    writer = csv_writer(written, lineterminator="\n")
    for place, row in enumerate(rows):
        if place == 0:
            writer.writerow(row)
        texts = (" ".join(map(str, value)) if isinstance(value, list) else value for value in row.values())
        writer.writerow("" if isinstance(text, float) and math.isnan(text) else text for text in texts)
    put(written.getvalue())


@app.command()
def info() -> None:
    """Show versions, how the extension was built or why it is not used, and which devices there are."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in _facts():
        table.add_row(name, Text(value))
    of_results().print(table)


def _facts() -> list[tuple[str, str]]:
    """What ``info`` shows: (name, value)."""
    build = build_info()
    facts = [("phasefast", VERSION), ("Python", platform.python_version()), ("torch", torch.__version__)]
    facts += [(package, version(package)) for package in ("numpy", "pyarrow", "typer", "rich")]
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
