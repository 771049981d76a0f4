"""What a measurement will cost by each route, before anything is allocated, and so which one is taken."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from ..algebra.choosing import LEFT, LOOKED_AT, MANY, ONE_CORE, SIGNS, SMALL, makes_all, paired
from ..common.host_memory import free_memory
from ..common.scalars import as_float
from ..errors import ArgumentError, MemoryBudgetError
from ..types import Layer, Route

Selection = Literal["gcv", "folds", "loo"]
ForcedRoute = Literal["primal", "dual", "eigen", "target-free"]
FORCED_ROUTES: tuple[ForcedRoute, ...] = get_args(ForcedRoute)
_UNITS = {"B": 1, **{f"{x}B": 10 ** (3 * i) for i, x in enumerate("KMGT", 1)}}
_UNITS |= {f"{x}IB": 2 ** (10 * i) for i, x in enumerate("KMGT", 1)}
_SHARE_OF_FREE_MEMORY = 0.7
# How many operations of large float32 products take the time of one of these; measured on CPUs, for choosing only.
_DOUBLE, _CHOLESKY, _EIGEN = 2.0, 2.0, 4.0
_EIGEN_CALL = 3e7  # operations that a call takes the time of, however small the matrix
_EIGEN_FLOPS = 9.0  # per d^3: all eigenvalues and vectors of a symmetric matrix (Golub & Van Loan, section 8.3)
_INVERSE = 0.4  # per d^3: the inverse of a Cholesky factor, for certificates and degrees of freedom
_SAMPLE, _SHARE = 192, 8  # columns of a smaller cell that gives a first choice: so many, or this part of the cell's
_TRIED, _TRIED_FROM_FIRST = 3.0, 2.25  # factors, without a first choice and with one, of one penalty per decade
_TRIED_BETWEEN = 1.5  # more, of twice as many per decade


@dataclass(frozen=True)
class Problem:
    """Sizes that all cells share: fit rows, held-out rows, target columns, sketched columns, folds, penalties.

    Attributes:
        selection: how a penalty is chosen; None where one is given, and ``"folds"`` alone uses these. zero: whether a
            penalty of zero is among them, whose solution of least norm only the features themselves give. weak: whether
            one is that is too small for coordinates of the rows.
        fit_scores: whether the fit rows are scored too. per_column: whether each column gets a penalty of its own.
        stride: how many penalties make a decade, a power of two. chosen: how many of them are chosen, at most.
        itemsize: bytes of a number in a row, 4 for fewer.
        checks: columns that solutions are certified on.
    """

    n: int
    m: int
    p: int
    q: int
    folds: int
    penalties: int = 1
    zero: bool = False
    weak: bool = False
    fit_scores: bool = True
    per_column: bool = False
    selection: Selection | None = None
    stride: int = 1
    chosen: int = 1
    checks: int = 0
    itemsize: int = 4


@dataclass(frozen=True)
class Cost:
    """What a cell takes by one route.

    Attributes:
        features: ``"primal"``, the layer's own, or ``"dual"``, n coordinates of its rows.
        eigen: solved by eigendecompositions. target_free: held-out predictions without weights of the targets.
        flops: of all products and factorisations. double: those of them in float64 whatever the precision.
        work: the same in operations of large float32 products of equal time.
        bytes: at the peak. sample: fit rows of the smaller cell that a first choice of the penalty is made on, or 0.
    """

    features: Route
    eigen: bool
    target_free: bool
    flops: float
    double: float
    work: float
    bytes: int
    sample: int

    @property
    def route(self) -> str:
        """Its name in the scores."""
        return self.features + ("-eigen" if self.eigen else "") + ("-target-free" if self.target_free else "")


@dataclass
class _Sum:
    """Operations, those in float64, and what all of them weigh."""

    flops: float = 0.0
    double: float = 0.0
    work: float = 0.0

    def add(self, flops: float, weight: float = 1.0) -> None:
        self.flops += flops
        self.work += flops * weight

    def add_double(self, flops: float, weight: float = 1.0) -> None:
        self.double += flops
        self.add(flops, _DOUBLE * weight)


def routes(dim: int, problem: Problem, forced: ForcedRoute | None = None) -> list[Cost]:
    """All routes that give what is asked for, the one of least work first, but dual ones last for weak penalties.

    Raises:
        ArgumentError: the forced route is not among them.
    """
    if forced == "dual" and problem.zero:
        raise ArgumentError("route='dual': a penalty of 0 has no solution in coordinates of the rows; give alphas > 0")
    if forced == "target-free" and (problem.fit_scores or problem.per_column):
        raise ArgumentError(
            "route='target-free': gives only held-out scores, with one penalty per target; give splits='heldout' and "
            "penalty_per='target', or leave route out"
        )
    if forced == "eigen" and problem.zero:
        raise ArgumentError("route='eigen': a penalty of 0 needs route='primal'; give alphas > 0")
    found = _candidates(dim, problem, forced)
    return sorted(found, key=lambda cost: (problem.weak and cost.features == "dual", cost.work))


def _candidates(dim: int, problem: Problem, forced: ForcedRoute | None) -> Iterator[Cost]:
    wide = dim > problem.n and not problem.zero
    spaces: list[Route] = ["primal", "dual"] if wide else ["primal"]
    if forced in ("primal", "dual"):
        spaces = [forced]
    for features in spaces:
        if forced != "target-free":
            for eigen in (True,) if forced == "eigen" else (False, True):
                if not (eigen and (problem.zero or forced in ("primal", "dual"))):
                    yield _cost(dim, problem, features, eigen, target_free=False)
        if forced in (None, "target-free") and not (problem.fit_scores or problem.per_column):
            yield _cost(dim, problem, features, eigen=False, target_free=True)


def _cost(dim: int, problem: Problem, features: Route, eigen: bool, target_free: bool) -> Cost:
    n, m, p = problem.n, problem.m, problem.p
    total, k = _Sum(), dim
    kept = problem.itemsize * (n + m) * dim
    if features == "dual":
        k = n
        _add_reduction(total, dim, n, m)
    total.add(n * k * k)
    if eigen:
        _add_eigen(total, k, 1)
    else:
        total.add(problem.chosen * (1 / 3 + _INVERSE) * k**3, _CHOLESKY)
    columns = problem.checks
    if target_free:
        total.add(problem.chosen * (2 * k * k * m + 2 * m * n * k) + 2 * m * n * p)
        total.add(4 * k * k * columns)
        total.add_double(2 * (4 * n * k + m * (n + k)) * columns)
    else:
        total.add(2 * n * k * p + (4 if eigen else 2) * k * k * p + 2 * m * k * p)
        # The certificate: residual of the normal equations, its solution, the change of held-out predictions.
        total.add((4 if eigen else 2) * k * k * columns)
        total.add_double(2 * (2 * n * k + 2 * m * k + 2 * k * p) * columns)
    sample = _add_choosing(total, dim, k, problem, eigen, sketched=target_free or problem.q < p)
    own_columns = m if target_free else p
    solving = kept * (k / dim) * 2 + _system_bytes(k, own_columns, problem)
    if target_free:  # combinations, and the targets as they are packed to be combined
        solving += 4 * (2 * m * n + n * p)
    reducing = 8 * (3 * n * n + 3 * n * m + 3 * 1024 * (n + m)) + kept if features == "dual" else 0
    return Cost(
        features, eigen, target_free, total.flops, total.double, total.work, int(max(solving, reducing)), sample
    )


def _add_reduction(total: _Sum, dim: int, n: int, m: int) -> None:
    """Coordinates of rows: inner products, their Cholesky factor, projections, all in float64."""
    total.add_double(2 * (n * n / 2 + n * m) * dim)
    total.add_double(n**3 / 3 + n * n * m, _CHOLESKY)


def _add_eigen(total: _Sum, k: int, times: int, double: bool = False) -> None:
    (total.add_double if double else total.add)(times * _EIGEN_FLOPS * k**3, _EIGEN)
    total.work += times * _EIGEN_CALL


def _add_choosing(total: _Sum, dim: int, k: int, problem: Problem, eigen: bool, sketched: bool) -> int:
    """What choosing a penalty costs; returns the fit rows of the smaller cell that a first choice is made on, or 0.

    Args:
        sketched: whether cross moments of sketched columns are to be made.
    """
    n, q, folds, count = problem.n, problem.q, problem.folds, problem.penalties
    if problem.selection == "loo":  # errors of all penalties on every row, from one eigendecomposition, in float64
        _add_eigen(total, k, 1, double=True)
        total.add_double(n * k * (3 * k + 2 * q) + count * 2 * n * k * q)
    elif problem.selection == "folds":  # errors of all penalties on folds that their decoders have not seen
        total.add(2 * n * k * q + count * 2 * n * k * q)
        if eigen:
            _add_eigen(total, k, folds)
            total.add(folds * (count + 1) * 2 * k * k * q)
        else:
            total.add(folds * count * (k**3 / 3 + 2 * k * k * q), _CHOLESKY)
    elif problem.selection == "gcv":
        total.add(2 * n * k * q if sketched else 0)
        if eigen:
            _add_eigen(total, k, 1)
            total.add((count + 1) * 2 * k * k * q)
        else:
            return _add_scan(total, dim, k, problem)
    return 0


def _add_scan(total: _Sum, dim: int, k: int, problem: Problem, sampled: bool = True) -> int:
    """Cholesky factors and slopes of the penalties that generalised cross-validation tries."""
    n, q, between, sample = problem.n, problem.q, _TRIED_BETWEEN * math.log2(problem.stride), 0
    tried = _TRIED + between
    at_once = k <= SMALL and problem.penalties <= MANY
    everything = makes_all(at_once, problem.penalties, problem.per_column)
    if everything:
        tried = problem.penalties
    elif sampled and k > ONE_CORE and not paired(k) and (rows := n * max(k // _SHARE, _SAMPLE) // k) >= _SAMPLE:
        sample, tried = rows, _TRIED_FROM_FIRST + between
        width = max(dim * rows // n, 1)
        if width > rows:
            _add_reduction(total, width, rows, 0)
            width = rows
        total.add(rows * width * (width + 2 * q))
        _add_scan(total, width, width, replace(problem, n=rows), sampled=False)
    total.add(problem.chosen * min(n, LOOKED_AT) * k * k, _CHOLESKY)
    # Where few degrees of freedom may be left, their number is not estimated but made of inverses; a search finds out.
    exact = everything and n - 1 - k < LEFT
    # The factors of the chosen penalties are used again.
    used = problem.chosen if at_once or not everything else 0
    total.add(
        max(tried - used, 0) * k**3 / 3
        + tried * 2 * k * k * ((1.0 if everything else 1.5) * q + (0 if exact else SIGNS)),
        _CHOLESKY,
    )
    total.add(tried * 2 / 3 * k**3 if exact else 0.0, _CHOLESKY)
    return sample


def _system_bytes(k: int, p: int, problem: Problem) -> int:
    """A Gram matrix per fold and the sum, cross moments, factors and weights."""
    folds = problem.folds if problem.selection == "folds" else 1
    grams = 8 * k * k * (folds + 1) + (16 * k * k * problem.chosen if problem.selection == "gcv" else 0)
    grams += 8 * k * (problem.n + 4 * k) if problem.selection == "loo" else 0
    crosses = 8 * k * (p + folds * problem.q)
    solving = 8 * k * (4 * k + 3 * p + (problem.penalties + 2) * problem.q)
    return grams + crosses + solving


def group_layers(
    layers: Sequence[Layer], problem: Problem, budget: int, forced: ForcedRoute | None = None
) -> list[list[Layer]]:
    """Layers measured together, in as few forward passes as the budget allows, in the given order.

    Args:
        budget: bytes.

    Raises:
        MemoryBudgetError: one layer alone does not fit; the message says what would.
    """
    groups: list[list[Layer]] = []
    used = 0
    for layer in layers:
        need = fitting_cost(layer.dim, problem, budget, forced).bytes
        if need > budget:
            raise MemoryBudgetError(
                f"layer {layer.name!r}: its {layer.dim} features need {need / 1e6:,.1f} MB, but "
                f"the budget is {budget / 1e6:,.1f} MB; pool it (pool=), give one penalty (alphas=[a]), "
                f"fewer rows, or memory='{math.ceil(need / 1e6)}MB' or more"
            )
        if not groups or used + need > budget:
            groups.append([])
            used = 0
        groups[-1].append(layer)
        used += need
    return groups


def fitting_cost(dim: int, problem: Problem, budget: int, forced: ForcedRoute | None = None) -> Cost:
    """The first of :func:`routes` that fits the budget; where none does, the one of fewest bytes."""
    found = routes(dim, problem, forced)
    return next((cost for cost in found if cost.bytes <= budget), min(found, key=lambda cost: cost.bytes))


def memory_budget(memory: str | float | None, device: torch.device) -> int:
    """Bytes a measurement may take: ``"8GB"``, bytes, or by default most of what is free on the device.

    Raises:
        ArgumentError: what is no size, or less than a byte; none where the system does not say what is free.
    """
    if memory is None:
        return int(_SHARE_OF_FREE_MEMORY * _free_memory(device))
    size = 0.0
    if isinstance(memory, str):
        if match := re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*((?:[KMGT]I?)?B?)\s*", memory.upper()):
            size = float(match[1]) * _UNITS[match[2].removesuffix("B") + "B"]
    else:
        size = as_float(memory)
    if not 1 <= size < math.inf:
        raise ArgumentError(f"memory: expected a number of bytes, or a text such as '8GB', got {memory!r}")
    return int(size)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch's own to give
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return free_memory()
