from __future__ import annotations

import pytest
import torch
from torch import nn

from phasefast.errors import ArgumentError
from phasefast.experiments.models import MODELS, digits_net, make_model, resnet10, vgg
from phasefast.experiments.settings import SETTINGS, find_setting


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


def test_vgg8_is_the_papers() -> None:
    net = vgg("vgg8")
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [32, 64, 128, 256, 512]
    assert all(c.stride == (2, 2) and c.bias is None for c in convolutions)
    x = torch.randn(2, 3, 32, 32)
    assert net[:5](x).shape == (2, 512, 1, 1)
    assert [name for name, _ in net.named_children()][-2:] == ["features", "classifier"]


@pytest.mark.parametrize(("name", "depth"), [("vgg8", 5), ("vgg11", 8), ("vgg13", 10), ("vgg16", 13)])
def test_vggs_end_at_one_pixel(name: str, depth: int) -> None:
    net = vgg(name).eval()
    assert net[:-1](torch.randn(2, 3, 32, 32)).shape == (2, 512)
    assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) == depth


def test_resnet10_has_ten_layers_with_weights() -> None:
    net = resnet10()
    weighted = [
        m for name, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and "shortcut" not in name
    ]
    assert len(weighted) == 10
    assert net[:-1](torch.randn(2, 3, 32, 32)).shape == (2, 512)


@pytest.mark.parametrize("sample", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_takes_every_image(name: str, sample: tuple[int, ...]) -> None:
    assert make_model(name, sample, 7)(torch.randn(2, *sample)).shape == (2, 7)


def test_torchvision_models_and_near_misses() -> None:
    assert make_model("resnet18", (3, 32, 32), 5)(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    with pytest.raises(ArgumentError, match=r"'vgg9'.*vgg"):
        make_model("vgg9", (3, 32, 32), 5)


def test_settings() -> None:
    paper = find_setting("vgg8-cifar10")
    assert (paper.lr, paper.momentum, paper.batch_size) == (0.002, 0.9, 128)
    assert paper.probed_steps == [0, *(2**k for k in range(1, 15))]
    assert find_setting("digits-vgg").model == "digits_net"
    assert find_setting("resnet18-cifar10").sample == (3, 32, 32)
    assert all(name == setting.name for name, setting in SETTINGS.items())
    for wrong in ("vgg8", "vgg8-cifar", "-digits"):
        with pytest.raises(ArgumentError, match="MODEL-DATA"):
            find_setting(wrong)


def test_a_seed_gives_the_same_weights_and_leaves_the_random_state() -> None:
    setting = find_setting("digits-half")
    whole = setting.load()
    data = setting.training_part(whole)
    assert data.num_classes == 5
    assert len(data.fit_labels) < len(whole.fit_labels)
    state = torch.random.get_rng_state()
    a, b, c = (setting.network(data, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["stage1.conv.weight"], c["stage1.conv.weight"])


def test_a_torchvision_setting_gets_colour_images_of_its_size() -> None:
    assert find_setting("resnet18-digits").load().sample == (3, 32, 32)
