"""How many samples a forward pass takes at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import phasefast as pf
from phasefast.data.batches import fast_size

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("shape", "dtype", "device", "size"),
    [
        ((3, 32, 32), torch.float32, CPU, 256),
        ((3, 32, 32), torch.float32, GPU, 2048),
        ((3, 64, 64), torch.float32, GPU, 682),
        ((3, 224, 224), torch.float32, GPU, 256),  # launches no longer matter
        ((16,), torch.int64, CPU, 256),
        ((1024,), torch.int64, CPU, 16),  # whose logits may be as many as 50,000 times these numbers
        ((1 << 20,), torch.int64, CPU, 1),
        ((8,), torch.int64, GPU, 2048),
        ((512,), torch.int64, GPU, 128),
        ((3, 8, 8), torch.uint8, CPU, 256),
    ],
)
def test_batches_are_as_large_as_is_fast_and_fits(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, size: int
) -> None:
    assert fast_size(torch.empty(1, dtype=dtype).expand(5000, *shape), 256, device) == size


@pytest.mark.parametrize(("memory", "size"), [(8 << 30, 10), (80 << 30, 104), (200 << 30, 128), (1, 1)])
def test_logits_take_an_eighth_of_a_gpu_at_most(memory: int, size: int) -> None:
    ids = torch.zeros(5000, 512, dtype=torch.int64)
    assert fast_size(ids, 256, GPU, memory) == size
    assert memory == 1 or size * 512 * 50_000 * 4 <= memory / 8


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.sizes = nn.Embedding(9, 4), set[int]()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.sizes.add(len(ids))
        out: torch.Tensor = self.embed(ids)
        return out


def test_long_sequences_go_through_the_model_few_at_a_time() -> None:
    ids = torch.randint(0, 9, (90, 1024))
    probe_set, model = pf.ProbeSet(ids[:60], None, ids[60:], None), Counting()
    options = {"targets": [pf.Function(lambda x: (x == 3).float().mean(1), name="threes")], "tokens": "mean"}
    scores = pf.probe(model, probe_set, **options)
    assert max(model.sizes) == 15
    model.sizes.clear()
    at_once = pf.probe(model, probe_set, batch_size=60, **options)
    assert max(model.sizes) == 60
    one, other = (found.value(layer="embed", metric="fvu", split="heldout") for found in (scores, at_once))
    assert one == pytest.approx(other, rel=1e-5)
