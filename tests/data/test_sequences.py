"""Rows of sequences that are padded: which tokens count."""

from __future__ import annotations

import re
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.data.sequences import as_one, looks_padded, real_tokens
from phasefast.engine import Engine
from phasefast.errors import ArgumentError, DataError, LayerError
from phasefast.types import TokenMode
from tests.quiet import no_warnings

MODES: tuple[TokenMode, ...] = ("mean", "cls", "last")


def padded(count: int, length: int, seed: int, left: bool = False) -> Tensor:
    """Sequences of 1 to ``length`` tokens 1 to 9, padded by 0 on one side."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 10, (count, length), generator=generator)
    lengths = torch.randint(1, length + 1, (count, 1), generator=generator)
    ids = ids * (torch.arange(length) < lengths)
    return ids.flip(1) if left else ids


def expected(output: Tensor, real: Tensor, mode: TokenMode) -> Tensor:
    """Sequence by sequence, in float64."""
    rows = [own[which].double() for own, which in zip(output, real, strict=True)]
    return torch.stack([{"mean": row.mean(0), "cls": row[0], "last": row[-1]}[mode] for row in rows])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_padding_counts_for_nothing(mode: TokenMode, left: bool, dtype: torch.dtype) -> None:
    ids = padded(30, 7, seed=1, left=left)
    real = real_tokens(ids, 0)
    output = torch.randn(30, 7, 5, generator=torch.Generator().manual_seed(2)).to(dtype)
    poisoned = output.masked_fill(~real[:, :, None], torch.nan)
    rows, pool = as_one("x", nn.Identity(), poisoned, mode, real)
    assert pool == 0
    torch.testing.assert_close(rows.double(), expected(output, real, mode), rtol=1e-6, atol=1e-6)


def test_gaps_are_padding_too_and_vectors_are_where_all_numbers_are() -> None:
    real = torch.tensor([[False, True, False, True, False]])
    output = torch.arange(5.0)[None, :, None]
    assert [float(as_one("x", nn.Identity(), output, mode, real)[0]) for mode in MODES] == [2, 1, 3]
    vectors = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [2.0, 0.0]]])
    assert real_tokens(vectors, 0).tolist() == [[False, True, True]]


class Reader(nn.Module):
    """A layer for each token, and one of half as many positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.short = nn.AvgPool1d(2)
        self.head = nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        self.short(x.mT)
        return self.head(x[:, 0])


@pytest.fixture
def reader() -> Reader:
    torch.manual_seed(0)
    return Reader()


def probe_set(fit: Tensor, heldout: Tensor) -> pf.ProbeSet:
    return pf.ProbeSet.from_tensors(fit, fit.amax(1) // 4, heldout, heldout.amax(1) // 4)


GIVEN = probe_set(padded(60, 8, seed=3), padded(20, 8, seed=4))


@pytest.mark.parametrize("mode", MODES)
def test_a_probe_takes_the_tokens_that_are_there(reader: Reader, mode: TokenMode) -> None:
    (cell,) = Engine(reader, GIVEN, layers="embed", tokens=mode, padding=0, batch_size=7).activations()
    with torch.no_grad():
        own = expected(reader.embed(GIVEN.fit_inputs), GIVEN.fit_inputs != 0, mode)
    torch.testing.assert_close((cell.fit + cell.shift).double(), own, rtol=1e-5, atol=1e-6)


def test_more_padding_changes_nothing(reader: Reader) -> None:
    longer = pf.ProbeSet(
        nn.functional.pad(GIVEN.fit_inputs, (0, 5)),
        GIVEN.fit_labels,
        nn.functional.pad(GIVEN.heldout_inputs, (5, 0)),
        GIVEN.heldout_labels,
    )
    options: dict[str, Any] = {"layers": "embed", "tokens": "mean", "padding": 0, "alphas": [0.1]}
    select = {"layer": "embed", "split": "heldout", "metric": "accuracy"}
    first, second = (pf.probe(reader, given, **options).value(**select) for given in (GIVEN, longer))
    assert first == second


def test_layers_of_other_positions_are_named(reader: Reader) -> None:
    with pytest.raises(
        LayerError, match=r"'short': expected an output for each of the 8 positions .*got shape .* 6, 4\); probe"
    ):
        pf.probe(reader, GIVEN, layers=["short"], tokens="mean", padding=0)
    with pytest.warns(RuntimeWarning, match=r"left out 1: layer 'short'"):
        assert pf.probe(reader, GIVEN, tokens="mean", padding=0, alphas=[0.1]).layers == ["embed", "head"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"padding": 0}, "padding: needs tokens='mean', 'cls', 'last' or 'each', got tokens='flatten'"),
        ({"padding": "0", "tokens": "mean"}, "padding: expected the number .*, got '0'"),
        ({"padding": Fraction(1, 2), "tokens": "mean"}, "padding: expected the number .*, got Fraction"),
        ({"padding": True, "tokens": "mean"}, "padding: expected the number .*, got True"),
        ({"padding": torch.ones(360), "tokens": "mean"}, r"got Tensor \(360,\); of lengths, make such inputs"),
    ],
)
def test_padding_that_cannot_be_is_refused(reader: Reader, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        pf.probe(reader, GIVEN, **options)


def test_samples_of_nothing_but_padding_are_named_and_none_is_told(reader: Reader) -> None:
    empty = GIVEN.heldout_inputs.clone()
    empty[3] = 0
    given = pf.ProbeSet(GIVEN.fit_inputs, None, empty, None)
    with pytest.raises(DataError, match="heldout_inputs: expected more than padding=0, but row 3 holds nothing else"):
        Engine(reader, given, tokens="mean", padding=0, targets=pf.Function(lambda x: x.sum(1).float()))
    with pytest.warns(RuntimeWarning, match="padding=11 changes nothing: no input holds it"):
        Engine(reader, GIVEN, tokens="mean", padding=11)


def test_padding_is_a_setting_of_its_own(reader: Reader) -> None:
    with pytest.warns(RuntimeWarning, match=r"inputs look padded with 0, .*: padding=0 with tokens='mean'"):
        engines = [Engine(reader, GIVEN, tokens="mean")]
    with no_warnings():
        engines += [Engine(reader, GIVEN, tokens="mean", padding=0)]
    assert [engine.settings.get("padding") for engine in engines] == [None, 0]
    assert Engine(reader, GIVEN, tokens="mean", padding=np.int64(0)).config_hash == engines[1].config_hash
    assert Engine(reader, GIVEN, tokens="mean", padding=0.0).config_hash == engines[1].config_hash
    assert engines[0].config_hash != engines[1].config_hash


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (padded(50, 12, seed=1), 0),
        (padded(50, 12, seed=1, left=True), 0),
        (padded(50, 12, seed=1).masked_fill(padded(50, 12, seed=1) == 0, 99), 99),
        (torch.randint(0, 4, (50, 12), generator=torch.Generator().manual_seed(0)), None),
        (torch.cat([torch.randint(1, 9, (50, 6)), torch.zeros(50, 6, dtype=torch.long)], 1), None),  # all alike
        (padded(50, 12, seed=1).float(), None),
        (padded(50, 2, seed=1), None),
    ],
)
def test_inputs_that_look_padded_are_told(inputs: Tensor, found: int | None) -> None:
    assert looks_padded(inputs) == found


def test_padding_between_tokens_is_asked_about(reader: Reader) -> None:
    with pytest.warns(
        RuntimeWarning, match=r"padding=5 stands between other tokens in \d+ of \d+ places: is padding another"
    ):
        Engine(reader, GIVEN, tokens="mean", padding=5)


class Convolving(nn.Module):
    """Positions last, as convolutions have them; as many channels as positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.conv = nn.Conv1d(6, channels, 3, padding=1)
        self.block = nn.Sequential(nn.BatchNorm1d(channels), nn.ReLU(), nn.AvgPool1d(1))
        self.act = nn.ReLU()
        self.head = nn.Linear(channels, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.act(self.block(self.conv(self.embed(ids).mT))).mean(2))


class Turned(nn.BatchNorm1d):
    """Of tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mT).mT


class Chain(nn.Sequential):
    """Of tokens too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mT).mT


class Causal(nn.Conv1d):
    """Positions last, with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x.mT, (2, 0)))


@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("layer", [Turned(6), Chain(nn.Conv1d(6, 5, 3, padding=1)), Causal(6, 5, 3)])
def test_the_order_of_modules_of_ones_own_is_told_by_their_shape(layer: nn.Module, padding: int | None) -> None:
    model = nn.Sequential(nn.Embedding(10, 6), layer, nn.Flatten()).eval()
    options: dict[str, Any] = {"layers": ["1"], "tokens": "mean", "padding": padding, "batchnorm": "running"}
    (cell,) = Engine(model, GIVEN, **options).activations()
    ids = GIVEN.fit_inputs
    with torch.no_grad():
        output = model[:2](ids)
    real = torch.ones_like(ids, dtype=torch.bool) if padding is None else ids != padding
    output = output.mT if isinstance(layer, Causal) else output
    torch.testing.assert_close((cell.fit + cell.shift).double(), expected(output, real, "mean"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.Conv1d(6, 5, 1), nn.ConvTranspose1d(6, 5, 1), nn.LPPool1d(1, 1), nn.MaxPool1d(2), nn.AvgPool1d(2)),
        *(nn.AdaptiveMaxPool1d(5), nn.AdaptiveAvgPool1d(5), nn.Upsample(scale_factor=2), nn.ConstantPad1d(1, 0.0)),
        *(nn.ZeroPad1d(1), nn.ReflectionPad1d(1), nn.ReplicationPad1d(1), nn.CircularPad1d(1), nn.Dropout1d()),
        *(nn.BatchNorm1d(6), nn.InstanceNorm1d(6), nn.GroupNorm(2, 6), nn.LocalResponseNorm(2)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_what_reads_features_first_gives_them_first(layer: nn.Module) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer = nn.Embedding(10, 6), layer

        def forward(self, ids: Tensor) -> Tensor:
            return self.layer(self.embed(ids).mT).flatten(1)

    model = Net().eval()
    (cell,) = Engine(model, GIVEN, layers=["layer"], tokens="mean", batchnorm="running").activations()
    with torch.no_grad():
        output = layer(model.embed(GIVEN.fit_inputs).mT)
    torch.testing.assert_close(cell.fit + cell.shift, output.mean(2), rtol=1e-5, atol=1e-6)


def test_an_order_that_no_shape_tells_is_asked_about() -> None:
    model = nn.Sequential(nn.Embedding(10, 6), Causal(6, 8, 3), nn.Flatten())  # as many positions
    with pytest.warns(
        RuntimeWarning, match=r"outputs of \['1'\] may have their positions on the second or the last axis"
    ):
        Engine(model, GIVEN, layers=["1"], tokens="mean", padding=0).activations()


def test_a_token_before_all_others_is_no_reason_to_turn_an_output(reader: Reader) -> None:
    class Prepended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.block = nn.Embedding(10, 8), nn.ReLU()

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            return self.block(torch.cat([x[:, :1], x], 1)).mean(1)

    with pytest.raises(LayerError, match=r"each of the 8 positions .*, got shape \(7, 9, 8\); are its pos"):
        pf.probe(Prepended(), GIVEN, layers=["block"], tokens="mean", padding=0)


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.uint16])
def test_ids_of_few_bits_are_compared_as_they_are(dtype: torch.dtype) -> None:
    ids = padded(20, 6, seed=1)
    assert torch.equal(real_tokens(ids.to(dtype), 0), ids != 0)
    assert real_tokens(ids.to(dtype), -256).all()
    assert looks_padded(ids.to(dtype)) == (None if dtype == torch.uint8 else 0)


@pytest.mark.parametrize("channels", [8, 5])
@pytest.mark.parametrize("padding", [None, 0])
def test_convolutions_have_their_positions_last(channels: int, padding: int | None) -> None:
    torch.manual_seed(0)
    model = Convolving(channels).eval()
    names = ["conv", "block", "act"]
    guesses = [r"of \['act'\] may have their positions on the second or the last axis: the second"] * (channels == 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = Engine(model, GIVEN, layers=names, tokens="mean", padding=padding, batchnorm="running")
        activations = engine.activations()
    told = [str(each.message) for each in caught if "guess" in str(each.message)]
    assert [bool(re.search(guess, each)) for guess, each in zip(guesses, told, strict=True)] == [True] * len(guesses)
    cells = {cell.layer.name: cell.fit + cell.shift for cell in activations}
    ids = GIVEN.fit_inputs
    with torch.no_grad():
        conv = model.conv(model.embed(ids).mT)
        outputs = {"conv": conv, "block": model.block(conv), "act": model.block(conv).relu()}
    real = torch.ones_like(ids, dtype=torch.bool) if padding is None else ids != padding
    for name in names[: 3 - len(guesses)]:
        torch.testing.assert_close(cells[name].double(), expected(outputs[name].mT, real, "mean"), rtol=1e-5, atol=1e-6)


class Cutting(nn.Module):
    """Cuts its batches to the longest sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(10, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embed(x[:, (x != 0).any(0)]).mean(1))


def test_batches_that_a_model_cuts_are_told_without_padding() -> None:
    ids = padded(300, 12, 1)
    ids[:200, 6:] = 0
    probe_set = pf.ProbeSet(ids[:250], ids[:250].sum(1) % 5, ids[250:], ids[250:].sum(1) % 5)
    with (
        pytest.warns(RuntimeWarning, match="look padded"),
        pytest.raises(LayerError, match="'embed': expected 48 features of each sample, as at first, got 96"),
    ):
        pf.probe(Cutting(), probe_set, layers="embed", batch_size=50)
