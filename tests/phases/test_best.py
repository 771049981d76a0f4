"""The best layer and step of a target, and what held-out samples do not tell apart from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import pytest
import torch

import phasefast as pf
from phasefast.errors import ArgumentError, DataError, LayerError
from phasefast.phases.best import _chance_of_signs
from phasefast.results.scores import Scores

from ..conftest import SmallNet
from ..quiet import no_warnings
from ..report.synthetic import row

CURVES = Mapping[str, Mapping[int, np.ndarray]]


def of_classes(right: CURVES) -> Scores:
    return Scores.from_rows(
        row(step, layer, "label", "accuracy", samples) for layer, own in right.items() for step, samples in own.items()
    )


def wrong_at(places: slice, count: int = 200) -> np.ndarray:
    right = np.ones(count, dtype=bool)
    right[places] = False
    return right


def test_what_rounding_leaves_is_not_told_apart() -> None:
    rng, ones = np.random.default_rng(0), np.ones(60)

    def of_numbers(*values: float) -> Scores:
        rows = [value * rng.uniform(0.99, 1.01, 60) for value in values]
        return Scores.from_rows(
            {**row(step, "a", "input", "fvu", own), "baseline_samples": ones} for step, own in enumerate(rows)
        )

    assert pf.best_checkpoint(of_numbers(4e-13, 3e-13, 9e-13), "input").steps == (0, 1, 2)
    assert pf.best_checkpoint(of_numbers(4e-4, 1e-4, 9e-5, 1.95e-4), "input").steps == (1, 2)


def sign_test(more: np.ndarray) -> float:
    """Two-sided, by adding up all outcomes that are as rare."""
    worse, better = int((more > 0).sum()), int((more < 0).sum())
    n = worse + better
    outcomes = [math.comb(n, k) / 2**n for k in range(n + 1)]
    return sum(each for each in outcomes if each <= outcomes[better] * (1 + 1e-9))


def test_what_is_rarely_chance_is_told_apart() -> None:
    best = wrong_at(slice(10))
    right = {
        "a": {1: wrong_at(slice(60)), 2: best, 4: wrong_at(slice(5, 16)), 8: wrong_at(slice(15))},  # 5 more: p = .06
        "b": {1: wrong_at(slice(16)), 2: wrong_at(slice(100))},  # 6 more: p = .03
        "c": {1: wrong_at(slice(0, 40, 3)), 4: wrong_at(slice(13))},
    }
    found = pf.best_checkpoint(of_classes(right))
    assert (found.layer, found.step, found.metric, found.steps) == ("a", 2, "accuracy", (2, 4, 8))
    assert found.value == pytest.approx(0.95)
    assert found.others == {"c": 4}
    assert str(found) == "label: a at step 2, accuracy 0.95; not told apart from it: its steps 4, 8; c at 4"
    assert pf.best_checkpoint(of_classes(right), layers=["b", "c"]).others == {"b": 1}
    assert pf.best_checkpoint(of_classes(right), confidence=0.9).steps == (2, 4)


def test_signs_are_counted_as_an_oracle_does() -> None:
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(100):
        first = rng.random(300) < 0.95
        second = first ^ (rng.random(300) < rng.choice([0.01, 0.03, 0.1]))
        scores = of_classes({"a": {0: first}, "b": {0: second}})
        better, worse = (first, second) if first.sum() >= second.sum() else (second, first)
        more = better.astype(int) - worse.astype(int)
        rare = sign_test(more) < 0.05
        assert bool(pf.best_checkpoint(scores).others) is not rare
        told += rare
    assert 10 < told < 90


def test_differences_of_ratios_are_told_apart_about_as_often_as_they_should() -> None:
    rng, wrong, missed = np.random.default_rng(1), 0, 0
    for _ in range(120):
        unit = rng.gamma(1.0, 1.0, 150)  # samples of unequal contrast, of which errors are a share
        rows = [
            {
                **row(0, layer, "age", "fvu", unit * share * rng.gamma(4.0, 0.25, 150) / unit.mean()),
                "baseline_samples": unit / unit.mean(),
            }
            for layer, share in (("a", 0.3), ("b", 0.3), ("c", 0.36))
        ]
        best = pf.best_checkpoint(Scores.from_rows(rows), "age")
        wrong += not {"a", "b"} <= {*best.others, best.layer}
        missed += "c" in best.others
    assert wrong / 120 < 0.1
    assert missed / 120 < 0.4


def test_it_is_one_of_what_was_measured(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path_factory: pytest.TempPathFactory
) -> None:
    states = {step: {name: value + 0.2 * step for name, value in net.state_dict().items()} for step in (0, 1, 2)}
    states[2]["hidden.weight"] = states[2]["hidden.weight"] * float("nan")
    target = pf.Function(lambda x: x.mean((2, 3)) ** 2, name="power")
    with pytest.warns(RuntimeWarning, match="left out"):
        scores = pf.sweep(
            net,
            states,
            probe_set,
            out=tmp_path_factory.mktemp("run"),
            layers=["conv", "hidden"],
            targets=["label", target],
        )
    for name, metric, sign in (("label", "accuracy", -1), ("power", "fvu", 1)):
        best = pf.best_checkpoint(scores, name)
        values = {
            (each["layer"], each["step"]): sign * each["value"]
            for each in scores.filter(target=name, metric=metric, split="heldout").to_arrow().to_pylist()
            if each["layer"] != "model"
        }
        assert values[best.layer, best.step] == min(values.values()) == pytest.approx(sign * best.value)
        assert best.step in best.steps
    with pytest.raises(ArgumentError, match=r"target 'age': expected one of \['label', 'power'\]"):
        pf.best_checkpoint(scores, "age")
    with pytest.raises(LayerError, match="layer pattern 'fc'"):
        pf.best_checkpoint(scores, layers="fc")
    with pytest.raises(ArgumentError, match="confidence"):
        pf.best_checkpoint(scores, confidence=1.0)
    with pytest.raises(DataError, match="no per-sample 'accuracy' is stored"):
        pf.best_checkpoint(Scores.from_rows({**each, "samples": None} for each in scores.to_arrow().to_pylist()))
    with pytest.raises(DataError, match="expected finite held-out"):
        pf.best_checkpoint(scores, layers="model")
    with pytest.raises(DataError, match="of one run, got those of"):
        pf.best_checkpoint(Scores.concat([scores, scores.with_column("run", "b")]))
    named = Scores.from_rows(
        {**each, "target": "t[1]"} for each in scores.filter(target="power").to_arrow().to_pylist()
    )
    assert pf.best_checkpoint(named, "t[1]").step == pf.best_checkpoint(scores, "power").step
    assert torch.isfinite(torch.tensor(best.value))


@pytest.mark.parametrize("count", [3, 9, 10, 11, 14, 60, 400])
def test_samples_that_do_not_count_alike_are_told_apart_by_their_signs(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(20):
        more = rng.normal(rng.random(), 1, count) * rng.gamma(0.3, 1, count)
        signs = rng.integers(0, 2, (40_000, count)) * 2.0 - 1
        exact = float((np.abs(signs @ np.abs(more)) >= abs(more.sum()) * (1 - 1e-9)).mean())
        assert _chance_of_signs(np.append(more, [0.0, 0.0])) == pytest.approx(exact, abs=0.012)


@pytest.mark.parametrize(("count", "alike"), [(49, True), (51, True), (51, False), (300, True)])
def test_many_samples_are_told_apart_as_few_are(count: int, alike: bool) -> None:
    weights = np.ones(count) if alike else 1 + 1e-9 * np.arange(count)
    for fewer in range(count // 3, count // 2 - 3):
        more = np.where(np.arange(count) < fewer, -weights, weights)
        assert _chance_of_signs(more) == pytest.approx(sign_test(more), abs=0.005 if alike else 0.1)
    assert _chance_of_signs(np.zeros(3)) == 1


@pytest.mark.parametrize(("metric", "constant"), [("accuracy", 0.5), ("balanced_accuracy", 0.5), ("fvu", None)])
def test_the_best_of_much_noise_beats_no_constant(metric: str, constant: float | None) -> None:
    rng, told = np.random.default_rng(0), 0
    weights = np.where(np.arange(200) < 20, 5.0, 5 / 9)
    for trial in range(40):
        rows = []
        for layer in range(6):
            for step in range(10):
                samples, unit = (rng.random(200) < 0.5).astype(float), np.ones(200)
                if metric == "balanced_accuracy":
                    samples, unit = samples * weights, weights
                elif metric == "fvu":
                    unit = rng.gamma(2.0, 0.5, 200) if not rows else rows[0]["baseline_samples"]
                    samples = unit * rng.gamma(20.0, 0.05, 200)
                of_constant = 1.0 if constant is None else constant
                rows.append({**row(step, f"l{layer}", "t", metric, samples), "baseline": of_constant})
                rows[-1]["baseline_samples"] = None if metric == "accuracy" else unit
        best = pf.best_checkpoint(Scores.from_rows(rows), "t")
        told += best.beats_constant
        words = "the fit mean" if metric == "fvu" else "the most frequent class"
        assert best.beats_constant or str(best) == f"t: no layer is better than {words} by more than chance"
        better = [{**each, "samples": _better(each, metric)} for each in rows]
        assert trial or pf.best_checkpoint(Scores.from_rows(better), "t").beats_constant
    assert told <= 4


def test_random_predictions_seldom_beat_a_constant_that_is_drawn_too() -> None:
    rng, told = np.random.default_rng(0), 0
    for _ in range(200):
        labels = rng.random(400) < 0.5
        rows = [row(0, "a", "t", "accuracy", (rng.random(400) < 0.5) == labels)]
        told += pf.best_checkpoint(Scores.from_rows([{**rows[0], "baseline": labels.mean()}]), "t").beats_constant
    assert told <= 9  # of 5 expected


def test_nothing_measured_has_no_best() -> None:
    with pytest.raises(DataError, match=r"best_checkpoint: .*got Scores\(0 rows, .*; probe first"):
        pf.best_checkpoint(pf.Scores.from_rows([]), "label")


@pytest.mark.parametrize("baselines", [(0.5, 0.5, 0.5), (None, 0.5, 0.5), (0.5, 0.5, 0.5 + 1e-9)])
def test_a_constant_that_some_rows_do_not_tell_is_known(baselines: tuple[float | None, ...]) -> None:
    hits = np.random.default_rng(0).random((3, 200)) < 0.5
    rows = [
        {**row(step, "a", "t", "accuracy", own), "baseline": known}
        for step, (own, known) in enumerate(zip(hits, baselines, strict=True))
    ]
    assert not pf.best_checkpoint(Scores.from_rows(rows), "t").beats_constant


def test_one_rare_sample_more_beats_no_class() -> None:
    right = np.ones(40, dtype=bool)
    rows = [row(step, "a", "t", "accuracy", right if step else wrong_at(slice(1), 40)) for step in range(24)]
    known = Scores.from_rows({**each, "baseline": 0.975} for each in rows)
    assert not pf.best_checkpoint(known, "t").beats_constant
    assert pf.best_checkpoint(Scores.from_rows({**each, "baseline": 0.5} for each in rows), "t").beats_constant


def _better(of: dict[str, object], metric: str) -> np.ndarray:
    samples = np.array(of["samples"])
    if metric == "fvu":
        return samples * 0.8
    samples[::3] = 1.0 if metric == "accuracy" else np.array(of["baseline_samples"])[::3]
    return samples


@pytest.mark.parametrize(("count", "most"), [(2, 0.12), (5, 0.12), (20, 0.1)])
def test_few_samples_tell_hardly_anything_apart(count: int, most: float) -> None:
    rng, apart = np.random.default_rng(count), 0
    for _ in range(400):
        samples = {layer: {0: rng.chisquare(3, count) / 3} for layer in "ab"}
        scores = Scores.from_rows(row(0, layer, "t", "fvu", own[0]) for layer, own in samples.items())
        apart += not pf.best_checkpoint(scores, "t").others
    assert apart / 400 < most


def test_one_sample_tells_nothing_apart() -> None:
    scores = Scores.from_rows(row(0, layer, "t", "fvu", np.array([value])) for layer, value in (("a", 0.1), ("b", 0.9)))
    assert pf.best_checkpoint(scores, "t").others == {"b": 0}


def test_a_layer_whose_best_step_is_told_apart_may_have_others_that_are_not() -> None:
    rare = {0: wrong_at(slice(11), 400), 1: wrong_at(slice(30, 42), 400)}  # 7 more of the same; 12 others for 4
    found = pf.best_checkpoint(of_classes({"a": {0: wrong_at(slice(4), 400)}, "b": rare}))
    assert (found.layer, found.others) == ("a", {"b": 1})


def test_runs_have_a_best_in_common_where_their_mean_is_best() -> None:
    shares = {
        "one": {"a": [0.5, 0.9, 0.7], "b": [0.6, 0.7, 0.95]},
        "two": {"a": [0.5, 0.85, 0.8], "b": [0.4, 0.6, 0.65]},
    }
    runs = {
        run: Scores.from_rows(
            row(step, layer, "label", "accuracy", np.arange(200) < share * 200)
            for layer, own in layers.items()
            for step, share in enumerate(own)
        )
        for run, layers in shares.items()
    }
    found = pf.best_of_runs(runs)
    assert (found.layer, found.step, found.metric) == ("a", 1, "accuracy")
    assert found.values == {"one": pytest.approx(0.9), "two": pytest.approx(0.85)}
    assert (found.mean, found.deviation) == (pytest.approx(0.875), pytest.approx(0.05 / 2**0.5))
    assert {run: (own.layer, own.step) for run, own in found.own.items()} == {"one": ("b", 2), "two": ("a", 1)}
    first, one, two = str(found).splitlines()
    assert first == "label: a at step 1, accuracy 0.875 (sd 0.035)"
    assert one.startswith("  one, label: b at step 2, ")
    assert two.startswith("  two, label: a at step 1, ")
    part = {"one": runs["one"], "two": runs["two"].select(["b"])}
    assert (pf.best_of_runs(part).layer, pf.best_of_runs(part).step) == ("b", 2)
    same = runs["one"]
    assert pf.best_of_runs({"one": same, "two": same, "three": same}).deviation == 0  # without rounding
    errors = {run: Scores.from_rows(row(s, "a", "t", "fvu", np.full(9, 1 - s / 9)) for s in (0, 4)) for run in shares}
    assert pf.best_of_runs(errors, "t").step == 4
    with pytest.raises(DataError, match="no metric, layer and step in common"):
        pf.best_of_runs({"one": runs["one"].select(["a"]), "two": runs["two"].select(["b"])})
    with pytest.raises(DataError, match="two runs or more"):
        pf.best_of_runs({"one": runs["one"]})
    with pytest.raises(DataError, match=r"two runs or more by name, .* got .'list'"):
        pf.best_of_runs(list(runs.values()))  # type: ignore[arg-type]


def test_the_value_is_that_of_the_row_that_is_best(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    alone = [pf.probe(net, probe_set, layers="hidden", alphas=[alpha]) for alpha in (1e6, 1e-3)]
    values = [own.value(layer="hidden", metric="accuracy", split="heldout") for own in alone]
    assert values[0] < values[1]
    best = pf.best_checkpoint(pf.Scores.concat(alone))
    assert best.value == values[1]  # to the last bit, as tables round it


def test_runs_with_few_steps_in_common_are_told() -> None:
    rng = np.random.default_rng(0)

    def of(steps: Iterable[int]) -> Scores:
        return of_classes({"a": {step: rng.random(200) < 0.3 + 0.05 * step for step in steps}})

    with no_warnings():
        assert pf.best_of_runs({"one": of(range(8)), "other": of(range(0, 8, 2))}).step == 6
    with pytest.warns(RuntimeWarning, match="the runs have 1 step in common, of 4 or more that each has"):
        assert pf.best_of_runs({"one": of(range(0, 8, 2)), "other": of([0, 1, 3, 5, 7])}).step == 0
