"""What is reported of a run: the phases of its layers, and when to stop."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args

from ..common.files import writing
from ..common.tables import Printed
from ..results.failures import Failure, listed
from .best import BestCheckpoint

PhaseKind = Literal["constant", "decrease", "increase"]
KINDS: tuple[PhaseKind, ...] = get_args(PhaseKind)
NOT_THERE = "-"
FEW_SAMPLES = 30  # of which intervals cover less than they say, where some of them make up most of the error
_REASONS = 4  # that are said below a table
FEW_STEPS = 8  # fewer have too few orders to test: of 7, even a perfect valley has p = .025 to .07


@dataclass(frozen=True)
class Phase:
    """One learning phase of a curve: kind, probed steps it spans, change of the loss over it and its 95 % interval."""

    kind: PhaseKind
    start_step: int
    end_step: int
    change: float
    ci: tuple[float, float]


@dataclass(frozen=True, repr=False)
class CellPhases:
    """The phases of one layer and target; ``stop_window`` is None if the curve gives no advice."""

    layer: str
    target: str
    metric: str
    phases: tuple[Phase, ...]
    minimum_step: int
    minimum_ci: tuple[int, int]
    stop_window: tuple[int, int] | None
    evidence: dict[str, Any] = field(default_factory=dict, hash=False)

    def phase(self, kind: PhaseKind) -> Phase | None:
        """The phase of that kind, or None if there is none."""
        return next((phase for phase in self.phases if phase.kind == kind), None)

    @property
    def stop_open(self) -> bool:
        """Whether the stop window ends at the last measured step, so that more steps might have lengthened it."""
        return self.stop_window is not None and self.stop_window[1] == max(self.evidence.get("steps", ()), default=None)

    @property
    def window_text(self) -> str:
        """The stop window as :func:`window_text` has it."""
        return window_text(self.stop_window, self.stop_open)

    @property
    def why(self) -> str:
        """Why no decrease is named; empty if one is."""
        return self.evidence.get("reason") or ""

    @property
    def doubt(self) -> str:
        """The reason for doubt about where the stop window ends; empty if there is none."""
        return self.evidence.get("doubt") or ""

    @property
    def other_minimum(self) -> int | None:
        """The lowest step of a second valley, which is not as deep; None if there is none."""
        return self.evidence.get("other_minimum")

    @property
    def left_out(self) -> tuple[int, ...]:
        """Steps whose loss lies far above their neighbours', which phases, minimum and stop window leave out."""
        return tuple(self.evidence.get("left_out", ()))

    def phases_text(self) -> str:
        """The phases with their steps: ``constant 0-8, decrease 8-32``, or ``none``."""
        named = (f"{phase.kind} {span_text(phase.start_step, phase.end_step)}" for phase in self.phases)
        return ", ".join(named) or "none"

    def row(self) -> dict[str, Any]:
        """One of :meth:`PhaseReport.rows`."""
        row: dict[str, Any] = {"layer": self.layer, "target": self.target, "metric": self.metric}
        for kind in KINDS:
            phase = self.phase(kind)
            values = (phase.start_step, phase.end_step, phase.change, *phase.ci) if phase else (math.nan,) * 5
            row |= zip((f"{kind}_{what}" for what in ("start", "end", "change", "low", "high")), values, strict=True)
        start, end = self.stop_window or (math.nan, math.nan)
        row |= zip(("minimum", "minimum_low", "minimum_high"), (self.minimum_step, *self.minimum_ci), strict=True)
        row |= {"stop_start": start, "stop_end": end, "stop_open": self.stop_open}
        losses = self.evidence.get("loss", {})
        row |= {f"loss_{where}": losses.get(where, math.nan) for where in ("first", "minimum", "last")}
        other = math.nan if self.other_minimum is None else self.other_minimum
        row |= {"other_minimum": other, "left_out": list(self.left_out)}
        return row | {"why": self.why, "doubt": self.doubt}

    def __repr__(self) -> str:
        return f"CellPhases({self.layer!r}, {self.target!r}: {self.phases_text()}; stop window {self.window_text})"


def span_text(start: int, end: int) -> str:
    """Steps from one to another: ``16-64``, or ``16`` where both are the same."""
    return f"{start}-{end}" if start < end else str(start)


def window_text(window: tuple[int, int] | None, is_open: bool) -> str:
    """A stop window in few letters: ``16-64``, ``64-4096+`` where it is open, ``-`` where there is none."""
    return span_text(*window) + "+" * is_open if window else NOT_THERE


class _Cell(Protocol):
    @property
    def layer(self) -> str: ...
    @property
    def target(self) -> str: ...


_Found = TypeVar("_Found", bound=_Cell)


def looked_up(cells: Iterable[_Found], layer: str, target: str) -> _Found:
    """What there is of a layer and target; KeyError names what there is instead."""
    there = {(cell.layer, cell.target): cell for cell in cells}
    if (layer, target) not in there:
        raise KeyError(f"no phases of layer {layer!r}, target {target!r}; there are {list(there)}")
    return there[layer, target]


def failure_notes(failed: Mapping[int, Failure]) -> list[str]:
    """Notes on checkpoints that are not in the scores, at most a few lines."""
    lines = []
    for partial, text in ((False, "Not measured"), (True, "Measured in part")):
        lines += [
            f"{text}: {line}" for line in listed({k: each for k, each in failed.items() if each.partial == partial})
        ]
    if (left := len(lines) - _REASONS) > 0:
        lines[_REASONS:] = [f"and {left} more for other reasons, listed in phases.json"]
    return lines


def phase_notes(cells: Sequence[CellPhases]) -> list[str]:
    """Notes below a table of cells: what ``+`` means, and why layers show no change, of these at most a few.

    Doubts come first, then cells without any phase; targets are named if there is more than one.
    """
    notes = []
    if (share := next((cell.evidence.get("window", 0.25) for cell in cells if cell.stop_open), None)) is not None:
        notes.append(f"+ open: no certain rise of {share:g} of the decrease or more, up to the last step")
    if any(cell.phases and cell.evidence.get("samples", FEW_SAMPLES) < FEW_SAMPLES for cell in cells):
        notes.append(f"Fewer than {FEW_SAMPLES} held-out samples, or groups: intervals may be too narrow.")
    if any(cell.phases and cell.evidence.get("order_p", 0) is None for cell in cells):
        notes.append(f"Fewer than {FEW_STEPS} steps: a trend cannot be told from noise between them.")
    several = len({cell.target for cell in cells}) > 1
    if single := [_named(cell, several) for cell in cells if cell.stop_window and len({*cell.stop_window}) == 1]:
        notes.append(f"Stop windows of one step, which may be the lowest only by noise: {first_of(single)}.")
    rises = [(cell, steps) for cell in cells if (steps := cell.evidence.get("early_rise"))]
    if rising := [f"{_named(cell, several)} {span_text(*steps)}" for cell, steps in rises]:
        notes.append(f"Rises before the decrease, which no phase names: {first_of(rising)}.")
    rises = [(cell, steps) for cell in cells if (steps := cell.evidence.get("rise_within"))]
    if rising := [f"{_named(cell, several)} {span_text(*steps)}" for cell, steps in rises]:
        notes.append(f"Rises within the decrease, large beside it: {first_of(rising)}.")
    others = [(cell, step) for cell in cells if (step := cell.other_minimum) is not None]
    if again := [f"{_named(cell, several)} at {step}" for cell, step in others]:
        notes.append(
            f"Two valleys, of which the lower one counts, single steps aside; lowest of the other: {first_of(again)}."
        )
    if of := [cell for cell in cells if cell.left_out]:
        named = [f"{_named(cell, several)} at {', '.join(map(str, cell.left_out))}" for cell in of[:_REASONS]]
        more = f"; and in {len(of) - _REASONS} more curves" if len(of) > _REASONS else ""
        notes.append(f"Steps left out, because they lie far above their neighbours: {'; '.join(named)}{more}.")
    ends = {cell: max(steps) for cell in cells if (steps := cell.evidence.get("steps"))}
    if early := [f"{_named(cell, several)} to {end}" for cell, end in ends.items() if end < max(ends.values())]:
        notes.append(
            f"Measured to an earlier step only: {', '.join(early[:_REASONS])}{', ...' * (len(early) > _REASONS)}."
        )
    if len(cells) > 1 and cells[0].why and all(cell.why == cells[0].why for cell in cells):
        return [*notes, cells[0].why]
    in_order = sorted(cells, key=lambda cell: (not cell.doubt, bool(cell.phases)))
    told = [(cell, cell.why or cell.doubt) for cell in in_order]
    reasons = [f"{_named(cell, several)}: {text}" for cell, text in told if text]
    if (left := len(reasons) - _REASONS) > 0:
        reasons[_REASONS:] = [f"and {left} more: see cell.why, cell.doubt or phases.json"]
    return notes + reasons


def first_of(texts: Sequence[str]) -> str:
    """The first of some texts, and how many more there are."""
    more = f" and {len(texts) - _REASONS} more" if len(texts) > _REASONS else ""
    return "; ".join(texts[:_REASONS]) + more


def _named(cell: CellPhases, with_target: bool) -> str:
    return f"{cell.layer}, {cell.target}" if with_target else cell.layer


@dataclass(frozen=True, repr=False)
class PhaseReport(Printed):
    """The phases of all cells of a run; iterable, printed as a table, and written as ``phases.json``.

    Attributes:
        failed: checkpoints of the run, by step, that could not be measured, or some of whose layers could not, if these
            were given, or the report was read from a directory.
        best: where each target except the input is decoded best, if the report was read from a directory.
    """

    cells: tuple[CellPhases, ...]
    failed: Mapping[int, Failure] = field(default_factory=dict, hash=False)
    best: tuple[BestCheckpoint, ...] = ()

    def __iter__(self) -> Iterator[CellPhases]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)

    def __repr__(self) -> str:
        layers, targets = (list(dict.fromkeys(names)) for names in ([c.layer for c in self], [c.target for c in self]))
        return f"PhaseReport({len(self)} cells, layers {layers}, targets {targets})"

    def __str__(self) -> str:
        rows = [(cell.layer, cell.target, cell.phases_text(), cell.window_text) for cell in self]
        table = [("layer", "target", "phases", "stop window"), *rows]
        widths = [max(map(len, column)) for column in zip(*table)]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in table]
        return "\n".join([*lines, *phase_notes(self.cells), *failure_notes(self.failed)])

    def cell(self, layer: str, target: str = "input") -> CellPhases:
        """The phases of one layer and target; if there are none, KeyError names what there is."""
        return looked_up(self.cells, layer, target)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each cell: first and last step of each phase, its change, minimum, their intervals, stop window.

        NaN if there is none; also the losses at the first, minimum and last step, and the steps that are left out.
        For ``pandas.DataFrame``.
        """
        return [cell.row() for cell in self]

    def to_json(self) -> str:
        """``{"cells": [...], "best": [...], "failed": [...]}`` as documented in docs/numbers.md."""
        failed = [{"step": step, **asdict(failure)} for step, failure in self.failed.items()]
        cells = [asdict(cell) | {"stop_open": cell.stop_open} for cell in self.cells]
        return json.dumps({"cells": cells, "best": [asdict(each) for each in self.best], "failed": failed}, indent=2)

    def write(self, path: str | Path) -> None:
        """Write ``to_json()`` to ``path``, with its folder; StoreError if that fails."""
        with writing(path, "the phases to", parents=True) as partial:
            partial.write_text(self.to_json() + "\n", encoding="utf-8")
