"""Default layers of networks whose blocks lie in stages, as those of timm do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import phasefast as pf
from phasefast.layers.defaults import default_names
from tests.quiet import no_warnings


class Unit(nn.Module):
    """A convolution, what follows it, and more of that for what is made of it."""

    def __init__(self, given: int, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(given, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).relu()


class Block(nn.Module):
    """Two units."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = Unit(width, width), Unit(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(self.a(x))


class Stage(nn.Module):
    """Blocks behind a unit that changes the width."""

    def __init__(self, given: int, width: int, count: int = 2, kind: type[nn.Module] = nn.Sequential) -> None:
        super().__init__()
        blocks = [Block(width) for _ in range(count)]
        self.down = Unit(given, width)
        self.blocks = nn.ModuleList(blocks) if kind is nn.ModuleList else nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(x)
        for block in self.blocks:
            x = block(x)
        return x


class Network(nn.Module):
    """Stages, which are gone through one by one, behind a stem."""

    def __init__(self, stem: nn.Module, *stages: nn.Module, drops: int = 0) -> None:
        super().__init__()
        self.stem, self.stages = stem, nn.Sequential(*stages)
        if drops:
            self.drops = nn.ModuleList(nn.Dropout(0.1) for _ in range(drops))
        self.head = nn.LazyLinear(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


STAGES = [f"stages.{i}" for i in range(3)]


@pytest.mark.parametrize("units", [1, 2])
def test_a_stem_of_like_layers_does_not_hide_the_stages(units: int) -> None:
    stem = nn.Sequential(*(Unit(3 if i == 0 else 8, 8) for i in range(units)))
    names = default_names(Network(stem, Stage(8, 16), Stage(16, 32), Stage(32, 32)))
    assert names == ["stem", *STAGES, "head"]


@pytest.mark.parametrize("kind", [nn.Sequential, nn.ModuleList])
def test_stages_of_one_class_are_alike_however_large_one_is(kind: type[nn.Module]) -> None:
    stages = Stage(8, 8, 1, kind), Stage(8, 16, 2, kind), Stage(16, 64, 2, kind)
    assert default_names(Network(Unit(3, 8), *stages)) == ["stem", *STAGES, "head"]


@pytest.mark.parametrize("counts", [(2, 2, 2, 2), (1, 3), (2, 2, 8), (2, 2, 2, 12)])
def test_stages_without_a_class_of_their_own_stay_whole(counts: tuple[int, ...]) -> None:
    """As those of ResNets, the last of which may have nearly all parameters."""
    layers = {f"layer{i + 1}": nn.Sequential(*(Block(8 << i) for _ in range(n))) for i, n in enumerate(counts)}
    model = nn.Module()
    model.conv1 = nn.Conv2d(3, 8, 3)
    for name, layer in layers.items():
        model.add_module(name, layer)
    assert default_names(model) == ["conv1", *layers]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_large_encoder_is_opened_beside_a_small_one_of_its_class(compiled: bool) -> None:
    model = nn.Module()
    for name, (width, count) in {"encoder": (16, 4), "predictor": (4, 2)}.items():
        own = Stage(3, width, count, nn.ModuleList)
        model.add_module(name, torch.compile(own) if compiled else own)  # type: ignore[arg-type]
    inside = "encoder._orig_mod" if compiled else "encoder"
    assert default_names(model) == [f"{inside}.down", *(f"{inside}.blocks.{i}" for i in range(4)), "predictor"]


def test_plain_stages_whose_blocks_are_in_lists_are_alike() -> None:
    stages = [nn.Sequential(Unit(8, 8), Stage(8, 8, count, nn.ModuleList)) for count in (1, 1, 6)]
    assert default_names(Network(Unit(3, 8), *stages)) == ["stem", *STAGES, "head"]


def test_where_there_are_dropouts_only_they_are_the_layers() -> None:
    model = nn.Module()
    model.before, model.after = (nn.ModuleList([nn.Dropout(0.1)]) for _ in range(2))
    assert default_names(model) == ["before.0", "after.0"]


def test_a_list_of_dropouts_holds_no_layers() -> None:
    assert default_names(Network(Unit(3, 8), Stage(8, 16), drops=2)) == default_names(Network(Unit(3, 8), Stage(8, 16)))


class Positions(nn.Module):
    """Positions without an axis of samples, and a function of none, beside what is probed."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(9, 6), nn.Embedding(5, 6)
        self.rotary, self.unused = nn.Identity(), nn.LayerNorm(6)
        self.body, self.head = nn.Linear(6, 6), nn.Linear(30, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = self.places(torch.arange(x.shape[1]))
        angles = self.rotary(torch.arange(x.shape[1])[:, None].float())
        return self.head(self.body(self.words(x) + places + angles).flatten(1))


def test_nothing_is_said_of_positions_and_norms_that_nobody_asked_for() -> None:
    tokens, labels = torch.randint(0, 9, (60, 5)), torch.randint(0, 3, (60,))
    probe_set = pf.ProbeSet.from_tensors(tokens[:40], labels[:40], tokens[40:], labels[40:])
    model = Positions().eval()
    with no_warnings():
        scores = pf.probe(model, probe_set)
    assert scores.layers == ["words", "body", "head"]
    with pytest.raises(pf.PhasefastError, match=r"layer 'places': .* got shape \(5, 6\) for 7 samples"):
        pf.probe(model, probe_set, layers=["places", "body"])
    with pytest.raises(pf.PhasefastError, match="layer 'unused': its forward hook never fired"):
        pf.probe(model, probe_set, layers=["unused", "body"])


class Words(Positions):
    """Whose words, which samples have, are looked up one behind the other, or without the module."""

    def __init__(self, calls: bool) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.words(x.flatten()) if self.calls else nn.functional.embedding(x.flatten(), self.words.weight)
        return self.head(self.body(flat.view(*x.shape, -1)).flatten(1))


@pytest.mark.parametrize(("calls", "said"), [(True, r"got shape \(35, 6\)"), (False, r"\['words', 'places'\], whose")])
def test_a_table_that_samples_are_looked_up_in_is_missed(calls: bool, said: str) -> None:
    tokens, labels = torch.randint(0, 9, (60, 5)), torch.randint(0, 3, (60,))
    probe_set = pf.ProbeSet.from_tensors(tokens[:40], labels[:40], tokens[40:], labels[40:])
    with pytest.warns(RuntimeWarning, match=said):
        assert pf.probe(Words(calls).eval(), probe_set).layers == ["body", "head"]
    tied = Words(calls=False).eval()
    tied.again, tied.places = nn.Embedding(9, 6), nn.Identity()  # type: ignore[assignment]
    tied.again.weight = tied.words.weight
    with no_warnings():
        pf.probe(tied, probe_set)
