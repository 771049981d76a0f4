"""Normal equations of a cell, the penalties they are solved with, and the ways to solve them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import ops
from .errors import ArgumentError, SolveError
from .types import Activations, Moments

DEFAULT_ALPHAS = tuple(10.0**k for k in range(-6, 2))
_JITTERS = (1e-14, 1e-13, 1e-12, 1e-11)
_LINE = 64  # bytes
_LEAF = 256  # columns of a triangular block that LAPACK inverts
_PANEL = 256  # columns that are eliminated by the inverse of their block
_STRIPS = 4  # of a product with a triangular matrix, so that little of its zeros is multiplied


@dataclass(frozen=True)
class Penalties:
    """Which ridge penalties are tried.

    Attributes:
        alphas: relative to the mean diagonal of the centred Gram matrix: what is linearly there; ascending.
        noise: instead, a standard deviation of noise on the activations, penalty = n noise^2: what survives it.
    """

    alphas: tuple[float, ...] = DEFAULT_ALPHAS
    noise: float | None = None

    def __post_init__(self) -> None:
        values = self.alphas if self.noise is None else (self.noise,)
        numbers = all(isinstance(value, (int, float)) and math.isfinite(value) and value >= 0 for value in values)
        if not values or not numbers:
            raise ArgumentError(f"alphas, noise: expected finite numbers >= 0, got {values}")
        object.__setattr__(self, "alphas", tuple(sorted(set(self.alphas))))

    @property
    def selects(self) -> bool:
        """Whether there is a choice to make, and so a need for folds."""
        return self.noise is None and len(self.alphas) > 1

    @property
    def zero(self) -> bool:
        """Whether a penalty of zero is among them."""
        return self.noise == 0 if self.noise is not None else self.alphas[0] == 0

    @property
    def stride(self) -> int:
        """How many of them make a decade, a power of two."""
        positive = [alpha for alpha in self.alphas if alpha > 0]
        decades = math.log10(positive[-1] / positive[0]) if len(positive) > 1 else 1.0
        per_decade = (len(positive) - 1) / max(decades, 1.0)
        return int(2 ** round(math.log2(max(per_decade, 1.0))))

    def relative(self, system: System, index: int) -> float:
        """A penalty over the mean diagonal of the Gram matrix; 0 where that is zero."""
        if self.noise is None:
            return self.alphas[index]
        return float(torch.nan_to_num(self.absolute(system)[index] / system.mean_diagonal, 0, 0, 0))

    def absolute(self, system: System) -> Tensor:
        """Penalties [L] float64 for a system."""
        device = system.gram.device
        if self.noise is not None:
            return torch.tensor([system.count * self.noise**2], dtype=torch.float64, device=device)
        return torch.tensor(self.alphas, dtype=torch.float64, device=device) * system.mean_diagonal


@dataclass(frozen=True)
class System:
    """Centred normal equations of some fit rows, (gram + penalty I) weights = cross, float64, solved in ``dtype``.

    Only the lower triangle of ``gram`` has a meaning. ``cell``: whose rows these are.
    """

    gram: Tensor
    cross: Tensor
    row_mean: Tensor
    target_mean: Tensor
    count: int
    dtype: torch.dtype
    cell: Activations

    @property
    def mean_diagonal(self) -> Tensor:
        """Of the Gram matrix of the layer's own features, however many columns stand for them here."""
        return self.gram.trace() / self.cell.layer.dim


@dataclass(frozen=True)
class Solution:
    """Weights [d, p] of one penalty, and a root to solve further right-hand sides with.

    Attributes:
        inverse_root: [k, d] in the system's dtype with (gram + penalty I)^-1 = root' root; None where nothing worked.
    """

    weights: Tensor
    penalty: float
    jitter: float
    rank: int
    dof: float
    condition: float
    route: str
    inverse_root: Tensor | None = field(repr=False)

    def apply_inverse(self, rhs: Tensor) -> Tensor:
        """(G + penalty I)^-1 rhs [d, c] in float64."""
        root = self.inverse_root
        if root is None:
            return torch.full_like(rhs, math.nan)
        # A few columns: rounding them costs less than a wide copy of the root.
        return (root.mT @ (root @ rhs.to(root.dtype))).double()


def aligned_empty(rows: int, cols: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised [rows, cols], every row at the start of a cache line: else products take half as long again."""
    step = _LINE // dtype.itemsize
    return torch.empty(rows, (cols + step - 1) // step * step, dtype=dtype, device=device)[:, :cols]


def fold_sums(rows: Tensor, folds: Sequence[int]) -> Tensor:
    """Sums [k, d] float64 of rows [n, d] over each fold; ``folds``: k + 1 row offsets."""
    return torch.stack([rows[start:stop].sum(0, dtype=torch.float64) for start, stop in itertools.pairwise(folds)])


def centre(cell: Activations, moments: Moments, dtype: torch.dtype) -> System:
    """The centred normal equations of some moments of a cell."""
    # Rows and targets are already shifted to nearly zero mean: this rank-one correction in float64 does not cancel.
    row_mean, target_mean = moments.row_sum / moments.count, moments.target_sum / moments.count
    gram = torch.addr(moments.gram, moments.row_sum, row_mean, alpha=-1)
    gram.diagonal().clamp_(min=0)
    cross = torch.addr(moments.cross, moments.row_sum, target_mean, alpha=-1)
    return System(gram, cross, row_mean, target_mean, moments.count, dtype, cell)


def ridge_path(system: System, path: Tensor, keep_factors: bool = False) -> tuple[Tensor, Tensor | None, Tensor]:
    """Weights [L, d, p], factors [L, d, d] or None, info [L] for one system and a path of absolute penalties."""
    (d, p), count, device, dtype = system.cross.shape, len(path), system.cross.device, system.dtype
    weights = torch.empty(count, d, p, dtype=dtype, device=device)
    factors = torch.empty(count, d, d, dtype=dtype, device=device) if keep_factors else None
    info = torch.empty(1, count, dtype=torch.int32, device=device)
    grams, crosses = [system.gram.to(dtype)], [system.cross.to(dtype)]
    ops.ridge_solve(grams, crosses, [path], [weights], [] if factors is None else [factors], info)
    return weights, factors, info[0]


def eigen_path(system: System, path: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [L, d, p] and info [L] like ``ridge_path``, from one eigendecomposition in the system's dtype.

    A penalty of zero gives the solution of least norm; in float32 that cannot be told apart, and info is 1.
    """
    values, basis = _eigenvectors(system)
    rotated = basis.mT @ system.cross.to(basis)
    solved = (path > 0) | (system.dtype == torch.float64)
    divisors = torch.where(solved, path, torch.nan).to(values)
    weights = [basis @ (rotated / (values + divisor)[:, None]) for divisor in divisors]
    return torch.stack(weights), (~solved).int()


def solve_cholesky(system: System, penalty: float, factor: Tensor | None = None) -> Solution:
    """Solve with one penalty: Cholesky, then (float64) with jitter, then by eigendecomposition with a rank cut.

    Args:
        factor: the Cholesky factor, where it is known already.
    """
    diagonal = system.gram.diagonal()
    largest = float(diagonal.max())
    alive = diagonal > 0
    rank = min(int(alive.sum()), system.count - 1)  # centring takes one
    final = system.dtype == torch.float64
    if not math.isfinite(largest):
        if final:
            name = system.cell.layer.name
            raise SolveError(f"layer {name!r}: its Gram matrix overflows float64; scale the activations down")
        return _failed(system, penalty)
    jitters = (0.0, *(j * largest for j in _JITTERS)) if final and penalty > 0 else (0.0,)
    for jitter in jitters if penalty > 0 else ():
        path = torch.tensor([penalty + jitter], dtype=torch.float64, device=diagonal.device)
        weights, found = _weights_and_factor(system, path, factor)
        if found is not None:
            root = found.diagonal().double()
            inverse_root = lower_inverse(found)
            dof = len(root) - (penalty + jitter) * _squares(inverse_root)
            live = root[alive] if rank else root
            condition = float((live.max() / live.min()) ** 2)
            route = system.cell.route
            return Solution(weights, penalty + jitter, jitter, rank, dof, condition, route, inverse_root)
    if not final:
        return _failed(system, penalty)
    return solve_eigen(system, penalty)


def solve_eigen(system: System, penalty: float) -> Solution:
    """Solve with one penalty by eigendecomposition: weights of least norm where it is zero (float64 only)."""
    if penalty == 0 and system.dtype != torch.float64:
        return _failed(system, penalty)
    values, basis = _eigenvectors(system)
    inverse_root = (basis / (values + penalty).sqrt()).mT
    weights = inverse_root.mT @ (inverse_root @ system.cross.to(basis))
    kept = values.double()
    dof = float((kept / (kept + penalty)).sum())
    condition = float((kept[-1] + penalty) / (kept[0] + penalty)) if len(kept) else 1.0
    return Solution(weights, penalty, 0.0, len(kept), dof, condition, f"{system.cell.route}-eigen", inverse_root)


def substitute(factor: Tensor, rhs: Tensor) -> Tensor:
    """(factor factor')^-1 rhs [d, c] in the factor's dtype, by halves: nearly all of it in large products."""
    out = aligned_empty(len(rhs), rhs.shape[1], factor.dtype, factor.device).copy_(rhs)
    scratch = aligned_empty(_PANEL, rhs.shape[1], factor.dtype, factor.device)

    def solve(start: int, stop: int, flipped: bool) -> None:
        if stop - start <= _PANEL:
            inverse, own = inverses[start // _PANEL], out[start:stop]
            own.copy_(torch.mm(inverse.mT if flipped else inverse, own, out=scratch[: stop - start]))
            return
        middle = start + ((stop - start) // 2 + _PANEL - 1) // _PANEL * _PANEL
        below = factor[middle:stop, start:middle]
        if flipped:
            solve(middle, stop, flipped)
            out[start:middle].addmm_(below.mT, out[middle:stop], alpha=-1)
            solve(start, middle, flipped)
        else:
            solve(start, middle, flipped)
            out[middle:stop].addmm_(below, out[start:middle], alpha=-1)
            solve(middle, stop, flipped)

    inverses = [
        lower_inverse(factor[start : start + _PANEL, start : start + _PANEL]) for start in range(0, len(factor), _PANEL)
    ]
    for flipped in (False, True):
        solve(0, len(factor), flipped)
    return out


def lower_inverse(factor: Tensor) -> Tensor:
    """Inverse [d, d] of a lower triangular matrix, by halves; about d^3 / 2.5 operations, nearly all in products."""
    out = torch.zeros_like(factor)

    def invert(start: int, stop: int) -> None:
        own = slice(start, stop)
        if stop - start <= _LEAF:
            eye = torch.eye(stop - start, dtype=factor.dtype, device=factor.device)
            out[own, own] = torch.linalg.solve_triangular(factor[own, own], eye, upper=False)
            return
        middle = start + (stop - start) // 2
        left, right = slice(start, middle), slice(middle, stop)
        invert(start, middle)
        invert(middle, stop)
        # [a 0; b c]^-1 = [a^-1 0; -c^-1 b a^-1, c^-1], the triangular factors taken strip by strip.
        mixed = torch.empty_like(factor[right, left])
        for low, high in _strips(start, middle):
            mixed[:, low - start : high - start] = factor[right, low:middle] @ out[low:middle, low:high]
        for low, high in _strips(middle, stop):
            out[low:high, left] = -(out[low:high, middle:high] @ mixed[: high - middle])

    invert(0, len(factor))
    return out


def _weights_and_factor(system: System, path: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weights [d, p] of the path's one penalty and its factor [d, d]: the given one, or None where there is none."""
    if factor is not None:
        return substitute(factor, system.cross), factor
    weights, factors, info = ridge_path(system, path, keep_factors=True)
    return weights[0], factors[0] if factors is not None and int(info[0]) == 0 else None


def _strips(start: int, stop: int) -> list[tuple[int, int]]:
    edges = [start + (stop - start) * i // _STRIPS for i in range(_STRIPS + 1)]
    return list(itertools.pairwise(edges))


def _squares(matrix: Tensor) -> float:
    """Sum of squares in float64, a few rows at a time: wide copies of them stay in the cache."""
    return float(sum((rows.double().square().sum() for rows in matrix.split(64)), torch.zeros((), dtype=torch.float64)))


def _failed(system: System, penalty: float) -> Solution:
    weights = torch.full_like(system.cross, math.nan)
    return Solution(weights, penalty, 0.0, 0, math.nan, math.inf, system.cell.route, None)


def _eigenvectors(system: System) -> tuple[Tensor, Tensor]:
    """Eigenvalues [r] and eigenvectors [d, r] of the Gram matrix, ascending; in float64 of its numerical range."""
    symmetric = (torch.tril(system.gram) + torch.tril(system.gram, -1).mT).to(system.dtype)
    try:
        values, vectors = torch.linalg.eigh(symmetric)
    except RuntimeError as error:
        name = system.cell.layer.name
        raise SolveError(f"layer {name!r}: neither Cholesky nor the eigendecomposition succeeded: {error}") from error
    if system.dtype != torch.float64:
        return values.clamp_min(0), vectors  # its rounding is as large as eigenvalues that still count
    keep = values > len(values) * torch.finfo(torch.float64).eps * values[-1].clamp_min(0)
    return values[keep], vectors[:, keep]
