"""Which axis of an output has the features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.data.axes import Widths, positions_last
from phasefast.engine import Engine
from tests.quiet import no_warnings


def test_what_tells_where_the_positions_of_an_activation_are() -> None:
    convolving = Widths.of(nn.Sequential(nn.Conv1d(6, 16, 3), nn.GRU(16, 5, bidirectional=True), nn.Linear(10, 24)))
    embedding = Widths.of(nn.Sequential(nn.Embedding(50, 48), nn.Conv1d(48, 32, 3)))
    for widths, shape, found in (
        (convolving, (2, 16, 40), (True, False)),
        (convolving, (2, 40, 24), (False, False)),
        (convolving, (2, 40, 10), (False, False)),  # of both directions
        (convolving, (2, 16, 24), (False, True)),
        (convolving, (2, 16, 10), (False, True)),
        (convolving, (2, 40, 7), (False, True)),
        (embedding, (2, 32, 48), (False, True)),  # what the dropout of the embedding gives of 32 tokens
        (Widths.of(nn.Conv1d(1, 16, 3)), (2, 16, 1), (True, False)),
        (Widths.of(nn.Conv1d(3, 16, 3)), (2, 16, 3), (True, False)),
        (None, (2, 16, 40), (False, True)),
    ):
        assert positions_last(nn.ReLU(), torch.Size(shape), widths) == found


class Around(nn.Module):
    """A block of a user's own of these parts."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)


@pytest.mark.parametrize(
    ("block", "shape", "found"),
    [
        (Around(nn.Conv1d(2, 16, 3), nn.Conv1d(2, 16, 1)), (2, 16, 40), (True, False)),
        (Around(nn.Conv1d(2, 16, 3)), (2, 40, 16), (False, False)),  # it turns what it is given, and back
        (Around(nn.Conv1d(2, 16, 3)), (2, 16, 16), (True, True)),
        (Around(nn.Conv1d(2, 8, 3), nn.Conv1d(2, 8, 5)), (2, 16, 40), (True, True)),  # side by side
        (Around(nn.Conv1d(16, 16, 3), nn.Linear(16, 4), nn.Linear(4, 16)), (2, 16, 40), (True, False)),  # SE's
        (Around(nn.LayerNorm(16), nn.Conv1d(16, 64, 3), nn.Conv1d(64, 16, 3)), (2, 40, 16), (False, False)),
        (Around(nn.LayerNorm(16), nn.Conv1d(16, 64, 3), nn.Conv1d(64, 16, 3)), (2, 64, 16), (False, True)),
        (Around(nn.Linear(16, 16), nn.LayerNorm(16)), (2, 40, 16), (False, False)),
        (Around(nn.Linear(40, 40), nn.Linear(16, 16)), (2, 40, 16), (False, False)),  # a mixer's
        (Around(), (2, 16, 40), (False, True)),
        (Around(nn.Conv1d(16, 16, 3), nn.Conv1d(16, 16, 3), nn.Linear(16, 16)), (2, 16, 16), (True, True)),  # SE's
        (Around(nn.LayerNorm(16), nn.Linear(16, 16), nn.Conv1d(16, 16, 3)), (2, 16, 16), (False, True)),
        (Around(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 256, 3)), (2, 64, 256), (False, True)),  # patches of images
        (Around(nn.Conv2d(3, 64, 4)), (2, 64, 64), (False, True)),
        (nn.GRU(16, 16), (2, 16, 16), (False, False)),
        (nn.Linear(16, 16), (2, 16, 16), (False, False)),
        (nn.Sequential(nn.Conv1d(2, 16, 3), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout()), (2, 16, 16), (True, False)),
        (nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.LayerNorm(16), nn.GELU())), (2, 16, 16), (False, False)),
        (nn.Sequential(nn.Conv1d(2, 16, 3), nn.Sequential(nn.ReLU(), nn.AlphaDropout())), (2, 16, 16), (True, False)),
        (nn.Sequential(nn.Sequential(nn.Conv1d(2, 16, 3)), nn.Sequential()), (2, 16, 16), (True, False)),
        (nn.Sequential(nn.ReLU(), nn.Tanh()), (2, 16, 16), (False, True)),
    ],
)
def test_what_tells_where_the_positions_of_a_block_are(
    block: nn.Module, shape: tuple[int, ...], found: tuple[bool, bool]
) -> None:
    assert positions_last(block, torch.Size(shape)) == found


def test_parts_of_linear_layers_may_mix_channels_in_a_model_of_convolutions() -> None:
    of_channels = Around(nn.Linear(16, 4), nn.Linear(4, 16))
    for model, guessed in ((nn.Conv1d(3, 16, 3), True), (nn.Linear(3, 16), False)):
        assert positions_last(of_channels, torch.Size((2, 16, 16)), Widths.of(model)) == (False, guessed)


@pytest.mark.parametrize(
    ("block", "shape", "found"),
    [
        (Around(nn.Conv1d(2, 8, 3), nn.Conv1d(2, 8, 5)), (2, 16, 40), (True, False)),  # side by side
        (Around(nn.Linear(16, 4), nn.Linear(4, 16)), (2, 16, 40), (True, False)),  # of channels, such as in SE
        (Around(nn.Conv1d(16, 40, 3)), (2, 40, 16), (False, True)),  # turned, and halved by a gate
        (Around(nn.Conv1d(16, 40, 3)), (2, 16, 40), (True, True)),
        (Around(), (2, 16, 40), (True, False)),
        (Around(), (2, 40, 16), (False, False)),
        (Around(), (2, 40, 40), (False, True)),
        (Around(nn.Embedding(50, 8), nn.Conv1d(40, 40, 3)), (2, 40, 50), (False, True)),  # words' logits
        (Around(nn.Linear(40, 40)), (2, 41, 40), (False, False)),  # a token more, and as many features as tokens
    ],
)
def test_the_length_of_the_inputs_tells_what_widths_leave_open(
    block: nn.Module, shape: tuple[int, ...], found: tuple[bool, bool]
) -> None:
    assert positions_last(block, torch.Size(shape), None, {40}) == found


class Cut(nn.Module):
    """Leaves out the last positions of [b, f, t], such as a causal convolution's."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :-2]


class Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv, self.cut, self.down = nn.Conv1d(before, after, 3, padding=2), Cut(), nn.Conv1d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.cut(self.conv(x)) + self.down(x)).relu()


class Temporal(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two, self.head = Block(2, width), Block(width, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x)).mean(-1))


@pytest.mark.parametrize("tokens", ["mean", "last"])
@pytest.mark.parametrize("width", [16, 5])
def test_blocks_of_convolutions_have_their_positions_last(tokens: str, width: int) -> None:
    torch.manual_seed(0)
    model, x = Temporal(width), torch.randn(90, 2, 40)
    probe_set = pf.ProbeSet.from_tensors(x[:60], None, x[60:], None)
    with no_warnings():
        cells = Engine(model, probe_set, layers=["one.cut", "one", "two"], tokens=tokens).activations()
    with torch.no_grad():
        inputs = probe_set.fit_inputs
        one = model.one(inputs)
        outputs = {"one.cut": model.one.cut(model.one.conv(inputs)), "one": one, "two": model.two(one)}
    for cell in cells:
        own = outputs[cell.layer.name]
        expected = own.mean(2) if tokens == "mean" else own[:, :, -1]
        torch.testing.assert_close(cell.fit + cell.shift, expected, rtol=1e-5, atol=1e-6)
    assert len(cells) == 3


def test_features_of_samples_are_no_positions() -> None:
    class Tokens(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x, 2 * x, x.square()], 1)  # [b, 3, 4]

    x = torch.randn(90, 4)
    probe_set = pf.ProbeSet.from_tensors(x[:60], None, x[60:], None)
    (cell,) = Engine(nn.Sequential(Tokens(), nn.Flatten()), probe_set, layers="0", tokens="mean").activations()
    torch.testing.assert_close(cell.fit + cell.shift, Tokens()(probe_set.fit_inputs).mean(1))


def test_as_many_features_as_positions_are_a_guess() -> None:
    x = torch.randn(90, 2, 40)
    probe_set = pf.ProbeSet.from_tensors(x[:60], None, x[60:], None)
    with pytest.warns(
        RuntimeWarning,
        match=r"of \['one', 'two'\] may have their positions on the second or the last axis: the last is taken",
    ):
        (cell, _) = Engine(Temporal(40), probe_set, layers=["one", "two"], tokens="mean").activations()
    assert cell.layer.dim == 40


class Turned(nn.Module):
    """Takes series [b, t, c]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.act = model, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.model.head(self.model.two(self.act(self.model.one(x.mT))).mean(-1))


def test_each_position_of_blocks_and_activations_is_a_row() -> None:
    torch.manual_seed(0)
    model, x = Turned(Temporal(16)), torch.randn(90, 40, 2)
    probe_set = pf.ProbeSet.from_tensors(x[:60], None, x[60:], None)
    names = ["model.one.cut", "model.one", "act"]
    with no_warnings():
        cells = Engine(model, probe_set, layers=names, tokens="each").activations()
    with torch.no_grad():
        inputs = probe_set.fit_inputs.mT
        one = model.model.one(inputs)
        outputs = [model.model.one.cut(model.model.one.conv(inputs)), one, one.relu()]
    assert [cell.layer.name for cell in cells] == names
    for cell, own in zip(cells, outputs, strict=True):
        torch.testing.assert_close(cell.fit + cell.shift, own.mT.flatten(0, 1), rtol=1e-5, atol=1e-6)


class Patches(nn.Module):
    """A transformer of patches [b, t, f], which a convolution makes as maps [b, f, h, w]."""

    def __init__(self, own: int) -> None:
        super().__init__()
        self.own, self.patches, self.block = own, nn.Conv2d(1, 5, 2, 2), nn.Linear(5, 5)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.patches(x)
        tokens = torch.cat([maps.new_zeros(len(x), self.own, 5), maps.flatten(2).mT], 1)
        out: torch.Tensor = self.head(self.pool(maps).flatten(1) + self.block(tokens).mean(1))
        return out


@pytest.mark.parametrize("own", [0, 1, 4])
def test_maps_of_as_many_places_as_there_are_tokens_are_told(own: int) -> None:
    x = torch.randn(60, 1, 6, 6)
    probe_set = pf.ProbeSet.from_tensors(x[:40], None, x[40:], None)
    told = r"tokens='mean' needs outputs \[b, t, f\]; those of \['patches'\] have other shapes, such as \(7, 5, 3, 3\)"
    with pytest.warns(RuntimeWarning, match=told):
        pf.probe(Patches(own), probe_set, layers=["patches", "pool", "block"], tokens="mean", alphas=[0.1])
