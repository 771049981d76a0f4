"""Run the model over the probe set and keep the activations of the chosen layers as rows."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import ops
from ..algebra.dense import empty
from ..common.hooks import hooked, places_of_calls
from ..common.notices import shown, warn
from ..common.timeline import stage
from ..data.axes import Axes, Widths
from ..data.batches import chunk_bounds, model_inputs
from ..data.outputs import rows_in, tensors_in, unpacked
from ..data.sequences import as_one, real_tokens
from ..data.token_rows import TokenRows, TokensOfBatch, as_tokens, own_tokens
from ..errors import LayerError, NonFiniteError, PhasefastError
from ..types import Activations, Layer, TakesOutputs, TokenMode

_DIVERGED = "the weights have diverged or overflow in their dtype"
_POOLED: dict[int, Callable[..., Tensor]] = {
    4: nn.functional.adaptive_avg_pool2d,
    5: nn.functional.adaptive_avg_pool3d,
}  # by dimensions of an output
_SHIFT_ROWS = 256  # of the first batch, whose mean is the shift


@dataclass(frozen=True)
class RowOptions:
    """How an output becomes rows: ``tokens`` for [b, t, f]; ``pool`` > 0 averages larger spatial dims of images.

    ``dtype``: what rows are stored in. ``padding``: what inputs [b, t, ...] have where ``tokens`` leaves them out.
    """

    tokens: TokenMode = "flatten"
    pool: int = 0
    dtype: torch.dtype = torch.float32
    padding: float | None = None

    def axes(self, model: nn.Module, inputs: Tensor) -> Axes:
        """What tells where outputs have their features, where that is asked, for inputs [b, ...]."""
        if not self.pool and self.tokens == "flatten":
            return Axes()
        first = self.tokens == "each" or self.padding is not None or not inputs.is_floating_point()  # [b, t, ...]
        series = inputs.dim() == 3  # [b, t, c] or [b, c, t]; other floats are of features or images
        lengths = inputs.shape[1:2] if first else inputs.shape[1:] if series else ()
        return Axes(Widths.of(model), frozenset(lengths) - {1})

    def real(self, inputs: Tensor) -> Tensor | None:
        """Which positions of inputs [b, t, ...] are no padding: bool [b, t]; None where that is not asked."""
        each = self.tokens == "each"
        return None if self.padding is None or each else real_tokens(inputs, self.padding)


def rows_dtype(model: nn.Module, narrow: bool = False) -> torch.dtype:
    """What the rows of a model are stored in; ``narrow``: bfloat16 will do, but never for a float64 model."""
    if any(parameter.dtype == torch.float64 for parameter in model.parameters()):
        return torch.float64
    return torch.bfloat16 if narrow else torch.float32


def discover_layers(
    model: nn.Module, names: Sequence[str], batch: Tensor, options: RowOptions, given: Collection[str]
) -> list[Layer]:
    """Run one small batch and learn which layers fire, in which order, how often, and how wide their rows are.

    Args:
        names: names of modules. batch: [b, ...]. A module called k times gives k layers: ``relu``, ``relu:1``, ...
        given: names that the user gave; others that cannot be probed are left out, with a warning.

    Raises:
        LayerError: a given hook never fires, or its output cannot be made into rows; or so with all of them.
    """
    found: list[Layer] = []
    unusable: dict[str, LayerError] = {}
    shapes: dict[str, torch.Size] = {}
    unclear: dict[bool, list[str]] = {False: [], True: []}  # by whether their positions are taken to come last
    own: dict[str, int] = {}
    tokens = TokensOfBatch(batch.shape[1]) if options.tokens == "each" else None
    of = _Batch(len(batch), options.real(batch), tokens, options.axes(model, batch))

    def record(name: str, call: int, module: nn.Module, output: Any) -> None:
        try:
            x, pool = _as_cell(name, module, output, of, options)
        except LayerError as error:
            unusable.setdefault(name, error)
            return
        if isinstance(first := rows_in(output), PackedSequence):
            first = unpacked(name, first)[0]
        shapes[name] = (_features_first(module, first, of) if options.pool else first).shape
        if first.dim() == 3 and options.tokens != "flatten":
            turned, guessed = of.axes.positions_last(module, first.shape)
            if guessed and (turned or (of.axes.elsewhere is not None and of.axes.elsewhere.turning)):
                unclear[turned].append(name)
        if of.tokens is not None and first.dim() == 3:
            own[name] = max(own.get(name, 0), own_tokens(module, first.shape, of.tokens.length, of.axes))
        found.append(Layer(name if call == 0 else f"{name}:{call}", name, call, _width(x, pool)))

    with hooked(model, names, record):
        model(batch.clone())  # which it may change
    usable = [name for name in names if name not in unusable]
    silent = [name for name in usable if name not in {layer.module for layer in found}]
    if wrong := list(unusable) if len(silent) == len(usable) else [name for name in unusable if name in given]:
        raise unusable[wrong[0]]
    if unusable:
        warn(f"layers: left out {len(unusable)}: " + "; ".join(map(str, unusable.values())))
    if lost := silent if not found else [name for name in silent if name in given]:
        raise LayerError(
            f"layer {lost[0]!r}: its forward hook never fired; the model does not call this module itself "
            "(unused, or called through a function); probe the module around it"
        )
    if silent:
        warn(
            f"layers: left out {silent}, whose forward hooks never fired on the first samples (unused, called through "
            "a function, or only the modules inside them are called, as in models of torch.fx: probe those)"
        )
    if options.pool and all(len(own) not in _POOLED or max(own[2:]) <= options.pool for own in shapes.values()):
        warn(f"pool={options.pool} changes nothing: no layer's output is [b, c, h, w] or [b, c, d, h, w], and larger")
    if options.tokens not in ("flatten", "each"):
        _warn_of_tokens(options.tokens, shapes, batch)
    if options.tokens == "each":
        _warn_of_own_tokens({name: count for name, count in own.items() if count}, batch.shape[1])
    for turned, axis in ((False, "second"), (True, "last")):
        if unclear[turned]:
            warn(
                f"tokens={options.tokens!r}: the outputs of {shown(unclear[turned])} may have their positions on the "
                f"second or the last axis: the {axis} is taken, which is a guess; probe convolutions of torch.nn "
                "instead"
            )
    places = places_of_calls(model, batch)
    found = [replace(layer, place=places.get((layer.module, layer.call))) for layer in found]
    return [layer for layer in found if layer.module not in unusable]


@stage("forward passes")
def capture(
    model: nn.Module,
    layers: Sequence[Layer],
    fit_inputs: Tensor,
    heldout_inputs: Tensor,
    folds: Sequence[int],
    batch_size: int,
    options: RowOptions,
    device: torch.device,
    given: Collection[str] = (),
    tokens: Mapping[str, TokenRows] | None = None,
    own: TakesOutputs | None = None,
) -> tuple[list[Activations], dict[str, PhasefastError]]:
    """Activations of layers in one pass over the fit and one over the held-out inputs.

    Args:
        fit_inputs: [n, ...]. heldout_inputs: [m, ...]. folds: k + 1 row offsets, whose sums are kept apart.
        given: modules that the user named. tokens: by split, which tokens are rows, where each is one.
        own: gets the model's own outputs.

    Returns:
        Activations of each layer but those that have none, as they hold NaN or Inf, or as the model does not call them
        on every batch; and why, by name of these.

    Raises:
        LayerError: a given layer fires less often than it did at first.
    """
    samples = {"fit": fit_inputs, "heldout": heldout_inputs}
    n, m = (len(inputs if tokens is None else tokens[split]) for split, inputs in samples.items())
    spools = {(layer.module, layer.call): _Spool(layer, n, m, folds, device, options.dtype) for layer in layers}
    current: dict[str, Any] = {}
    of = _Batch(0, None, None, options.axes(model, fit_inputs))

    def record(name: str, call: int, module: nn.Module, output: Any) -> None:
        if (spool := spools.get((name, call))) is not None:
            spool.write(*_as_cell(name, module, output, of, options), **current)

    with hooked(model, sorted({layer.module for layer in layers}), record) as reset:
        for split, inputs in samples.items():
            bounds, split_rows = chunk_bounds(0, len(inputs), batch_size), None if tokens is None else tokens[split]
            for (start, stop), batch in zip(bounds, model_inputs(inputs, bounds, model, device), strict=True):
                of, first, last = replace(of, size=stop - start, real=options.real(batch)), start, stop
                if split_rows is not None:
                    of = replace(of, tokens=split_rows.tokens(start, stop, device))
                    first, last = split_rows.edges[start], split_rows.edges[stop]
                current.update(split=split, start=first, stop=last)
                reset()
                output = model(batch)
                if own is not None and (taken := _own_rows(model, output, of, options, own)) is not None:
                    rows, of_tokens = taken
                    own.add(split, of_tokens, first if of_tokens else start, rows)
                    del taken, rows
                del output
    totals = torch.stack([spool.totals for spool in spools.values()]).tolist()
    cells, problems = [], {}
    for (module, _), spool, (*sums, squares) in zip(spools, spools.values(), totals, strict=True):
        if (problem := spool.problem(dict(zip(samples, map(math.isfinite, sums), strict=True)))) is None:
            cells.append(spool.finish(squares))
        elif module in given and isinstance(problem, LayerError):
            raise problem
        else:
            problems[spool.layer.name] = problem
    return cells, problems


class _Spool:
    """The rows of one layer while they arrive."""

    def __init__(
        self, layer: Layer, n: int, m: int, folds: Sequence[int], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.layer, self.folds = layer, tuple(folds)
        self.rows = {split: empty((count, layer.dim), dtype, device) for split, count in (("fit", n), ("heldout", m))}
        self.written = {"fit": 0, "heldout": 0}
        self.shift: Tensor | None = None
        self.sums = torch.zeros(len(folds) - 1, layer.dim, dtype=torch.float64, device=device)
        self.heldout_sum, self._squares = torch.zeros(2, layer.dim, dtype=torch.float64, device=device)

    def write(self, x: Tensor, pool: int, split: str, start: int, stop: int) -> None:
        """Append one batch; the first one's mean becomes the shift, so that sums of squares do not cancel.

        Where it is within one standard deviation of zero little cancels, and the activations are kept unrounded.
        """
        rows = self.rows[split][start:stop]
        if (width := _width(x, pool)) != self.layer.dim:
            raise LayerError(
                f"layer {self.layer.name!r}: expected {self.layer.dim} features of each sample, as in the first batch, "
                f"got {width}; if the model cuts sequences to the longest of a batch, turn that off"
            )
        if self.shift is None:
            zero = torch.zeros(self.layer.dim, dtype=torch.float32, device=rows.device)
            first, square = torch.zeros_like(self.heldout_sum), torch.zeros_like(self.heldout_sum)
            # bfloat16 would round what is far from zero before its mean is known.
            some = rows[:_SHIFT_ROWS]
            some = some if some.dtype != torch.bfloat16 else torch.empty_like(some, dtype=torch.float32)
            ops.capture([x[:_SHIFT_ROWS]], [zero], [pool], [some], [first], [square])
            mean = torch.nan_to_num(first / len(some), 0, 0, 0)
            close = mean.square() <= square / len(some) - mean.square()
            self.shift = torch.where(close, 0, mean).float()
        inner = [edge for edge in self.folds if start < edge < stop] if split == "fit" else []
        for begin, end in itertools.pairwise([start, *inner, stop]):
            fold = sum(edge <= begin for edge in self.folds[1:-1])
            total = self.sums[fold] if split == "fit" else self.heldout_sum
            part = slice(begin - start, end - start)
            ops.capture([x[part]], [self.shift], [pool], [rows[part]], [total], [self._squares])
        self.written[split] += stop - start

    @property
    def totals(self) -> Tensor:
        """[3]: NaN or Inf where one of the fit rows, and where one of the held-out rows, holds such; sum of squares."""
        return torch.stack([self.sums.sum(), self.heldout_sum.sum(), self._squares.sum()])

    def problem(self, finite: Mapping[str, bool]) -> PhasefastError | None:
        """Why the rows cannot be used; None where they can. Args: finite: by split, whether its rows are."""
        for split, rows in self.rows.items():
            if self.written[split] != len(rows):
                return LayerError(
                    f"layer {self.layer.name!r}: its hook fired for {self.written[split]} of {len(rows)} {split} rows; "
                    "the model does not call it on every batch"
                )
            if not finite[split]:
                bad, only = (~torch.isfinite(rows)).any(0), bool((torch.isfinite(rows) | torch.isneginf(rows)).all())
                what, why = ("-Inf", "as masks have") if only else ("NaN or Inf", _DIVERGED)
                return NonFiniteError(
                    f"layer {self.layer.name!r}: {what} in {int(bad.sum())} of {self.layer.dim} features on the "
                    f"{split} rows; {why}"
                )
        return None

    def finish(self, squares: float) -> Activations:
        assert self.shift is not None
        fit, heldout = self.rows["fit"], self.rows["heldout"]
        of_one = squares / (fit.numel() + heldout.numel())
        rounded = fit.dtype == torch.bfloat16
        return Activations(self.layer, fit, heldout, self.shift, self.sums, rounded=rounded, mean_square=of_one)


def _width(x: Tensor, pool: int) -> int:
    """How many features a sample of an output [b, ...] has."""
    return int(torch.Size((x.shape[1], *(pool for _ in x.shape[2:])) if pool else x.shape[1:]).numel())


def _warn_of_tokens(mode: TokenMode, shapes: Mapping[str, torch.Size], batch: Tensor) -> None:
    """Warn of layers whose outputs have an axis as long as a sequence, but are kept whole."""
    counts = {shape[1] for shape in shapes.values() if len(shape) == 3}
    if not counts:
        hint = "; pool=1 takes the mean of maps" if any(len(shape) in _POOLED for shape in shapes.values()) else ""
        warn(f"tokens={mode!r} changes nothing: no layer's output is [b, t, f]{hint}")
        return
    counts |= {batch.shape[1]} if batch.dim() < 4 else set()
    whole = [name for name, shape in shapes.items() if len(shape) != 3 and counts & {*shape[1:]}]
    if whole:
        warn(
            f"tokens={mode!r} needs outputs [b, t, f]; those of {shown(whole)} have other shapes, such as "
            f"{tuple(shapes[whole[0]])}, and are decoded whole, with all tokens: leave these layers out"
        )


def _warn_of_own_tokens(more: Mapping[str, int], length: int) -> None:
    """Warn of layers with so many more tokens than there are positions."""
    if more:
        name, count = next(iter(more.items()))
        warn(
            f"layers {shown(more)} have more tokens than the {length} of the input, {name!r} {count} more: the first "
            "ones are taken for the model's own and left out; if they are not, leave these layers out"
        )


@dataclass(frozen=True)
class _Batch:
    """So many samples: which of their tokens are no padding, bool [b, t], which are rows; how outputs are read."""

    size: int
    real: Tensor | None
    tokens: TokensOfBatch | None
    axes: Axes


def _own_rows(
    model: nn.Module, output: Any, of: _Batch, options: RowOptions, own: TakesOutputs
) -> tuple[Tensor, bool] | None:
    """The model's own output [batch, ...] for each sample, or each token that is a row: whether it is so.

    Of several, such as those of Hugging Face, the logits; of numbers the first of the target's shape, or that fits.
    """
    several = [rows_in(output, "logits"), *(tensors_in(output) if own.numbers else ())]
    found = [rows for each in several if (rows := _rows_of_own(model, each, of, options, own)) is not None]
    fitting = (rows for exact in (True, False) for rows in found if own.fits(rows[1], rows[0].shape[1:], exact))
    return next(fitting, found[0] if found else None)


def _rows_of_own(
    model: nn.Module, output: Any, of: _Batch, options: RowOptions, own: TakesOutputs
) -> tuple[Tensor, bool] | None:
    """One of the model's own outputs, if it is one; of [batch, t, c] the token that stands for all, where it may."""
    if not isinstance(output, Tensor) or output.is_nested or output.layout != torch.strided:
        return None
    if not output.is_floating_point() or output.shape[:1] != (of.size,) or (output.dim() < 2 and not own.numbers):
        return None
    output = output[:, None] if output.dim() == 1 else output
    with contextlib.suppress(LayerError):
        if of.tokens is not None:
            if output.dim() not in (3, 4):
                return output, False
            # Labels are of the input's tokens, and numbers of tokens have its axes.
            how = (nn.Identity(), None) if own.numbers else (model, of.axes)
            return as_tokens("model", how[0], output, of.tokens, how[1], own=False), True
        if output.dim() == 3 and options.tokens in ("cls", "last") and not own.fits(False, output.shape[1:]):
            return as_one("model", model, output, options.tokens, of.real, of.axes)[0], False
    return (output, False) if of.tokens is None else None


def _as_cell(name: str, module: nn.Module, output: Any, of: _Batch, options: RowOptions) -> tuple[Tensor, int]:
    """The tensor [b, ...] that the capture op flattens, and the pool size it applies."""
    output = rows_in(output)
    if isinstance(output, PackedSequence) and options.tokens not in ("flatten", "each"):
        rows, real = unpacked(name, output)
        if len(rows) != of.size:
            raise LayerError(
                f"layer {name!r}: expected {of.size} packed sequences, one for each sample, got {len(rows)}"
            )
        return as_one(name, nn.Identity(), rows, options.tokens, real)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
        mend = "; give tokens='mean', 'cls' or 'last'" if isinstance(output, PackedSequence) else ""
        raise LayerError(f"layer {name!r}: expected a floating-point tensor as output, got {kind}{mend}")
    if output.is_nested:
        raise LayerError(f"layer {name!r}: its output is a shapeless nested tensor; set enable_nested_tensor=False")
    if output.dim() < 2 or len(output) != of.size or output.numel() == 0:
        second = output.dim() == 3 and output.shape[1] == of.size
        mend = "samples are on the second axis: set batch_first=True, or " if second else ""
        mend = "give it a second axis, output[:, None], or " if tuple(output.shape) == (of.size,) else mend
        raise LayerError(
            f"layer {name!r}: expected an output with a row of numbers for each sample, got shape "
            f"{tuple(output.shape)} for {of.size} samples; {mend}probe a module whose output has samples first"
        )
    if of.tokens is not None:
        return as_tokens(name, module, output, of.tokens, of.axes), 0
    if output.dim() == 3 and options.tokens != "flatten":
        return as_one(name, module, output, options.tokens, of.real, of.axes)
    output = _features_first(module, output, of) if options.pool else output
    sides = output.shape[2:] if output.dim() in _POOLED else ()
    if max(sides, default=0) <= options.pool:
        return output, 0
    if min(sides, default=0) >= options.pool:
        return output, options.pool
    # No side is made larger, of which the op knows nothing.
    return _POOLED[output.dim()](output, [min(side, options.pool) for side in sides]), 0


def _features_first(module: nn.Module, output: Tensor, of: _Batch) -> Tensor:
    """Maps [b, h, w, f], and volumes, as [b, f, h, w]; any other output as it is."""
    turned = output.dim() in _POOLED and of.axes.features_last(module, output.shape)
    return output.movedim(-1, 1) if turned else output
