"""Default layers of networks of several bodies, such as an encoder and a decoder, and of PyTorch's own transformers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import phasefast as pf
from phasefast.layers.defaults import default_names
from tests.quiet import no_warnings


class Block(nn.Module):
    """Half a block of a transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x).relu()


class Body(nn.Module):
    """Blocks in a list."""

    def __init__(self, width: int = 8, count: int = 2, kind: type[nn.Module] = nn.ModuleList) -> None:
        super().__init__()
        blocks = [Block(width) for _ in range(count)]
        self.blocks = nn.Sequential(*blocks) if kind is nn.Sequential else nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def model(**named: nn.Module) -> nn.Module:
    whole = nn.Module()
    for name, part in named.items():
        whole.add_module(name, part)
    return whole


def of(name: str, count: int = 2) -> list[str]:
    return [f"{name}.blocks.{i}" for i in range(count)]


def test_blocks_of_an_encoder_and_a_decoder_are_layers() -> None:
    assert default_names(model(encoder=Body(), decoder=Body(), head=nn.Linear(8, 3))) == [
        *of("encoder"),
        *of("decoder"),
        "head",
    ]
    several = model(text=Body(), image=Body(count=3), both=Body())
    assert default_names(several) == [*of("text"), *of("image", 3), *of("both")]
    inside = model(model=model(encoder=Body(), decoder=Body()), head=nn.Linear(8, 3))
    assert default_names(inside) == [*of("model.encoder"), *of("model.decoder"), "head"]


@pytest.mark.parametrize(
    ("stages", "names"),
    [
        ({"stage1": Body(), "stage2": Body()}, ["stage1", "stage2"]),  # numbered
        ({"a": Body(kind=nn.Sequential), "b": Body(kind=nn.Sequential)}, ["a", "b"]),  # as ResNets have them
        ({"encoder": Body(32), "decoder": Body(4)}, [*of("encoder"), "decoder"]),  # hardly any parameters
    ],
)
def test_stages_and_small_parts_are_layers_as_they_are(stages: dict[str, nn.Module], names: list[str]) -> None:
    assert default_names(model(**stages, head=nn.Linear(8, 3))) == [*names, "head"]


class Translator(nn.Module):
    """Words of one language into those of another, of PyTorch's own parts."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.words, self.whole = nn.Embedding(9, 8), whole
        if whole:
            self.body = nn.Transformer(8, 2, 2, 2, 16, batch_first=True)
        else:
            self.reads = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
            self.writes = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 2)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        y = self.body(x, x.flip(1)) if self.whole else self.writes(x.flip(1), self.reads(x))
        return self.head(y.mean(1))


@pytest.mark.parametrize(
    ("whole", "encoder", "decoder"), [(True, "body.encoder", "body.decoder"), (False, "reads", "writes")]
)
def test_the_blocks_of_pytorchs_own_transformers_are_layers(whole: bool, encoder: str, decoder: str) -> None:
    ids = torch.randint(9, (90, 5))
    probe_set = pf.ProbeSet.from_tensors(ids[:60], ids[:60, 0] % 3, ids[60:], ids[60:, 0] % 3)
    with no_warnings():
        scores = pf.probe(Translator(whole), probe_set, alphas=[0.1])
    blocks = [f"{body}.layers.{i}" for body in (encoder, decoder) for i in range(2)]
    assert [layer for layer in scores.layers if "norm" not in layer] == ["words", *blocks, "head"]
