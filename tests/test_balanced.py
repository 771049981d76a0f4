"""Balanced accuracy: of discriminants of equal prior probability, with all classes counting alike."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.report import plot_phases
from tests.test_cli import invoke

SHARES = torch.tensor([0.9, 0.07, 0.03])


def drawn(count: int, seed: int, features: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(SHARES, count, replacement=True, generator=generator)
    means = torch.randn(3, features, generator=torch.Generator().manual_seed(0))
    return means[labels] + torch.randn(count, features, generator=generator), labels


SPLITS = drawn(900, 1), drawn(600, 2)


@pytest.fixture
def probe_set() -> pf.ProbeSet:
    return pf.ProbeSet(*SPLITS[0], *SPLITS[1])


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Identity(), nn.Linear(10, 3))


def balanced(labels: Tensor, guesses: np.ndarray) -> float:
    return float(np.mean([(guesses[labels.numpy() == each] == each).mean() for each in labels.unique().tolist()]))


@pytest.mark.parametrize("options", [{}, {"route": "dual"}, {"layer_sketch": 9}, {"splits": "heldout"}], ids=str)
def test_it_is_that_of_scikit_learn_with_equal_priors(model: nn.Module, options: dict[str, Any]) -> None:
    discriminant_analysis = pytest.importorskip("sklearn.discriminant_analysis")
    fit, labels, held, held_labels = rows = *SPLITS[0], *SPLITS[1]
    expected = discriminant_analysis.LinearDiscriminantAnalysis(priors=[1 / 3] * 3).fit(fit.numpy(), labels.numpy())
    given: dict[str, Any] = {"classifier": "balanced", "targets": "label", "alphas": [1e-9], "precision": "double"}
    scores = pf.probe(model, pf.ProbeSet(*rows), layers="0", **given, **options)
    for split, x, y in (("fit", fit, labels), ("heldout", held, held_labels)):
        if split == "heldout" or not options:
            found = scores.value(layer="0", metric="balanced_accuracy", split=split)
            assert found == pytest.approx(balanced(y, expected.predict(x.numpy())), abs=0.03 if options else 1e-9)
    assert not scores.has_curve("0", "label", "accuracy")
    own = scores.value(layer="model", metric="balanced_accuracy", split="heldout")
    assert own == pytest.approx(balanced(held_labels, model(held).argmax(1).numpy()))


def test_it_is_nearly_the_same_of_a_sketch() -> None:
    noise = torch.Generator().manual_seed(3)
    wide = [torch.cat([rows, 0.01 * torch.randn(len(rows), 190, generator=noise)], 1) for rows, _ in SPLITS]
    probe_set = pf.ProbeSet(wide[0], SPLITS[0][1], wide[1], SPLITS[1][1])
    given: dict[str, Any] = {"classifier": "balanced", "targets": "label", "layers": "0", "alphas": [0.1]}
    encoder = nn.Sequential(nn.Identity())
    exact, near = (pf.probe(encoder, probe_set, **given, **more) for more in ({}, {"layer_sketch": 100}))
    (kind,) = near.filter(metric="balanced_accuracy", split="heldout").values_of("approximation")
    assert "sketch of 100 of 200 features" in kind
    for split in ("fit", "heldout"):
        known, found = (own.value(layer="0", metric="balanced_accuracy", split=split) for own in (exact, near))
        assert known > 0.6
        assert found == pytest.approx(known, abs=0.03)


def test_samples_and_their_weights_give_the_value_and_the_baseline(model: nn.Module, probe_set: pf.ProbeSet) -> None:
    scores = pf.probe(model, probe_set, layers="0", classifier="balanced")
    labels = probe_set.heldout_labels
    assert labels is not None
    counts = np.bincount(labels.numpy())
    for layer in ("0", "model"):
        _, ((*samples,),) = scores.samples(layer, "label", "balanced_accuracy")
        weights = scores.baseline_samples(layer, "label", "balanced_accuracy")
        assert weights == pytest.approx(len(labels) / (3 * counts[labels.numpy()]), rel=1e-6)
        value = scores.value(layer=layer, metric="balanced_accuracy", split="heldout")
        assert np.mean(samples) == pytest.approx(value, rel=1e-6)
    assert scores.baseline("label", "balanced_accuracy") == pytest.approx(1 / 3)
    best = pf.best_checkpoint(scores, "label")
    assert (best.layer, best.metric) == ("0", "balanced_accuracy")
    assert best.value == pytest.approx(scores.value(layer="0", metric="balanced_accuracy", split="heldout"), rel=1e-6)


def test_tokens_of_rare_classes_count_as_much() -> None:
    ids, held = (torch.multinomial(SHARES, 5 * n, True).reshape(n, 5) for n in (80, 60))
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 3))
    probe_set = pf.ProbeSet(ids, ids, held, held)
    scores = pf.probe(model, probe_set, tokens="each", classifier="balanced", targets="label")
    assert scores.value(layer="0", metric="balanced_accuracy", split="heldout") == pytest.approx(1)
    guesses = model(held).argmax(2).flatten().detach().numpy()
    own = scores.value(layer="model", metric="balanced_accuracy", split="heldout")
    assert own == pytest.approx(balanced(held.flatten(), guesses))
    _, ((*samples,),) = scores.samples("0", "label", "balanced_accuracy")
    assert len(samples) == 60  # sequences
    weights = scores.baseline_samples("0", "label", "balanced_accuracy")
    assert np.asarray(samples) == pytest.approx(weights, rel=1e-5)


def test_phases_tables_and_pictures_are_of_it(model: nn.Module, probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    states = {}
    for step in range(9):
        torch.manual_seed(step)
        states[step] = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    how: dict[str, Any] = {"layers": "?", "classifier": "balanced", "targets": "label"}
    scores = pf.sweep(model, states, probe_set, out=tmp_path / "a", **how)
    report = pf.detect_phases(scores)
    assert {cell.metric for cell in report} == {"balanced_error"}
    plot_phases(scores, report, tmp_path / "phases.png")
    assert (tmp_path / "phases.png").stat().st_size > 10_000
    printed = invoke("report", tmp_path / "a").stdout
    assert "change of the held-out balanced error" in printed
    assert "Held-out balanced accuracy of target label, by step" in printed
    assert "balanced accuracy ." in printed  # of the best
    assert "balanced_accuracy" in invoke("scores", tmp_path / "a").stdout
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert "Held-out balanced accuracy of target label" in invoke("compare", tmp_path / "a", tmp_path / "b").stdout


def test_a_class_of_nearly_all_samples_is_told(model: nn.Module, probe_set: pf.ProbeSet) -> None:
    words = r"targets \['label'\]: 90% of fit samples or more are of one class.*classifier='balanced'"
    labels = torch.zeros(900, dtype=torch.long)
    labels[::20] = 1
    given = pf.ProbeSet(probe_set.fit_inputs, labels, probe_set.heldout_inputs, labels[:600])
    with pytest.warns(RuntimeWarning, match=words):
        pf.probe(model, given, layers="0", targets=pf.Label(3))


def test_where_no_layer_beats_the_largest_class_none_is_named_best(model: nn.Module, tmp_path: Path) -> None:
    noise, labels = drawn(900, 1)[0] * 0 + torch.randn(900, 10), drawn(900, 1)[1]
    probe_set = pf.ProbeSet(noise[:600], labels[:600], noise[600:], labels[600:])
    states = {step: model.state_dict() for step in range(3)}
    copies = {step: {name: own.clone() for name, own in state.items()} for step, state in states.items()}
    pf.sweep(model, copies, probe_set, out=tmp_path, layers="0", targets="label")
    printed = " ".join(invoke("report", tmp_path).stdout.split())
    assert "No layer is better than the most frequent class, " in printed
    assert "none is named best; classifier='balanced' counts all classes alike" in printed
    assert "Best:" not in printed


def test_layers_that_differ_by_few_rare_samples_are_not_told_apart() -> None:
    weights = np.ones(300)
    weights[:5] = 30
    weights /= weights.mean()

    def scores(missed: int) -> pf.Scores:
        rows = []
        for layer, wrong in (("a", 0), ("b", missed)):
            right = weights * (np.arange(300) >= wrong)
            row = {"run": "r", "step": 0, "layer": layer, "dim": 3, "target": "label", "split": "heldout", "n": 300}
            row |= {"metric": "balanced_accuracy", "value": right.mean()}
            rows.append({**row, "samples": right.astype("f4"), "baseline_samples": weights.astype("f4")})
        return pf.Scores.from_rows(rows)

    told = [not pf.best_checkpoint(scores(missed)).others for missed in (1, 3, 5)]
    assert told == [False, False, False]  # 1 / 2, 1 / 4 and 1 / 16 of all signs
    weights[:12] = weights[0]
    weights /= weights.mean()
    assert [not pf.best_checkpoint(scores(missed)).others for missed in (5, 7, 12)] == [False, True, True]


@pytest.mark.parametrize("classifier", ["balanced", "lda"])
def test_classes_that_only_heldout_samples_have_count_like_others_however_many_there_may_be(classifier: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 200, (310,), generator=generator)
    inputs = torch.randn(200, 11, generator=generator)[labels] * 2 + torch.randn(310, 11, generator=generator)
    fit, held = set(labels[:230].tolist()), set(labels[230:].tolist())
    both = min(fit & held)
    assert len(held - fit) > 5
    found = []
    for count in (256, 257, 5000):
        constant = nn.Linear(11, count)
        nn.init.zeros_(constant.weight)
        nn.init.zeros_(constant.bias).data[both] = 1  # type: ignore[union-attr]
        given: dict[str, Any] = {"layers": "0", "targets": pf.Label(count), "alphas": [0.03], "classifier": classifier}
        probe_set = pf.ProbeSet.from_tensors(inputs[:230], labels[:230], inputs[230:], labels[230:])
        scores = pf.probe(nn.Sequential(nn.Identity(), constant), probe_set, **given)
        accuracies = scores.filter(split="heldout").to_pandas().query("metric != 'loss'").set_index("layer")
        found.append(accuracies[["value", "baseline"]])
    if classifier == "balanced":
        assert set(found[0]["baseline"]) == {1 / len(held)} == {found[0]["value"]["model"]}
    assert found[0]["value"]["0"] > 0.3
    for other in found[1:]:
        pytest.importorskip("pandas").testing.assert_frame_equal(other, found[0])
