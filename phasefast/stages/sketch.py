"""Decoding a very wide layer from few random combinations of its features, with the error that this makes, measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .. import ops
from ..algebra.dense import centred_left_product, centred_product, cholesky, converted_rows, inner
from ..algebra.systems import fold_sums
from ..common.distributions import chi_square, normal, student
from ..data.target_matrix import TargetMatrix
from ..types import Activations, BlockFit

_SEGMENTS = 8  # nonzeros for each feature
_CACHED = 256  # rows
_STEPS, _HALFWAY, _HOPELESS = 30, 15, 300.0  # at half the steps, so many times the allowed slack are too much
_SLACK = 0.01  # of the sketched error: what the iteration may leave open
_ROUNDING = 1e-5  # of the sketched error: what float32 may have added to it
_SHARE = 0.99  # of an interval to either side, since so few columns tell little of their spread
_DEPENDENT = 1e-7  # a direction that is new by less than this, of its length, is not followed
_TINY = 1e-300
_Inverse = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Measured:
    """Where the squared errors of the exact decoder of one target lie: sums over all rows and columns.

    Attributes:
        fit: lower and upper end. heldout: likewise.
    """

    fit: tuple[float, float]
    heldout: tuple[float, float]


def sketch_features(cell: Activations, folds: Sequence[int], size: int) -> Activations:
    """The cell with ``size`` features that are sparse random combinations of its own, the same ones at every call.

    A feature goes, with a random sign, to one column of each of 8 segments (sparse embeddings: Nelson & Nguyen 2013).
    Inner products of rows are kept in the mean, and the sum of the centred Gram matrix's diagonal exactly: with
    ``layer``, which stays, relative penalties are the same absolute ones.

    Args:
        folds: k + 1 row offsets of the folds of the fit rows. size: where the cell has no more features, it is kept.
    """
    dim = cell.fit.shape[1]
    if size >= dim:
        return cell
    generator, device, count = torch.Generator().manual_seed(0), cell.fit.device, min(_SEGMENTS, size)
    dtype = torch.promote_types(cell.fit.dtype, torch.float32)
    order = torch.cat([torch.randperm(dim, generator=generator, device="cpu") for _ in range(count)]).to(device)
    signs = ((2 * torch.randint(2, (count * dim,), generator=generator, device="cpu") - 1) / count**0.5).to(
        device, dtype
    )
    # Each column is a sum over the next few of all the features, as they come in one of the random orders.
    widths = [size * (i + 1) // count - size * i // count for i in range(count)]
    starts = [i * dim + dim * k // width for i, width in enumerate(widths) for k in range(width)]
    offsets = torch.tensor(starts, device=device)

    def combined(rows: Tensor) -> Tensor:
        out = torch.empty(len(rows), size, dtype=dtype, device=device)
        for own, chunk in zip(out.split(_CACHED), rows.split(_CACHED), strict=True):
            features = chunk.to(dtype).mT.contiguous()
            own.copy_(embedding_bag(order, features, offsets, mode="sum", per_sample_weights=signs).mT)
        return out

    fit, heldout = combined(cell.fit), combined(cell.heldout)
    before, after = _deviation(cell.fit, cell.sums.sum(0)), _deviation(fit, fit.sum(0, dtype=torch.float64))
    if before > 0 and after > 0:
        for rows in (fit, heldout):
            rows *= (before / after) ** 0.5
    return replace(cell, fit=fit, heldout=heldout, sums=fold_sums(fit, folds))


def _deviation(rows: Tensor, total: Tensor) -> float:
    """Squared deviation of rows [n, d] from their mean, given their sum [d]."""
    return float(inner(rows, rows)) - float(total.square().sum()) / len(rows)


def measure(
    cell: Activations,
    sketched: Activations,
    fits: Sequence[BlockFit],
    targets: TargetMatrix,
    errors: Mapping[str, Sequence[float]],
    columns: int = 16,
) -> list[Measured | None]:
    """Where the exact decoder's squared errors lie, with the absolute penalties of the sketched one; one per fit.

    The exact decoder is found for a few combinations of the target columns only, by block conjugate gradients in the
    rows' space (O'Leary 1980), which the sketched rows precondition (Avron, Clarkson & Woodruff 2017). Half of these
    are directions that the sketched decoder misses most, the others are random ones beside them, which stand for all
    the rest (Hutch++: Meyer, Musco, Musco & Woodruff 2021).

    Args:
        cell: all features. sketched: as it was decoded, by any route. fits: of its decoder.
        errors: the sketched decoder's squared errors over all columns, per split and fit, like ``targets.deviation``.
        columns: how many combinations, even, at least 8; a target of no more columns has no sampling error.

    Returns:
        None where the iteration does not converge, or a penalty is zero, or the columns have penalties of their own:
        then only the exact decoder itself can tell.
    """
    gram, inverses = _gram(sketched), dict[float, _Inverse | None]()
    found: list[Measured | None] = []
    for fit, totals in zip(fits, zip(errors["fit"], errors["heldout"], strict=True), strict=True):
        single = not targets.per_column or fit.block.stop - fit.block.start == 1
        usable = single and 0 < fit.penalty < math.inf and all(0 <= total < math.inf for total in totals)
        if usable and fit.penalty not in inverses:
            inverses[fit.penalty] = _inverse(sketched, gram, fit.penalty)
        inverse = inverses[fit.penalty] if usable else None
        found.append(_measure(cell, sketched, fit, targets, totals, inverse, columns) if inverse else None)
    return found


def _measure(
    cell: Activations,
    sketched: Activations,
    fit: BlockFit,
    targets: TargetMatrix,
    totals: tuple[float, float],
    inverse: _Inverse,
    columns: int,
) -> Measured | None:
    own, penalty = slice(fit.block.start, fit.block.stop), fit.penalty
    mean = targets.mean[own]
    directions, known = _directions(targets.fit[:, own], mean, inverse, columns)
    columns_of_both = (targets.fit[:, own], targets.heldout[:, own])
    wanted, beyond = (centred_product(matrix, mean, directions.mT).mT for matrix in columns_of_both)
    weights = torch.full_like(wanted[:, 0], 1 / max(len(directions) - known, 1))
    weights[:known] = 1
    allowed = [_SLACK * max(total, _TINY) for total in totals]
    exact = _iterate(cell, (wanted, beyond), penalty, inverse, weights, allowed)
    if exact is None:
        return None
    lefts, slacks = exact
    coefficients = inverse(wanted)
    features = centred_left_product(coefficients, sketched.fit, sketched.mean)
    predicted = centred_product(sketched.heldout, sketched.mean, features.mT).mT
    intervals = []
    for total, missed, left, slack in zip(totals, (penalty * coefficients, beyond - predicted), lefts, slacks):
        low, high = _interval(total, missed, left, known)
        wide = slack + total * max(fit.error_estimate, _ROUNDING)
        intervals.append((max(low - wide, 0.0), high + wide))
    return Measured(*intervals)


def _directions(matrix: Tensor, mean: Tensor, inverse: _Inverse, columns: int) -> tuple[Tensor, int]:
    """Combinations [c, p] of target columns, and how many of the first stand for themselves only, orthonormal."""
    width = matrix.shape[1]
    if width <= columns:
        return torch.eye(width, dtype=torch.float64, device=matrix.device), width
    generator, half = torch.Generator().manual_seed(1), columns // 2
    start, random = torch.randn(2, half, width, generator=generator, dtype=torch.float64, device="cpu").to(
        matrix.device
    )
    # The sketched residuals are penalty times inverse(targets): one step of the power method with their products.
    missed = centred_left_product(inverse(inverse(centred_product(matrix, mean, start.mT).mT)), matrix, mean)
    basis = torch.linalg.qr(missed.mT)[0].mT
    return torch.cat([basis, random - random @ basis.mT @ basis]), half


def _interval(total: float, missed: Tensor, left: Tensor, known: int) -> tuple[float, float]:
    """Of the exact decoder's squared error over all columns, before slack.

    Args:
        total: the sketched decoder's. missed: its residuals [c, rows] of the combinations. left: the exact one's.
    """
    before, after = missed @ missed.mT, left @ left.mT
    center, count = float(after.diagonal()[:known].sum()), len(after) - known
    if not count:
        return center, center
    rest = max(total - float(before.diagonal()[:known].sum()), 0.0)
    before, after = before[known:, known:], after[known:, known:]
    # What the exact errors have in common with the sketched ones, whose sum is known, needs no sample. Products of
    # different random columns tell the spread better than the few columns' own squares, and the skewness likewise.
    apart = 1 - torch.eye(count, dtype=after.dtype, device=after.device)
    common = float((apart * after * before).sum() / (apart * before.square()).sum().clamp_min(_TINY))
    difference = after - common * before
    center += common * rest + float(difference.diagonal().mean())
    off = apart * difference
    squares = float(off.square().sum()) / (count * (count - 1))
    cubes = float((off @ off @ off).trace()) / (count * (count - 1) * (count - 2))
    # A gamma distribution of the same moments; one of a single direction, chi-square, is as skew as there are.
    skew = min(max(cubes / max(squares**1.5, _TINY), -1.0), 1.0)
    dof = count / max(skew**2, 1e-3)
    scale = student(_SHARE, count - 1) / normal(_SHARE) * (squares * dof / count) ** 0.5
    low, high = (scale * (dof / chi_square(share, dof) - 1) for share in (_SHARE, 1 - _SHARE))
    return (center + low, center + high) if skew >= 0 else (center - high, center - low)


def _iterate(
    cell: Activations,
    targets: tuple[Tensor, Tensor],
    penalty: float,
    inverse: _Inverse,
    weights: Tensor,
    allowed: Sequence[float],
) -> tuple[tuple[Tensor, Tensor], list[float]] | None:
    """The exact decoder's residuals for a few centred targets [c, n] and [c, m], and the slack of their squares.

    Args:
        weights: [c] of the squares in a sum. allowed: slack of this sum, per split; None where it is not reached.
    """
    solution, residual, predicted = torch.zeros_like(targets[0]), targets[0].clone(), torch.zeros_like(targets[1])
    path = _independent(inverse(residual))
    reached = math.inf
    for step in range(1, _STEPS + 1):
        features = centred_left_product(path, cell.fit, cell.mean)
        image, image_beyond = (centred_product(rows, cell.mean, features.mT).mT for rows in (cell.fit, cell.heldout))
        moved = image + penalty * path
        if (factor := cholesky(path @ moved.mT)) is None:
            return None
        sizes = torch.cholesky_solve(path @ residual.mT, factor).mT
        solution += sizes @ path
        residual -= sizes @ moved
        predicted += sizes @ image_beyond
        # With e the error of the solution and K = A A', the residual is (K + penalty I) e. The fit residuals are wrong
        # by penalty e, which is no longer than that; the held-out ones by B A'e. In the metric K (K + penalty I) e is
        # no longer than the residual either: times the largest |B A'v| of unit v in this metric, that bounds what is
        # wrong. It is known not of all v, but of those of the last two steps, near which most of e lies. Those of the
        # first step alone may lie where K is zero, and tell nothing.
        length = residual.norm(dim=1)
        before, reached = reached, _reach(image_beyond, image @ image.mT + penalty * features @ features.mT)
        wrong = length, max(before, reached) * length
        lefts = penalty * solution, targets[1] - predicted
        slacks = [float(((2 * left.norm(dim=1) + e) * e) @ weights) for left, e in zip(lefts, wrong, strict=True)]
        if all(slack <= most for slack, most in zip(slacks, allowed, strict=True)):
            return lefts, slacks
        far = any(not slack <= _HOPELESS * most for slack, most in zip(slacks, allowed, strict=True))
        if not math.isfinite(slacks[0]) or (far and step == _HALFWAY):
            return None
        smooth = inverse(residual)
        path = _independent(smooth - torch.cholesky_solve(moved @ smooth.mT, factor).mT @ path)
    return None


def _independent(directions: Tensor) -> Tensor:
    """Orthonormal [k, n] of the span of directions [c, n], however dependent these are."""
    scaled = directions / directions.norm(dim=1, keepdim=True).clamp_min(_TINY)
    values, basis = torch.linalg.svd(scaled, full_matrices=False)[1:]
    kept: Tensor = basis[values > _DEPENDENT * values[0]]
    return kept


def _reach(images: Tensor, metric: Tensor) -> float:
    """The largest length of images [k, m] of directions of unit length, by a metric [k, k] of these."""
    if float(metric.trace()) == 0:
        return 0.0
    ridge = 1e-13 * metric.trace() * torch.eye(len(metric), dtype=metric.dtype, device=metric.device)
    if (factor := cholesky(metric + ridge)) is None:
        return math.inf
    return float(torch.linalg.matrix_norm(torch.linalg.solve_triangular(factor, images, upper=False), 2))


def _gram(cell: Activations) -> Tensor:
    """Lower triangle of the centred Gram matrix [s, s], in float64 whatever the decoder was solved in.

    For weak penalties the two terms of the inverse made of it nearly cancel.
    """
    mean = cell.mean
    gram: Tensor = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=mean.device)
    for _, (rows,) in converted_rows([cell.fit], torch.float64):
        ops.gram([rows], rows[:, :0], [gram], [gram[:, :0]])
    gram.addr_(mean, mean, alpha=-len(cell.fit))
    return gram


def _inverse(cell: Activations, gram: Tensor, penalty: float) -> _Inverse | None:
    """x (Y Y' + penalty I)^-1 of the centred fit rows Y [n, s], for x [c, n] float64; None where it has no factor."""
    shifted = gram.clone()
    shifted.diagonal().add_(penalty)
    if (factor := cholesky(shifted)) is None:
        return None

    def apply(left: Tensor) -> Tensor:
        inner = torch.cholesky_solve(centred_left_product(left, cell.fit, cell.mean).mT, factor)
        return (left - centred_product(cell.fit, cell.mean, inner).mT) / penalty

    return apply
