"""Nested tensors, which PyTorch's own encoder makes of padded sequences: rows as of what it gives back."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.errors import LayerError

LENGTH = 9


class Reader(nn.Module):
    """Reads padded words; ``before``: how many positions it puts before them."""

    def __init__(self, nested: bool, before: int = 0) -> None:
        super().__init__()
        torch.manual_seed(1)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.before, self.embedding = before, nn.Embedding(20, 16, padding_idx=0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.head = nn.Linear(16, 2)

    def forward(self, ids: Tensor) -> Tensor:
        ids = torch.cat([ids.new_ones(len(ids), self.before), ids], 1)
        return self.head(self.encoder(self.embedding(ids), src_key_padding_mask=ids == 0).mean(1))


@pytest.fixture
def probe_set() -> pf.ProbeSet:
    """Sequences of which few are of the full length, so that few batches have one."""
    lengths = torch.randint(4, LENGTH, (240, 1))
    lengths[[50, 230]] = LENGTH
    ids = torch.randint(1, 20, (240, LENGTH)) * (torch.arange(LENGTH) < lengths)
    return pf.ProbeSet.from_tensors(ids[:160], ids[:160, 0] % 2, ids[160:], ids[160:, 0] % 2)


@pytest.fixture(autouse=True)
def quiet() -> None:
    warnings.filterwarnings("ignore", "The PyTorch API of nested tensors", UserWarning)
    warnings.filterwarnings("ignore", "inputs look padded", RuntimeWarning)


@pytest.mark.parametrize("tokens", ["mean", "last", "each"])
def test_real_tokens_are_the_same_rows_as_without_nesting(probe_set: pf.ProbeSet, tokens: str) -> None:
    layers = ["encoder.layers.0", "encoder.layers.1"]
    if tokens == "each":
        words = [inputs % 3 for inputs in (probe_set.fit_inputs, probe_set.heldout_inputs)]
        probe_set = pf.ProbeSet.from_tensors(probe_set.fit_inputs, words[0], probe_set.heldout_inputs, words[1])
    own, other = (
        pf.fit_decoders(Reader(nested), probe_set, layers=layers, tokens=tokens, padding=0, batch_size=16, alphas=[0.1])
        for nested in (True, False)
    )
    assert list(own) == [(layer, "label") for layer in layers]
    for place in own:
        torch.testing.assert_close(own[place].predictions, other[place].predictions, rtol=1e-4, atol=1e-4)


def test_all_positions_are_rows_of_equal_width_with_zeros_at_the_end(probe_set: pf.ProbeSet) -> None:
    model = Reader(True).eval()
    seen: list[Tensor] = []
    hook = model.encoder.layers[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model(probe_set.heldout_inputs)
    hook.remove()
    assert seen[0].is_nested
    [decoder] = pf.fit_decoders(model, probe_set, layers=["encoder.layers.1"], batch_size=16).values()
    rows = seen[0].to_padded_tensor(0.0, (80, LENGTH, 16)).flatten(1)
    torch.testing.assert_close(decoder(rows).float(), decoder.predictions, rtol=1e-4, atol=1e-4)


def test_positions_that_the_inputs_have_not_are_told(probe_set: pf.ProbeSet) -> None:
    why = r"layer 'encoder.layers.0': its output is a nested tensor, which is longer than the 9 positions of the inputs"
    with pytest.raises(LayerError, match=f"{why} .*enable_nested_tensor=False"):
        pf.probe(Reader(True, before=2), probe_set, layers=["encoder.layers.0"], alphas=[0.1])
    with pytest.warns(RuntimeWarning, match=f"left out .*{why}"):
        scores = pf.probe(Reader(True, before=2), probe_set, layers=["encoder*", "head"], alphas=[0.1])
    assert scores.layers == ["encoder", "head"]
