"""Which axes of what a module gives are of features, and which of positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

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
_OF_VOLUMES = (
    *(nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.InstanceNorm3d, nn.MaxPool3d, nn.AvgPool3d),
    *(nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d),
)
_NORMS = (nn.LayerNorm, nn.RMSNorm)
# What changes each number by itself.
_OF_NUMBERS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid),
    *(nn.Threshold, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.Identity),
    *(nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout),
)
_FEATURES_LAST = (nn.Linear, *_NORMS, nn.Embedding, nn.MultiheadAttention)
_WIDTHS = ("out_channels", "num_features", "num_channels", "out_features")
_TAKEN = ("in_features", "input_size", "embedding_dim", "num_embeddings", "embed_dim")
_MAPPING = (_ConvNd, _NormBase, *OF_MAPS, *_OF_VOLUMES)


def positions_last(
    module: nn.Module, shape: torch.Size, elsewhere: Widths | None = None, lengths: Collection[int] = ()
) -> tuple[bool, bool]:
    """Whether what a module gives for sequences is [b, f, t], not [b, t, f], and whether that is a guess.

    A layer of PyTorch's own has it by its kind. Of any other the widths of its parts tell, such as of the convolutions
    in a block; where it has none, such as an activation or a function, those of the model. What these leave open the
    length of the inputs tells, if only one axis has it.

    Args:
        shape: of the output. elsewhere: the widths of the model. lengths: of the inputs' axes that may be positions.
    """
    part = last_part(module, shaping=True)
    if isinstance(part, _POSITIONS_LAST):
        if runs_as_in_torch(part):
            return True, False
        widths = [getattr(part, name, None) for name in _WIDTHS]  # its own forward may turn what it gives
        places = [place for place in (1, 2) if shape[place] in widths]
        return places != [2], places != [1]
    second, third = shape[1], shape[2]
    own = Widths.of(part)
    if own is None:
        if elsewhere is not None and second in elsewhere.first and third not in elsewhere.known:
            return True, False
        if elsewhere is not None and third in elsewhere.last and second not in elsewhere.first:
            return False, False
        turned, known = False, set[int]() if elsewhere is None else elsewhere.known
    elif isinstance(part, (*_FEATURES_LAST, nn.RNNBase)) and runs_as_in_torch(part):
        return False, False
    elif not own.first:
        if third in own.last:  # in a model of convolutions channels may be mixed in their own place
            return False, second in own.last and elsewhere is not None and second in elsewhere.first
        turned, known = second in own.known and third not in own.known, own.known
    else:
        known = own.known | own.mapped
        if (second in own.first or second in own.mapped) and third not in known:
            return True, False
        if third in known and second not in known:
            return False, False
        turned = own.turning and (own.first[second] > own.last[third] or not own.last)
    if (second in lengths) != (third in lengths):
        place, other = (third, second) if third in lengths else (second, third)
        if place not in known or other in known:
            return third in lengths, place in known
    return turned, True


def runs_as_in_torch(module: nn.Module) -> bool:
    """Whether a module has the ``forward`` of a class of PyTorch: one of its own may turn what it gives."""
    return type(module).forward.__module__.startswith("torch.nn.")


def last_part(module: nn.Module, shaping: bool = False) -> nn.Module:
    """What gives a module's output, where that is the last one of a ``Sequential``.

    Args:
        shaping: or the last that tells the axes of the output, if behind it there are activations alone.
    """
    while type(module).forward is nn.Sequential.forward and len(module):  # type: ignore[arg-type]
        parts = [*module]  # type: ignore[misc]
        module = next((each for each in reversed(parts) if not (shaping and _is_of_numbers(each))), parts[-1])
    return module


def _is_of_numbers(module: nn.Module) -> bool:
    """Whether it changes each number by itself, such as an activation."""
    plain = type(module).forward is nn.Sequential.forward
    return isinstance(module, _OF_NUMBERS) or (plain and all(map(_is_of_numbers, module.children())))


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
    evidence, own = part, Widths.of(part)
    if own is None and part is not module:
        evidence, own = module, Widths.of(module)
    if own is None:
        return elsewhere is not None and last in elsewhere.inner and not {first} & {*elsewhere.first, *elsewhere.last}
    alone = is_of_features(evidence) and not any(map(_is_turned, evidence.modules()))
    linear = [each.out_features for each in evidence.modules() if isinstance(each, nn.Linear)]
    known = own.inner or {*linear[-1:]}
    if first == last:
        return alone and last in own.last
    return first not in own.first and own.last[last] + (alone and last in known) > own.last[first]


def is_of_maps(module: nn.Module, _: torch.Size, elsewhere: Widths | None = None) -> bool:
    """Whether five axes of what a module gives are of maps [b, t, f, h, w], as ConvLSTMs', not [b, f, d, h, w].

    They are where nothing reads volumes and something has maps' features: in the module, or else in the model.
    """
    if any(isinstance(part, _OF_VOLUMES) for part in module.modules()):
        return False
    own = Widths.of(module)
    own = own if own is not None and own.first else elsewhere
    return own is not None and bool(own.first) and not own.volumes


def _is_norm(module: nn.Module) -> bool:
    """Whether it is a norm of features, as those of maps have several sides."""
    return isinstance(module, _NORMS) and len(module.normalized_shape) == 1


def _is_turned(module: nn.Module) -> bool:
    """Whether it is a norm that may turn what it is given, such as ConvNeXt's of maps [b, f, h, w]."""
    return isinstance(module, _NORMS) and not runs_as_in_torch(module)


class Widths(NamedTuple):
    """How many parts give how many features: those whose features come first, as convolutions', and last.

    ``inner`` are norms' alone, and what a Linear makes of these, as within blocks of transformers; ``known`` are those
    that any part takes or gives, but what convolutions take, ``mapped``. ``turning``: whether one is of series.
    ``volumes``: whether one is of volumes.
    """

    first: Counter[int]
    last: Counter[int]
    inner: set[int]
    known: set[int]
    mapped: set[int]
    turning: bool
    volumes: bool

    @classmethod
    def of(cls, module: nn.Module) -> Widths | None:
        """Of the parts of PyTorch's kinds in a module; None where it has none with features."""
        parts = [*module.modules()]
        turning = any(isinstance(part, (nn.Conv1d, nn.ConvTranspose1d)) for part in parts)
        volumes = any(isinstance(part, _OF_VOLUMES) for part in parts)
        found = cls(Counter(), Counter(), set(), set(), set(), turning, volumes)
        for part in parts:
            own = [getattr(part, name) for name in _WIDTHS if hasattr(part, name)]
            found.known.update(getattr(part, name) for name in _TAKEN if isinstance(getattr(part, name, None), int))
            if isinstance(part, _NORMS):
                own = [*part.normalized_shape] if _is_norm(part) else []
                found.last.update(own)
                found.inner.update(own)
            elif isinstance(part, nn.RNNBase):
                found.last.update([(part.proj_size or part.hidden_size) * (1 + part.bidirectional)])
            elif isinstance(part, nn.Embedding):
                found.last.update([part.embedding_dim])
            elif isinstance(part, _FEATURES_LAST):
                found.last.update(own)
            elif isinstance(part, (_ConvNd, _NormBase, nn.GroupNorm)):
                found.first.update(own)
                found.mapped.update([part.in_channels] if isinstance(part, _ConvNd) else [])
        found.inner.update(
            [part.out_features for part in parts if isinstance(part, nn.Linear) and part.in_features in found.inner]
        )
        found.known.update(found.first, found.last)
        for widths in (found.known, found.mapped):
            widths.discard(1)  # which axes of one place are, too
        return found if found.first or found.last else None


@dataclass(frozen=True)
class Axes:
    """How what the modules of a model give is read, found once for each module and shape.

    Attributes:
        elsewhere: the widths of the model, where these may tell. lengths: of the inputs' axes that may be positions.
    """

    elsewhere: Widths | None = None
    lengths: frozenset[int] = frozenset()
    _found: dict[tuple[str, int, torch.Size], Any] = field(default_factory=dict, repr=False)

    def positions_last(self, module: nn.Module, shape: torch.Size) -> tuple[bool, bool]:
        """As the function of that name says."""
        found: tuple[bool, bool] = self._once("positions", positions_last, module, shape, self.lengths)
        return found

    def features_last(self, module: nn.Module, shape: torch.Size) -> bool:
        """As the function of that name says."""
        return bool(self._once("features", features_last, module, shape))

    def is_of_maps(self, module: nn.Module, shape: torch.Size) -> bool:
        """As the function of that name says."""
        return bool(self._once("maps", is_of_maps, module, shape))

    def _once(self, name: str, read: Callable[..., Any], module: nn.Module, shape: torch.Size, *more: Any) -> Any:
        key = name, id(module), shape[1:]
        if key not in self._found:
            self._found[key] = read(module, shape, self.elsewhere, *more)
        return self._found[key]
