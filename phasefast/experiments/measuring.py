"""The sweeps of one setting and seed: the authors' way, all layers with recomputed statistics, and transfer tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.probe_set import ProbeSet
from ..data.target_types import Label, Target
from ..engine import Engine
from ..layers.selection import select_layers
from ..phases.detect import detect_phases
from ..phases.phase_report import PhaseReport
from ..results.scores import Scores
from ..sweep import sweep
from ..types import Activations
from .datasets import Splits
from .settings import Setting
from .tasks import OtherTask, draw, own_targets

_FEATURES = ("features", "avgpool")  # names that the last layer before the classifier goes by
TASK_ROWS = (4_000, 2_000)  # fit and held-out images of a transfer task with images of its own
# The cost of a layer grows with the third power of its width: wide ones get fewer rows and penalties.
WIDE, WIDE_ROWS, WIDE_ALPHAS = 2_048, (4_000, 1_000), (1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Measured:
    """Scores of one seed.

    Attributes:
        batch: last features, BatchNorm by batch as the authors measure, on ``rows`` or all rows.
        recompute: the layers asked for, BatchNorm statistics recomputed.
        wide: layers of more than ``WIDE`` features, likewise, on ``WIDE_ROWS``; None where not measured.
        tasks: last features per transfer task with images of its own.
    """

    seed: int
    features: str
    batch: Scores
    recompute: Scores
    wide: Scores | None
    tasks: dict[str, Scores]

    @cached_property
    def layers(self) -> Scores:
        """All layers with recomputed statistics, and the model's own numbers of ``recompute``, which has more rows."""
        wide = [] if self.wide is None else [self.wide.filter(layer=name) for name in self.wide.layers]
        return Scores.concat([*wide, self.recompute])

    @cached_property
    def phases(self) -> PhaseReport:
        """Those of all layers and targets."""
        return detect_phases(self.layers)


def last_features(model: nn.Module) -> str:
    """Name of the last layer before the classifier; of a single dense layer, the layer itself."""
    names = select_layers(model)
    return next((name for name in _FEATURES if name in names), names[-2] if len(names) > 2 else names[-1])


def measure(
    setting: Setting,
    model: nn.Module,
    checkpoints: dict[int, Path],
    data: Splits,
    tasks: Sequence[OtherTask],
    out: Path,
    seed: int,
    *,
    rows: tuple[int, int] = (10_000, 2_000),
    all_rows: bool = False,
    wide: bool = True,
    extra: Sequence[Target] = (),
) -> Measured:
    """Sweep the checkpoints of one seed; steps that ``out`` holds already are not measured again.

    Args:
        data: what the network was trained on.
        rows: fit and held-out rows. all_rows: measure the authors' way on all there are, as they do.
        wide: measure layers of more than ``WIDE`` features too.
        extra: further targets on the setting's own images.

    Raises:
        PhasefastError: as :func:`phasefast.sweep`.
    """
    features = last_features(model)
    narrow, broad = _by_width(model, data, features)
    own = own_targets(data, list(extra))

    def swept(name: str, probe_set: ProbeSet, layers: list[str], targets: list[Target], **options: Any) -> Scores:
        run = f"{setting.name}-{seed}"
        place = out / name
        return sweep(model, checkpoints, probe_set, out=place, run=run, layers=layers, targets=targets, **options)

    return Measured(
        seed,
        features,
        batch=swept("batch", draw(data, *((None, None) if all_rows else rows)), [features], own, batchnorm="batch"),
        recompute=swept("recompute", draw(data, *rows), narrow, own),
        wide=swept("wide", draw(data, *WIDE_ROWS), broad, own, alphas=WIDE_ALPHAS) if wide and broad else None,
        tasks={
            task.name: swept(f"task-{task.name}", draw(task.data, *TASK_ROWS), [features], [task.target])
            for task in tasks
        },
    )


def _by_width(model: nn.Module, data: Splits, features: str) -> tuple[list[str], list[str]]:
    """Names of the layers up to the last features of at most ``WIDE`` features, and of more.

    A layer that only passes on another's activations, as ``flatten`` does after a stage of 1x1 pixels, is left out.
    """
    names = select_layers(model)
    names = names[: names.index(features) + 1]
    cells = Engine(model, draw(data, 2, 2), layers=names, targets=[Label(data.num_classes)]).activations()
    kept = [cell for cell, after in zip(cells, [*cells[1:], None], strict=True) if not _same_rows(cell, after)]
    narrow = [cell.layer.name for cell in kept if cell.layer.dim <= WIDE or cell.layer.name == features]
    return narrow, [cell.layer.name for cell in kept if cell.layer.name not in narrow]


def _same_rows(cell: Activations, after: Activations | None) -> bool:
    return after is not None and torch.equal(cell.fit + cell.shift, after.fit + after.shift)
