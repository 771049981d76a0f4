"""Language models: outputs of several shapes, their own accuracy, targets made of ids."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.data.batches import first_rows
from phasefast.errors import DataError, LayerError
from tests.quiet import no_warnings

VOCABULARY, LENGTH = 9, 6
IDS = torch.randint(1, VOCABULARY, (150, LENGTH), generator=torch.Generator().manual_seed(0))


class Heads(nn.Module):
    """Turns [b, t, f] into heads [b, t, 2, f / 2]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (2, -1))


class Language(nn.Module):
    """Embeds ids and predicts the next; its heads are [b, t, h, f]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.heads, self.out = nn.Embedding(VOCABULARY, 8), Heads(), nn.Linear(8, VOCABULARY)
        self.rare = nn.Linear(8, 8)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.heads(self.embed(ids)).flatten(2).cumsum(1)
        return self.out(self.rare(x) if bool((ids == 1).all(1).any()) else x)


@pytest.fixture
def language() -> Language:
    torch.manual_seed(0)
    return Language()


@pytest.fixture
def samples() -> pf.ProbeSet:
    following = IDS[:, -1]  # as good a label as any
    return pf.ProbeSet.from_tensors(IDS[:100], following[:100], IDS[100:], following[100:])


def test_layers_that_are_kept_whole_are_told(language: Language, samples: pf.ProbeSet) -> None:
    told = (
        r"those of \['heads'\] have other shapes, such as \(\d+, 6, 2, 4\), .* to leave them out, have \['!heads'\] in"
    )
    with pytest.warns(RuntimeWarning, match=told):
        scores = pf.probe(language, samples, layers=["embed", "heads"], tokens="last")
    dims = dict(zip(*(scores.to_arrow().column(name).to_pylist() for name in ("layer", "dim")), strict=True))
    assert (dims["embed"], dims["heads"]) == (8, 48)


@pytest.mark.parametrize("tokens", ["cls", "last"])
def test_the_models_own_accuracy_is_that_of_the_token(language: Language, samples: pf.ProbeSet, tokens: str) -> None:
    scores = pf.probe(language, samples, layers=["embed"], tokens=tokens, targets=[pf.Label(VOCABULARY)])  # type: ignore[arg-type]
    with torch.no_grad():
        logits = language(samples.heldout_inputs)[:, 0 if tokens == "cls" else -1]
    assert samples.heldout_labels is not None
    hits = (logits.argmax(1) == samples.heldout_labels).double().mean()
    assert scores.value(layer="model", metric="accuracy", split="heldout") == pytest.approx(float(hits))


def test_a_layer_that_some_batches_call_is_left_out(language: Language, samples: pf.ProbeSet) -> None:
    inputs = samples.fit_inputs.clone()
    inputs[0] = 1  # among the first samples, so that the layer is found
    given = pf.ProbeSet(inputs, samples.fit_labels, samples.heldout_inputs, samples.heldout_labels)
    targets = [pf.Label(VOCABULARY)]
    with pytest.warns(
        RuntimeWarning, match="left out 1 at step 0: layer 'rare': its hook fired for 25 of 100 fit rows"
    ):
        scores = pf.probe(language, given, tokens="last", targets=targets, batch_size=25)
    assert "rare" not in scores.layers
    assert "out" in scores.layers
    for layers in (["rare"], ["rare", "out"]):
        with pytest.raises(LayerError, match="layer 'rare': its hook fired for 25 of 100 fit rows"):
            pf.probe(language, given, layers=layers, tokens="last", targets=targets, batch_size=25)


@pytest.mark.parametrize(("shape", "count"), [((6,), 7), ((7, 3), 5), ((3, 7, 5), 11)])
def test_layers_are_found_with_other_numbers_than_samples_have(shape: tuple[int, ...], count: int) -> None:
    expected = [(0, each) for each in (7, 5, 11, 13) if each not in shape]  # the others where one leaves it unclear
    assert first_rows(torch.zeros(100, *shape)) == expected
    assert expected[0] == (0, count)
    assert first_rows(torch.zeros(6, 5)) == [(0, 6)]  # of fewer samples, all


def test_a_function_of_the_models_weights_is_told(language: Language, samples: pf.ProbeSet) -> None:
    def embedded(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return language.embed(ids).flatten(1)

    tracker = pf.PhaseTracker(language, samples, out=None, layers=["out"], targets=[pf.Function(embedded), "label"])
    tracker.step(0)
    with torch.no_grad():
        language.embed.weight.add_(1.0)
    with pytest.warns(RuntimeWarning, match=r"targets \['embedded'\]: their functions give other values"):
        tracker.step(1)
    with no_warnings():
        tracker.step(2)


def test_functions_are_asked_again_only_as_far_as_they_can_be(language: Language, samples: pf.ProbeSet) -> None:
    calls: list[int] = []

    def best(ids: Tensor) -> Tensor:  # of a batch that is large enough
        calls.append(len(ids))
        return (ids[:, 0] >= ids[:, 0].topk(20).values.min()).float()

    def rounded(ids: Tensor) -> Tensor:
        return ids[:, :2].float() * (1 + 1e-7 * len(calls)) + 1e-7 * len(calls)

    targets = [pf.Function(best), pf.Function(rounded)]
    tracker = pf.PhaseTracker(language, samples, out=None, layers=["out"], targets=targets)
    with no_warnings():
        for step in (0, 1, 2, 4, 8):
            tracker.step(step)
            with torch.no_grad():
                language.out.weight.add_(1)
    assert calls == [100, 50, 8, 8, 8]


def test_integers_of_functions_are_numbers_and_told(language: Language, samples: pf.ProbeSet) -> None:
    def first(ids: Tensor) -> Tensor:
        return ids[:, 0]

    with pytest.warns(RuntimeWarning, match="target 'first': integers are decoded as numbers"):
        pf.probe(language, samples, layers=["out"], targets=[pf.Function(first)])


def test_classes_that_no_fit_sample_has_are_told(language: Language) -> None:
    labels = torch.arange(150) // 20
    samples = pf.ProbeSet.from_tensors(IDS[:100], labels[:100], IDS[100:], labels[100:])
    with pytest.warns(RuntimeWarning, match="'label': 50 of 50 held-out samples are of classes that no fit sample"):
        pf.probe(language, samples, layers=["out"])


def test_ids_cannot_be_decoded_as_they_are(language: Language, samples: pf.ProbeSet) -> None:
    with pytest.raises(DataError, match=r"leave this target out, and decode a phasefast\.Function of ids"):
        pf.probe(language, samples, layers=["out"], targets=["input"])


def test_samples_know_which_they_are() -> None:
    inputs, labels = torch.randn(40, 3), torch.arange(40)
    given = pf.ProbeSet.from_tensors(inputs[:30], labels[:30], inputs[30:], labels[30:])
    assert given.fit_rows is not None
    assert torch.equal(given.fit_inputs, inputs[given.fit_rows])
    data = [(inputs[i], int(labels[i])) for i in range(40)]
    drawn = pf.ProbeSet.from_dataset(data[:30], data[30:], n_fit=20, n_heldout=5)
    assert drawn.heldout_rows is not None
    assert torch.equal(drawn.heldout_inputs, inputs[30:][drawn.heldout_rows])
    assert torch.equal(drawn.fit_inputs, inputs[drawn.fit_rows])


def test_rows_of_nothing_but_padding_are_those_of_the_user(language: Language) -> None:
    ids = IDS.clone()
    ids[17] = 0
    samples = pf.ProbeSet.from_tensors(ids[:100], None, ids[100:], None, values={"v": (ids[:100, 0], ids[100:, 0])})
    with pytest.raises(DataError, match="row 17 holds nothing else"):
        pf.probe(language, samples, layers=["out"], tokens="last", padding=0)


def test_a_large_vocabulary_takes_columns_for_the_words_there_are() -> None:
    """As if they were numbered anew; what the fit rows lack is an error, also of the model's own outputs."""
    many, few = 40_000, 30
    words = torch.randperm(many, generator=torch.Generator().manual_seed(0))[:few]
    torch.manual_seed(0)
    small = nn.Sequential(nn.Embedding(few, 12), nn.Linear(12, few))
    large = nn.Sequential(nn.Embedding(many, 12), nn.Linear(12, many))
    with torch.no_grad():
        large[0].weight[words] = small[0].weight
        large[1].weight.zero_()
        large[1].bias.fill_(-1e9)
        large[1].weight[words], large[1].bias[words] = small[1].weight, small[1].bias
    fit, held = (torch.randint(few, (count, 4), generator=torch.Generator().manual_seed(count)) for count in (50, 30))
    fit[fit == 3] = 4  # which held-out sequences have
    found = {}
    for name, model, own in (("small", small, torch.arange(few)), ("large", large, words)):
        given = own[fit], own[fit.flip(1)], own[held], own[held.flip(1)]
        token = pf.Function(lambda x: x, "classes", "token")
        for classifier in ("ridge", "lda"):
            options: dict[str, Any] = {"targets": [pf.Label(len(model[1].bias)), token], "classifier": classifier}
            with pytest.warns(RuntimeWarning, match="are of classes that no fit sample has"):
                scores = pf.probe(model, pf.ProbeSet(*given), tokens="each", alphas=[1e-2], layers="0", **options)
            table = scores.to_pandas()
            found[name, classifier] = table[["layer", "target", "split", "metric", "value", "n", "baseline"]]
            assert classifier == "ridge" or scores.value(layer="0", target="token", split="fit") == 1
    for classifier in ("ridge", "lda"):
        one, other = (found[name, classifier].to_numpy().tolist() for name in ("small", "large"))
        for row, expected in zip(one, other, strict=True):
            assert row[:4] == expected[:4]
            assert row[4:] == pytest.approx(expected[4:], rel=1e-5, nan_ok=True), row


def test_as_many_classes_as_samples_are_numbers() -> None:
    inputs = torch.randn(60_000, 1, 1)
    target = pf.Function(lambda x: (x[:, 0, 0] * 1e5 + 5e5).long(), "classes", "n")
    with pytest.raises(DataError, match=r"expected 20000 classes among the samples at most, got 5\d+; .* kind='regr"):
        pf.probe(nn.Sequential(nn.Linear(1, 1)), pf.ProbeSet(inputs, None, inputs[:9], None), targets=[target])
