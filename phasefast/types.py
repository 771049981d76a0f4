"""The frozen records that flow between the stages: capture -> reduce -> statistics -> solve -> evaluate -> phases."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

import torch

TargetKind = Literal["regression", "classes"]
BatchNormMode = Literal["recompute", "batch", "running"]
Route = Literal["primal", "dual"]
TokenMode = Literal["flatten", "mean", "cls", "last", "each"]


@dataclass(frozen=True)
class TargetBlock:
    """Columns ``start:stop`` of the target matrix that stand for the ``width`` columns of one target.

    Attributes:
        random: so many of them, the last, are random combinations of what leading components leave out: their squared
            errors have its for their mean. 0: the columns stand for the target exactly.
    """

    name: str
    kind: TargetKind
    start: int
    stop: int
    width: int
    random: int = 0


@dataclass(frozen=True)
class Layer:
    """One place whose activations are probed: the ``call``-th call of module ``module``, ``dim`` features per row.

    Attributes:
        place: among all calls of the model's modules, as they end; None where that is not known.
        second: its outputs [t, b, f] have the samples on the second axis.
    """

    name: str
    module: str
    call: int
    dim: int
    place: int | None = None
    second: bool = False


@dataclass(frozen=True)
class Activations:
    """Captured rows of one layer, minus ``shift``.

    Attributes:
        fit: [n, d], heldout: [m, d], float32; float64 for a float64 model, bfloat16 where it is fast and may be used.
        shift: [d] float32.
        sums: [k, d] float64 sums of the stored fit rows, per fold.
        route: ``"primal"``: the columns are the layer's features; ``"dual"``: n coordinates of the rows in their span.
        rounded: whether the rows were rounded to bfloat16. mean_square: of a row's number, where that is known.
    """

    layer: Layer
    fit: torch.Tensor
    heldout: torch.Tensor
    shift: torch.Tensor
    sums: torch.Tensor
    route: Route = "primal"
    rounded: bool = False
    mean_square: float | None = None

    @cached_property
    def mean(self) -> torch.Tensor:
        """Of the stored fit rows, [d] float64."""
        return self.sums.sum(0) / len(self.fit)


@dataclass(frozen=True)
class Moments:
    """Uncentred sums over some fit rows: count, sum a, sum t, lower triangle of sum a a', sum a t' (float64).

    Attributes:
        scale: see ``System.scale``, where it is known.
    """

    count: int
    row_sum: torch.Tensor
    target_sum: torch.Tensor
    gram: torch.Tensor
    cross: torch.Tensor
    scale: float | None = None


@dataclass(frozen=True)
class Statistics:
    """Everything the solver needs of one cell: moments of all fit rows and of each fold.

    The cross moments of ``total`` see all target columns, those of ``folds`` the sketched ones.
    """

    dtype: torch.dtype
    total: Moments
    folds: tuple[Moments, ...]


@dataclass(frozen=True)
class BlockFit:
    """How one target's columns were solved, with the certificates of the solve.

    Attributes:
        alpha: penalty over the mean diagonal of the centred Gram matrix. penalty: absolute, jitter included. Both are
            geometric means where columns have penalties of their own, dof the mean.
        dof: effective degrees of freedom, tr (G + penalty I)^-1 G. condition: estimate for G + penalty I.
        error_estimate: relative error of the squared errors that rounding is estimated to have made.
        fit_error: squared error on the fit rows, or None where cancellation would spoil it.
    """

    block: TargetBlock
    alpha: float
    penalty: float
    jitter: float
    rank: int
    dof: float
    condition: float
    error_estimate: float
    fit_error: float | None
    route: str


@dataclass(frozen=True)
class Decoder:
    """The linear decoder of one cell, all targets side by side: prediction = (row - shift) @ weights + offset.

    Attributes:
        weights: [d, p], offset: [p], float32 or float64; predicts the columns of the target matrix.
        fits: of the targets that it decodes.
    """

    layer: Layer
    weights: torch.Tensor
    offset: torch.Tensor
    fits: tuple[BlockFit, ...]

    @property
    def error_estimate(self) -> float:
        """The largest error estimate of the blocks."""
        return max(fit.error_estimate for fit in self.fits)


@dataclass(frozen=True)
class Bounds:
    """An interval, of 95 % or more by estimate, for what an approximation stands for.

    Attributes:
        approximation: what was left out. low, high: NaN where nothing is known of the exact value.
        dropped: share of the target's squared deviation outside its components; NaN for other approximations.
    """

    approximation: str
    low: float = math.nan
    high: float = math.nan
    dropped: float = math.nan


@dataclass(frozen=True)
class Score:
    """One number: a metric of one target of one layer on one split; ``samples`` [m] average to ``value``.

    Attributes:
        weights: [m] what each sample counts in it, on average 1, where they do not count alike.
    """

    layer: str
    dim: int
    target: str
    split: str
    metric: str
    value: float
    n: int
    fit: BlockFit | None = None
    dtype: torch.dtype | None = None
    samples: torch.Tensor | None = None
    bounds: Bounds | None = None
    weights: torch.Tensor | None = None


class OwnPlace(NamedTuple):
    """Where in a model's output its predictions are, and how they become rows.

    Attributes:
        nth: among all tensors of the output. one: of [b, t, c] the token that stands for all is taken.
        numbers: they are numbers like a target's, of any shape; else there is one for each class.
        of_tokens: rows are tokens, not samples. shape: of a row.
        share: single numbers are probabilities of the second of two classes, not logits.
        second: samples are on the second axis.
    """

    nth: int
    one: bool
    numbers: bool
    second: bool = False
    of_tokens: bool = False
    shape: tuple[int, ...] = ()
    share: bool = False


class TakesShapes(Protocol):
    """What a model's own outputs may be compared with."""

    @property
    def name(self) -> str:
        """Of the target."""

    @property
    def others(self) -> Collection[str]:
        """The names of the other targets."""

    @property
    def taken(self) -> Collection[str]:
        """The names of those that are predicted too."""

    @property
    def numbers(self) -> bool:
        """Whether outputs are to be numbers like the target's, of any shape, or one for each class."""

    @property
    def of_inputs(self) -> bool:
        """Whether the target is the inputs, which stay what they are where a model changes them in place."""

    def likeness(self, of_tokens: bool, shape: tuple[int, ...]) -> int:
        """How much outputs [b, *shape] are like those expected: 0 if they are none, 3 for the very shape."""


class TakesOutputs(Protocol):
    """What the model's own predictions are given to, batch by batch."""

    @property
    def place(self) -> OwnPlace:
        """Where they are."""

    def add(self, split: str, start: int, outputs: torch.Tensor) -> None:
        """Predictions [b, ...] of the samples, or of the tokens that are rows, from ``start`` on."""
