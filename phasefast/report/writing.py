"""Tables, ``phases.json`` and pictures of runs, and where they are written."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from ..common.console import of_results
from ..common.notices import shown
from ..errors import ArgumentError
from ..phases.comparing import Comparison
from ..phases.phase_report import PhaseReport
from ..phases.recipes import RecipeComparison
from ..phases.rules import DEFAULT_RULES, PhaseRules
from ..results.store import FORMATS, PHASES, PICTURES, SELECTED
from .compared import absolute, plot_comparison, print_comparison, run_names
from .curves import drawn_targets, telling_layers
from .maps import MOST_MAPS, plot_maps
from .page import picture_format
from .plot import plot_phases
from .reading import read_phases, read_runs, restrict
from .recipes import plot_recipes, print_recipes, recipes_of, split_runs
from .table import print_report

_UNNAMED = "run"  # the label of those that were not given one


def write_report(
    directory: str | Path,
    console: Console | None = None,
    *,
    layers: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    rules: PhaseRules = DEFAULT_RULES,
    form: str = "png",
    out: str | Path | None = None,
    events: Mapping[str, int | Sequence[int]] | None = None,
) -> PhaseReport:
    """The tables of a run's phases on ``console``, then ``phases.json`` and two pictures in its directory, or ``out``.

    These are ``phases.png``, by ``plot_phases``, and ``maps.png``, by ``plot_maps``.

    Args:
        layers, targets: names or globs of what is shown, then in ``phases-selected.png`` and ``maps-selected.png``;
            ``phases.json`` and the result have all. rules: thresholds of the phases. form: of the pictures, and the
            end of their names: png, pdf or svg. out: another directory, for example if the run's own cannot be
            written to. events: as for ``plot_phases``.

    Raises:
        DependencyError: matplotlib is missing; all else is written and printed by then.
        StoreError: the directory cannot be written; all is printed by then.
        ArgumentError: the pictures' form is none of these.
        StoreError, DataError, LayerError, ArgumentError: as for ``read_phases`` and ``restrict``.
    """
    console = console or of_results()
    if f".{form}" not in FORMATS:
        raise ArgumentError(f"form (--format): expected png, pdf or svg, got {form!r}")
    scores, report = read_phases(directory, rules)
    part, place = restrict(scores, report, layers, targets), Path(directory if out is None else out)
    print_report(*part, console)
    write_phases(place, report)
    (name,) = scores.values_of("run")
    name = Path(directory).resolve().name if name == _UNNAMED else name
    pictures = PICTURES if layers is None and targets is None else SELECTED
    picture, maps = (place / f"{each}.{form}" for each in pictures)
    telling = [layer for layer in telling_layers(scores) if layer in part[0].layers]
    title, shown_by = f"Learning phases: {name}", [glob.escape(layer) for layer in telling]
    plot_phases(*part, picture, title, layers=shown_by, events=events)
    plot_maps(part[0], maps, title=f"What each layer gives back: {name}")
    console.print(f"wrote {place / PHASES}, {picture} and {maps}", soft_wrap=True)
    drawn = drawn_targets(part[0])
    if left := [target for target in part[0].targets if target not in drawn]:
        text = f"{picture.name} leaves out {shown(left)}: --target {min(left)} draws it alone"
        if len(part[0].targets) > MOST_MAPS:
            text += f"; {maps.name} has the first {MOST_MAPS} targets, --target chooses others"
        console.print(text, soft_wrap=True)
    return report


def write_phases(directory: str | Path, report: PhaseReport) -> None:
    """Write a run's phases as ``phases.json`` into a directory, its own as a rule.

    Raises:
        StoreError: the directory cannot be written.
    """
    report.write(Path(directory) / PHASES)


def write_comparison(
    directories: Sequence[str | Path],
    console: Console | None = None,
    *,
    layers: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    picture: str | Path | None = None,
    rules: PhaseRules = DEFAULT_RULES,
    show: Callable[[Comparison | RecipeComparison], None] | None = None,
    recipes: Sequence[str] | None = None,
) -> Comparison | RecipeComparison:
    """``read_runs``, its tables on ``console``, and ``plot_comparison`` in ``picture``, a file, if given.

    Args:
        show: prints it instead of the tables and all else. recipes: globs of paths, each of which is a recipe's runs,
            that are compared with each other, as by ``compare_recipes`` and ``plot_recipes``.

    Raises:
        DependencyError: matplotlib is missing; all else is printed by then. All errors of ``read_runs``.
    """
    console = console or of_results()
    if picture is not None:
        check_picture(picture)
    paths = dict(zip(run_names(directories), map(absolute, directories), strict=True))
    of = split_runs(paths, recipes) if recipes else {}
    comparison, scores, telling = read_runs(directories, layers, targets, rules)
    last = next(layer for layer in telling if layer in {each.layer for each in comparison})
    found = recipes_of(comparison, of) if of else comparison
    if show is not None:
        show(found)
    elif isinstance(found, RecipeComparison):
        print_recipes(found, console)
    else:
        print_comparison(comparison, scores, telling, console)
    if picture is not None and of:
        plot_recipes({recipe: {run: scores[run] for run in own} for recipe, own in of.items()}, picture, last)
    elif picture is not None:
        plot_comparison(scores, comparison, picture, last)
    if picture is not None and show is None:
        console.print(f"wrote {picture}, of layer {last}", soft_wrap=True)
    return found


def check_picture(path: str | Path) -> None:
    """Raise ArgumentError if a picture cannot be written: to be called before work that takes long."""
    picture_format(path)
    if not (folder := Path(path).resolve().parent).is_dir():
        raise ArgumentError(f"picture: expected an existing folder, got {folder}; create it first")
    if not os.access(folder, os.W_OK):
        raise ArgumentError(f"picture: expected a writable folder, got {folder}; choose another one")
