"""The networks of the experiments; modules are named so that the probed layers read well."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn


def digits_net(num_classes: int = 10) -> nn.Sequential:
    """The small network of the embedded demo.

    Four stages of [3x3 convolution without bias, BatchNorm, ReLU], 16-32-64-64 channels with strides 1-2-2-2, so that
    an 8x8 image ends as 64 features; then one Linear.

    Returns:
        ``stage1`` ... ``stage4``, ``features`` and ``classifier``: [b, 1, 8, 8] -> [b, num_classes].
    """
    return _plain_net(
        channels=(16, 32, 64, 64), strides=(1, 2, 2, 2), in_channels=1, num_features=64, num_classes=num_classes
    )


def _plain_net(
    channels: Sequence[int], strides: Sequence[int], in_channels: int, num_features: int, num_classes: int
) -> nn.Sequential:
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (width, stride) in enumerate(zip(channels, strides, strict=True), start=1):
        modules[f"stage{index}"] = _stage(in_channels, width, stride)
        in_channels = width
    modules["features"] = nn.Flatten()
    modules["classifier"] = nn.Linear(num_features, num_classes)
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
