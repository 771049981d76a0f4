"""What a run directory's scores say: ``phases.json``, ``phases.png`` and tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..comparing import Comparison, compare_phases
from ..errors import ArgumentError, DataError, LayerError, StoreError
from ..notices import warn
from ..phase_report import PhaseReport
from ..scores import Scores, read_scores
from ..stages.phases import detect_phases
from ..store import PHASES, PICTURE, SELECTED, differences
from .compared import plot_comparison, print_comparison, run_names
from .plot import plot_phases
from .table import print_report

__all__ = ["plot_phases", "print_report", "read_runs", "restrict", "write_comparison", "write_phases", "write_report"]


_LISTED = 6
_UNNAMED = "run"  # the label of those that were not given one


def write_phases(directory: str | Path, run: str | None = None) -> tuple[Scores, PhaseReport]:
    """Read a run's scores, detect the phases and write them as ``phases.json`` into the directory.

    Args:
        run: which run it is of, where the directory holds the scores of several.

    Raises:
        ArgumentError: there are several runs and none is chosen, or no such run.
        StoreError: there are no scores, or the directory cannot be written.
        DataError: fewer than two steps, or scores that cannot be analysed.
    """
    scores = _run_of(read_scores(directory), directory, run)
    report = detect_phases(scores)
    path = Path(directory) / PHASES
    try:
        report.write(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}; free some space or choose another directory") from error
    return scores, report


def restrict(
    scores: Scores, report: PhaseReport, layers: Sequence[str] | None = None, targets: Sequence[str] | None = None
) -> tuple[Scores, PhaseReport]:
    """What is to be shown of a run: the layers and targets whose names match a glob; None for all.

    Raises:
        LayerError, ArgumentError: a pattern matches no layer or no target.
    """
    shown = scores.select(layers, targets)
    cells = (cell for cell in report if cell.layer in shown.layers and cell.target in shown.targets)
    return shown, PhaseReport(tuple(cells))


def write_report(
    directory: str | Path,
    console: Console | None = None,
    *,
    run: str | None = None,
    layers: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
) -> PhaseReport:
    """``write_phases``, then the tables on ``console`` and ``phases.png`` in the directory.

    Args:
        run: as for ``write_phases``.
        layers, targets: names or globs of what is shown, in ``phases-selected.png`` then; ``phases.json``, and what is
            returned, have all.

    Raises:
        DependencyError: matplotlib is missing; all else is written and printed by then.
        StoreError, DataError, LayerError, ArgumentError: as for ``write_phases`` and ``restrict``.
    """
    console = console or Console()
    scores, report = write_phases(directory, run)
    shown = restrict(scores, report, layers, targets)
    print_report(*shown, console)
    (name,) = scores.values_of("run")
    name = Path(directory).resolve().name if name == _UNNAMED else name
    picture = Path(directory) / (PICTURE if layers is None and targets is None else SELECTED)
    plot_phases(*shown, picture, title=f"Learning phases: {name}")
    console.print(f"wrote {Path(directory) / PHASES} and {picture}", highlight=False, soft_wrap=True)
    return report


def read_runs(
    directories: Sequence[str | Path], layers: Sequence[str] | None = None, targets: Sequence[str] | None = None
) -> tuple[Comparison, dict[str, Scores]]:
    """The phases that runs in several directories have in common, and their scores by name: the ends of the paths.

    Warns where they were measured differently.

    Args:
        layers, targets: names or globs; None for all.

    Raises:
        As ``detect_phases``, ``compare_phases`` and ``write_phases`` do.
    """
    names = run_names(directories)
    scores = {}
    for name, directory in zip(names, directories, strict=True):
        try:
            scores[name] = _run_of(read_scores(directory), directory, None).select(layers, targets)
        except (LayerError, ArgumentError) as error:
            raise type(error)(f"{name}: {error}") from error
    for name, directory in zip(names[1:], directories[1:], strict=True):
        if others := differences(directories[0], directory, (names[0], name)):
            warn(f"{name} was not measured as {names[0]}: {others}")
    comparison = compare_phases({name: detect_phases(own) for name, own in scores.items()})
    common = {(each.layer, each.target) for each in comparison}
    left = {(layer, target) for own in scores.values() for layer in own.layers for target in own.targets} - common
    if left:
        listed = ", ".join(f"{layer}/{target}" for layer, target in sorted(left)[:_LISTED])
        warn(f"not compared, as not all runs have them: {listed}{', ...' if len(left) > _LISTED else ''}")
    return comparison, scores


def write_comparison(
    directories: Sequence[str | Path],
    console: Console | None = None,
    *,
    layers: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    picture: str | Path | None = None,
) -> Comparison:
    """``read_runs``, its tables on ``console``, and the last layer of all runs in ``picture``, a file, if given.

    Raises:
        DependencyError: matplotlib is missing; all else is printed by then. And as ``read_runs`` does.
    """
    console = console or Console()
    if picture is not None and (Path(picture).suffix != ".png" or not Path(picture).resolve().parent.is_dir()):
        raise ArgumentError(f"picture: expected a file such as seeds.png in a folder that is there, got {picture}")
    comparison, scores = read_runs(directories, layers, targets)
    print_comparison(comparison, scores, console)
    if picture is not None:
        layer = plot_comparison(comparison, scores, picture)
        console.print(f"wrote {picture}, of layer {layer}", highlight=False, soft_wrap=True)
    return comparison


def _run_of(scores: Scores, directory: str | Path, run: str | None) -> Scores:
    """The scores of the run, or of the only one."""
    runs = scores.values_of("run")
    if run not in runs and (run is not None or len(runs) > 1):
        wanted = f"no run {run!r} in {directory}" if run is not None else f"{directory} holds more than one run"
        raise ArgumentError(
            f"{wanted}: choose one of {', '.join(map(repr, runs))} with run= or --run, or give each its own out="
        )
    own = scores if run is None else scores.filter(run=run)
    if len(found := own.values_of("config_hash")) > 1:
        raise DataError(
            f"{directory}: run {own.values_of('run')[0]!r} holds scores of {len(found)} configurations "
            f"(config_hash {', '.join(found)}), as of jobs that ran together; measure again, each with its own out="
        )
    return own
