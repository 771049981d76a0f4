"""Outputs [tokens, batch, features], as PyTorch's recurrent layers and transformers give them by default."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.errors import LayerError
from tests.quiet import no_warnings

WORDS, WIDTH = 12, 8


class Reader(nn.Module):
    """Reads words; ``first``: whether samples come first inside, as outside."""

    def __init__(self, first: bool, whole: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.whole = first, whole
        self.words = nn.Embedding(WORDS, WIDTH)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=first), 2, enable_nested_tensor=False
        )
        self.rnn = nn.GRU(WIDTH, 6, batch_first=first)
        self.head = nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.rnn(self.encoder(self.words(ids if self.first else ids.T)))[0]
        out: Tensor = self.head(x)  # of each token
        out = out if self.first else out.transpose(0, 1)
        return out.mean(1) if self.whole else out if self.first else out.transpose(0, 1)


def words(length: int, each: bool = False) -> pf.ProbeSet:
    ids = torch.randint(1, WORDS, (150, length)) * (torch.arange(length) < torch.randint(1, length + 1, (150, 1)))
    labels = ids % 3 if each else ids[:, 0] % 3
    return pf.ProbeSet.from_tensors(ids[:100], labels[:100], ids[100:], labels[100:])


def assert_same(one: pf.Scores, other: pf.Scores) -> None:
    assert one.layers == other.layers
    ones, others = (each.filter(split="heldout").to_arrow().to_pylist() for each in (one, other))
    assert len(ones) == len(others) > len(one.layers)
    for own, expected in zip(ones, others, strict=True):
        assert own["metric"] == expected["metric"]
        assert own["value"] == pytest.approx(expected["value"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("length", [1, 2, 5, 7, 32])  # as many as the first samples, or those of a batch, too
@pytest.mark.parametrize("options", [{}, {"tokens": "mean", "padding": 0}, {"tokens": "last", "padding": 0}])
@pytest.mark.filterwarnings("ignore:inputs look padded", "ignore:tokens=.* changes nothing")
def test_they_give_the_scores_of_samples_first(length: int, options: dict[str, Any]) -> None:
    probe_set = words(length)
    layers = ["words", "encoder.layers.*", "rnn", "head"]
    own, expected = (
        pf.probe(Reader(first), probe_set, layers=layers, alphas=[0.1], batch_size=32, **options)
        for first in (False, True)
    )
    assert {"words", "encoder.layers.0", "encoder.layers.1", "rnn", "head"} <= {*own.layers}
    assert_same(own, expected)


def test_each_token_is_a_row_of_layers_and_of_the_models_own_output() -> None:
    probe_set = words(9, each=True)
    with no_warnings():
        own, expected = (
            pf.probe(Reader(first, whole=False), probe_set, alphas=[0.1], tokens="each", padding=0, batch_size=16)
            for first in (False, True)
        )
    assert "model" in own.values_of("layer")
    assert_same(own, expected)


def test_what_a_decoder_predicts_is_of_the_turned_output() -> None:
    model, probe_set = Reader(False).eval(), words(4)
    seen: list[Tensor] = []
    hook = model.rnn.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    with torch.no_grad():
        model(probe_set.heldout_inputs)
    hook.remove()
    decoder = pf.fit_decoders(model, probe_set, layers="rnn")["rnn", "label"]
    rows = seen[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(decoder(rows).float(), decoder.predictions, rtol=1e-4, atol=1e-4)


def test_a_batch_of_its_own_that_is_as_wide_by_chance_is_none() -> None:
    class Rows(nn.Module):
        """Takes the rows of maps [b, h, 7, f] as samples of their own."""

        def __init__(self) -> None:
            super().__init__()
            self.rows, self.head = nn.Linear(2, 3), nn.Linear(42, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.rows(x.unflatten(1, (2, 7, 2)).flatten(0, 1)).unflatten(0, (-1, 2)).flatten(1))
            return out

    x = torch.randn(150, 28)
    probe_set = pf.ProbeSet.from_tensors(x[:100], None, x[100:], None)
    with pytest.warns(RuntimeWarning, match=r"'rows': expected .* each sample"):
        assert pf.probe(Rows(), probe_set).layers == ["head"]


class Strided(nn.Module):
    """As many positions as the first samples, behind a convolution, or attention along one axis of maps."""

    def __init__(self, first: bool, length: int, axial: bool) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.axial = first, axial
        self.conv = nn.Conv1d(2, WIDTH, 3, stride=length)
        self.rnn = nn.GRU(WIDTH, 6, batch_first=first)
        self.line, self.lines = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)  # [b, f, t]
        if self.axial:  # [b k, t, f], which is no layer; then [b, k, t, f]
            rows = self.line(maps[:, None].expand(-1, 3, -1, -1).transpose(2, 3).flatten(0, 1))
            out: Tensor = self.lines(rows.unflatten(0, (len(x), -1)))
            return out.mean((1, 2))
        out = self.rnn(maps.transpose(1, 2) if self.first else maps.permute(2, 0, 1))[0]
        return out.mean(1 if self.first else 0)


def strided(length: int) -> pf.ProbeSet:
    x = torch.randn(90, 2, length * length)
    labels = (x[:, 0, :3].sum(1) > 0).long()
    return pf.ProbeSet.from_tensors(x[:60], labels[:60], x[60:], labels[60:])


@pytest.mark.parametrize("length", [5, 7, 11, 13, 6])
def test_positions_that_the_input_does_not_have_may_be_as_many_as_the_first_samples(length: int) -> None:
    probe_set = strided(length)
    with no_warnings():
        own, expected = (
            pf.probe(
                Strided(first, length, axial=False), probe_set, layers=["conv", "rnn"], alphas=[0.1], predicts="none"
            )
            for first in (False, True)
        )
    assert own.layers == ["conv", "rnn"]
    assert_same(own, expected)


@pytest.mark.parametrize("length", [5, 7, 11, 13])
def test_rows_of_lines_of_maps_are_no_samples_on_the_second_axis(length: int) -> None:
    with pytest.raises(LayerError, match=r"'line': .*rows of each sample"):
        pf.probe(Strided(True, length, axial=True), strided(length), layers=["conv", "line"], alphas=[0.1])
