"""Images as sequences of patches: blocks with tokens of their own, and maps of as many places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.data.token_rows import TokensOfBatch, as_tokens
from phasefast.errors import LayerError

SIDE, PATCH, PLACES = 12, 4, 9


class Vision(nn.Module):
    """Of patches: folds them, and gives tokens after ``own`` ones, maps, and logits of places."""

    def __init__(self, own: int = 1, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, PATCH, PATCH)
        self.own = nn.Parameter(torch.randn(1, own, width))
        self.block, self.last, self.head = nn.Linear(width, 5), nn.Identity(), nn.Conv2d(width, 2, 1)

    def forward(self, patches: Tensor) -> Tensor:
        images = nn.functional.fold(patches.mT, SIDE, PATCH, stride=PATCH)
        maps = torch.tanh(self.embed(images))
        self.block(torch.cat([self.own.expand(len(maps), -1, -1), maps.flatten(2).mT], 1))
        self.last(maps.movedim(1, 3))
        logits: Tensor = self.head(maps)
        return logits


def patches(count: int, seed: int) -> tuple[Tensor, Tensor]:
    images = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    found = nn.functional.unfold(images, PATCH, stride=PATCH).mT
    return found, (found.mean(2) > 0).long()


@pytest.fixture
def model() -> Vision:
    torch.manual_seed(0)
    return Vision()


@pytest.fixture
def probe_set() -> pf.ProbeSet:
    return pf.ProbeSet(*patches(80, 1), *patches(40, 2))


def test_rows_of_tokens_and_maps_are_those_of_their_places(model: Vision, probe_set: pf.ProbeSet) -> None:
    how: dict[str, Any] = {"alphas": [1e-3], "targets": ["input", "label"]}
    layers = ["embed", "block", "last"]
    with pytest.warns(
        RuntimeWarning, match="layers \\['block'\\] have more tokens than the 9 of the input, 'block' 1 more"
    ):
        found = pf.probe(model, probe_set, tokens="each", layers=layers, **how)
    kept: dict[str, Tensor] = {}
    model.embed.register_forward_hook(lambda module, args, out: kept.update(embed=out.flatten(2).mT))
    model.block.register_forward_hook(lambda module, args, out: kept.update(block=out[:, 1:]))
    model.last.register_forward_hook(lambda module, args, out: kept.update(last=out.flatten(1, 2)))
    rows = []
    for inputs in (probe_set.fit_inputs, probe_set.heldout_inputs):
        model(inputs)
        rows.append({name: out.detach().flatten(0, 1) for name, out in kept.items()})
    for layer in layers:
        alone = nn.Sequential(nn.Identity())
        flat = [part.flatten(0, 1) for part in (probe_set.fit_inputs, probe_set.heldout_inputs)]
        labels = {"y": (probe_set.fit_labels.flatten(), probe_set.heldout_labels.flatten())}  # type: ignore[union-attr]
        pixels = {"x": (flat[0], flat[1])}
        fit_values, heldout_values = ({name: both[i] for name, both in {**labels, **pixels}.items()} for i in (0, 1))
        samples = pf.ProbeSet(rows[0][layer], None, rows[1][layer], None, fit_values, heldout_values)
        expected = pf.probe(alone, samples, layers="0", targets=["x", "y"], alphas=[1e-3])
        for target, same, metric in (("input", "x", "fvu"), ("label", "y", "accuracy")):
            one = found.value(layer=layer, target=target, metric=metric, split="heldout")
            other = expected.value(layer="0", target=same, metric=metric, split="heldout")
            assert one == pytest.approx(other, rel=1e-5), (layer, target)


def test_logits_of_places_are_the_models_own_answers(model: Vision, probe_set: pf.ProbeSet) -> None:
    scores = pf.probe(model, probe_set, tokens="each", layers="embed", targets="label")
    logits, labels = model(probe_set.heldout_inputs).flatten(2), probe_set.heldout_labels
    assert labels is not None
    value = {"layer": "model", "split": "heldout"}
    expected = nn.functional.cross_entropy(logits, labels)
    assert scores.value(metric="loss", **value) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert scores.value(metric="accuracy", **value) == pytest.approx(
        float((logits.argmax(1) == labels).double().mean())
    )


def test_positions_that_padding_adds_are_not_the_models_own() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.conv = nn.Linear(4, 4), nn.Conv1d(4, PLACES + 2, 3, padding=2)  # 2 positions more

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(self.mix(x).mT)[:, :, :PLACES]
            return out

    x = torch.randn(60, PLACES, 4)
    probe_set = pf.ProbeSet(x[:40], None, x[40:], None)
    assert pf.probe(Padded(), probe_set, tokens="each", layers="mix").layers == ["mix"]
    with pytest.raises(LayerError, match="'conv': expected an output for each of the 9 positions"):
        pf.probe(Padded(), probe_set, tokens="each", layers="conv")


def test_as_wide_as_long_tokens_of_the_model_are_told(probe_set: pf.ProbeSet) -> None:
    model = Vision()
    model.block = nn.Linear(6, PLACES)
    with pytest.warns(RuntimeWarning, match="'block' 1 more: the first ones are taken"):
        pf.probe(model, probe_set, tokens="each", layers="block")


def test_many_more_tokens_are_not_the_models_own(probe_set: pf.ProbeSet) -> None:
    for own in (16, 17):
        model = Vision(own)
        if own == 16:
            with pytest.warns(RuntimeWarning, match="'block' 16"):
                assert pf.probe(model, probe_set, tokens="each", layers="block").layers == ["block"]
        else:
            with pytest.raises(LayerError, match="'block': expected an output for each of the 9 positions"):
                pf.probe(model, probe_set, tokens="each", layers="block")


def test_as_many_features_as_places_are_told_apart_or_refused(probe_set: pf.ProbeSet) -> None:
    model = Vision(width=PLACES)
    model.embed.register_forward_hook(lambda module, args, out: model.act(out))
    model.act = nn.ReLU()
    assert pf.probe(model, probe_set, tokens="each", layers="embed", targets="label").layers == ["embed"]
    with pytest.raises(
        LayerError,
        match=r"layer 'act': it is unclear whether its output \(7, 9, 3, 3\) is a map of the 9 positions; probe a",
    ):
        pf.probe(model, probe_set, tokens="each", layers="act", targets="label")


@pytest.mark.parametrize(
    ("module", "shape", "order"),
    [
        (nn.Conv2d(3, 8, 1), (8, 4, 4), "first"),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8)), (8, 4, 4), "first"),
        (nn.ConvTranspose2d(3, 16, 1), (16, 4, 4), "first"),  # as many features as places
        (nn.ReLU(), (8, 4, 4), "first"),
        (nn.ReLU(), (4, 4, 8), "last"),
        (nn.Linear(3, 8), (2, 8, 8), "last"),  # a wide map, which may as well have 2 features on 8 x 8 places
        (nn.LayerNorm(2), (2, 8, 2), "last"),  # as many features as rows
        (nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4)), (4, 4, 4), "last"),
        (nn.Linear(3, 5), (16, 2, 5), "positions"),
        (nn.Conv2d(3, 8, 1), (4, 4, 3), None),  # f h' is the number of places, of a map of 12
        (nn.Conv2d(3, 16, 1), (16, 2, 2), None),  # as many channels as places, of a map of 4
        (nn.ReLU(), (8, 2, 2), None),  # f h' likewise
        (nn.ReLU(), (16, 2, 2), None),
        (nn.ReLU(), (4, 4, 4), None),
        (nn.ReLU(), (2, 8, 2), None),
        (nn.LayerNorm([8, 2, 2]), (8, 2, 2), None),
        (nn.Identity(), (16, 3, 5), None),
        (nn.ReLU(), (6, 5, 5), None),  # another number of places
    ],
    ids=str,
)
def test_maps_are_read_in_one_way_or_not_at_all(module: nn.Module, shape: tuple[int, ...], order: str | None) -> None:
    output, tokens = torch.randn(2, *shape), TokensOfBatch(16)
    ways = {"first": lambda: output.flatten(2).mT, "last": lambda: output.flatten(1, 2), "positions": lambda: output}
    if order is None:
        with pytest.raises(LayerError, match="layer 'a'"):
            as_tokens("a", module, output, tokens)
    else:
        assert as_tokens("a", module, output, tokens).equal(ways[order]().reshape(2 * 16, -1))


@pytest.mark.parametrize(
    ("module", "more"),
    [
        (nn.Linear(3, 16), 2),
        (nn.TransformerEncoderLayer(16, 2), 2),
        (nn.ReLU(), None),  # after a convolution, 18 features of 16 positions
        (nn.Sequential(nn.Conv1d(3, 18, 1), nn.ReLU()), 0),
        (nn.Sequential(nn.Flatten(2), nn.ReLU()), None),
        (nn.Conv1d(3, 18, 1), 0),
    ],
    ids=str,
)
def test_features_of_series_are_no_tokens_of_the_models_own(module: nn.Module, more: int | None) -> None:
    output = torch.randn(2, 18, 16)
    if more is None:
        with pytest.raises(LayerError, match="expected an output for each of the 16 positions"):
            as_tokens("a", module, output, TokensOfBatch(16))
    else:
        rows = output[:, more:] if more else output.mT
        assert as_tokens("a", module, output, TokensOfBatch(16)).equal(rows.flatten(0, 1))


def test_answers_for_more_tokens_than_there_are_have_no_rows(probe_set: pf.ProbeSet) -> None:
    class Classified(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(48, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.nn.functional.pad(self.embed(x), (0, 0, 0, 1)))  # its own comes last
            return logits

    with pytest.warns(RuntimeWarning, match="no rows of layer 'model'"):
        scores = pf.probe(Classified(), probe_set, tokens="each", layers="embed", targets="label")
    assert not len(scores.filter(layer="model"))


class Turned(nn.LayerNorm):
    """Of the features of maps [b, f, h, w], which it turns and turns back."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, 3)).movedim(3, 1)


class Unflattened(nn.Module):
    """Tokens to maps [b, f, h, w]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.linear(x).mT.unflatten(2, (4, 4))
        return maps


class Block(nn.Module):
    """Of maps [b, h, w, f]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x)
        return x + normed


def test_maps_of_blocks_that_have_features_last_need_not_be_square() -> None:
    for rows, columns in ((2, 8), (4, 4)):
        output = torch.randn(3, rows, columns, 6)
        assert as_tokens("a", Block(), output, TokensOfBatch(16)).equal(output.flatten(0, 2))
    with pytest.raises(LayerError, match=r"it is unclear whether its output .* is a map of the 16 positions"):
        as_tokens("a", Block(), torch.randn(3, 2, 8, 5), TokensOfBatch(16))


@pytest.mark.parametrize("module", [Turned(4), Unflattened()], ids=["norm", "linear"])
def test_modules_of_ones_own_may_turn_what_their_parts_give(module: nn.Module) -> None:
    output = torch.randn(2, 8, 4, 4)
    assert as_tokens("a", module, output, TokensOfBatch(16)).equal(output.flatten(2).mT.flatten(0, 1))
    for shape in ((4, 4, 4), (16, 4, 4), (2, 8, 2)):
        with pytest.raises(LayerError, match=r"it is unclear whether its output .* is a map of the 16 positions"):
            as_tokens("a", module, torch.randn(2, *shape), TokensOfBatch(16))
