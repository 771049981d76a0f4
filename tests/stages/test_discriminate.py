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
from phasefast.stages import discriminate
from phasefast.stages.discriminate import _of_few
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


@pytest.mark.parametrize("least", [1e-5, 1e-10])
@pytest.mark.parametrize(
    ("n", "features", "classes", "penalty"),
    [(200, 20, 3, 1.0), (300, 20, 20, 1e-3), (100, 64, 10, 1e-2), (40, 50, 5, 0.1), (900, 90, 60, 10.0)],
)
def test_a_factor_gives_what_eigenvectors_do(
    n: int, features: int, classes: int, penalty: float, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, labels, *_ = (torch.from_numpy(each) for each in drawn(1, n, features, classes, share=0.5))
    x, columns = x - x.mean(0), nn.functional.one_hot(labels, classes + 1).double()  # of which one has no rows
    shares = columns.mean(0)
    weights = torch.linalg.solve(x.T @ x + penalty * torch.eye(features), x.T @ (columns - shares))
    given = weights, columns.T @ x / n, shares, least
    factors: list[Any] = []

    def kept(*own: Any) -> Any:
        factors.append(_of_few(*own))
        return factors[-1]

    monkeypatch.setattr(discriminate, "_of_few", kept)
    found = discriminate._scores(*given)
    monkeypatch.setattr(discriminate, "_of_few", lambda *own: None)
    expected = discriminate._scores(*given)
    assert [each is not None for each in factors] == [True] * (classes < features)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9 * float(other[other > -1e17].abs().max()))


def test_classes_without_variance_within_have_no_factor() -> None:
    centres = torch.randn(6, 8, dtype=torch.float64)
    labels = torch.arange(60) % 6
    rows = centres[labels].numpy(), labels.numpy(), (centres[labels] + 0.01).numpy(), labels.numpy()
    assert accuracies(rows, "lda", alphas=[1e-9]) == {"fit": 1.0, "heldout": 1.0}
    centred = centres - centres.mean(0)
    columns = nn.functional.one_hot(labels, 6).double()
    weights = torch.linalg.pinv(centred[labels]) @ (columns - 1 / 6)
    roots = 6**-0.5
    assert _of_few(weights / roots, columns.T @ centred[labels] / 60 / roots, 1e-5) is None


def test_penalties_of_columns_need_several() -> None:
    x, y = torch.randn(90, 6), torch.arange(90) % 3
    probe_set = pf.ProbeSet.from_tensors(x[:60], y[:60], x[60:], y[60:], values={"own": (x[:60, 0], x[60:, 0])})
    net = nn.Sequential(nn.Linear(6, 12))
    given: dict[str, Any] = {"layers": "0", "targets": ["label", "own"], "predicts": "none"}
    with pytest.warns(RuntimeWarning, match="penalty_per='column' changes nothing: no target of numbers has several"):
        found = pf.probe(net, probe_set, penalty_per="column", **given)
    expected = pf.probe(net, probe_set, **given)
    for own, other in zip(found.to_arrow().to_pylist(), expected.to_arrow().to_pylist(), strict=True):
        assert {**own, "seconds": 0, "config_hash": ""} == {**other, "seconds": 0, "config_hash": ""}
    with no_warnings():
        pf.probe(net, probe_set, penalty_per="column", layers="0", targets=["label", "input"], predicts="none")
