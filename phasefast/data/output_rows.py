"""How what modules give becomes rows: that of a layer, and the model's own predictions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..errors import LayerError
from ..types import OwnPlace, TakesShapes, TokenMode
from .axes import Axes, Widths
from .outputs import called, rows_in, same_memory, tensors_in, unpacked
from .sequences import as_one, real_tokens
from .token_rows import TokensOfBatch, as_tokens

POOLED: dict[int, Callable[..., Tensor]] = {
    4: nn.functional.adaptive_avg_pool2d,
    5: nn.functional.adaptive_avg_pool3d,
}  # by dimensions of an output
_LOGITS = "logits"  # as Hugging Face names them


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
    if any(parameter.dtype in (torch.float64, torch.complex128) for parameter in model.parameters()):
        return torch.float64
    return torch.bfloat16 if narrow else torch.float32


@dataclass(frozen=True)
class Batch:
    """So many samples: which of their tokens are no padding, bool [b, t], which are rows; how outputs are read.

    Parts of a model may be on other devices than the one where rows are to be. ``inputs`` is the shape of these.
    """

    size: int
    real: Tensor | None
    tokens: TokensOfBatch | None
    axes: Axes
    device: torch.device
    inputs: torch.Size


def as_cell(
    name: str, module: nn.Module, output: Any, of: Batch, options: RowOptions, second: bool
) -> tuple[Tensor, int]:
    """The tensor [b, ...] that the capture op flattens, and the pool size it applies.

    Args:
        second: whether an output [t, b, f] has its samples on the second axis.

    Raises:
        LayerError: there is no row of numbers for each sample.
    """
    output = _found(name, module, output, of, options, second)
    if isinstance(output, PackedSequence) and options.tokens not in ("flatten", "each"):
        rows, real = unpacked(name, output)
        if len(rows) != of.size:
            raise LayerError(
                f"layer {name!r}: expected {of.size} packed sequences, one for each sample, got {len(rows)}"
            )
        return as_one(name, nn.Identity(), rows.to(of.device), options.tokens, real.to(of.device))
    if not isinstance(output, Tensor) or not output.is_floating_point():
        kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
        mend = "; give tokens='mean', 'cls' or 'last'" if isinstance(output, PackedSequence) else ""
        if isinstance(output, Tensor) and output.is_complex() and output.dim() > 2:
            mend = "; tokens='flatten' takes both parts of all numbers, or give torch.view_as_real(output).flatten(-2)"
        elif isinstance(output, Tensor) and output.is_complex():
            mend = f"; {_mend(output, of.size)}"
        raise LayerError(f"layer {name!r}: expected a floating-point tensor as output, got {kind}{mend}")
    if output.layout != torch.strided:
        raise LayerError(f"layer {name!r}: expected a dense tensor as output, got {output.layout}")
    if output.dim() < 2 or len(output) != of.size or output.numel() == 0:
        raise LayerError(
            f"layer {name!r}: expected an output with a row of numbers for each sample, got shape "
            f"{tuple(output.shape)} for {of.size} samples; {_mend(output, of.size)}"
        )
    output = output.to(of.device)
    if of.tokens is not None:
        return as_tokens(name, module, output, of.tokens, of.axes), 0
    if output.dim() == 3 and options.tokens != "flatten":
        return as_one(name, module, output, options.tokens, of.real, of.axes)
    sides = output.shape[2:] if output.dim() in POOLED else ()
    if max(sides, default=0) <= options.pool:
        return output, 0
    if min(sides, default=0) >= options.pool:
        return output, options.pool
    # No side is made larger, of which the op knows nothing.
    return POOLED[output.dim()](output, [min(side, options.pool) for side in sides]), 0


def shape_of(name: str, module: nn.Module, output: Any, of: Batch, options: RowOptions, second: bool) -> torch.Size:
    """That of the tensor of which ``as_cell`` makes rows."""
    found = _found(name, module, output, of, options, second)
    return (unpacked(name, found)[0] if isinstance(found, PackedSequence) else found).shape


def samples_second(output: Any, samples: int) -> bool:
    """Whether an output [t, b, f] has its samples on the second axis, as PyTorch's sequences do by default."""
    return (found := _sequence(output)) is not None and found.shape[0] != samples == found.shape[1]


def is_unclear(output: Any, samples: int) -> bool:
    """Whether an output [t, b, f], or [b k, t, f], may have its samples on either axis, as t is as many."""
    return (found := _sequence(output)) is not None and found.shape[1] == samples and found.shape[0] % samples == 0


def _sequence(output: Any) -> Tensor | None:
    """The rows of an output of three axes; None of any other."""
    found = rows_in(output)
    return found if isinstance(found, Tensor) and not found.is_nested and found.dim() == 3 else None


def _found(name: str, module: nn.Module, output: Any, of: Batch, options: RowOptions, second: bool) -> Any:
    """``rows_in``, samples first; a nested tensor [b, *, f] as nn.TransformerEncoder, which makes such, gives it back.

    What is to be pooled has its features first. Complex numbers are two features each, of which the same can be decoded
    linearly, where it is known which are these.

    Raises:
        LayerError: it has more positions than the inputs, or other axes.
    """
    output = rows_in(output)
    if second and isinstance(output, Tensor) and output.dim() == 3:
        output = output.transpose(0, 1)
    dense = isinstance(output, Tensor) and output.layout == torch.strided and not output.is_nested
    if dense and options.pool and of.tokens is None:
        output = features_first(module, output, of.axes)
    if dense and output.is_complex() and (output.dim() == 2 or (output.dim() > 2 and options.tokens == "flatten")):
        return torch.cat([output.real, output.imag], 1)
    if not isinstance(output, Tensor) or not output.is_nested:
        return output
    padded = torch.nested.to_padded_tensor(output, 0.0) if output.dim() == 3 else output
    length = of.inputs[1:2].numel()
    if padded.is_nested or padded.shape[1] > length:
        raise LayerError(
            f"layer {name!r}: its output is a nested tensor, which is longer than the {length} positions of the inputs "
            "or has other axes; set enable_nested_tensor=False"
        )
    return nn.functional.pad(padded, (0, 0, 0, length - padded.shape[1]))


def width_of(x: Tensor, pool: int) -> int:
    """How many features a sample of an output [b, ...] has."""
    return int(torch.Size((x.shape[1], *(pool for _ in x.shape[2:])) if pool else x.shape[1:]).numel())


def has_no_samples(output: Any, samples: int) -> bool:
    """Whether an output cannot have numbers of each of so many samples, a prime number, as positions have none."""
    output = rows_in(output)
    if not isinstance(output, Tensor) or output.is_nested or output.dim() < 2 or samples in output.shape:
        return False
    return len(output) == 1 or output.numel() % samples > 0


def _mend(output: Tensor, samples: int) -> str:
    """What to do about an output without a row for each sample."""
    other = "probe a module whose output has all samples first"
    if output.dim() > 3 and output.shape[1] == samples:
        return f"samples are on the second axis: {other}"
    if tuple(output.shape) == (samples,):
        return f"give it a second axis, output[:, None], or {other}"
    if output.dim() > 1 and len(output) == 1:
        return f"it has no axis of samples, or the module is called for one after the other: {other}"
    if output.dim() > 1 and len(output) < samples:
        return f"if the module is given some of the samples only, as experts are, it has no rows of the others: {other}"
    if output.dim() > 1 and len(output) > samples and len(output) % samples == 0:
        return (
            f"if these are {len(output) // samples} rows of each sample, side by side, pass output.unflatten(0, "
            "(len(x), -1)) through an nn.Identity() of the model and probe that; if all samples come once, then again, "
            f"output.unflatten(0, (-1, len(x))).transpose(0, 1); else {other}"
        )
    return other


def features_first(module: nn.Module, output: Tensor, axes: Axes) -> Tensor:
    """Maps [b, h, w, f], and volumes, as [b, f, h, w]; several maps [b, t, f, h, w] as one; others as they are."""
    if output.dim() in POOLED and axes.features_last(module, output.shape):
        return output.movedim(-1, 1)
    return output.flatten(1, 2) if output.dim() == 5 and axes.is_of_maps(module, output.shape) else output


def places_of(
    model: nn.Module, inputs: Tensor | None, output: Any, of: Batch, options: RowOptions, wanted: TakesShapes
) -> list[tuple[OwnPlace, int]]:
    """Which tensors of the model's output may be its predictions, and how like these they are, the most alike first.

    Of several that of the target's name alone, or for classes the logits, if one is called so. Those with the name of
    another target that is predicted are none, nor are the inputs, given back as they were beside others.

    Args:
        inputs: None if the model may have written its predictions there.
    """
    tensors = [*tensors_in(output)]
    given = [] if inputs is None else [each for each in tensors if same_memory(each, inputs)]
    back = {id(each) for each in given if inputs is not None and each.numel() == inputs.numel()}

    def among(chosen: Iterable[Tensor]) -> list[tuple[OwnPlace, int]]:
        places, ids = [], {id(each) for each in chosen} - back
        for nth, tensor in enumerate(tensors):
            for one in (True, False) if id(tensor) in ids else ():
                place = OwnPlace(nth, one, wanted.numbers, samples_second(tensor, of.size))
                if (rows := _rows_at(model, tensor, of, options, place)) is not None:
                    shape = tuple(rows[0].shape[1:])
                    places.append((place._replace(of_tokens=rows[1], shape=shape), wanted.likeness(rows[1], shape)))
        return sorted(places, key=lambda each: -each[1])  # which keeps the order of those that are alike

    names = (wanted.name,) if wanted.numbers else (wanted.name, _LOGITS)
    if named := [found for name in names if (found := among(called(output, name)))]:
        return max(named, key=lambda found: found[0][1])
    taken = {id(each) for name in wanted.taken for each in called(output, name)}
    back = back if {id(each) for each in tensors} - taken - back else set()
    return among(each for each in tensors if id(each) not in taken)


def own_rows(model: nn.Module, output: Any, of: Batch, options: RowOptions, place: OwnPlace) -> Tensor | None:
    """The model's predictions [b, ...] for each sample, or each token that is a row; None where there are none."""
    tensors = [*tensors_in(output)]
    rows = _rows_at(model, tensors[place.nth], of, options, place) if place.nth < len(tensors) else None
    if rows is None or rows[1] != place.of_tokens or tuple(rows[0].shape[1:]) != place.shape:
        return None
    return rows[0]


def _rows_at(
    model: nn.Module, output: Tensor, of: Batch, options: RowOptions, place: OwnPlace
) -> tuple[Tensor, bool] | None:
    """A tensor as rows, and whether these are of tokens; of [batch, t, c] the token that stands for all, if asked."""
    if output.is_nested or output.layout != torch.strided or not output.is_floating_point() or not output.numel():
        return None
    output = output.transpose(0, 1) if place.second and output.dim() == 3 else output
    if output.shape[:1] != (of.size,):
        return None
    output = output.to(of.device)
    output = output[:, None] if output.dim() == 1 else output
    with contextlib.suppress(LayerError):
        if place.one:
            stands = output.dim() == 3 and options.tokens in ("cls", "last") and of.tokens is None
            return (as_one("model", model, output, options.tokens, of.real, of.axes)[0], False) if stands else None
        if of.tokens is not None and output.dim() in (3, 4):
            # Labels are of the input's tokens, and numbers of tokens have its axes.
            how = (nn.Identity(), None) if place.numbers else (model, of.axes)
            return as_tokens("model", how[0], output, of.tokens, how[1], own=False), True
        return output, False
    return None
