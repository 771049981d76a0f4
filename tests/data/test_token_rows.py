"""Tokens that are decoded one by one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.data.token_rows import TokenRows
from phasefast.engine import Engine
from phasefast.errors import ArgumentError, DataError, LayerError, StoreError
from phasefast.results.losses import losses_of

WORDS, LENGTH, WIDTH = 6, 5, 7


class EachAlone(nn.Module):
    """Does the same to each token, so that tokens might as well be samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.out = nn.Linear(WIDTH, 9), nn.Tanh(), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.first(x)))


class Causal(nn.Module):
    """Embeds ids, mixes them with those before, and predicts the next."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(WORDS, 8), nn.Linear(8, 8)
        self.conv, self.out = nn.Conv1d(8, 4, 3, padding=1), nn.Linear(8, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.mix(self.embed(ids).cumsum(1))
        self.conv(x.mT)
        return self.out(x)


def vectors(count: int, seed: int, ragged: bool) -> tuple[Tensor, Tensor]:
    """Sequences of vectors, which end in padding of 0 where they are ragged, and a label for each token."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, LENGTH, WIDTH, generator=generator)
    labels = (inputs[:, :, 0] > 0).long() + (inputs[:, :, 1] > 1).long()
    if ragged:
        lengths = torch.randint(1, LENGTH + 1, (count, 1), generator=generator)
        inputs *= (torch.arange(LENGTH) < lengths)[:, :, None]
    return inputs, labels


def both_ways(ragged: bool, **options: Any) -> tuple[pf.Scores, pf.Scores, TokenRows]:
    """Scores of tokens, of the same tokens as samples, and which they are."""
    torch.manual_seed(0)
    model, (fit, labels), (held, held_labels) = EachAlone(), vectors(60, 1, ragged), vectors(40, 2, ragged)
    if ragged:
        labels[:, 0] = torch.where(fit[:, 1].any(1), -100, labels[:, 0])  # but where it is the only one
    padding = {"padding": 0} if ragged else {}
    sequences = pf.ProbeSet(fit, labels, held, held_labels)
    tokens, of_held = (TokenRows.of("fit", *own, 0 if ragged else None) for own in ((fit, labels), (held, held_labels)))
    alone = pf.ProbeSet(*map(tokens.rows, (fit, labels)), *map(of_held.rows, (held, held_labels)))
    targets = [pf.Input(), pf.Label(3), pf.Function(squares, name="squares"), pf.Function(sign, "classes")]
    of_tokens = pf.probe(model, sequences, tokens="each", targets=targets, **padding, **options)
    return of_tokens, pf.probe(model, alone, targets=targets, **options), of_held


def squares(x: Tensor) -> Tensor:
    return x.square().sum(-1)


def sign(x: Tensor) -> Tensor:
    return (x[..., 2] > 0).long()


@pytest.mark.parametrize(
    "options", [{"selection": "gcv"}, {"selection": "loo"}, {"alphas": [1e-3], "route": "dual"}], ids=str
)
@pytest.mark.parametrize("ragged", [False, True])
def test_tokens_are_decoded_as_samples_are(ragged: bool, options: dict[str, Any]) -> None:
    found, expected, _ = both_ways(ragged, **options)
    one, other = (scores.to_pandas() for scores in (found, expected))
    for column in ("layer", "target", "split", "metric", "n", "rank"):
        assert one[column].astype(str).tolist() == other[column].astype(str).tolist(), column
    for column in ("value", "alpha", "baseline", "dof"):
        rtol = 2e-5 if column == "dof" else 2e-6
        np.testing.assert_allclose(one[column], other[column], rtol=rtol, atol=1e-7, err_msg=column)
    assert one["n"].max() == len(TokenRows.of("fit", *vectors(60, 1, ragged), 0 if ragged else None)) - (
        int(vectors(60, 1, ragged)[0][:, 1].any(1).sum()) if ragged else 0
    )


@pytest.mark.parametrize("ragged", [False, True])
def test_samples_of_scores_are_sequences(ragged: bool) -> None:
    found, expected, rows = both_ways(ragged, selection="gcv")
    counts = rows.real.sum(1).numpy()
    for layer, target, metric in (("act", "input", "fvu"), ("act", "label", "accuracy"), ("out", "sign", "accuracy")):
        _, (own,) = found.samples(layer, target, metric)
        _, (single,) = expected.samples(layer, target, metric)
        sums = [part.sum() for part in np.split(single.astype(np.float64), rows.edges[1:-1])]
        np.testing.assert_allclose(own, np.array(sums) / counts.mean(), rtol=1e-5, atol=1e-6)
        assert own.mean() == pytest.approx(found.curve(layer, target, metric)[1][0], rel=1e-5)
        losses, of_single = (losses_of(scores, layer, target, metric) for scores in (found, expected))
        np.testing.assert_allclose(losses.samples.mean(), of_single.samples.mean(), rtol=1e-5)
        if metric == "fvu":
            assert losses.baseline is not None
            assert losses.baseline.mean() == pytest.approx(1, rel=1e-5)
        elif ragged:  # no sequence errs more often than it has tokens
            assert losses.baseline is not None
            np.testing.assert_allclose(losses.baseline, counts / counts.mean(), rtol=1e-6)
            assert (losses.samples > -1e-6).all()
            assert (losses.samples <= losses.baseline + 1e-6).all()
        else:
            assert losses.baseline is None


@pytest.fixture
def causal() -> Causal:
    torch.manual_seed(0)
    return Causal()


def ids(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sequences, and what comes next; of the last token nothing."""
    drawn = torch.randint(WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return drawn, torch.cat([drawn[:, 1:], torch.full((count, 1), -100)], 1)


@pytest.fixture
def probe_set() -> pf.ProbeSet:
    kinds = {"kind": tuple((ids(count, seed)[0] % 2) for count, seed in ((90, 3), (50, 4)))}
    length = {"sum": tuple(ids(count, seed)[0].sum(1).float() for count, seed in ((90, 3), (50, 4)))}
    return pf.ProbeSet.from_tensors(*ids(90, 3), *ids(50, 4), values={**kinds, **length})


def test_decoders_of_tokens_are_ridge_regression(causal: Causal, probe_set: pf.ProbeSet) -> None:
    """Against normal equations in float64, of activations that are hooked here."""
    before = pf.Function(lambda x: x.roll(1, 1), "classes", "before", num_classes=WORDS)
    token = pf.Function(lambda x: x, "classes", "token", num_classes=WORDS)
    targets = [token, before, "kind", "sum", "label"]
    scores = pf.probe(causal, probe_set, tokens="each", layers=["mix", "conv"], targets=targets, alphas=[1e-2])
    kept: dict[str, Tensor] = {}
    causal.mix.register_forward_hook(lambda module, args, out: kept.update(mix=out))
    causal.conv.register_forward_hook(lambda module, args, out: kept.update(conv=out.mT))
    rows: dict[str, dict[str, Tensor]] = {}
    for split, inputs in (("fit", probe_set.fit_inputs), ("heldout", probe_set.heldout_inputs)):
        logits = causal(inputs).detach()
        rows[split] = {name: out.detach()[:, :-1].flatten(0, 1).double() for name, out in kept.items()}
        rows[split]["logits"] = logits[:, :-1].flatten(0, 1)
        for name, own in {
            "token": inputs,
            "before": inputs.roll(1, 1),
            "kind": inputs % 2,
            "label": inputs.roll(-1, 1),
            "sum": inputs.sum(1, keepdim=True).expand_as(inputs),
        }.items():
            rows[split][name] = own[:, :-1].flatten()
    for layer in ("mix", "conv"):
        x, held = rows["fit"][layer], rows["heldout"][layer]
        mean = x.mean(0)
        gram = (x - mean).T @ (x - mean)
        gram += 1e-2 * gram.diagonal().mean() * torch.eye(len(gram))
        for name in ("token", "before", "kind", "label", "sum"):
            t, expected = rows["fit"][name], rows["heldout"][name]
            columns = t.double()[:, None] if name == "sum" else nn.functional.one_hot(t).double()
            weights = torch.linalg.solve(gram, (x - mean).T @ (columns - columns.mean(0)))
            found = (held - mean) @ weights + columns.mean(0)
            if name == "sum":
                errors = (found[:, 0] - expected).square().sum()
                value = float(errors / (expected - columns.mean()).square().sum())
                assert scores.curve(layer, name, "fvu")[1][0] == pytest.approx(value, rel=1e-5)
            else:
                value = float((found.argmax(1) == expected).double().mean())
                assert scores.curve(layer, name, "accuracy")[1][0] == pytest.approx(value, abs=1e-9)
    own = float((rows["heldout"]["logits"].argmax(1) == rows["heldout"]["label"]).double().mean())
    assert scores.curve("model", "label", "accuracy")[1][0] == pytest.approx(own, abs=1e-9)
    assert scores.curve("mix", "token", "accuracy")[1][0] < 1
    assert set(scores.values_of("n")) == {90 * 4, 50 * 4}


def test_folds_have_whole_sequences(causal: Causal, probe_set: pf.ProbeSet) -> None:
    engine = Engine(causal, probe_set, tokens="each", targets="label")
    assert engine.targets.folds == tuple(4 * 90 * fold // 5 for fold in range(6))
    chosen = pf.probe(causal, probe_set, tokens="each", targets="label", layers="mix")
    assert chosen.curve("mix", "label", "accuracy")[1][0] > 0


def test_a_model_of_one_output_has_its_own_accuracy_for_sequences(probe_set: pf.ProbeSet) -> None:
    class Pooled(Causal):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids).mean(1)

    labels = probe_set.fit_inputs[:, 0], probe_set.heldout_inputs[:, 0]
    inputs = probe_set.fit_inputs, probe_set.heldout_inputs
    of_sequences = pf.ProbeSet(inputs[0], labels[0], inputs[1], labels[1])
    model = Pooled()
    scores = pf.probe(model, of_sequences, tokens="each", targets="label", layers="mix")
    own = float((model(inputs[1]).argmax(1) == labels[1]).double().mean())
    assert scores.curve("model", "label", "accuracy")[1][0] == pytest.approx(own)
    assert set(scores.filter(layer="model").values_of("n")) == {90, 50}
    assert set(scores.filter(layer="mix").values_of("n")) == {90 * LENGTH, 50 * LENGTH}
    # Of tokens there are labels, but no outputs.
    scores = pf.probe(model, probe_set, tokens="each", targets="label", layers="mix")
    assert "model" not in scores.values_of("layer")


def test_runs_of_tokens_have_phases_and_a_best_step(causal: Causal, probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    states = {}
    for step in range(9):
        states[step] = {name: tensor.clone() for name, tensor in causal.state_dict().items()}
        with torch.no_grad():
            causal.mix.weight.add_(0.3 * torch.randn(8, 8, generator=torch.Generator().manual_seed(step)))
    options: dict[str, Any] = {"tokens": "each", "layers": ["mix", "conv"], "targets": ["label", "sum"]}
    scores = pf.sweep(causal, states, probe_set, out=tmp_path, **options)
    assert len(pf.detect_phases(scores)) == 4
    assert pf.best_checkpoint(scores).metric == "accuracy"
    assert len(pf.sweep(causal, states, probe_set, out=tmp_path, **options)) == len(scores)  # measured already
    others = probe_set.fit_labels.clone()  # type: ignore[union-attr]
    others[0, 0] = -100
    changed = pf.ProbeSet(
        probe_set.fit_inputs,
        others,
        probe_set.heldout_inputs,
        probe_set.heldout_labels,
        probe_set.fit_values,
        probe_set.heldout_values,
    )
    with pytest.raises(StoreError, match=r"which tokens count \(padding=, or labels of -100\)"):
        pf.sweep(causal, states, changed, out=tmp_path, **options)


@pytest.mark.parametrize("ragged", [False, True])
def test_tokens_are_given_back(ragged: bool) -> None:
    torch.manual_seed(0)
    model, (fit, _), (held, _) = EachAlone(), vectors(60, 1, ragged), vectors(40, 2, ragged)
    padding, same = {"padding": 0} if ragged else {}, {"alphas": [0.01]}
    found = pf.reconstruct(model, pf.ProbeSet(fit, None, held, None), samples=[3, 7], tokens="each", **padding, **same)
    real = held[[3, 7]].any(2) if ragged else torch.ones(2, LENGTH, dtype=torch.bool)
    of_fit = TokenRows.of("fit", fit, None, 0 if ragged else None).rows(fit)
    of_held = TokenRows.of("heldout", held, None, 0 if ragged else None).rows(held)
    alone = pf.reconstruct(model, pf.ProbeSet(of_fit, None, of_held, None), samples=len(of_held), **same)
    rows = TokenRows.of("heldout", held, None, 0 if ragged else None)
    for layer in ("first", "act", "out"):
        assert found[0, layer].shape == (2, LENGTH, WIDTH)
        expected = alone[0, layer][rows.rows_of([3, 7])]
        torch.testing.assert_close(found[0, layer][real], expected, rtol=1e-4, atol=1e-5)
        assert not found[0, layer][~real].any()


def test_a_data_set_may_give_labels_of_tokens(tmp_path: Path) -> None:
    inputs, labels = ids(40, 5)
    data = [(x, y, {"kind": x % 2}) for x, y in zip(inputs, labels, strict=True)]
    made = pf.ProbeSet.from_dataset(data[20:], data[:20])
    assert made.fit_rows is not None
    assert made.fit_labels is not None
    assert torch.equal(made.fit_labels, labels[20:][made.fit_rows])
    assert made.target("kind", "classes").kind == "classes"
    made.save(tmp_path / "probe_set.pt")
    assert pf.ProbeSet.load(tmp_path / "probe_set.pt").digest == made.digest


def test_a_plan_counts_tokens(causal: Causal, probe_set: pf.ProbeSet) -> None:
    one, other = (pf.plan(EachAlone(), (LENGTH, WIDTH), fit, 20 * fit, layers="act", **options) for fit, options in (
        (100, {"tokens": "each"}),
        (500, {"tokens": "each"}),
    ))  # fmt: skip
    assert one[0].layer.dim == 9
    assert other[0].cost.work > 4 * one[0].cost.work
    of_set = pf.plan(causal, probe_set, layers=["embed", "mix"], tokens="each")
    engine = Engine(causal, probe_set, layers=["embed", "mix"], tokens="each")
    assert [each.cost for each in of_set] == [engine.method.cost(c, engine.targets) for c in engine.activations()]
    with pytest.raises(ArgumentError, match=r"tokens='each': expected a sample \[t\] or \[t, c\], got \(3, 8, 8\)"):
        pf.plan(causal, (3, 8, 8), 10, 10, tokens="each")


def test_what_has_no_tokens_is_named(causal: Causal, probe_set: pf.ProbeSet) -> None:
    class Pooling(Causal):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AdaptiveAvgPool1d(1)

        def forward(self, ids: Tensor) -> Tensor:
            self.pool(self.embed(ids).mT)
            return super().forward(ids)

    words = r"layer 'pool': expected an output for each of the 5 positions .*, got shape \(\d+, 8, 1\); leave this"
    with pytest.raises(LayerError, match=words):
        pf.probe(Pooling(), probe_set, tokens="each", layers=["embed", "pool"])
    with pytest.warns(RuntimeWarning, match=f"layers: left out 1: {words}"):
        scores = pf.probe(Pooling(), probe_set, tokens="each")
    assert scores.layers == ["embed", "embed:1", "mix", "conv", "out"]
    with pytest.raises(DataError, match=r"target 'label': labels \(90, 5\) belong to tokens: give tokens='each'"):
        pf.probe(causal, probe_set, targets="label")
    with pytest.raises(DataError, match=r"target 'kind': expected \[b\] integers .* tokens: give tokens='each'"):
        pf.probe(causal, probe_set, targets=probe_set.target("kind", "classes"))
    with pytest.warns(RuntimeWarning, match=r"integers \[n, 5\] are decoded as numbers"):
        assert pf.probe(causal, probe_set, targets="kind", layers="mix").has_curve("mix", "kind", "fvu")
    inputs, held = probe_set.fit_inputs, probe_set.heldout_inputs
    fit_times, times = ({"ms": torch.arange(each.numel()).reshape(each.shape)} for each in (inputs, held))
    with pytest.warns(RuntimeWarning, match="'ms': 450 different integers in 450 fit tokens are decoded as classes"):
        pf.ProbeSet(inputs, None, held, None, fit_times, times).target("ms", each=True)
    images = pf.ProbeSet(torch.randn(9, 3, 4, 4), None, torch.randn(9, 3, 4, 4), None)
    with pytest.raises(DataError, match=r"expected sequences \[n, t\] or \[n, t, c\] for tokens='each', got \(9, 3"):
        pf.probe(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()), images, tokens="each")
    labels = probe_set.fit_labels.clone()  # type: ignore[union-attr]
    labels[7] = -100
    given = probe_set.fit_inputs, labels, probe_set.heldout_inputs, probe_set.heldout_labels
    bare = pf.ProbeSet.from_tensors(*given)
    with pytest.raises(DataError, match="got none in 1 sequences, first in row 7; leave them out"):
        pf.probe(causal, bare, tokens="each")
    with pytest.raises(DataError, match=r"fit_labels: expected shape \(90,\)"):
        pf.ProbeSet(probe_set.fit_inputs, labels[:, 1:], probe_set.heldout_inputs, probe_set.heldout_labels)


@dataclass(frozen=True)
class Own:
    """A target of ones own: of sequences, or of tokens where its columns have three axes."""

    axes: int
    kind: str = "regression"

    @property
    def name(self) -> str:
        return f"own{self.axes}"

    def columns(self, fit: Any, heldout: Any) -> tuple[Tensor, Tensor]:
        of = {2: lambda x: x[:, 0, :LENGTH], 3: lambda x: x[:, :, :2]}[self.axes]
        return of(fit[0]), of(heldout[0])


def test_columns_of_ones_own_are_of_tokens_where_they_have_three_axes() -> None:
    torch.manual_seed(0)
    model, (fit, _), (held, _) = EachAlone(), vectors(60, 1, False), vectors(40, 2, False)
    targets: Any = [Own(2), Own(3)]
    found = pf.probe(model, pf.ProbeSet(fit, None, held, None), tokens="each", targets=targets, alphas=[1e-3])
    rows, of_held = (TokenRows.of("fit", own, None, None) for own in (fit, held))
    values = {
        "own2": (rows.repeated(fit[:, 0, :LENGTH]), of_held.repeated(held[:, 0, :LENGTH])),
        "own3": (fit[:, :, :2].flatten(0, 1), held[:, :, :2].flatten(0, 1)),
    }
    alone = pf.ProbeSet(
        rows.rows(fit),
        None,
        of_held.rows(held),
        None,
        {name: both[0] for name, both in values.items()},
        {name: both[1] for name, both in values.items()},
    )
    expected = pf.probe(model, alone, targets=list(values), alphas=[1e-3])
    np.testing.assert_allclose(found.to_pandas()["value"], expected.to_pandas()["value"], rtol=1e-5, atol=1e-9)


def test_series_of_one_number_a_step_are_given_back_too() -> None:
    class Series(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(1, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.wide(x[:, :, None])

    inputs = torch.randn(90, LENGTH, generator=torch.Generator().manual_seed(0))
    given = pf.ProbeSet(inputs[:60], (inputs[:60] > 0).long(), inputs[60:], (inputs[60:] > 0).long())
    scores = pf.probe(Series(), given, tokens="each")
    assert scores.value(layer="wide", target="input", metric="fvu", split="heldout") < 1e-6
    found = pf.reconstruct(Series(), given, samples=4, tokens="each", alphas=[1e-6])
    torch.testing.assert_close(found[0, "wide"], inputs[60:64], rtol=1e-3, atol=1e-3)


def test_outputs_of_sequences_are_no_answers_to_labels_of_tokens(causal: Causal) -> None:
    class Pooled(Causal):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids).mean(1)

    inputs = ids(60, 1)[0]
    probe_set = pf.ProbeSet(inputs[:40], inputs[:40], inputs[40:], inputs[40:])
    with pytest.warns(RuntimeWarning, match="no rows of layer 'model': the model's output is for samples, but target"):
        scores = pf.probe(Pooled(), probe_set, tokens="each", layers="mix")
    assert not scores.has_curve("model", "label", "accuracy")
