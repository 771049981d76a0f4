"""Normal equations of a cell, the penalties they are solved with, and the ways to solve them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..common.scalars import as_float
from ..data.target_matrix import TargetMatrix
from ..errors import ArgumentError, SolveError
from ..types import Activations, Moments
from .dense import Factor, aligned_empty, inner, left_product, multiplies_fast, row_chunk, strips
from .workspace import give_back

DEFAULT_ALPHAS = tuple(10.0 ** (k / 2) for k in range(-12, 5))
_WEAK = 1e-7
_JITTERS = (1e-14, 1e-13, 1e-12, 1e-11)


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
        numbers = [as_float(value) for value in values]
        if not values or not all(0 <= number < math.inf for number in numbers):
            name = "alphas" if self.noise is None else "noise"
            raise ArgumentError(f"{name}: expected one or more finite numbers >= 0, got {values}")
        # As floats, so that 1 and 1.0 are one configuration.
        object.__setattr__(self, "alphas", tuple(sorted({float(alpha) + 0.0 for alpha in self.alphas})))  # no -0.0
        object.__setattr__(self, "noise", None if self.noise is None else float(self.noise))

    @property
    def selects(self) -> bool:
        """Whether there is a choice to make."""
        return self.noise is None and len(self.alphas) > 1

    @property
    def zero(self) -> bool:
        """Whether a penalty of zero is among them."""
        return self.noise == 0 if self.noise is not None else self.alphas[0] == 0

    @property
    def weak(self) -> bool:
        """Whether one of them is so small that rounding in coordinates of the rows would show: these square lengths."""
        return self.noise is None and 0 < self.alphas[0] < _WEAK

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
        share = self.listed(system)[index] / system.scale if system.scale else 0.0
        return share if math.isfinite(share) else 0.0

    def listed(self, system: System) -> list[float]:
        """Penalties for a system, in numbers."""
        if self.noise is not None:
            return [system.moments.count * self.noise**2]
        return [alpha * system.scale for alpha in self.alphas]

    def absolute(self, system: System) -> Tensor:
        """The same on its device, [L] float64."""
        device = system.diagonal.device
        if self.noise is not None:
            return torch.full((1,), system.moments.count * self.noise**2, dtype=torch.float64, device=device)
        return _kept(self.alphas, device) * system.mean_diagonal


@lru_cache(maxsize=8)
def _kept(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers [L] float64, kept, as a GPU would wait for each copy."""
    return torch.tensor(values, dtype=torch.float64, device=device)


@dataclass(frozen=True)
class System:
    """Normal equations of some fit rows, (gram + penalty I) weights = cross, centred as they are asked for.

    Attributes:
        cell: whose rows these are. moments: their sums. dtype: what to solve in.
    """

    cell: Activations
    moments: Moments
    dtype: torch.dtype

    @cached_property
    def row_mean(self) -> Tensor:
        """[d] float64."""
        return self.moments.row_sum / self.moments.count

    @cached_property
    def target_mean(self) -> Tensor:
        """[p] float64."""
        return self.moments.target_sum / self.moments.count

    def offset(self, weights: Tensor, columns: slice | Tensor = slice(None)) -> Tensor:
        """What weights [d, p] predict these target columns with beside the rows, [p] float64."""
        return self.target_mean[columns] - left_product(self.row_mean[None], weights)[0]

    @cached_property
    def diagonal(self) -> Tensor:
        """Of the Gram matrix, [d] float64."""
        # Rows and targets are already shifted to nearly zero mean: this cancels only where all rows are nearly alike.
        own = self.moments.gram.diagonal() - (mean := self.moments.row_sum * self.row_mean)
        return torch.where(own <= self.moments.count * torch.finfo(torch.float64).eps * mean, 0.0, own)

    @cached_property
    def gram(self) -> Tensor:
        """[d, d] in ``dtype``; only the lower triangle has a meaning."""
        wide, sums, mean = self.moments.gram, self.moments.row_sum, self.row_mean
        out = aligned_empty(len(wide), len(wide), self.dtype, wide.device)
        size = row_chunk(len(wide), wide.device)
        for start in range(0, len(wide), size):
            stop = min(start + size, len(wide))
            out[start:stop, :stop] = torch.addr(wide[start:stop, :stop], sums[start:stop], mean[:stop], alpha=-1)
        out.diagonal().copy_(self.diagonal)
        return out

    @cached_property
    def cross(self) -> Tensor:
        """[d, p] float64."""
        return torch.addr(self.moments.cross, self.moments.row_sum, self.target_mean, alpha=-1)

    @cached_property
    def eigenvectors(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues [r] and eigenvectors [d, r] of the Gram matrix, ascending; in float64 of its numerical range."""
        # Features that are dead have nothing to decompose, and with many of them LAPACK's may not converge.
        live = (~(self.diagonal <= 0)).nonzero()[:, 0]
        some = len(live) < len(self.diagonal)
        gram = self.gram[live[:, None], live] if some else self.gram
        give_back()
        try:
            values, vectors = torch.linalg.eigh(gram, UPLO="L")
            if some:
                vectors = vectors.new_zeros(len(self.diagonal), len(live)).index_copy_(0, live, vectors)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if self.dtype != torch.float64:  # which converges more often
                wide = replace(self, dtype=torch.float64).eigenvectors
                return wide[0].to(self.dtype), wide[1].to(self.dtype)
            name = self.cell.layer.name
            raise SolveError(f"layer {name!r}: its Gram matrix has no eigendecomposition: {error}") from error
        if self.dtype != torch.float64:
            return values.clamp_min(0), vectors  # its rounding is as large as eigenvalues that still count
        keep = values > len(values) * torch.finfo(torch.float64).eps * values[-1:].clamp_min(0)
        return values[keep], vectors[:, keep]

    @cached_property
    def mean_diagonal(self) -> Tensor:
        """Of the Gram matrix of the layer's own features, however many columns stand for them here."""
        return self.diagonal.sum() / self.cell.layer.dim

    @cached_property
    def scale(self) -> float:
        """The mean diagonal in numbers, which a GPU waits for unless the moments know it."""
        return float(self.mean_diagonal) if self.moments.scale is None else self.moments.scale


@dataclass(frozen=True)
class PenaltyChoice:
    """Which penalty each target is decoded with.

    Attributes:
        indices: per target, an int64 tensor on the CPU: one index, or one for each of its columns.
        reliable: whether the precision of the statistics could rank the penalties.
        factors: of Gram matrix and penalty, that the choice has left, by index.
        exact: whether traces of the cell were made of inverses, as estimates could not tell.
    """

    indices: tuple[Tensor, ...]
    reliable: bool = True
    factors: Mapping[int, Factor] = field(default_factory=dict)
    exact: bool = False

    @classmethod
    def first(cls, targets: TargetMatrix) -> PenaltyChoice:
        """The only penalty, for all targets."""
        return cls(tuple(torch.zeros(1, dtype=torch.int64, device="cpu") for _ in targets.blocks))


@dataclass(frozen=True)
class Facts:
    """What a factor tells of a solution.

    Attributes:
        rank: features that vary, or eigenvalues that count. dof: effective degrees of freedom, tr G (G + penalty I)^-1.
        condition: of G + penalty I; where that has a Cholesky factor an estimate from below. works: whether it has a
            factor.
    """

    rank: int
    dof: float
    condition: float
    works: bool = True


@dataclass(frozen=True)
class Solution:
    """Weights [d, p] of one penalty, and a root to solve further right-hand sides with.

    Attributes:
        told: float64 numbers that the facts are made of, on its device. read: makes them.
        inverse_root: [k, d] in the system's dtype with (gram + penalty I)^-1 = root' root; None where nothing worked.
        triangular: whether that is lower triangular.
    """

    weights: Tensor
    penalty: float
    jitter: float
    route: str
    told: Tensor = field(repr=False)
    read: Callable[[np.ndarray], Facts] = field(repr=False)
    inverse_root: Tensor | None = field(repr=False)
    triangular: bool = False

    @cached_property
    def facts(self) -> Facts:
        """Of its factor, which a GPU waits for here unless they were learned."""
        return self.read(self.told.cpu().numpy())

    def learn(self, told: np.ndarray) -> None:
        """Take the facts from what was fetched of ``told``, with other numbers."""
        self.__dict__["facts"] = self.read(told)

    def apply_inverse(self, rhs: Tensor) -> Tensor:
        """(G + penalty I)^-1 rhs [d, c] in float64."""
        root = self.inverse_root
        if root is None:
            return torch.full_like(rhs, math.nan)
        # Rounding the right-hand sides costs less than widening the root; few columns are multiplied faster as rows.
        rows, (k, d) = rhs.mT.to(root.dtype).contiguous(), root.shape
        if len(strips(0, max(k, d))) == 1:
            return (rows @ root.mT @ root).mT.double()
        between, out = rows.new_empty(len(rows), k), torch.empty_like(rows)
        for start, stop in strips(0, k):
            reach = stop if self.triangular else d
            torch.mm(rows[:, :reach], root[start:stop, :reach].mT, out=between[:, start:stop])
        for start, stop in strips(0, d):
            first = start if self.triangular else 0
            torch.mm(between[:, first:], root[first:, start:stop], out=out[:, start:stop])
        return out.mT.double()


def fold_sums(rows: Tensor, folds: Sequence[int]) -> Tensor:
    """Sums [k, d] float64 of rows [n, d] over each fold; ``folds``: k + 1 row offsets."""
    return torch.stack([rows[start:stop].sum(0, dtype=torch.float64) for start, stop in itertools.pairwise(folds)])


def ridge_paths(
    systems: Sequence[System], rhs: Sequence[Tensor], paths: Sequence[Tensor], keep_factors: bool = False
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Of each system, solutions [L, d, p] for right-hand sides [d, p] and absolute penalties [L], factors, info [L].

    Args:
        paths: equally long. keep_factors: [L, d, d] of each; otherwise there are none.
    """
    count, dtype = len(paths[0]), systems[0].dtype
    weights = [torch.empty(count, *each.shape, dtype=dtype, device=each.device) for each in rhs]
    factors: list[Tensor] = []
    for each in rhs if keep_factors else ():
        factors.append(aligned_empty(count * len(each), len(each), dtype, each.device).unflatten(0, (count, len(each))))
    info = torch.empty(len(systems), count, dtype=torch.int32, device=rhs[0].device)
    ops.ridge_solve(
        [system.gram for system in systems], [each.to(dtype) for each in rhs], list(paths), weights, factors, info
    )
    return weights, factors, list(info)


def factor_path(system: System, rhs: Tensor, path: Tensor) -> tuple[Tensor, list[Factor], Tensor]:
    """Solutions [L, d, p] of one system, the factors they are made of, and info [L]; see :func:`ridge_paths`."""
    apart = len(path) == 1 and multiplies_fast(system.gram)  # then its factor solves faster than the op
    weights, (factors,), (info,) = ridge_paths([system], [rhs[:, :0] if apart else rhs], [path], keep_factors=True)
    found = [Factor(factor) for factor in factors]
    return found[0].solve(rhs)[None] if apart else weights[0], found, info


def eigen_path(system: System, rhs: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
    """Solutions [L, d, p] and info [L] like :func:`factor_path`, from one eigendecomposition in the system's dtype.

    A penalty of zero gives the solution of least norm; in float32 that cannot be told apart, and info is 1.
    """
    values, basis = system.eigenvectors
    rotated = basis.mT @ rhs.to(basis)
    solved = (path > 0) | (system.dtype == torch.float64)
    divisors = torch.where(solved, path, torch.nan).to(values)
    weights = [basis @ (rotated / (values + divisor)[:, None]) for divisor in divisors]
    return torch.stack(weights), (~solved).int()


def solve_cholesky(system: System, rhs: Tensor, penalty: float, factor: Factor | None = None) -> Solution:
    """Solve with one penalty: Cholesky, then (float64) with jitter, then by eigendecomposition with a rank cut.

    In float32 the solution itself tells whether it works, so that nobody has to wait for it here.

    Args:
        rhs: [d, p]. factor: where it is known already.
    """
    if penalty > 0:
        solution = _by_factor(system, rhs, penalty, 0.0, factor)
        if system.dtype != torch.float64 or solution.facts.works:
            return solution
        del solution  # as large as what follows
    if system.dtype != torch.float64:
        return _failed(system, rhs, penalty)
    largest = float(system.diagonal.max())
    if not math.isfinite(largest):
        name = system.cell.layer.name
        raise SolveError(f"layer {name!r}: its Gram matrix overflows float64; scale the activations down")
    for jitter in _JITTERS if penalty > 0 else ():
        solution = _by_factor(system, rhs, penalty, jitter * largest)
        if solution.facts.works:
            return solution
        del solution
    return solve_eigen(system, rhs, penalty)


def _by_factor(system: System, rhs: Tensor, penalty: float, jitter: float, factor: Factor | None = None) -> Solution:
    """The solution by a Cholesky factor, the given one or its own."""
    diagonal, failed = system.diagonal, torch.zeros_like(system.diagonal[:1])
    if factor is None:
        path = torch.full((1,), penalty + jitter, dtype=torch.float64, device=diagonal.device)
        solved, (factor,), info = factor_path(system, rhs, path)
        weights, failed = solved[0], info.double()
    else:
        weights = factor.solve(rhs)
    root = factor.inverse_root
    told = torch.cat([diagonal, root.diagonal().double(), inner(root, root)[None], failed])
    most = min(system.moments.count - 1, system.cell.layer.dim)  # centring takes one row
    read = partial(_facts_of_factor, most=most, penalty=penalty + jitter)
    return Solution(weights, penalty + jitter, jitter, system.cell.route, told, read, root, True)


def _facts_of_factor(told: np.ndarray, most: int, penalty: float) -> Facts:
    """What the factor tells.

    Args:
        told: the Gram matrix's diagonal, that of the inverse root, its squared norm, LAPACK's info, in a row.
        most: directions that there may be.
    """
    (diagonal, live), (trace, failed) = told[:-2].reshape(2, -1), told[-2:].tolist()
    alive = diagonal > 0
    ends = live[alive] if alive.any() else live
    rank = min(int(alive.sum()), most)
    with np.errstate(all="ignore"):
        condition = float(np.square(ends.max() / ends.min()))
    return Facts(
        rank=rank,
        dof=min(max(len(live) - penalty * trace, 0.0), rank) if math.isfinite(trace) else math.nan,  # but for rounding
        condition=condition,
        works=not failed and math.isfinite(diagonal.max()),
    )


def solve_eigen(system: System, rhs: Tensor, penalty: float) -> Solution:
    """Solve with one penalty by eigendecomposition: weights of least norm where it is zero (float64 only)."""
    if penalty == 0 and system.dtype != torch.float64:
        return _failed(system, rhs, penalty)
    values, basis = system.eigenvectors
    inverse_root = (basis / (values + penalty).sqrt()).mT
    weights = inverse_root.mT @ (inverse_root @ rhs.to(basis))
    read = partial(_facts_of_eigenvalues, penalty=penalty)
    return Solution(weights, penalty, 0.0, f"{system.cell.route}-eigen", values.double(), read, inverse_root)


def _facts_of_eigenvalues(values: np.ndarray, penalty: float) -> Facts:
    condition = float((values[-1] + penalty) / (values[0] + penalty)) if len(values) else 1.0
    return Facts(len(values), float((values / (values + penalty)).sum()), condition)


def _failed(system: System, rhs: Tensor, penalty: float) -> Solution:
    facts, nan = Facts(0, math.nan, math.inf, works=False), torch.full_like(rhs, math.nan)
    told = rhs.new_empty(0, dtype=torch.float64)
    return Solution(nan, penalty, 0.0, system.cell.route, told, lambda _: facts, None)
