"""Samples cut into batches for the model's forward passes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..common.interrupts import let_interrupts_through
from ..common.notices import warn

_FIRST_ROWS = 7, 5, 11, 13  # that layers are discovered with: few, and not as many as tokens, which may come first
MOST_FIRST = max(_FIRST_ROWS)
# On a GPU. Launches of small networks take as long as their work below so many samples; larger samples, of so many
# numbers in all, keep it busy in smaller batches.
_SAMPLES, _NUMBERS = 2048, 1 << 23
_LOOKED_AT, _ROUNDED = 1000, 1e-8  # samples; share of the squared deviation that rounding may be
_SAME = 1e-12  # of its mean, by which a number that is always the same may vary
_TOKENS = {
    "cpu": 1 << 14,
    "cuda": 1 << 16,
}  # of language models, whose float32 logits for 50,000 words take 3 and 13 GB
_OF_LOGITS = 8 * 200_000  # bytes of a GPU for each token, of which they take an eighth


def chunk_bounds(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """Cut ``start:stop`` into ranges of nearly equal length, at most ``size``: no small last batch for BatchNorm."""
    count = max(1, -(-(stop - start) // size))
    edges = [start + (stop - start) * i // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def first_rows(inputs: Tensor) -> list[tuple[int, int]]:
    """The range of the samples [n, ...] that layers are discovered with; others follow, if an output is as long."""
    counts = [count for count in _FIRST_ROWS if count not in inputs.shape[1:]] or [_FIRST_ROWS[0]]
    return [(0, count) for count in dict.fromkeys(min(count, len(inputs)) for count in counts)]


def fast_size(inputs: Tensor, size: int, device: torch.device, memory: float = math.inf) -> int:
    """Samples of a forward pass where only speed and memory depend on it; ``size`` is what is else taken.

    Args: memory: bytes that a GPU has.
    """
    numbers = max(inputs.shape[1:].numel(), 1)
    if device.type == "cuda":
        size = max(size, min(_SAMPLES, _NUMBERS // numbers))
    if inputs.dim() == 2 and not inputs.is_floating_point():
        tokens = min(_TOKENS.get(device.type, _TOKENS["cpu"]), memory / _OF_LOGITS)
        size = min(size, max(int(tokens / numbers), 1))
    return size


def model_inputs(
    inputs: Tensor,
    bounds: Sequence[tuple[int, int]],
    model: nn.Module,
    device: torch.device,
    order: Tensor | None = None,
) -> Iterator[Tensor]:
    """Batches of ``inputs``, or of these in an ``order``, on the model's device, floats in the model's dtype."""
    dtype = given_dtype(inputs, model)
    for start, stop in bounds:
        let_interrupts_through()
        batch = inputs[start:stop] if order is None else inputs[order[start:stop]]
        pinned = device.type == "cuda" and batch.device.type == "cpu"  # only copies from pinned memory do not wait
        batch = batch.pin_memory() if pinned else batch
        # A copy always: a model may change its input in place.
        yield batch.to(device, dtype, copy=True, non_blocking=pinned)


def given_dtype(inputs: Tensor, model: nn.Module) -> torch.dtype:
    """The type in which a model is given its inputs: floating-point ones in that of its parameters."""
    own = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(own, inputs.dtype) if inputs.is_floating_point() else inputs.dtype


def warn_of_rounding(inputs: Tensor, model: nn.Module) -> None:
    """Warn if a float32 model is given float64 inputs whose differences float32 loses, such as points in time."""
    if inputs.dtype != torch.float64 or given_dtype(inputs, model) != torch.float32:
        return
    some = inputs[:_LOOKED_AT].flatten(1)  # in random order
    mean = some.mean(0)
    deviation, rounding = (own.square().sum(0) for own in (some - mean, some - some.float()))
    varies = deviation > len(some) * (_SAME * mean).square()  # else what it varies by is rounding itself
    if count := int((varies & (rounding > _ROUNDED * deviation)).sum()):
        warn(
            f"inputs: {count} of the {some.shape[1]} numbers of a sample vary little beside their mean, and lose "
            "digits in torch.float32, the type of the model's parameters, in which it is given them: subtract the "
            "mean, or make the model .double()"
        )
