"""Packed sequences, as recurrent layers give them: which samples and tokens they are of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.data.outputs import unpacked
from phasefast.engine import Engine
from phasefast.errors import LayerError
from phasefast.types import TokenMode

from .test_sequences import GIVEN, MODES, probe_set


class Packing(nn.Module):
    """Packs sequences of ids as long as they are without the padding behind them."""

    def __init__(self, ordered: bool = False) -> None:
        super().__init__()
        self.embed, self.rnn, self.ordered = nn.Embedding(10, 6), nn.GRU(6, 5, batch_first=True), ordered
        self.head = nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        lengths = (ids != 0).sum(1)
        if self.ordered:
            lengths, order = lengths.sort(descending=True)
            ids = ids[order]
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(ids), lengths, True, enforce_sorted=self.ordered)
        hidden = self.rnn(packed)[1][0]
        return self.head(hidden[order.argsort()] if self.ordered else hidden)


@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("mode", MODES)
def test_packed_sequences_have_the_tokens_that_they_hold(mode: TokenMode, padding: int | None) -> None:
    torch.manual_seed(0)
    model = Packing().eval()
    (cell,) = Engine(model, GIVEN, layers=["rnn"], tokens=mode, padding=padding, batch_size=7).activations()
    ids = GIVEN.fit_inputs
    with torch.no_grad():
        rows = [model.rnn(model.embed(each[each != 0])[None])[0][0] for each in ids]
    one = {"mean": lambda own: own.mean(0), "cls": lambda own: own[0], "last": lambda own: own[-1]}[mode]
    torch.testing.assert_close(cell.fit + cell.shift, torch.stack([one(own) for own in rows]), rtol=1e-5, atol=1e-6)


def test_packed_sequences_whose_samples_are_not_known_are_refused() -> None:
    with pytest.raises(LayerError, match=r"layer 'rnn': .* PackedSequence; give tokens='mean', 'cls' or 'last'"):
        pf.probe(Packing(), GIVEN, layers="rnn")
    alike = probe_set(torch.randint(1, 9, (40, 5)), torch.randint(1, 9, (20, 5)))
    for given in (GIVEN, alike):
        with pytest.raises(
            LayerError, match=r"layer 'rnn': .* packed sequences sorted by their lengths, .* enforce_sorted=False"
        ):
            pf.probe(Packing(ordered=True), given, layers="rnn", tokens="last")
    pf.probe(Packing(), alike, layers="rnn", tokens="last")


def packed(lengths: list[int], ordered: bool) -> nn.utils.rnn.PackedSequence:
    rows = torch.randn(len(lengths), max(lengths), 3)
    return nn.utils.rnn.pack_padded_sequence(rows, torch.tensor(lengths), True, enforce_sorted=ordered)


def test_samples_that_may_come_in_the_order_of_their_lengths_by_chance_are_taken() -> None:
    for lengths, ordered, refused in (
        ([5, 4, 3], True, True),
        ([5, 5, 5], True, True),
        ([5], True, False),
        ([5, 4, 3], False, False),
        ([5] * 30, False, False),
        ([5] * 29 + [4], False, False),
        ([9, 8, 7, 6, 5, 4, 3, 2], False, True),
        ([9, 8, 7, 6, 5, 4, 2, 3], False, False),
        ([*range(40, 2, -1), *[2] * 60], False, True),
        ([1, *range(40, 2, -1), *[2] * 60], False, False),
    ):
        if refused:
            with pytest.raises(LayerError, match="sequences sorted by their lengths"):
                unpacked("a", packed(lengths, ordered))
        else:
            assert unpacked("a", packed(lengths, ordered))[1].sum(1).tolist() == lengths


def test_packed_sequences_that_are_no_samples_are_left_out() -> None:
    class OfParts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.parts, self.head = nn.Embedding(10, 6), nn.GRU(6, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, ids: Tensor) -> Tensor:
            halves = self.embed(ids).unflatten(1, (2, -1)).flatten(0, 1)
            lengths = torch.arange(len(halves)) % halves.shape[1] + 1
            own = nn.utils.rnn.pack_padded_sequence(halves, lengths, True, enforce_sorted=False)
            return self.head(self.parts(own)[1][0].unflatten(0, (-1, 2)).mean(1))

    with pytest.warns(RuntimeWarning, match=r"left out 1: layer 'parts': expected 7 packed sequences.*, got 14"):
        assert pf.probe(OfParts(), GIVEN, tokens="mean").layers == ["embed", "head"]
