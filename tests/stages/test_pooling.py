"""Pooled maps: averages of PyTorch's adaptive windows, none of them larger than the map."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import phasefast as pf
from phasefast.data.axes import Widths, features_last, is_of_maps
from phasefast.engine import Engine


@pytest.mark.parametrize(
    ("shape", "pool", "sizes"),
    [
        ((8, 6), 7, (7, 6)),
        ((1, 6), 4, (1, 4)),
        ((6, 8), 6, (6, 6)),
        ((1, 1, 5), 4, (1, 1, 4)),
        ((3, 4, 5), 2, (2, 2, 2)),
    ],
)
def test_pooling_makes_no_side_larger(shape: tuple[int, ...], pool: int, sizes: tuple[int, ...]) -> None:
    x = torch.randn(60, 3, *shape)
    given = pf.ProbeSet(x[:40], None, x[40:], None)
    engine = Engine(nn.Sequential(nn.Identity()), given, layers="0", pool=pool)
    (cell,) = engine.activations()
    pooled = (nn.functional.adaptive_avg_pool2d if len(shape) == 2 else nn.functional.adaptive_avg_pool3d)(x, sizes)
    torch.testing.assert_close(cell.heldout + cell.shift, pooled[40:].flatten(1))
    assert (
        Engine(engine.model, given, layers="0", pool=None).config_hash
        == Engine(engine.model, given, layers="0").config_hash
    )
    with pytest.warns(RuntimeWarning, match="pool=9 changes nothing"):
        pf.probe(engine.model, given, layers="0", pool=9)


class Window(nn.Module):
    """A block of maps [b, h, w, f], as of a Swin transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.mix(self.norm(x)))


class Turn(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.movedim(1, -1)


@pytest.mark.parametrize("volume", [False, True])
def test_sides_are_pooled_where_features_come_last_too(volume: bool) -> None:
    torch.manual_seed(0)
    sides, convolution = ((2, 8, 6), nn.Conv3d(1, 5, 1)) if volume else ((8, 6), nn.Conv2d(1, 5, 1))
    pooling = nn.functional.adaptive_avg_pool3d if volume else nn.functional.adaptive_avg_pool2d
    x = torch.randn(60, 1, *sides)
    blocks = [nn.Sequential(convolution, Turn(), nn.LayerNorm(5)), Window(5), nn.Sequential(nn.Linear(5, 7), nn.ReLU())]
    engine = Engine(nn.Sequential(*blocks), pf.ProbeSet(x[:40], None, x[40:], None), layers=["?"], pool=2)
    out = x
    for block, cell in zip(blocks, engine.activations(), strict=True):
        out = block(out)
        pooled = pooling(out.movedim(-1, 1), 2)
        torch.testing.assert_close(cell.heldout + cell.shift, pooled[40:].flatten(1), rtol=1e-4, atol=1e-5)


class Heads(Window):
    """With another part, of as many features as it has heads, as Swin transformers' second version."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width)
        self.bias = nn.Linear(2, heads, bias=False)


class Turned(nn.LayerNorm):
    """Of maps [b, f, h, w]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Own(nn.Conv2d):
    """A convolution of one's own."""


class Joined(nn.Module):
    """Maps side by side, of which no part has all channels, as of GoogLeNet, DenseNet or ShuffleNet."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(3, width, 1) for width in widths)


class Narrow(nn.Module):
    """A bottleneck, as of a ResNet."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down, self.mix, self.up = (
            nn.Conv2d(width, inner, 1),
            nn.Conv2d(inner, inner, 1),
            nn.Conv2d(inner, width, 1),
        )


class Excited(nn.Module):
    """Channels of maps [b, f, h, w] times what Linear layers make of their means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean, self.fc = nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Linear(width, width), nn.Sigmoid())


def test_where_parts_without_features_have_them_is_told_by_others() -> None:
    swin, convolutions = Widths.of(Window(16)), Widths.of(nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 128, 1)))
    assert features_last(nn.GELU(), torch.Size((2, 8, 12, 16)), swin)
    assert not features_last(nn.GELU(), torch.Size((2, 16, 12, 16)), swin)
    inside = Widths.of(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)))
    assert features_last(nn.GELU(), torch.Size((2, 8, 12, 64)), inside)
    assert not features_last(nn.Dropout(), torch.Size((2, 16, 8, 12)), swin)
    assert not features_last(nn.ReLU(), torch.Size((2, 64, 20, 128)), convolutions)
    headed = Widths.of(nn.Sequential(Own(3, 64, 1), nn.Linear(64, 32)))
    assert not features_last(nn.ReLU(), torch.Size((2, 64, 8, 32)), headed)
    assert not features_last(nn.ReLU(), torch.Size((2, 48, 8, 32)), headed)


@pytest.mark.parametrize(
    ("module", "shape", "last"),
    [
        (nn.LayerNorm(16), (2, 8, 12, 16), True),
        (Window(16), (2, 8, 8, 16), True),
        (nn.Sequential(Window(16), nn.Dropout()), (2, 8, 8, 16), True),
        (Window(8), (2, 8, 6, 8), True),  # as many features as rows
        (nn.Sequential(nn.Conv2d(3, 8, 1), Turn(), nn.LayerNorm(8)), (2, 8, 8, 8), True),
        (Turned(8), (2, 8, 6, 8), False),
        (Turned(8), (2, 8, 6, 12), False),
        (Joined(16, 16), (2, 32, 8, 16), False),  # as many columns as each of its parts has features
        (nn.Sequential(Joined(16, 16), nn.Linear(8, 16)), (2, 32, 8, 16), True),
        (nn.MaxPool2d(2), (2, 48, 8, 16), False),
        (Own(3, 64, 1), (2, 64, 8, 32), False),
        (Window(16), (2, 3, 16, 16), False),  # made an image
        (nn.Conv2d(3, 16, 1), (2, 16, 8, 8), False),
        (nn.Conv2d(3, 16, 1), (2, 16, 16, 12), False),
        (nn.ReLU(), (2, 8, 8, 16), False),
        (Heads(16, 8), (2, 8, 8, 16), True),  # as many heads as rows
        (nn.LayerNorm(16), (2, 8, 16, 16), True),  # whatever sides are
        (nn.Linear(4, 16), (2, 8, 16, 16), True),
        (nn.LayerNorm([64, 8, 16]), (2, 64, 8, 16), False),
        (nn.LayerNorm([8, 16]), (2, 64, 8, 16), False),
        (nn.Sequential(nn.Conv2d(3, 64, 1), nn.LayerNorm([64, 8, 16])), (2, 64, 8, 16), False),
        (nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.Dropout()), (2, 16, 8, 16), True),
        (nn.Sequential(Window(16), nn.Linear(4, 8), nn.Dropout()), (2, 8, 12, 16), True),  # as many heads as rows
        (Excited(16), (2, 16, 16, 16), False),
        (nn.ModuleList([nn.Linear(64, 16), nn.Linear(16, 64)]), (2, 64, 100, 16), False),
        (nn.ModuleList([nn.Linear(16, 8), nn.Linear(8, 16)]), (2, 8, 12, 16), True),
        (Narrow(256, 64), (2, 256, 32, 64), False),  # as many columns as most of its parts have features
    ],
    ids=str,
)
def test_where_features_are_is_told_by_widths(module: nn.Module, shape: tuple[int, ...], last: bool) -> None:
    assert features_last(module, torch.Size(shape)) is last


class Framewise(nn.Module):
    """A convolution of each frame of [b, t, c, h, w]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(2, 5, 3, padding=1), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]))


class OfFrames(nn.Module):
    def __init__(self, volumes: bool) -> None:
        super().__init__()
        self.frames, self.after, self.head = Framewise(), nn.ReLU(), nn.Linear(5, 3)
        self.last = nn.Conv3d(5, 5, 1) if volumes else nn.Conv2d(5, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.after(self.frames(x)).mean((1, 3, 4)))


def test_maps_of_several_frames_are_pooled_each() -> None:
    x, y = torch.randn(90, 5, 2, 8, 8), torch.randint(3, (90,))
    x[:, :, :, :4] += torch.randn(90, 5, 2, 1, 1)
    probe_set = pf.ProbeSet.from_tensors(x[:60], y[:60], x[60:], y[60:])
    model = OfFrames(volumes=False)
    scores = pf.probe(model, probe_set, layers=["frames", "after"], pool=2, alphas=[0.1], targets="input")
    with torch.no_grad():
        pooled = nn.functional.adaptive_avg_pool2d(model.frames(x).flatten(1, 2), 2).flatten(1).double()
    fit, held = x[:60].flatten(1).double(), x[60:].flatten(1).double()
    features, weights = pooled[:60] - pooled[:60].mean(0), fit - fit.mean(0)
    gram = features.T @ features
    decoder = torch.linalg.solve(gram + 0.1 * gram.diagonal().mean() * torch.eye(100), features.T @ weights)
    error = (held - fit.mean(0) - (pooled[60:] - pooled[:60].mean(0)) @ decoder).square().mean()
    for layer in scores.layers:
        found = scores.filter(layer=layer, metric="mse", split="heldout")
        assert found.to_arrow().column("dim")[0].as_py() == 5 * 5 * 4
        assert found.values_of("value")[0] == pytest.approx(float(error), rel=1e-5)


def test_five_axes_are_of_volumes_where_these_are_convolved() -> None:
    shape, model = torch.Size((2, 5, 3, 8, 8)), OfFrames(volumes=True)
    elsewhere = Widths.of(model)
    assert is_of_maps(model.frames, shape, elsewhere)
    assert not is_of_maps(model.after, shape, elsewhere)
    assert is_of_maps(model.after, shape, Widths.of(OfFrames(volumes=False)))
    for module in (nn.Conv3d(2, 5, 1), nn.MaxPool3d(2), nn.Sequential(nn.Conv2d(2, 5, 1), nn.AvgPool3d(2))):
        assert not is_of_maps(module, shape, Widths.of(OfFrames(volumes=False)))
    assert not is_of_maps(nn.ReLU(), shape, None)
