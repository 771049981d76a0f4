"""Where the targets of a report are decoded best, which pictures and tables name."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import replace

from ..phases.best import best_checkpoint
from ..phases.comparing import Agreement
from ..phases.phase_report import CellPhases, PhaseReport
from ..results.scores import Scores
from .table import INPUT


def with_best(scores: Scores, report: PhaseReport) -> PhaseReport:
    """The report with the best of its layers for each target of its own but the input, which first layers keep."""
    best = (best_checkpoint(scores, target, layers=layers) for target, layers in task_layers(report).items())
    return replace(report, best=tuple(best))


def task_layers(cells: Iterable[CellPhases | Agreement]) -> dict[str, list[str]]:
    """The layers of each target but the input, as globs."""
    layers: dict[str, list[str]] = {}
    for cell in cells:
        if cell.target != INPUT:
            layers.setdefault(cell.target, []).append(glob.escape(cell.layer))
    return layers
