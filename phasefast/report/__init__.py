"""What a run directory's scores say: ``phases.json``, ``phases.png`` and tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..errors import StoreError
from ..scores import Scores, read_scores
from ..stages.phases import detect_phases
from ..store import PHASES, PICTURE
from ..types import PhaseReport
from .plot import plot_phases
from .table import print_report

__all__ = ["plot_phases", "print_report", "restrict", "write_phases", "write_report"]


def write_phases(directory: str | Path) -> tuple[Scores, PhaseReport]:
    """Read a run's scores, detect the phases and write them as ``phases.json`` into the directory.

    Raises:
        StoreError: there are no scores, or the directory cannot be written.
        DataError: fewer than two steps, or scores that cannot be analysed.
    """
    scores = read_scores(directory)
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
    layers: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
) -> PhaseReport:
    """``write_phases``, then the tables on ``console`` and ``phases.png`` in the directory.

    Args:
        layers, targets: names or globs of what is shown; ``phases.json``, and what is returned, have all.

    Raises:
        DependencyError: matplotlib is missing; all else is written and printed by then.
        StoreError, DataError: as for ``write_phases``. LayerError, ArgumentError: as for ``restrict``.
    """
    console = console or Console()
    scores, report = write_phases(directory)
    shown = restrict(scores, report, layers, targets)
    print_report(*shown, console)
    runs = scores.to_arrow().column("run").unique().to_pylist()
    title = f"Learning phases: {', '.join(map(str, runs))}"
    picture = plot_phases(*shown, Path(directory) / PICTURE, title=title)
    console.print(f"wrote {Path(directory) / PHASES} and {picture}", highlight=False, soft_wrap=True)
    return report
