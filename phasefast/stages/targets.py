"""All targets of a run side by side, centred, with what stands for them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor

from ..algebra.choosing import sketch_of
from ..algebra.components import RANDOM_COLUMNS, columns_with_components, project
from ..algebra.dense import aligned_empty, product, wide_rows
from ..algebra.isometry import coordinates
from ..algebra.systems import fold_sums
from ..common.notices import warn
from ..common.timeline import stage
from ..data.target_cache import TargetCache
from ..data.target_matrix import Check, TargetMatrix, TargetSketch
from ..data.target_types import Function, Input, Label, OwnTarget, Split, Target, Values, in_float32, own_columns
from ..data.token_rows import TokenRows
from ..errors import ArgumentError, DataError
from ..types import TargetBlock

SKETCH_COLUMNS = 64
_UNSEEN = 100  # one of so many held-out samples of classes without fit samples is worth a warning
_COMPARED, _TIMES = 8, 3  # samples, and measurements
_APART, _ROUNDING = 1e-3, 1e-3  # of the deviation, which is at least this share of the values
CHECK_COLUMNS = 22  # as good as 64; beside those of ten classes they are 32, products of which are fast


class FunctionValues:
    """What functions give for the first samples, to tell those that give something else at later steps.

    Args:
        targets: of which those that are no :class:`Function` are passed over. inputs: [n, ...].
    """

    def __init__(self, targets: Sequence[Target], inputs: Tensor) -> None:
        self._inputs, self._times = inputs[:_COMPARED], 0
        self._functions = [each for each in targets if isinstance(each, Function)]
        self._known: dict[str, Tensor] = {}

    def changed(self) -> list[str]:
        """The names of targets whose functions give other values than the last time; asked no more than three times."""
        self._times += 1
        return [target.name for target in self._functions if self._times <= _TIMES and self._differs(target)]

    def _differs(self, target: Function) -> bool:
        try:
            now = target.values(self._inputs).double()
        except Exception:  # it may need more samples than these, or be on another device
            return False
        before, self._known[target.name] = self._known.get(target.name), now
        if before is None or before.shape != now.shape:
            return False
        apart = torch.maximum(before.std(0), _ROUNDING * before.abs().amax(0))
        return bool(((now - before).abs() > _APART * apart).any())


@stage("targets")
def build_targets(
    targets: Sequence[Target],
    fit: Split,
    heldout: Split,
    folds: Sequence[int],
    device: torch.device,
    per_column: bool = False,
    cache: TargetCache | None = None,
    components: int | None = None,
    inputs: tuple[Tensor, Tensor] | None = None,
    tokens: Mapping[str, TokenRows] | None = None,
) -> TargetMatrix:
    """All targets side by side, regression columns minus their fit means, on ``device``.

    Args:
        targets: at least one, with different names. fit: (inputs [n, ...], labels [n] or None). heldout: likewise.
        folds: k + 1 row offsets from 0 to n.
        per_column: each column of a regression, if one has several, gets a penalty of its own, so that no other columns
            can stand for it.
        cache: where the result may lie already, of these very inputs; not for ``per_column``.
        components: how many leading components of a wide regression target are decoded; not for ``per_column``.
        inputs: of ``fit`` and ``heldout``, where they are on ``device`` too: not copied again for :class:`Input`.
        tokens: by split, which tokens are rows, where each is one.

    Raises:
        ArgumentError: no target, or two of one name.
        DataError: a target that cannot be made of the inputs, or is not finite.
    """
    names = [getattr(target, "name", None) for target in targets]
    needed = ("name", "kind", "columns")
    if wrong := [each for each in targets if isinstance(each, type) or not all(hasattr(each, own) for own in needed)]:
        raise ArgumentError(
            "targets: expected targets such as phasefast.Input(), phasefast.Label(10) or phasefast.Function(fn), got "
            f"{wrong}"
        )
    if not names or len(set(names)) != len(names):
        raise ArgumentError(
            f"targets: expected at least one, with different names, got {names}; Function(fn, name=...) sets the name"
        )
    blocks, fit_parts, heldout_parts, start = [], [], [], 0
    for target in targets:
        given = fit, heldout
        if inputs is not None and type(target) is Input:  # a function may want what was given
            given = (inputs[0], None), (inputs[1], None)
        columns, held = _columns_of(target, *given, tokens)
        if columns.shape[1] == 0 or columns.shape[1] != held.shape[1]:
            raise DataError(
                f"target {target.name!r}: expected the same number of columns in both splits, at least one, "
                f"got {columns.shape[1]} and {held.shape[1]}"
            )
        if target.kind == "classes":
            _warn_of_unseen(target.name, columns, held, "samples" if tokens is None else "tokens")
        blocks.append(TargetBlock(target.name, target.kind, start, start + columns.shape[1], columns.shape[1]))
        start = blocks[-1].stop
        fit_parts.append(columns)
        heldout_parts.append(held)
    digests = tuple(map(_digest, targets, fit_parts, heldout_parts))
    if cache is not None:
        key = cache.key(digests, folds, (part.dtype for part in (*fit_parts, *heldout_parts)), components)
        if (kept := cache.load(key, device)) is not None:
            return kept
    fit_columns, heldout_columns = (_side_by_side(parts, device) for parts in (fit_parts, heldout_parts))
    del columns, held, fit_parts, heldout_parts
    mean = fit_columns.mean(0, dtype=torch.float64)
    # Sums in float64 are finite where all float32 numbers are.
    for split, known in (("fit", mean), ("heldout", heldout_columns.sum(0, dtype=torch.float64))):
        finite = known.isfinite().cpu()
        if bad := [block.name for block in blocks if not bool(finite[block.start : block.stop].all())]:
            raise DataError(f"target {bad[0]!r}: expected finite values, got NaN or Inf in the {split} split")
    center = mean.clone()
    for block in blocks:
        if block.kind == "classes":
            center[block.start : block.stop] = 0  # the largest prediction names the class only with the means in it
    deviation = {}
    for split, matrix in (("fit", fit_columns), ("heldout", heldout_columns)):
        squares = _center(matrix, mean, center)
        deviation[split] = tuple(float(squares[block.start : block.stop].sum()) for block in blocks)
        for block, value in zip(blocks, deviation[split], strict=True):
            if block.kind == "regression" and not value > 0:
                raise DataError(
                    f"target {block.name!r}: it is constant on the {split} rows; there is nothing to decode"
                )
    distances = [
        torch.cat([rows.square().sum(1) for _, rows in wide_rows(heldout_columns[:, block.start : block.stop], 1)])
        if block.kind == "regression"
        else None
        for block in blocks
    ]
    per_column = per_column and any(block.kind == "regression" and block.width > 1 for block in blocks)
    all_columns, all_blocks, dropped = fit_columns, list(blocks), {split: (0.0,) * len(blocks) for split in deviation}
    if not per_column:
        blocks, fit_columns, heldout_columns, dropped = _fewer(blocks, fit_columns, heldout_columns, components)
    if not any(block.random for block in blocks):
        all_columns, all_blocks = fit_columns, blocks
    # Penalties are chosen by the targets themselves, not by their components.
    sketch = _sketch(all_columns, all_blocks, folds, all_columns.shape[1] if per_column else SKETCH_COLUMNS)
    if all_columns is not fit_columns:
        sketch = replace(sketch, mixes=())
    del all_columns
    sums = fold_sums(fit_columns, folds)
    # Of the columns as they are stored, rounded: an identity with the moments of these must not cancel.
    stored, mean = torch.zeros_like(sums[0]), sums.sum(0) / len(fit_columns)
    for _, rows in wide_rows(fit_columns, 1):
        stored += (rows - mean).square_().sum(0)
    of_stored = tuple(float(stored[block.start : block.stop].sum()) for block in blocks)
    pairs = zip(blocks, of_stored, deviation["fit"], strict=True)
    deviation["fit"] = tuple(before if block.random else own for block, own, before in pairs)
    made = TargetMatrix(
        blocks=tuple(blocks),
        folds=tuple(folds),
        fit=fit_columns,
        heldout=heldout_columns,
        sums=sums,
        deviation=deviation,
        dropped=dropped,
        squares=of_stored,
        distances=tuple(distances),
        sketch=sketch,
        checks=tuple(_check(fit_columns, heldout_columns, block) for block in blocks),
        digests=digests,
        per_column=per_column,
    )
    if cache is not None:
        cache.store(key, made)
    return made


def given_values(
    target: Target, fit: Split, heldout: Split, tokens: Mapping[str, TokenRows] | None
) -> tuple[Tensor, Tensor]:
    """What rows [n, ...] and [m, ...] have of a target as it was given: with means, and all, of classes the numbers.

    Args:
        fit, heldout, tokens: as for ``build_targets``.
    """
    plain = target if _encodes_as_usual(target) else None
    both = own_columns(target, fit, heldout, tokens is not None) if plain is None else plain.given(fit, heldout)
    if tokens is None:
        return both
    found = [
        tokens[split].rows(own) if plain is not None or own.dim() == 3 else tokens[split].repeated(own)
        for split, own in zip(("fit", "heldout"), both, strict=True)
    ]
    return found[0], found[1]


def _encodes_as_usual(target: Target) -> TypeGuard[OwnTarget]:
    """Whether its columns are those that the package makes of what is given; of another's, only itself can tell."""
    usual = [kind.encoded for kind in (Input, Label, Function, Values)]
    return _encodes_what_is_given(target) and type(target).encoded in usual


def _encodes_what_is_given(target: Target) -> TypeGuard[OwnTarget]:
    return isinstance(target, OwnTarget) and type(target).columns is OwnTarget.columns


def _columns_of(
    target: Target, fit: Split, heldout: Split, tokens: Mapping[str, TokenRows] | None
) -> tuple[Tensor, Tensor]:
    """Columns of each row; where tokens are rows and have none of their own, each has those of its sequence."""
    if _encodes_what_is_given(target):
        values, held = target.given(fit, heldout)
        if tokens is not None:
            values, held = tokens["fit"].rows(values), tokens["heldout"].rows(held)
        return target.encoded(values, held)
    columns, held = own_columns(target, fit, heldout, tokens is not None)
    if tokens is not None:  # [n, p] is of sequences, also where p is the number of tokens
        columns, held = (
            of.rows(own) if own.dim() == 3 else of.repeated(own)
            for of, own in ((tokens["fit"], columns), (tokens["heldout"], held))
        )
    return in_float32(columns, held) if target.kind == "regression" else (columns.float(), held.float())


def _fewer(
    blocks: Sequence[TargetBlock], fit: Tensor, heldout: Tensor, components: int | None
) -> tuple[list[TargetBlock], Tensor, Tensor, dict[str, tuple[float, ...]]]:
    """Blocks of many columns by their leading components, or in the row space of the fit rows: n + 1 columns for each.

    Returns:
        The blocks with their columns, and per split and block the squares that the components leave out.
    """
    fewer, parts, start = [], [], 0
    dropped: dict[str, list[float]] = {"fit": [], "heldout": []}
    for block in blocks:
        both = fit[:, block.start : block.stop], heldout[:, block.start : block.stop]
        left = {"fit": 0.0, "heldout": 0.0}
        width = columns_with_components(block.width, components) if block.kind == "regression" else block.width
        if width < min(block.width, len(fit) + 1):
            of_fit, of_heldout, left = project(*both, width - RANDOM_COLUMNS)
            both, block = (of_fit.float(), of_heldout.float()), replace(block, random=RANDOM_COLUMNS)
        elif block.kind == "regression" and block.width > len(fit) + 1:
            both = _row_space(*both) or both
        fewer.append(replace(block, start=start, stop=start + both[0].shape[1]))
        parts.append(both)
        start = fewer[-1].stop
        for split, squares in dropped.items():
            squares.append(left[split])
    if start < fit.shape[1]:
        fit, heldout = (_side_by_side(split, fit.device) for split in zip(*parts, strict=True))
    return fewer, fit, heldout, {split: tuple(squares) for split, squares in dropped.items()}


def _row_space(fit: Tensor, heldout: Tensor) -> tuple[Tensor, Tensor] | None:
    """Targets [n, n + 1] and [m, n + 1] with the same errors; None where the rows depend on each other too much.

    A decoder only predicts combinations of the fit rows' targets. What of a held-out row lies outside their span is
    lost whatever it predicts: one more column holds its length.
    """
    found = coordinates(fit, heldout)
    if found is None:
        return None
    rest = heldout.double().square().sum(1) - found[1].square().sum(1)
    outside = torch.cat([torch.zeros_like(found[0][:, :1]), rest.clamp_min(0).sqrt()[:, None]])
    both = torch.cat([torch.cat(found), outside], 1).float()
    return both[: len(fit)], both[len(fit) :]


def _side_by_side(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts))
    out = aligned_empty(len(parts[0]), sum(part.shape[1] for part in parts), dtype, device)
    for part, place in zip(parts, out.split([part.shape[1] for part in parts], 1), strict=True):
        place.copy_(part)
    return out


def _warn_of_unseen(name: str, fit: Tensor, heldout: Tensor, units: str) -> None:
    """Warn of classes, of one-hot columns [n, k] and [m, k], that only held-out samples have."""
    unseen = ~fit.any(0)
    count = int(heldout[:, unseen].any(1).sum())
    if count * _UNSEEN >= len(heldout):
        warn(
            f"target {name!r}: {count} of {len(heldout)} held-out {units} are of classes that no fit sample has, and "
            "count as errors: shuffle before splitting, or give more fit samples"
        )


def _digest(target: Target, *columns: Tensor) -> str:
    """Content hash of a target; the inputs themselves are in the probe set's."""
    digest = hashlib.blake2b(repr((target.name, target.kind, columns[0].shape)).encode(), digest_size=16)
    for part in columns if type(target) is not Input else ():  # subclasses may have other columns
        digest.update(part.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _center(matrix: Tensor, mean: Tensor, center: Tensor) -> Tensor:
    """Subtract ``center`` in place; returns the squared deviations [p] of the columns from ``mean``."""
    squares = torch.zeros_like(mean)
    for place, rows in wide_rows(matrix, matrix.shape[1]):
        squares += (rows - mean).square_().sum(0)
        matrix[place] = rows - center
    return squares


def _sketch(matrix: Tensor, blocks: Sequence[TargetBlock], folds: Sequence[int], limit: int) -> TargetSketch:
    # A Gaussian sketch keeps squared errors in the mean (Johnson-Lindenstrauss), the same one for every penalty,
    # so that penalties are compared on the same random directions at a fraction of the price.
    parts, mixes, sketched, start = [], list[Tensor | None](), [], 0
    for block in blocks:
        part, width = matrix[:, block.start : block.stop], block.stop - block.start
        if width > limit:
            generator = torch.Generator().manual_seed(0)  # whatever targets are beside it
            mix = (
                torch.randn(width, SKETCH_COLUMNS, generator=generator, dtype=torch.float32, device="cpu")
                / SKETCH_COLUMNS**0.5
            )
            mix = mix.to(part)
            part = part @ mix
            mixes.append(mix)
        else:
            mixes.append(None)
        parts.append(part)
        sketched.append(TargetBlock(block.name, block.kind, start, start + part.shape[1], block.width))
        start = sketched[-1].stop
    fit = matrix if start == matrix.shape[1] else torch.cat(parts, 1)
    return sketch_of(sketched, fit, folds, mixes)


def _check(fit: Tensor, heldout: Tensor, block: TargetBlock) -> Check:
    generator = torch.Generator().manual_seed(0)
    columns = slice(block.start, block.stop)
    width = block.stop - block.start
    if width <= CHECK_COLUMNS:
        directions = torch.eye(width, dtype=torch.float64, device=fit.device)
    else:
        directions = torch.randn(width, CHECK_COLUMNS, generator=generator, dtype=torch.float64, device="cpu").to(
            fit.device
        )
    products = [product(matrix[:, columns], directions) for matrix in (fit, heldout)]
    return Check(directions, *products)
