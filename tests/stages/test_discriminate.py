"""Linear discriminants are those of scikit-learn where there is no penalty, and mask no class."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.errors import ArgumentError, StoreError
from tests.quiet import no_warnings

Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def drawn(seed: int, n: int, features: int, classes: int, share: float = 1.0) -> Rows:
    """Fit and held-out rows of classes that are normal, with means and one covariance at random, of unequal sizes."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(features, features)) / features**0.5 + np.eye(features) / 2
    y = rng.choice(classes, n + 300, p=rng.dirichlet(np.ones(classes) * 3))
    x = share * rng.normal(size=(classes, features))[y] + rng.normal(size=(n + 300, features)) @ mixed
    return x[:n], y[:n], x[n:], y[n:]


def accuracies(rows: Rows, classifier: str, **options: Any) -> dict[str, float]:
    fit, labels, held, held_labels = (torch.from_numpy(each) for each in rows)
    probe_set = pf.ProbeSet(fit.float(), labels, held.float(), held_labels)
    given: dict[str, Any] = {"targets": "label", "classifier": classifier, **options}
    scores = pf.probe(nn.Sequential(nn.Identity()), probe_set, layers="0", **given)
    return {split: scores.value(layer="0", metric="accuracy", split=split) for split in ("fit", "heldout")}


@pytest.mark.parametrize(("n", "features", "classes"), [(400, 3, 20), (400, 8, 5), (300, 30, 12), (600, 60, 40)])
@pytest.mark.parametrize("route", [None, "dual"])
def test_without_a_penalty_it_is_what_scikit_learn_has(n: int, features: int, classes: int, route: str | None) -> None:
    discriminant_analysis = pytest.importorskip("sklearn.discriminant_analysis")
    for seed in range(3):
        rows = drawn(seed, n, features, classes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that no fit sample has
            expected = discriminant_analysis.LinearDiscriminantAnalysis().fit(*rows[:2])
            found = accuracies(rows, "lda", alphas=[1e-9], route=route, precision="double")
        assert found["fit"] == pytest.approx(expected.score(*rows[:2]), abs=2.1 / n)
        assert found["heldout"] == pytest.approx(expected.score(*rows[2:]), abs=2.1 / 300)


def test_with_a_penalty_it_is_that_of_the_covariance_and_the_penalty() -> None:
    """Of Mahalanobis distances in all features: within-class covariance plus penalty (Hastie et al. 1995)."""
    for seed, penalty in ((1, 1e-2), (2, 1.0), (3, 1e2)):
        fit, labels, held, held_labels = rows = drawn(seed, 200, 12, 6, share=0.5)
        fit, held = (each.astype(np.float32).astype(np.float64) for each in (fit, held))
        centred = fit - fit.mean(0)
        gram = centred.T @ centred
        alpha = penalty / np.diag(gram).mean()
        means = np.stack([fit[labels == each].mean(0) for each in range(6)])
        within = (fit - means[labels]).T @ (fit - means[labels]) + penalty * np.eye(12)
        inverse, shares = np.linalg.inv(within / len(fit)), np.bincount(labels) / len(fit)
        scores = held @ inverse @ means.T - 0.5 * ((means @ inverse) * means).sum(1) + np.log(shares)
        expected = (scores.argmax(1) == held_labels).mean()
        assert accuracies(rows, "lda", alphas=[alpha])["heldout"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("precision", ["exact", "double", "fast"])
@pytest.mark.parametrize("features", [1, 2])
def test_classes_between_others_are_not_missed(features: int, precision: str) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(900) % 9
    x = np.zeros((900, features))
    x[:, 0] = labels + 0.1 * rng.normal(size=900)
    rows = x[:600], labels[:600], x[600:], labels[600:]
    assert accuracies(rows, "ridge", precision=precision)["heldout"] < 0.5
    assert accuracies(rows, "lda", precision=precision)["heldout"] > 0.97


@pytest.mark.parametrize(
    "options", [{"route": "eigen"}, {"route": "dual"}, {"splits": "heldout"}, {"layer_sketch": 30}, {}], ids=str
)
def test_all_routes_give_the_same(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 80), nn.Tanh())
    fit, labels, held, held_labels = (torch.from_numpy(each) for each in drawn(4, 300, 10, 8, share=0.5))
    probe_set = pf.ProbeSet(fit.float(), labels, held.float(), held_labels)
    given: dict[str, Any] = {"layers": "1", "targets": ["label", "input"], "classifier": "lda", "alphas": [1e-2]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pf.probe(net, probe_set, **given, **options).value(layer="1", target="label", split="heldout")
    expected = pf.probe(net, probe_set, **given, precision="double")
    sketched = 0.1 if "layer_sketch" in options else 1.1 / 300
    assert found == pytest.approx(expected.value(layer="1", target="label", split="heldout"), abs=sketched)
    # What is decoded beside it is not touched.
    ridge = pf.probe(net, probe_set, **{**given, "classifier": "ridge"})
    assert expected.value(layer="1", target="input", metric="fvu", split="heldout") == pytest.approx(
        ridge.value(layer="1", target="input", metric="fvu", split="heldout"), rel=1e-5
    )


def test_features_that_tell_nothing_give_the_most_frequent_class() -> None:
    labels = np.array([0, 1, 1, 2] * 50)
    rows = np.ones((200, 4)), labels, np.ones((200, 4)), labels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert accuracies(rows, "lda") == {"fit": 0.5, "heldout": 0.5}


def test_a_class_without_fit_rows_is_never_named() -> None:
    rows = drawn(0, 300, 5, 4)
    with pytest.warns(RuntimeWarning, match="that no fit sample has"):
        found = accuracies((rows[0], rows[1] + 1, rows[2], np.where(rows[3] == 0, 7, rows[3] + 1)), "lda")
    assert 0.3 < found["heldout"] < 1


def test_the_classifier_is_a_setting_and_many_classes_are_told(tmp_path: Path) -> None:
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(300) % 30).long()
    probe_set = pf.ProbeSet(x[:200], labels[:200], x[200:], labels[200:])
    model, state = nn.Sequential(nn.Linear(6, 30)), nn.Sequential(nn.Linear(6, 30)).state_dict()
    with pytest.warns(RuntimeWarning, match=r"targets \['label'\]: with more than 20 classes .* classifier='lda'"):
        pf.probe(model, probe_set)
    with no_warnings():
        pf.sweep(model, {0: state}, probe_set, out=tmp_path, classifier="ridge", targets="label", layers="0")
    with pytest.raises(StoreError, match='classifier stored null, now "lda"'):
        pf.sweep(model, {0: state}, probe_set, out=tmp_path, classifier="lda", targets="label", layers="0")
    with pytest.raises(ArgumentError, match="classifier='lda' needs predictions of the fit rows"):
        pf.probe(model, probe_set, classifier="lda", route="target-free", splits="heldout")
    with pytest.raises(ArgumentError, match="classifier: expected one of"):
        pf.probe(model, probe_set, classifier="svm")  # type: ignore[arg-type]


def test_tokens_may_be_told_apart_by_discriminants() -> None:
    torch.manual_seed(0)
    ids = torch.randint(40, (200, 8))
    net = nn.Sequential(nn.Embedding(40, 6))
    token: Any = pf.Function(lambda x: x, "classes", "token")
    options: dict[str, Any] = {"tokens": "each", "targets": [token], "layers": "0", "splits": "heldout"}
    probe_set = pf.ProbeSet(ids[:150], None, ids[150:], None)

    def accuracy(classifier: str) -> Tensor:
        return pf.probe(net, probe_set, classifier=classifier, **options).value(metric="accuracy")  # type: ignore[arg-type, return-value]

    assert accuracy("ridge") < 0.8
    assert accuracy("lda") == 1.0


def test_groups_of_classes_that_are_far_apart_are_told_apart_inside_too() -> None:
    """Whose variates leave little variance within classes: less than float32 would tell."""
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.normal(size=(3, 8)) * 1000, 2, axis=0) + rng.normal(size=(6, 8))
    labels = np.arange(900) % 6
    x = centres[labels] + rng.normal(size=(900, 8))
    discriminant_analysis = pytest.importorskip("sklearn.discriminant_analysis")
    expected = discriminant_analysis.LinearDiscriminantAnalysis(tol=0).fit(x[:600], labels[:600])
    found = accuracies((x[:600], labels[:600], x[600:], labels[600:]), "lda", alphas=[1e-9], precision="double")
    assert found["heldout"] == pytest.approx(expected.score(x[600:], labels[600:]), abs=0.01)
