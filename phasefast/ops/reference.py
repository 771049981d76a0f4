"""Readable PyTorch definitions of the four ops: the oracle of every kernel, and what runs where there is no kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

ROWS = 4096
_AT_ONCE = 1 << 25  # numbers predicted, of which several copies are made


@torch.no_grad()
def capture(
    activations: Sequence[Tensor],
    shifts: Sequence[Tensor],
    pools: Sequence[int],
    rows: Sequence[Tensor],
    sums: Sequence[Tensor],
    squares: Sequence[Tensor],
) -> None:
    """Activations [b, ...] become rows [b, d]; sums and squares [d] float64 of the stored rows are added up."""
    for x, shift, pool, row, total, square in zip(activations, shifts, pools, rows, sums, squares, strict=True):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if pool:
            pooling = (
                torch.nn.functional.adaptive_avg_pool1d,
                torch.nn.functional.adaptive_avg_pool2d,
                torch.nn.functional.adaptive_avg_pool3d,
            )[wide.dim() - 3]
            wide = pooling(wide, pool)
        row.copy_(wide.flatten(1) - shift)
        stored = row.double()
        total += stored.sum(0)
        square += stored.square().sum(0)


def some_rows(targets: Tensor, rows: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Some rows of the targets, and the same of each of ``rows``: so many as sums of their type are good for."""
    return zip(targets.split(ROWS), *(row.split(ROWS) for row in rows), strict=True)


@torch.no_grad()
def gram(rows: Sequence[Tensor], targets: Tensor, grams: Sequence[Tensor], crosses: Sequence[Tensor]) -> None:
    """grams[i] [d, d] += rows' rows, lower triangle only, or grams is empty; crosses[i] [d, p] += rows' targets."""
    for part, *own in some_rows(targets, rows):
        for i, (a, c) in enumerate(zip(own, crosses, strict=True)):
            wide = a.to(torch.promote_types(a.dtype, torch.float32))
            if grams:
                grams[i].add_(torch.tril(wide.mT @ wide))
            c += wide.mT @ part.to(wide.dtype)


@torch.no_grad()
def ridge_solve(
    grams: Sequence[Tensor],
    crosses: Sequence[Tensor],
    penalties: Sequence[Tensor],
    weights: Sequence[Tensor],
    factors: Sequence[Tensor],
    info: Tensor,
) -> None:
    """weights[i][l] [d, p] = (grams[i] + penalties[i][l] I)^-1 crosses[i], by Cholesky of the equilibrated matrix.

    Columns whose diagonal plus penalty is zero get zero weights. Where the matrix is not positive definite,
    info[i, l] > 0 and the weights and factors are NaN. factors is empty, or factors[i][l] [d, d] becomes the lower
    Cholesky factor of grams[i] + penalty I, with 1 on the diagonal of columns that are zero.
    """
    for i, (g, c, path) in enumerate(zip(grams, crosses, penalties, strict=True)):
        for step, penalty in enumerate(path.to(g)):
            diagonal = g.diagonal() + penalty
            scale = diagonal.sqrt()  # NaN where negative, which the factorisation then reports
            dead = scale == 0
            inverse = torch.where(dead, 0, 1 / scale)
            matrix = (g * inverse[:, None]).mul_(inverse)
            matrix.diagonal().copy_(torch.where(dead, 1, diagonal * inverse * inverse))
            factor, failed = torch.linalg.cholesky_ex(matrix)
            improper = ~factor.diagonal().isfinite()  # some LAPACKs let NaN pass
            before = (~improper).int().cumprod(0).sum()
            failed = torch.where((failed == 0) & improper.any(), before + 1, failed)
            solved = torch.cholesky_solve(c * inverse[:, None], factor) * inverse[:, None]
            weights[i][step] = torch.where(failed > 0, torch.nan, solved)
            info[i, step] = failed
            if factors:
                kept = torch.where(dead, 1, scale)
                torch.mul(factor, torch.where(failed > 0, torch.nan, kept)[:, None], out=factors[i][step])


@torch.no_grad()
def residual(
    rows: Sequence[Tensor],
    weights: Sequence[Tensor],
    offsets: Sequence[Tensor],
    targets: Tensor,
    blocks: Sequence[int],
    classes: Sequence[bool],
    errors: Sequence[Tensor],
    hits: Sequence[Tensor],
) -> None:
    """errors[i] [k, m] float64 = squared error of rows @ weights + offset per block of target columns and per sample.

    Block j spans columns blocks[j]:blocks[j + 1]. hits[i] [k, m] bool: in a block of classes, whether the first largest
    prediction stands where the first largest target does, False where there is a NaN; False in other blocks.
    """
    for a, w, offset, error, hit in zip(rows, weights, offsets, errors, hits, strict=True):
        size = max(_AT_ONCE // max(w.shape[1], 1), 1)
        for some in (slice(start, start + size) for start in range(0, len(a), size)):
            prediction = a[some].to(w.dtype) @ w + offset
            expected = targets[some].to(w.dtype)
            for j, (start, stop) in enumerate(pairwise(blocks)):
                guess, truth = prediction[:, start:stop], expected[:, start:stop]
                error[j, some] = (guess - truth).double().square().sum(1)
                if classes[j]:
                    hit[j, some] = (guess.argmax(1) == truth.argmax(1)) & ~(guess.isnan() | truth.isnan()).any(1)
                else:
                    hit[j, some] = False
