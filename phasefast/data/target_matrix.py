"""All targets of a run side by side, and what of them is the same for all cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..metrics import ACCURACY, BALANCED_ACCURACY, FVU, MSE
from ..types import TargetBlock


@dataclass(frozen=True)
class TargetSketch:
    """Columns that stand for all target columns when a penalty is chosen: random combinations where a block is wide.

    Attributes:
        blocks: one entry per target. fit: [n, q] float32. sums: [k, q] float64, per fold.
        squares: [q] float64, squared deviations from the mean.
        mixes: per target, what its columns are multiplied by [p, q], or None where they stand for themselves; empty
            where the columns that are decoded are others.
    """

    blocks: tuple[TargetBlock, ...]
    fit: torch.Tensor
    sums: torch.Tensor
    squares: torch.Tensor
    mixes: tuple[torch.Tensor | None, ...] = ()

    @cached_property
    def squares_here(self) -> torch.Tensor:
        """On the CPU."""
        return self.squares.cpu()


@dataclass(frozen=True)
class Check:
    """What a solution is certified on: random combinations of a block's columns, or all where they are few; float64.

    Attributes:
        directions: [p, c]. fit: [n, c], heldout: [m, c], the block's columns times them.
    """

    directions: torch.Tensor
    fit: torch.Tensor
    heldout: torch.Tensor

    @property
    def exact(self) -> bool:
        """Whether these are the columns themselves, or some of them."""
        return len(self.directions) <= self.directions.shape[1]


@dataclass(frozen=True)
class CheckColumns:
    """The columns of several checks side by side, with the means [c] and squared deviations [c] of the fit rows.

    Attributes:
        fit: [n, c]. heldout: [m, c], less the means.
    """

    mean: torch.Tensor
    fit: torch.Tensor
    heldout: torch.Tensor
    deviation: torch.Tensor

    @classmethod
    def of(cls, checks: Sequence[Check], means: Sequence[torch.Tensor]) -> CheckColumns:
        """Args: means: of the columns that each check combines, float64."""
        mean = torch.cat([own @ check.directions for own, check in zip(means, checks, strict=True)])
        # Few columns are stored as rows, like all of them.
        fit = torch.cat([check.fit.mT for check in checks]).mT
        heldout = torch.cat([check.heldout.mT for check in checks]).mT
        return cls(mean, fit, heldout - mean, (fit - mean).square().sum(0))


def rounding_of(rounded: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Means [p] float64 of rounded columns [n, p], less those of the columns themselves, which add up to ``sums``."""
    parts = [part.sum(0, dtype=torch.float64) for part in rounded.split(1024)]
    return (torch.stack(parts).sum(0) - sums) / len(rounded)


def balanced_weights(classes: torch.Tensor, count: int) -> torch.Tensor:
    """What each row of classes [n] counts so that all of ``count`` classes that occur count alike: float64, mean 1."""
    rows = torch.zeros(count, dtype=torch.float64, device=classes.device)
    rows.index_add_(0, classes, torch.ones_like(classes, dtype=torch.float64))
    return (len(classes) / (rows * (rows > 0).sum()))[classes]


@dataclass(frozen=True)
class TargetMatrix:
    """All targets side by side, regression columns minus their fit means, and what all cells of a sweep need of them.

    Attributes:
        blocks: one entry per target, in column order. A target of more columns than there are rows is given by
            coordinates of its rows in their span: lengths and inner products are the same.
        folds: k + 1 row offsets of the folds of the fit rows.
        fit: [n, p] float32. heldout: [m, p] float32.
        sums: [k, p] float64 sums of ``fit``, per fold.
        deviation: squared deviation of the targets from the fit mean, per split and block: {"fit": [...], ...}.
        dropped: how much of it leading components leave out, likewise. squares: that of the columns of ``fit``.
        distances: per block, squared deviations [m] float64 of the held-out samples, where it is a regression.
        sketch: what the choice of a penalty looks at. checks: what solutions are certified on, one entry per target.
        digests: content hashes, one entry per target.
        per_column: whether each column of a regression has a penalty of its own.
    """

    blocks: tuple[TargetBlock, ...]
    folds: tuple[int, ...]
    fit: torch.Tensor
    heldout: torch.Tensor
    sums: torch.Tensor
    deviation: dict[str, tuple[float, ...]]
    dropped: dict[str, tuple[float, ...]]
    squares: tuple[float, ...]
    distances: tuple[torch.Tensor | None, ...]
    sketch: TargetSketch
    checks: tuple[Check, ...]
    digests: tuple[str, ...]
    per_column: bool = False

    @cached_property
    def mean(self) -> torch.Tensor:
        """Of the columns of ``fit``, [p] float64."""
        return self.sums.sum(0) / len(self.fit)

    def wholes(self, index: int, split: str, rows: int) -> dict[str, float]:
        """The squared error of a regression target over all rows at which each of its metrics is 1."""
        return {MSE: rows * self.blocks[index].width, FVU: self.deviation[split][index]}

    @cached_property
    def baselines(self) -> dict[tuple[str, str, str], float]:
        """What the best constant scores, by target, split and metric: the fit mean, or the most frequent fit class."""
        found = {}
        for index, block in enumerate(self.blocks):
            frequent = (
                block.start + int(self.mean[block.start : block.stop].argmax()) if block.stop > block.start else 0
            )
            for split, rows in (("fit", self.fit), ("heldout", self.heldout)):
                if block.kind == "classes":
                    found[block.name, split, ACCURACY] = float(rows[:, frequent].double().mean())
                    there = int(rows[:, block.start : block.stop].any(0).sum())
                    found[block.name, split, BALANCED_ACCURACY] = 1 / there
                else:
                    whole = self.wholes(index, split, len(rows))
                    found[block.name, split, MSE] = whole[FVU] / whole[MSE]
                    found[block.name, split, FVU] = 1.0
        return found

    @cached_property
    def class_weights(self) -> dict[tuple[str, str], torch.Tensor]:
        """What each row counts so that the classes that a split has count alike, 1 on average: by target and split."""
        found = {}
        for block in (block for block in self.blocks if block.kind == "classes"):
            held = self.heldout[:, block.start : block.stop].argmax(1)
            for split, own in (("fit", self.fit_classes[block.name]), ("heldout", held)):
                found[block.name, split] = balanced_weights(own, block.stop - block.start)
        return found

    @cached_property
    def fit_classes(self) -> dict[str, torch.Tensor]:
        """The class of each fit row, [n], by target; of many classes reading all columns takes long."""
        classes = (block for block in self.blocks if block.kind == "classes")
        return {block.name: self.fit[:, block.start : block.stop].argmax(1) for block in classes}

    @cached_property
    def sample_weights(self) -> dict[str, torch.Tensor]:
        """The held-out part of ``class_weights``, float32 [m] on the CPU, by target."""
        return {name: own.float().cpu() for (name, split), own in self.class_weights.items() if split == "heldout"}

    @cached_property
    def baseline_samples(self) -> dict[str, np.ndarray]:
        """Held-out FVU [m] float32 of the best constant for each sample, by regression target."""
        found = {}
        for block, own, deviation in zip(self.blocks, self.distances, self.deviation["heldout"], strict=True):
            if own is not None:
                found[block.name] = (own * (len(own) / deviation)).float().cpu().numpy()
        return found

    @cached_property
    def check_columns(self) -> CheckColumns:
        """Those of all targets."""
        return CheckColumns.of(self.checks, [self.mean[block.start : block.stop] for block in self.blocks])

    @cached_property
    def rounded(self) -> torch.Tensor:
        """``fit`` in bfloat16, for all cells whose rows are; made once."""
        return self.fit.bfloat16()

    @cached_property
    def rounding(self) -> torch.Tensor:
        """What that adds to the columns' means, [p] float64."""
        return rounding_of(self.rounded, self.sums.sum(0))
