"""Which tokens of a sequence stand for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ..common.notices import warn
from ..errors import DataError, LayerError
from ..types import TokenMode

TOKEN_MODES: tuple[TokenMode, ...] = get_args(TokenMode)
_RUN, _OFTEN = 3, 0.3  # tokens alike at the end of a sequence, and the share of sequences, that look like padding
_POSITIONS_LAST = (
    *(
        nn.Conv1d,
        nn.ConvTranspose1d,
        nn.MaxPool1d,
        nn.AvgPool1d,
        nn.AdaptiveMaxPool1d,
        nn.AdaptiveAvgPool1d,
        nn.LPPool1d,
    ),
    *(nn.MaxUnpool1d, nn.Upsample, nn.ConstantPad1d, nn.ZeroPad1d, nn.ReflectionPad1d, nn.ReplicationPad1d),
    *(nn.CircularPad1d, nn.Dropout1d),
    *(_NormBase, nn.GroupNorm, nn.LocalResponseNorm),  # which read [b, f, t] of three dimensions
)
OF_MAPS = (
    *(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm, nn.LocalResponseNorm),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.LPPool2d, nn.Dropout2d),
    *(nn.Upsample, nn.PixelShuffle, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
)
_NORMS = (nn.LayerNorm, nn.RMSNorm)
_FEATURES_LAST = (nn.Linear, *_NORMS, nn.Embedding, nn.MultiheadAttention)
_WIDTHS = ("out_channels", "num_features", "num_channels", "out_features")
_MAPPING = (_ConvNd, _NormBase, *OF_MAPS, nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d)
_ONE = {"cls": 0, "last": -1}  # position of the token that stands for all


def real_tokens(inputs: Tensor, padding: float) -> Tensor:
    """Which positions of inputs [b, t, ...] are no padding: bool [b, t]; of [b, t, c] those with any other number."""
    # Of integers of few bits the padding would be one too.
    other = (inputs if inputs.is_floating_point() else inputs.long()) != padding
    return other if other.dim() == 2 else other.flatten(2).any(2)


def positions_last(module: nn.Module, shape: torch.Size) -> tuple[bool, bool]:
    """Whether what a module gives for sequences is [b, f, t], not [b, t, f], and whether that is a guess.

    Args:
        shape: of the output. Of a convolution with a ``forward`` of its own, which may turn it, it tells.
    """
    module = last_part(module)
    if not isinstance(module, _POSITIONS_LAST):
        kind = type(module).__module__.removeprefix("torch.nn.modules.")
        unclear = kind in ("activation", "dropout") or isinstance(module, nn.Identity)
        return False, unclear and not isinstance(module, nn.MultiheadAttention)
    if runs_as_in_torch(module):
        return True, False
    widths = [getattr(module, name, None) for name in _WIDTHS]
    places = [place for place in (1, 2) if shape[place] in widths]
    return places != [2], places != [1]


def runs_as_in_torch(module: nn.Module) -> bool:
    """Whether a module has the ``forward`` of a class of PyTorch: one of its own may turn what it gives."""
    return type(module).forward.__module__.startswith("torch.nn.")


def last_part(module: nn.Module) -> nn.Module:
    """What gives a module's output, where that is the last one of a ``Sequential``."""
    while type(module).forward is nn.Sequential.forward and len(module):  # type: ignore[arg-type]
        module = module[-1]  # type: ignore[index]
    return module


def is_of_features(module: nn.Module) -> bool:
    """Whether the last axis of what a module gives is of features, as far as all its parts tell."""
    parts = [*module.modules()]
    of_features = [part for part in parts if isinstance(part, _FEATURES_LAST)]
    of_maps = any(len(getattr(part, "normalized_shape", ())) > 1 for part in of_features)
    others = any(isinstance(part, (_ConvNd, *_POSITIONS_LAST, *OF_MAPS)) for part in parts)
    return bool(of_features) and not of_maps and not others


def features_last(module: nn.Module, shape: torch.Size, elsewhere: Widths | None = None) -> bool:
    """Whether maps that a module gives are [b, h, w, f], as Swin transformers have them, not [b, f, h, w].

    Of a Linear or a norm of features they are, of a convolution or a norm of maps they are not. Else more of its parts
    of which features come last have as many as the last axis has places than have as many as the second, and no other
    part has as many as the second. Where no part tells, such as of an activation, norms ``elsewhere`` may. Square maps
    behind an axis of another size are of channels that come first: blocks, too, may make images.
    """
    part, first, last = last_part(module), shape[1], shape[-1]
    if runs_as_in_torch(part) and (isinstance(part, nn.Linear) or _is_norm(part)):
        return True
    of_map = isinstance(part, _MAPPING) or (isinstance(part, _NORMS) and not _is_norm(part))
    if of_map or last == shape[-2] != first:
        return False
    evidence = part if Widths.of(part) else module
    if (own := Widths.of(evidence)) is None:
        return elsewhere is not None and last in elsewhere.inner and not {first} & {*elsewhere.first, *elsewhere.last}
    alone = is_of_features(evidence) and not any(map(_is_turned, evidence.modules()))
    if first == last:
        return alone and last in own.last
    return first not in own.first and own.last[last] + (alone and last in own.last) > own.last[first]


def _is_norm(module: nn.Module) -> bool:
    """Whether it is a norm of features, as those of maps have several sides."""
    return isinstance(module, _NORMS) and len(module.normalized_shape) == 1


def _is_turned(module: nn.Module) -> bool:
    """Whether it is a norm that may turn what it is given, such as ConvNeXt's of maps [b, f, h, w]."""
    return isinstance(module, _NORMS) and not runs_as_in_torch(module)


class Widths(NamedTuple):
    """How many parts give how many features: those whose features come first, as convolutions', and last.

    ``inner`` are norms' alone, and what a Linear makes of these, as within blocks of transformers.
    """

    first: Counter[int]
    last: Counter[int]
    inner: set[int]

    @classmethod
    def of(cls, module: nn.Module) -> Widths | None:
        """Of the parts of PyTorch's kinds in a module; None where it has none with features."""
        found = cls(Counter(), Counter(), set())
        parts = [*module.modules()]
        for part in parts:
            own = [getattr(part, name) for name in _WIDTHS if hasattr(part, name)]
            if isinstance(part, _NORMS):
                own = [*part.normalized_shape] if _is_norm(part) else []
                found.last.update(own)
                found.inner.update(own)
            elif isinstance(part, _FEATURES_LAST):
                found.last.update(own)
            elif isinstance(part, (_ConvNd, _NormBase, nn.GroupNorm)):
                found.first.update(own)
        found.inner.update(
            [part.out_features for part in parts if isinstance(part, nn.Linear) and part.in_features in found.inner]
        )
        return found if found.first or found.last else None


def check_padding(padding: float, splits: Mapping[str, Tensor], rows: Mapping[str, Tensor | None]) -> None:
    """Warn where the inputs [b, t, ...] of no split hold padding, or most of it between other tokens.

    Args:
        rows: [b] which of the user's samples those of each split are; None where that is not known.

    Raises:
        DataError: a sample that is nothing else.
    """
    some, between = 0, 0
    for name, inputs in splits.items():
        real = real_tokens(inputs, padding)
        if len(empty := (~real.any(1)).nonzero()):
            known = rows.get(name)
            row = int(empty[0] if known is None else known[empty[:, 0].cpu()].min())
            raise DataError(f"{name}_inputs: expected more than padding={padding}, row {row} is nothing else")
        inside = (real.cumsum(1) > 0) & (real.flip(1).cumsum(1).flip(1) > 0)
        some, between = some + int((~real).sum()), between + int((inside & ~real).sum())
    if not some:
        warn(f"padding={padding} changes nothing: no input holds it")
    elif 2 * between > some:
        warn(f"padding={padding} stands between other tokens in {between} of {some} places: is it another number?")


def looks_padded(inputs: Tensor) -> int | None:
    """What integers [b, t] hold at the ends of many sequences, in runs of several lengths; None where nothing."""
    if inputs.dim() != 2 or inputs.is_floating_point() or inputs.shape[1] < _RUN:
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


def as_one(name: str, module: nn.Module, output: Tensor, mode: TokenMode, real: Tensor | None) -> tuple[Tensor, int]:
    """One row for each sequence of a module's output: a tensor [b, f], or what the pool size beside it makes such.

    Args:
        name: of the layer, in messages. output: [b, t, f], or [b, f, t] of convolutions and the like.
        real: bool [b, t]: of which tokens; all by default. Each sequence has one.

    Raises:
        LayerError: there are not as many positions as ``real`` has.
    """
    shape = tuple(output.shape)
    output = output.mT if positions_last(module, output.shape)[0] else output
    if real is None:
        return (output.transpose(1, 2), 1) if mode == "mean" else (output[:, _ONE[mode]], 0)
    if real.shape != output.shape[:2]:
        count = real.shape[1]
        hint = "are its positions last?" if output.shape[2] == count else "probe it without padding="
        raise LayerError(
            f"layer {name!r}: expected an output for each of the {count} positions of the input, of which padding= "
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
