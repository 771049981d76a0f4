"""What several runs, such as seeds of one training, agree on: which phases they share, and when all may stop."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..common.notices import few
from ..common.tables import Printed, aligned
from ..errors import DataError
from .best import CommonBest
from .phase_report import KINDS, CellPhases, PhaseKind, PhaseReport, looked_up, span_text, window_text


@dataclass(frozen=True)
class Agreement:
    """One layer and target in several runs.

    Attributes:
        cells: its phases in each run, by name.
    """

    layer: str
    target: str
    metric: str
    cells: Mapping[str, CellPhases] = field(hash=False)

    def count(self, kind: PhaseKind) -> int:
        """The number of runs that have such a phase."""
        return sum(cell.phase(kind) is not None for cell in self.cells.values())

    @property
    def minimum_steps(self) -> tuple[int, int, int]:
        """The earliest, the median and the latest step of the runs' minima; of two in the middle the earlier."""
        steps = sorted(cell.minimum_step for cell in self.cells.values())
        return steps[0], statistics.median_low(steps), steps[-1]

    @property
    def texts(self) -> list[str]:
        """What tables have: how many runs have each phase, the minimum with its range, the stop window of all."""
        low, median, high = self.minimum_steps
        counts = (f"{self.count(kind)} of {len(self.cells)}" for kind in KINDS)
        return [*counts, f"{median} [{span_text(low, high)}]", self.window_text]

    @property
    def stop_window(self) -> tuple[int, int] | None:
        """The steps that are in the stop windows of all runs; None if a run has none, or they do not overlap."""
        shared, without = self._shared
        return None if without else shared

    @property
    def _shared(self) -> tuple[tuple[int, int] | None, list[str]]:
        """The steps that all stop windows there are have in common, and the runs without one."""
        windows = [cell.stop_window for cell in self.cells.values() if cell.stop_window is not None]
        start, end = max((w[0] for w in windows), default=1), min((w[1] for w in windows), default=0)
        without = [run for run, cell in self.cells.items() if cell.stop_window is None]
        return ((start, end) if start <= end else None), without

    @property
    def stop_open(self) -> bool:
        """Whether the window is open: every run whose own window ends at the same step has an open one."""
        return self._is_open(self.stop_window)

    def _is_open(self, window: tuple[int, int] | None) -> bool:
        cells = self.cells.values()
        ending = [each for each in cells if window and each.stop_window and each.stop_window[1] == window[1]]
        return bool(ending) and all(each.stop_open for each in ending)

    @property
    def window_text(self) -> str:
        """The stop window as tables have it."""
        return window_text(self.stop_window, self.stop_open)

    @property
    def why(self) -> str:
        """Why there is no stop window in common; empty if there is one."""
        if self.stop_window is not None:
            return ""
        shared, without = self._shared
        if len(without) == len(self.cells):
            return "no run has a stop window"
        if without:
            others = "the other has" if len(self.cells) - len(without) == 1 else "the others share"
            others = f"; {others} {window_text(shared, self._is_open(shared))}" if shared else ""
            return f"none in {', '.join(without)}{others}"
        return "; ".join(f"{run} {cell.window_text}" for run, cell in self.cells.items()) + " do not overlap"

    def __repr__(self) -> str:
        phases = Counter(", ".join(phase.kind for phase in cell.phases) or "none" for cell in self.cells.values())
        named = "; ".join(f"{count} x {kinds}" for kinds, count in phases.most_common())
        return f"Agreement({self.layer!r}, {self.target!r}: {named}; stop window {self.window_text})"


def comparison_notes(agreements: Iterable[Agreement], with_target: bool = False) -> list[str]:
    """Why layers have no stop window in common, and which have a second valley, in a line for each reason."""
    reasons: dict[str, list[str]] = {}
    for each in agreements:
        name = f"{each.layer}/{each.target}" if with_target else each.layer
        if each.why:
            reasons.setdefault(f"no stop window in common: {each.why}", []).append(name)
        others = {run: other for run, cell in each.cells.items() if (other := cell.other_minimum) is not None}
        if others:
            places = ", ".join(f"{run} at {step}" for run, step in others.items())
            reasons.setdefault(f"two valleys, of which the lower one counts; lowest of the other: {places}", []).append(
                name
            )
    return [f"{', '.join(layers)}: {why}" for why, layers in reasons.items()]


@dataclass(frozen=True, repr=False)
class Comparison(Printed):
    """The agreement of runs on each layer and target that all of them have; iterable, printed as a table.

    Attributes:
        best: where each target except the input is decoded best, if the scores were read from directories.
    """

    runs: tuple[str, ...]
    agreements: tuple[Agreement, ...]
    best: tuple[CommonBest, ...] = ()

    def __iter__(self) -> Iterator[Agreement]:
        return iter(self.agreements)

    def __len__(self) -> int:
        return len(self.agreements)

    def __repr__(self) -> str:
        return "\n".join([f"Comparison of {', '.join(self.runs)}", *(f"  {each!r}" for each in self)])

    def __str__(self) -> str:
        table = [["layer", "target", *KINDS, "minimum [range]", "stop window of all"]]
        table += [[each.layer, each.target, *each.texts] for each in self]
        lines = [f"{len(self.runs)} runs: {', '.join(self.runs)}", *aligned(table, left={0, 1})]
        notes = comparison_notes(self, len({each.target for each in self}) > 1)
        return "\n".join([*lines, *notes, *map(str, self.best)])

    def agreement(self, layer: str, target: str = "input") -> Agreement:
        """The agreement on one layer and target; if there is none, KeyError names what there is."""
        return looked_up(self.agreements, layer, target)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each run, layer and target, as :meth:`PhaseReport.rows` has them; for ``pandas.DataFrame``."""
        return [{"run": run, **cell.row()} for each in self for run, cell in each.cells.items()]

    def to_json(self) -> str:
        """``{"runs", "cells": [...], "best": [...]}``: for each layer and target what :class:`Agreement` has."""
        cells = [
            {
                "layer": each.layer,
                "target": each.target,
                "metric": each.metric,
                "phases": {kind: each.count(kind) for kind in KINDS},
                "minimum_steps": {run: cell.minimum_step for run, cell in each.cells.items()},
                "stop_windows": {run: cell.stop_window for run, cell in each.cells.items()},
                "stop_windows_open": {run: cell.stop_open for run, cell in each.cells.items()},
                "stop_window": each.stop_window,
                "stop_open": each.stop_open,
            }
            for each in self
        ]
        best = [asdict(each) | {"mean": each.mean, "deviation": each.deviation} for each in self.best]
        return json.dumps({"runs": self.runs, "cells": cells, "best": best}, indent=2)


def compare_phases(reports: Mapping[str, PhaseReport]) -> Comparison:
    """What the phases of several runs have in common, layer by layer.

    Args:
        reports: of each run by name, such as ``{"seed 0": pf.detect_phases(scores), ...}``; two or more.

    Raises:
        DataError: fewer than two runs, or no layer and target that all have.
    """
    given = list(reports.values()) if isinstance(reports, Mapping) else [reports]
    fit = all(isinstance(each, PhaseReport) for each in given)
    if not fit or len(given) < 2:
        got = list(reports) if fit and isinstance(reports, Mapping) else [type(each).__name__ for each in given]
        raise DataError(f"expected the phases of two runs or more by name, {{name: PhaseReport}}, got {got}")
    names = [str(run) for run in reports]
    if len(set(names)) < len(names):
        raise DataError(f"expected a different name for each run, got {names}")
    reports = dict(zip(names, reports.values(), strict=True))
    cells = {run: {(cell.layer, cell.target, cell.metric): cell for cell in report} for run, report in reports.items()}
    first, *others = cells.values()
    shared = [key for key in first if all(key in other for other in others)]
    if not shared:
        raise DataError(f"no layer and target in common: {_listed(cells)}")
    agreements = (Agreement(*key, {run: own[key] for run, own in cells.items()}) for key in shared)
    return Comparison(tuple(reports), tuple(agreements))


def _listed(cells: Mapping[str, Mapping[tuple[str, str, str], CellPhases]]) -> str:
    return "; ".join(
        f"{run} has {few([f'{layer}/{target}' for layer, target, _ in own])}" for run, own in cells.items()
    )
