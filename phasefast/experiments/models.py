"""The networks of the experiments; modules are named so that the probed layers read well."""

from __future__ import annotations

import difflib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..errors import ArgumentError, DependencyError

# Channels and strides of the plain stages. VGG-8 and VGG-11 as in the paper (arXiv 2312.06887) and its authors' code;
# VGG-13 and VGG-16 are the usual ones (arXiv 1409.1556, B and D) at half the width, each block ending in a stride of 2.
_VGG = {
    "vgg8": ((32, 64, 128, 256, 512), (2, 2, 2, 2, 2)),
    "vgg11": ((32, 64, 128, 128, 256, 256, 512, 512), (2, 2, 1, 2, 1, 2, 1, 2)),
    "vgg13": ((32, 32, 64, 64, 128, 128, 256, 256, 512, 512), (1, 2) * 5),
    "vgg16": ((32, 32, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512), (1, 2, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 2)),
}
_DIGITS_NET = ((16, 32, 64, 64), (1, 2, 2, 2))
_RESNET10_WIDTHS = (64, 128, 256, 512)


def make_model(name: str, sample: Sequence[int], num_classes: int) -> nn.Module:
    """A network by name: one of ``MODELS``, or any of torchvision's classifiers.

    Args:
        sample: shape [c, h, w] of one input.

    Raises:
        ArgumentError: no such network; names what is near. DependencyError: torchvision is missing.
    """
    if name in MODELS:
        return MODELS[name](sample, num_classes)
    return torchvision_model(name, f"one of {sorted(MODELS)}", list(MODELS), num_classes=num_classes)


def torchvision_model(name: str, expected: str, others: Sequence[str] = (), **options: Any) -> nn.Module:
    """One of torchvision's networks, without weights.

    Args:
        expected: what else a name may be, in messages; or one of ``others``. options: of the network.

    Raises:
        ArgumentError: no such network; names what is near. DependencyError: torchvision is missing.
    """
    try:
        from torchvision.models import get_model, get_model_builder, list_models
    except ImportError as error:
        raise DependencyError(
            f"model {name!r}: expected {expected}; names of torchvision models need torchvision: "
            "pip install 'phasefast[vision]'"
        ) from error
    known = list_models()
    if name not in known:
        near = difflib.get_close_matches(name, [*others, *known], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "no torchvision model has such a name"
        raise ArgumentError(f"model {name!r}: expected {expected} or a torchvision name; {hint}")
    # Such as segment or detect would fetch those of their backbone.
    if "weights_backbone" in inspect.signature(get_model_builder(name)).parameters:
        options = {"weights_backbone": None, **options}
    model: nn.Module = get_model(name, weights=None, **options)
    return model


def digits_net(sample: Sequence[int] = (1, 8, 8), num_classes: int = 10) -> nn.Sequential:
    """The small network of the embedded demo.

    Four stages of [3x3 convolution without bias, BatchNorm, ReLU], 16-32-64-64 channels with strides 1-2-2-2, so that
    an 8x8 image ends as 64 features; then one Linear.

    Returns:
        ``stage1`` ... ``stage4``, ``features`` and ``classifier``: [b, 1, 8, 8] -> [b, num_classes].
    """
    return _plain_net(*_DIGITS_NET, sample, num_classes)


def vgg(name: str, sample: Sequence[int] = (3, 32, 32), num_classes: int = 10) -> nn.Sequential:
    """Stages of [3x3 convolution without bias, BatchNorm, ReLU] that shrink by strides, then one Linear.

    Args:
        name: ``"vgg8"`` (32-64-128-256-512, each of stride 2; arXiv 2312.06887), ``"vgg11"``, ``"vgg13"``, ``"vgg16"``.
        sample: shape [c, h, w] of one input.

    Returns:
        ``stage1`` ..., ``features`` and ``classifier``: [b, c, h, w] -> [b, num_classes].
    """
    channels, strides = _VGG[name]
    return _plain_net(channels, strides, sample, num_classes)


def resnet10(sample: Sequence[int] = (3, 32, 32), num_classes: int = 10) -> nn.Sequential:
    """ResNet with one basic block per stage (arXiv 1512.03385, section 4.2), 64-128-256-512 channels.

    The stem is one 3x3 convolution of stride 2, as in the VGGs here, instead of ImageNet's 7x7 and pooling.

    Returns:
        ``stem``, ``stage1`` ... ``stage4``, ``features`` (averaged over positions) and ``classifier``.
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict(stem=_stage(sample[0], _RESNET10_WIDTHS[0], 2))
    before = _RESNET10_WIDTHS[0]
    for index, width in enumerate(_RESNET10_WIDTHS, start=1):
        modules[f"stage{index}"] = BasicBlock(before, width, 1 if index == 1 else 2)
        before = width
    modules["features"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    modules["classifier"] = nn.Linear(before, num_classes)
    return nn.Sequential(modules)


def dense(sample: Sequence[int] = (3, 32, 32), num_classes: int = 10) -> nn.Sequential:
    """The single dense layer of the paper's theory: ``flatten``, then ``classifier``, whose outputs are the logits."""
    width = sample[0] * sample[1] * sample[2]
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), classifier=nn.Linear(width, num_classes)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut (arXiv 1512.03385, figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = _stage(in_channels, out_channels, stride)
        self.conv = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[b, in, h, w] -> [b, out, h / stride, w / stride]."""
        out: Tensor = self.relu(self.bn(self.conv(self.first(x))) + self.shortcut(x))
        return out


def _plain_net(
    channels: Sequence[int], strides: Sequence[int], sample: Sequence[int], num_classes: int
) -> nn.Sequential:
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    in_channels, height, width = sample
    for index, (out_channels, stride) in enumerate(zip(channels, strides, strict=True), start=1):
        modules[f"stage{index}"] = _stage(in_channels, out_channels, stride)
        in_channels, height, width = out_channels, -(-height // stride), -(-width // stride)
    modules["features"] = nn.Flatten()
    modules["classifier"] = nn.Linear(in_channels * height * width, num_classes)
    return nn.Sequential(modules)


def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    # No bias: BatchNorm subtracts the mean anyway, and brings an offset of its own.
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False),
            bn=nn.BatchNorm2d(out_channels),
            relu=nn.ReLU(),
        )
    )


MODELS: dict[str, Callable[[Sequence[int], int], nn.Module]] = {
    "digits_net": digits_net,
    **{name: partial(vgg, name) for name in _VGG},
    "resnet10": resnet10,
    "dense": dense,
}
