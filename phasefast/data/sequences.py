"""Which tokens of a sequence stand for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..common.notices import warn
from ..errors import DataError, LayerError
from ..types import TokenMode
from .axes import Axes

if TYPE_CHECKING:
    from .probe_set import ProbeSet

_RUN, _OFTEN = 3, 0.3  # tokens alike at the end of a sequence, and the share of sequences, that look like padding
_ONE = {"cls": 0, "last": -1}  # position of the token that stands for all


def real_tokens(inputs: Tensor, padding: float) -> Tensor:
    """Which positions of inputs [b, t, ...] are no padding: bool [b, t]; of [b, t, c] those with any other number."""
    # Of integers of few bits the padding would be one too.
    other = (inputs if inputs.is_floating_point() else inputs.long()) != padding
    return other if other.dim() == 2 else other.flatten(2).any(2)


def check_padding(padding: float | None, probe_set: ProbeSet) -> None:
    """Warn where the inputs [n, t, ...] of no split hold padding, or most of it between other tokens.

    Args:
        padding: None if nothing is; then warn of inputs that look padded.

    Raises:
        DataError: a sample that is nothing else.
    """
    if padding is None:
        if (looks := looks_padded(probe_set.fit_inputs)) is not None:
            warn(
                f"inputs look padded with {looks}, which is treated like any other token: padding={looks} with "
                "tokens='mean', 'cls', 'last' or 'each' leaves it out"
            )
        return
    some, between = 0, 0
    for name, (inputs, _, known) in probe_set.splits.items():
        real = real_tokens(inputs, padding)
        if len(empty := (~real.any(1)).nonzero()):
            row = int(empty[0] if known is None else known[empty[:, 0].cpu()].min())
            raise DataError(f"{name}_inputs: expected more than padding={padding}, but row {row} holds nothing else")
        inside = (real.cumsum(1) > 0) & (real.flip(1).cumsum(1).flip(1) > 0)
        some, between = some + int((~real).sum()), between + int((inside & ~real).sum())
    if not some:
        warn(f"padding={padding} changes nothing: no input holds it")
    elif 2 * between > some:
        warn(f"padding={padding} stands between other tokens in {between} of {some} places: is padding another number?")


def looks_padded(inputs: Tensor) -> int | None:
    """What integers [b, t] hold at the ends of many sequences, in runs of several lengths; None where nothing."""
    if inputs.dim() != 2 or inputs.is_floating_point() or inputs.is_complex() or inputs.shape[1] < _RUN:
        return None
    if inputs.dtype in (torch.uint8, torch.bool):  # images rather
        return None
    inputs = inputs.long()
    for own in (inputs, inputs.flip(1)):
        value = own[:, -1].mode().values
        runs = (own.flip(1) == value).cumprod(1).sum(1)
        if bool((runs >= _RUN).double().mean() >= _OFTEN) and len(runs.unique()) > _RUN:
            return int(value)
    return None


def as_one(
    name: str,
    module: nn.Module,
    output: Tensor,
    mode: TokenMode,
    real: Tensor | None,
    axes: Axes | None = None,
) -> tuple[Tensor, int]:
    """One row for each sequence of a module's output: a tensor [b, f], or what the pool size beside it makes such.

    Args:
        name: of the layer, in messages. output: [b, t, f], or [b, f, t] of convolutions and the like.
        real: bool [b, t]: of which tokens; all by default. Each sequence has one. axes: of the model.

    Raises:
        LayerError: there are not as many positions as ``real`` has.
    """
    shape = tuple(output.shape)
    output = output.mT if (axes or Axes()).positions_last(module, output.shape)[0] else output
    if real is None:
        return (output.transpose(1, 2), 1) if mode == "mean" else (output[:, _ONE[mode]], 0)
    if real.shape != output.shape[:2]:
        count = real.shape[1]
        hint = "are its positions on the last axis?" if output.shape[2] == count else "probe it without padding="
        raise LayerError(
            f"layer {name!r}: expected an output for each of the {count} positions of the input, since padding= "
            f"leaves some out, got shape {shape}; {hint}"
        )
    if mode == "mean":
        # What stands at padding may be NaN, as of attention to nothing.
        taken = torch.where(real[:, :, None], output, 0).sum(1, dtype=torch.promote_types(output.dtype, torch.float32))
        return taken / real.sum(1, keepdim=True), 0
    positions = torch.arange(real.shape[1], device=real.device)
    first, last = torch.where(real, positions, real.shape[1]).amin(1), torch.where(real, positions, -1).amax(1)
    chosen = first if mode == "cls" else last
    return output.take_along_dim(chosen[:, None, None], 1)[:, 0], 0
