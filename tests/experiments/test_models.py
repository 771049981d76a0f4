from __future__ import annotations

import torch
from torch import nn

from phasefast.experiments.models import digits_net


def test_digits_net_is_the_network_of_the_reference_curve() -> None:
    net = digits_net()
    names = [name for name, _ in net.named_children()]
    assert names == ["stage1", "stage2", "stage3", "stage4", "features", "classifier"]
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [16, 32, 64, 64]
    assert [c.stride for c in convolutions] == [(1, 1), (2, 2), (2, 2), (2, 2)]
    assert all(c.bias is None and c.kernel_size == (3, 3) for c in convolutions)
    assert [type(module) for module in net.stage1] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert isinstance(net.features, nn.Flatten)


def test_shapes() -> None:
    images = torch.randn(3, 1, 8, 8)
    assert digits_net()[:5](images).shape == (3, 64)
    assert digits_net()(images).shape == (3, 10)
    assert digits_net(num_classes=7)(images).shape == (3, 7)
