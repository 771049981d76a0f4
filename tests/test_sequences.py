"""Rows of sequences that are padded: which tokens count."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.engine import Engine
from phasefast.errors import ArgumentError, DataError, LayerError
from phasefast.sequences import as_one, real_tokens
from phasefast.types import TokenMode

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
    rows, pool = as_one(poisoned, mode, real)
    assert pool == 0
    torch.testing.assert_close(rows.double(), expected(output, real, mode), rtol=1e-6, atol=1e-6)


def test_gaps_are_padding_too_and_vectors_are_where_all_numbers_are() -> None:
    real = torch.tensor([[False, True, False, True, False]])
    output = torch.arange(5.0)[None, :, None]
    assert [float(as_one(output, mode, real)[0]) for mode in MODES] == [2, 1, 3]
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
    with pytest.raises(LayerError, match=r"'short': expected an output for each of the 8 positions .*got shape .* 4\)"):
        pf.probe(reader, GIVEN, layers=["short"], tokens="mean", padding=0)
    with pytest.warns(RuntimeWarning, match=r"left out 1: layer 'short'"):
        assert pf.probe(reader, GIVEN, tokens="mean", padding=0, alphas=[0.1]).layers == ["embed", "head"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"padding": 0}, "padding: expected with tokens='mean', 'cls' or 'last', got tokens='flatten'"),
        ({"padding": "0", "tokens": "mean"}, "padding: expected a number .*, got '0'"),
        ({"padding": True, "tokens": "mean"}, "padding: expected a number .*, got True"),
    ],
)
def test_padding_that_cannot_be_is_refused(reader: Reader, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        pf.probe(reader, GIVEN, **options)


def test_samples_of_nothing_but_padding_are_named_and_none_is_told(reader: Reader) -> None:
    empty = GIVEN.heldout_inputs.clone()
    empty[3] = 0
    given = pf.ProbeSet(GIVEN.fit_inputs, None, empty, None)
    with pytest.raises(DataError, match="heldout_inputs: expected more than padding=0, row 3 is nothing else"):
        Engine(reader, given, tokens="mean", padding=0, targets=pf.Function(lambda x: x.sum(1).float()))
    with pytest.warns(RuntimeWarning, match="padding=11 changes nothing: no input holds it"):
        Engine(reader, GIVEN, tokens="mean", padding=11)


def test_padding_is_a_setting_of_its_own(reader: Reader) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engines = [Engine(reader, GIVEN, tokens="mean", **({"padding": 0} if own else {})) for own in (False, True)]
    assert [engine.settings.get("padding") for engine in engines] == [None, 0]
    assert engines[0].config_hash != engines[1].config_hash
