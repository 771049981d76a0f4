"""Captured cells become decoders, each by the route of its plan: the composer of the algebraic stages."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from .algebra.systems import Penalties, PenaltyChoice, System
from .common.fetching import fetched
from .common.interrupts import let_interrupts_through
from .common.timeline import stage, staged
from .data.target_matrix import TargetMatrix
from .stages.gcv import select_by_gcv
from .stages.plan import Cost, ForcedRoute, Problem, Selection, fitting_cost
from .stages.reduce import reduce_features, subset
from .stages.select import select_by_folds, select_by_leave_one_out
from .stages.solve import solve, solve_target_free
from .stages.statistics import accumulate
from .types import Activations, Decoder, Statistics

ERROR_TOLERANCE = 1e-5  # relative, of the squared errors: above it, float32 is not enough
_FOLDS = 5
_RANGE = 1e-24, 1e30  # of the mean diagonal of a Gram matrix that float32 holds: single entries may be far from it
Precision = Literal["exact", "fast", "double"]
Splits = Literal["both", "heldout"]
PenaltyPer = Literal["target", "column"]
Classifier = Literal["ridge", "lda", "balanced"]


@dataclass(frozen=True)
class Method:
    """How cells are decoded; see :class:`phasefast.ProbeOptions` for what the options mean.

    Attributes:
        layer_sketch: wider cells are scored from a sketch of so many features; `decode` itself knows nothing of it, nor
            of the classifier.
        budget: bytes that a cell may take.
    """

    penalties: Penalties
    precision: Precision = "exact"
    route: ForcedRoute | None = None
    selection: Selection = "gcv"
    splits: Splits = "both"
    layer_sketch: int | None = None
    budget: int = sys.maxsize
    classifier: Classifier = "ridge"

    @property
    def balanced(self) -> bool:
        """Whether all classes count alike, however many samples they have."""
        return self.classifier == "balanced"

    @property
    def discriminates(self) -> bool:
        """Whether classes are predicted by discriminants, which are made from the fit rows' predictions."""
        return self.classifier != "ridge"

    @property
    def by_folds(self) -> bool:
        """Whether penalties are chosen by folds of the fit rows."""
        return self.selection == "folds" and self.penalties.selects

    def folds(self, n: int) -> list[int]:
        """Row offsets of the folds of n fit rows, 0 and n included: one where nothing needs more."""
        count = min(_FOLDS, n) if self.by_folds else 1
        return [n * i // count for i in range(count + 1)]

    def problem(self, heldout: int, targets: TargetMatrix, dtype: torch.dtype = torch.float32) -> Problem:
        """What the cost of a cell depends on, beside its width; ``heldout``: number of rows, ``dtype``: of all rows."""
        (n, p), q, folds = targets.fit.shape, targets.sketch.fit.shape[1], len(targets.folds) - 1
        checks = sum(check.directions.shape[1] for check in targets.checks)
        sizes = Problem(n, heldout, p, q, folds, checks=checks, per_column=targets.per_column)
        return self.posed(replace(sizes, itemsize=max(dtype.itemsize, sizes.itemsize)), len(targets.blocks))

    def posed(self, sizes: Problem, targets: int) -> Problem:
        """The problem of these sizes by this method.

        Args:
            sizes: with as many folds as there are; what only the method knows does not matter. targets: their number.
        """
        selects = self.penalties.selects
        choices = len(self.penalties.alphas) if selects else 1
        return replace(
            sizes,
            selection=self.selection if selects else None,
            penalties=len(self.penalties.alphas),
            zero=self.penalties.zero,
            weak=self.penalties.weak,
            fit_scores=self.splits == "both" or self.discriminates,
            stride=self.penalties.stride,
            chosen=choices if sizes.per_column else min(targets, choices),
        )

    def cost(self, cell: Activations, targets: TargetMatrix) -> Cost:
        """What a cell takes by the route that it goes."""
        problem = self.problem(len(cell.heldout), targets, cell.fit.dtype)
        return fitting_cost(cell.fit.shape[1], problem, self.budget, self.route)


def decode(cells: list[Activations], targets: TargetMatrix, method: Method) -> Iterator[tuple[Activations, Decoder]]:
    """The decoders of captured cells, and the rows they apply to: in float32 where its estimated error allows.

    A cell gives one decoder, or one for each of its penalties where the route is target-free.

    Args:
        cells: emptied, so that rows that are not needed any more make room.
    """
    wide = method.precision == "double" or any(cell.fit.dtype == torch.float64 for cell in cells)
    work = []
    while cells:
        let_interrupts_through()
        work.append(_Work(cells.pop(0), targets, method, wide))
    for dtype in {own.dtype for own in work}:
        _accumulate([own for own in work if own.dtype == dtype], targets, dtype)
    begun = deque[_Work]()
    while work:  # nothing is kept longer than it is needed: a Gram matrix can be as large as all rows
        let_interrupts_through()
        begun.append(work.pop(0))
        begun[-1].begin()
        if len(begun) > begun[0].cell.fit.is_cuda:  # a GPU works on one while the host reads of the one before
            yield from begun.popleft().decoders()
    for own in begun:
        yield from own.decoders()


class _Work:
    """A cell on its route."""

    def __init__(self, cell: Activations, targets: TargetMatrix, method: Method, wide: bool) -> None:
        self.targets, self.method = targets, method
        self.dtype = torch.float64 if wide or _is_out_of_range(cell) else torch.float32
        self.cost = method.cost(cell, targets)
        # A GPU makes all penalties of most cells at once, and starts in the middle with the others.
        sample = self.cost.sample > 0 and not cell.fit.is_cuda
        # As far as it is known: of a smaller cell, then of this one, in float64 where float32 could not tell.
        self.choice = self._choose_on_sample(cell) if sample else None
        self.cell = reduce_features(cell, targets.folds) if self.cost.features == "dual" else cell
        self.statistics: Statistics | None = None
        self._found: Callable[[], list[tuple[Activations, Decoder]]] = list

    @property
    def wants(self) -> tuple[bool, bool]:
        """Whether it needs moments of folds, and cross moments."""
        return self.method.by_folds, not self.cost.target_free

    def begin(self) -> None:
        """Choose penalties and ask for solutions, without waiting for them."""
        choice = self._choose()
        let_interrupts_through()
        if choice.reliable or self.method.precision != "exact" or self.dtype == torch.float64:
            self._found = self._solve(choice)
        self.choice = replace(choice, factors={})

    def decoders(self) -> Iterator[tuple[Activations, Decoder]]:
        """One, or one for each penalty where the route is target-free, with the rows that it applies to."""
        finish, self._found = self._found, list  # which holds what the solutions were made with
        found = finish()
        del finish
        worst = max((decoder.error_estimate for _, decoder in found), default=math.inf)
        if self.dtype != torch.float64 and not worst <= self._tolerance:
            choice, self.statistics = self.choice, None
            del found
            assert choice is not None
            _accumulate([self], self.targets, torch.float64, again=not choice.reliable)
            found = self._solve(choice if choice.reliable else self._choose())()
        yield from found

    @property
    def _tolerance(self) -> float:
        return ERROR_TOLERANCE if self.method.precision == "exact" else torch.finfo(torch.float64).max

    @stage("penalties")
    def _choose(self) -> PenaltyChoice:
        assert self.statistics is not None
        arguments = self.cell, self.statistics, self.targets, self.method.penalties
        if self.method.selection == "loo":
            wide = self.statistics
            if wide.dtype != torch.float64 and self.method.penalties.selects:
                (wide,) = accumulate([self.cell], self.targets, torch.float64, with_folds=False, with_cross=False)
            return select_by_leave_one_out(self.cell, wide, self.targets, self.method.penalties)
        if self.method.selection == "gcv":
            follows = self.method.precision == "exact" and self.statistics.dtype != torch.float64
            return select_by_gcv(*arguments, self.choice, self.cost.eigen, float64_follows=follows)
        choice = select_by_folds(*arguments, self.cost.eigen)
        self.statistics = replace(self.statistics, folds=())
        return choice

    @stage("penalties")
    def _choose_on_sample(self, cell: Activations) -> PenaltyChoice:
        """The penalty of a smaller cell of the same shape."""
        part, targets = subset(cell, self.targets, self.cost.sample)
        if part.fit.shape[1] > len(part.fit) and not self.method.penalties.zero:
            part = reduce_features(part, targets.folds)
        # In float64, as it takes hardly any time and then tells of weak penalties too.
        (statistics,) = accumulate([part], targets, torch.float64, with_folds=False)
        choice = select_by_gcv(part, statistics, targets, self.method.penalties)
        return replace(choice, factors={}, exact=False)  # of fewer rows

    @stage("solutions")
    def _solve(self, choice: PenaltyChoice) -> Callable[[], list[tuple[Activations, Decoder]]]:
        """What gives the decoders, with the rows that they apply to."""
        assert self.statistics is not None
        arguments = self.cell, self.statistics, self.targets, self.method.penalties, choice, self._tolerance
        if self.cost.target_free:
            return staged("solutions", lambda: list(solve_target_free(*arguments)))
        finish = solve(*arguments, self.cost.eigen)
        return lambda: [(self.cell, finish())]


def _is_out_of_range(cell: Activations) -> bool:
    """Whether squares of the rows are so small or large that float32 cannot hold their sums accurately."""
    mean = math.nan if cell.mean_square is None else cell.mean_square * len(cell.fit)
    return (mean < _RANGE[0] or mean > _RANGE[1]) and bool(cell.fit.any())


def _accumulate(work: Sequence[_Work], targets: TargetMatrix, dtype: torch.dtype, again: bool = True) -> None:
    """Moments of all cells, those that need the same in the same launches; ``again``: penalties are still to choose.

    Rows of different types are apart: the moments of a dual cell's coordinates do not depend on its neighbours.
    """
    for wanted in {(own.wants, own.cell.fit.dtype) for own in work}:
        same = [own for own in work if (own.wants, own.cell.fit.dtype) == wanted]
        (folds, cross), _ = wanted
        found = accumulate([own.cell for own in same], targets, dtype, with_folds=folds and again, with_cross=cross)
        systems = [System(own.cell, each.total, dtype) for own, each in zip(same, found, strict=True)]
        scales = fetched(*(system.mean_diagonal for system in systems))
        for own, each, scale in zip(same, found, scales, strict=True):
            own.statistics = replace(each, total=replace(each.total, scale=float(scale)))
