"""Dense matrices: storage whose rows are aligned, sums in float64 that stay in the cache, triangular factors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .. import ops
from ..common.interrupts import let_interrupts_through
from .workspace import take

_LINE, _PAGE, _LARGE = 64, 4096, 1 << 20  # bytes
_CONVERTED, _CONVERTED_ELEMENTS = 4096, 1 << 25  # rows in another type that are kept at a time, at most
_CACHED = 1 << 18  # elements of a float64 copy that stays in the cache
_LAUNCH = 32  # times as many are worth the launches on a GPU
_ROUND, _ROWS = 2, 128  # times as many are worth a product, or so many rows of long ones
_LEAF = 256  # columns of a triangular block that LAPACK inverts, or a GPU with others at once; a quarter of _BLOCK
_PANEL = 256  # columns that are eliminated at a time, of more right-hand sides by the inverse of their block
_BLOCK = 1024  # columns of a triangular block that products of their own pay for, on a GPU
_EVEN = 64  # that parts of a matrix begin at multiples of
_STRIP, _STRIPS = 256, 8  # rows or columns of a triangular matrix that are multiplied at a time; at most so many parts


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised, like ``torch.empty``; a large one on the CPU in huge pages, of the workspace in use."""
    count = math.prod(shape) * dtype.itemsize
    pages = take(count) if device.type == "cpu" and count >= _LARGE else None
    if pages is None:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.frombuffer(pages, dtype=dtype).view(tuple(shape))  # keeps the pages


def aligned_empty(rows: int, cols: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised [rows, cols], every row at the start of a cache line, and not all in the same sets of the cache.

    Products of other matrices take up to half as long again.
    """
    step = _LINE // dtype.itemsize
    stride = (cols + step - 1) // step * step
    if stride * dtype.itemsize % _PAGE == 0:
        stride += step
    out = empty((rows, stride), dtype, device)
    return out if stride == cols else out[:, :cols]


def row_chunk(cols: int, device: torch.device) -> int:
    """How many rows of a matrix are worked on at a time: so many that float64 copies of them stay in the cache.

    On a GPU so many that their number is worth the launches.
    """
    return max(_CACHED * (1 if device.type == "cpu" else _LAUNCH) // max(cols, 1), 16)


def wide_rows(matrix: Tensor, beside: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a matrix in float64, some at a time, with their place, to be read; the next ones overwrite them.

    Args:
        beside: how many columns the widest matrix has that is made of so many rows.
    """
    count, cols = matrix.shape
    size = max(_ROUND * row_chunk(max(cols, beside), matrix.device), _ROWS)
    wide = matrix.dtype == torch.float64
    if count <= size:  # each operation is a launch on a GPU
        own = matrix if wide else aligned_empty(count, cols, torch.float64, matrix.device).copy_(matrix)
        yield slice(0, count), own
        return
    buffer = None if wide else aligned_empty(size, cols, torch.float64, matrix.device)
    for start in range(0, count, size):
        let_interrupts_through()
        place = slice(start, min(start + size, count))
        yield place, matrix[place] if buffer is None else buffer[: place.stop - start].copy_(matrix[place])


def converted_rows(
    matrices: Sequence[Tensor], dtype: torch.dtype, most: int | None = None
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Rows of equally long matrices [n, d] in ``dtype``, some at a time, with their place.

    The next ones overwrite them.

    Args:
        most: rows at a time; by default all where none has to be converted.
    """
    count, others = len(matrices[0]), [matrix for matrix in matrices if matrix.dtype != dtype]
    few = max(min(_CONVERTED, _CONVERTED_ELEMENTS // max(sum(matrix.shape[1] for matrix in others), 1)), _ROWS)
    size = min(most or (few if others else count), count)
    buffers = [None if m.dtype == dtype else aligned_empty(size, m.shape[1], dtype, m.device) for m in matrices]
    for start in range(0, count, max(size, 1)):
        let_interrupts_through()
        place = slice(start, min(start + size, count))
        parts = zip((matrix[place] for matrix in matrices), buffers, strict=True)
        yield place, [part if buffer is None else buffer[: len(part)].copy_(part) for part, buffer in parts]


def inner(a: Tensor, b: Tensor, share: float = 0.0) -> Tensor:
    """Sum of all elements of a (b + share a), in float64, on their device."""
    if a.is_cuda and b is a and not share and a.numel() <= _CACHED * _LAUNCH:  # a copy in float64 is no larger
        norm: Tensor = torch.linalg.vector_norm(a, dtype=torch.float64)
        return norm.square()
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    for place, wide in wide_rows(a, 0):
        other = wide if b is a else b[place]
        other = torch.add(other, wide, alpha=share) if share else other
        total += torch.mul(wide, other, out=None if a.dtype == torch.float64 else wide).sum()
    return total


def product(matrix: Tensor, right: Tensor) -> Tensor:
    """matrix right in float64: of a matrix [n, d] of any float type, and [d, k] float64."""
    columns = right.mT.contiguous()  # few columns are multiplied faster as rows
    parts = [columns @ rows.mT for _, rows in wide_rows(matrix, len(columns))]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).mT


def left_product(left: Tensor, matrix: Tensor) -> Tensor:
    """left matrix in float64: of [c, n] float64, and a matrix [n, d] of any float type."""
    total = left.new_zeros(len(left), matrix.shape[1])
    for place, rows in wide_rows(matrix, len(left)):
        total.addmm_(left[:, place], rows)
    return total


def centred_product(rows: Tensor, mean: Tensor, right: Tensor) -> Tensor:
    """(rows - mean) right in float64: of rows [n, d] of any float type, mean [d] and right [d, k] float64."""
    return product(rows, right) - mean @ right


def centred_left_product(left: Tensor, rows: Tensor, mean: Tensor) -> Tensor:
    """left (rows - mean) in float64, of left [c, n] float64, likewise."""
    return left_product(left, rows).addr_(left.sum(1), mean, alpha=-1)


def cholesky(matrix: Tensor) -> Tensor | None:
    """The lower factor of a matrix, of which the lower triangle counts; None where there is none."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    whole = int(failed) == 0 and bool(factor.diagonal().isfinite().all())  # some LAPACKs let NaN pass
    return factor if whole else None


def substitute(factor: Tensor, rhs: Tensor, back: bool = True) -> Tensor:
    """factor^-1 rhs [d, c] in the factor's dtype, and then factor'^-1 of that, unless ``back`` is false.

    By halves: nearly all of it in large products.
    """
    inverted = rhs.shape[1] > _PANEL  # few columns are solved sooner than blocks are inverted
    panel = _PANEL if inverted else 2 * _PANEL
    out = aligned_empty(len(rhs), rhs.shape[1], factor.dtype, factor.device).copy_(rhs)
    scratch = aligned_empty(panel, rhs.shape[1], factor.dtype, factor.device) if inverted else None
    blocks = [factor[start : start + panel, start : start + panel] for start in range(0, len(factor), panel)]
    blocks = [invert_lower(block.clone()) for block in blocks] if inverted else blocks
    for flipped in (False, True) if back else (False,):
        _substitute(factor, blocks, out, scratch, flipped)
    return out


# Functions that call themselves take all that they need: inside others they would keep it alive until it is collected.


def _substitute(factor: Tensor, blocks: Sequence[Tensor], out: Tensor, scratch: Tensor | None, flipped: bool) -> None:
    """factor^-1 out in place, or factor'^-1 out where ``flipped``.

    Args:
        blocks: of the factor's diagonal, all but the last equally large; their inverses where there is a scratch.
    """
    if len(blocks) == 1:
        block = blocks[0].mT if flipped else blocks[0]
        if scratch is not None:
            out.copy_(torch.mm(block, out, out=scratch[: len(out)]))
        else:
            out.copy_(torch.linalg.solve_triangular(block, out, upper=flipped))
        return
    half = len(blocks) - len(blocks) // 2
    middle = half * len(blocks[0])
    above = factor[:middle, :middle], blocks[:half], out[:middle], scratch, flipped
    beyond = factor[middle:, middle:], blocks[half:], out[middle:], scratch, flipped
    below = factor[middle:, :middle]
    if flipped:
        _substitute(*beyond)
        out[:middle].addmm_(below.mT, out[middle:], alpha=-1)
        _substitute(*above)
    else:
        _substitute(*above)
        out[middle:].addmm_(below, out[:middle], alpha=-1)
        _substitute(*beyond)


class Factor:
    """The lower Cholesky factor [d, d] of a matrix, until its inverse is asked for, which takes its place.

    Elements of a row lie side by side.
    """

    def __init__(self, lower: Tensor) -> None:
        self._matrix, self._inverted = lower, False

    @property
    def inverse_root(self) -> Tensor:
        """Lower triangular [d, d]; the matrix's inverse is inverse_root' inverse_root."""
        if not self._inverted:
            self._matrix, self._inverted = invert_lower(self._matrix), True
        return self._matrix

    def clone(self) -> Factor:
        """One that keeps no other factors alive beside it."""
        own = Factor(self._matrix.clone())
        own._inverted = self._inverted
        return own

    def solve(self, rhs: Tensor) -> Tensor:
        """The matrix's inverse times rhs [d, c], in the factor's dtype."""
        fast = multiplies_fast(self._matrix)
        # There products take less than substitutions.
        if not fast and not self._inverted and not rhs.is_cuda and not self._is_block(rhs):
            return substitute(self._matrix, rhs)
        root, between = self.inverse_root, self.halve(rhs)
        if not fast:
            return root.mT @ between
        out = torch.zeros_like(between)
        for start, stop in strips(0, len(root), _BLOCK):
            ops.gram([root[start:, start:stop]], between[start:], [], [out[start:stop]])
        return out

    def halve(self, rhs: Tensor) -> Tensor:
        """The factor's inverse times rhs [d, c], in the factor's dtype."""
        rhs = rhs.to(self._matrix.dtype)
        if not multiplies_fast(self._matrix):
            if self._inverted:
                return self._matrix @ rhs
            if rhs.is_cuda:  # where one launch takes no longer than any of the many
                solved: Tensor = torch.linalg.solve_triangular(self._matrix, rhs, upper=False)
                return solved
            if self._is_block(rhs):
                return self.inverse_root @ rhs
            return substitute(self._matrix, rhs, back=False)
        root, rhs = self.inverse_root, rhs.contiguous()
        out = torch.zeros_like(rhs)
        for start, stop in strips(0, len(root), _BLOCK):
            ops.gram([root[start:stop, :stop].mT.contiguous()], rhs[:stop], [], [out[start:stop]])
        return out

    def _is_block(self, rhs: Tensor) -> bool:
        """Whether ``substitute`` would invert the whole factor too, and copy more."""
        return rhs.shape[1] > _PANEL >= len(self._matrix)

    def halve_back(self, rhs: Tensor) -> Tensor:
        """The transposed factor's inverse times few columns rhs [d, c], in the factor's dtype."""
        if self._inverted or multiplies_fast(self._matrix):
            return self.inverse_root.mT @ rhs
        solved: Tensor = torch.linalg.solve_triangular(self._matrix.mT, rhs, upper=True)
        return solved

    def inverse_traces(self) -> Tensor:
        """tr X and tr X^2 [2] float64 of the matrix's inverse X."""
        if multiplies_fast(self._matrix):
            root = self.inverse_root
            inverse = torch.zeros_like(root, memory_format=torch.contiguous_format)
            ops.gram([root], root[:, :0], [inverse], [inverse[:, :0]])
            inverse = inverse.tril_().add_(inverse.tril(-1).mT)
        elif self._inverted:
            inverse = self._matrix.mT @ self._matrix
        else:
            inverse = torch.cholesky_inverse(self._matrix)
        trace = inverse.diagonal().sum(dtype=torch.float64)
        return torch.stack([trace, inverse.square_().sum(dtype=torch.float64)])


def multiplies_fast(matrix: Tensor) -> bool:
    """Whether the op gram multiplies such matrices so much faster than PyTorch that more launches pay."""
    return len(matrix) >= _BLOCK and matrix.dtype == torch.float32 and ops.float32_is_fast(matrix.device)


def invert_lower(factor: Tensor) -> Tensor:
    """Invert a lower triangular matrix [d, d] in place, by halves; about d^3 / 2.5 operations, nearly all in products.

    What is above the diagonal has to be zero.
    """
    if multiplies_fast(factor):
        return _invert_blocks(factor)

    half = len(factor) - len(factor) // 2
    _invert_halves(factor, aligned_empty(half, half, factor.dtype, factor.device))
    return factor


def _invert_halves(factor: Tensor, scratch: Tensor) -> None:
    """In place; ``scratch``: as large as the larger half."""
    size = len(factor)
    if size <= _LEAF:
        eye = torch.eye(size, dtype=factor.dtype, device=factor.device)
        factor.copy_(torch.linalg.solve_triangular(factor, eye, upper=False))
        return
    middle = size // 2
    below = factor[middle:, :middle]
    _invert_halves(factor[:middle, :middle], scratch)
    _invert_halves(factor[middle:, middle:], scratch)
    # [a 0; b c]^-1 = [a^-1 0; -c^-1 b a^-1, c^-1], the triangular factors taken strip by strip.
    mixed = scratch[: size - middle, :middle]
    for low, high in strips(0, middle):
        torch.mm(below[:, low:], factor[low:middle, low:high], out=mixed[:, low:high])
    for low, high in strips(middle, size):
        rows = slice(low - middle, high - middle)
        below[rows].addmm_(factor[low:high, middle:high], mixed[: high - middle], beta=0, alpha=-1)


def _invert_blocks(factor: Tensor) -> Tensor:
    """``invert_lower`` on a GPU: diagonal blocks all at once, the rest by the op gram."""
    d, whole = len(factor), len(factor) // _BLOCK * _BLOCK

    def diagonal(size: int) -> Tensor:
        row, col = factor.stride()
        return factor.as_strided((whole // size, size, size), (size * (row + col), row, col), factor.storage_offset())

    for own in (diagonal(_LEAF), *([factor[None, whole:, whole:]] if whole < d else [])):
        eye = torch.eye(own.shape[1], dtype=factor.dtype, device=factor.device)
        own.copy_(torch.linalg.solve_triangular(own, eye.expand_as(own), upper=False))
    for half in (_LEAF, 2 * _LEAF):
        own = diagonal(2 * half)
        above, below = own[:, :half, :half], own[:, half:, :half]
        below.copy_((own[:, half:, half:] @ (below @ above)).neg_())

    _join_blocks(factor)
    return factor


def _join_blocks(factor: Tensor) -> None:
    """The inverse of a factor whose diagonal blocks are inverted already, in place."""
    size = len(factor)
    if size <= _BLOCK:
        return
    middle = (-(-size // _BLOCK) + 1) // 2 * _BLOCK
    _join_blocks(factor[:middle, :middle])
    _join_blocks(factor[middle:, middle:])
    # As in _invert_halves: -c^-1 b a^-1, a left factor's columns with a right one's.
    below = factor[middle:, :middle]
    turned = below.mT.clone(memory_format=torch.contiguous_format).neg_()
    mixed = factor.new_zeros(below.shape)
    for low, high in strips(0, middle, _BLOCK):
        ops.gram([turned[low:]], factor[low:middle, low:high], [], [mixed[:, low:high]])
    below.zero_()
    turned = factor[middle:, middle:].mT.contiguous()
    for low, high in strips(middle, size, _BLOCK):
        rows, reach = slice(low - middle, high - middle), high - middle
        ops.gram([turned[:reach, rows]], mixed[:reach], [], [below[rows]])


def strips(start: int, stop: int, least: int = _STRIP) -> list[tuple[int, int]]:
    """Edges of parts of a triangular matrix, so many that little of its zeros is multiplied and products stay large."""
    count = min(max((stop - start) // least, 1), _STRIPS)
    edges = [start + (stop - start) * i // count // _EVEN * _EVEN for i in range(count)]
    return list(itertools.pairwise([*edges, stop]))
