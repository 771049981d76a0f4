"""By how much recipes of several seeds differ."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import phasefast as pf
from phasefast.errors import ArgumentError, DataError
from phasefast.phases.phase_report import CellPhases, Phase, PhaseReport

FALL = Phase("decrease", 8, 64, -0.1, (-0.2, -0.05))


def run(
    lowest: float, last: float, step: int = 64, metric: str = "fvu", falls: bool = True, end: int = 512
) -> PhaseReport:
    evidence = {"steps": [0, 8, 64, end], "loss": {"first": 0.9, "minimum": lowest, "last": last}}
    target = "input" if metric == "fvu" else "label"
    return PhaseReport((CellPhases("a", target, metric, (FALL,) * falls, step, (32, 128), None, evidence),))


def runs(values: Sequence[float], more: float = 0.1, metric: str = "fvu") -> dict[str, PhaseReport]:
    return {f"s{i}": run(value, value + more, 2**i, metric) for i, value in enumerate(values)}


def test_a_recipe_has_the_mean_and_the_scatter_of_its_runs() -> None:
    found = pf.compare_recipes({"wide": runs([0.1, 0.2, 0.6]), "narrow": runs([0.5, 0.7], more=0.0)})
    wide, narrow = found.rows()
    assert (wide["recipe"], wide["runs"], wide["best"], wide["last"]) == (
        "wide",
        3,
        pytest.approx(0.3),
        pytest.approx(0.4),
    )
    assert wide["best_deviation"] == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))
    assert all(
        math.isnan(wide[f"{where}_{what}"]) for where in ("best", "last") for what in ("difference", "low", "high")
    )
    assert (wide["minimum"], wide["minimum_first"], wide["minimum_last"]) == (2, 1, 4)
    assert narrow["best_difference"] == pytest.approx(0.3)
    assert narrow["last_difference"] == pytest.approx(0.2)
    cell = found.cell("a", "input", "narrow")
    assert (dict(cell.best), dict(cell.minimum_steps)) == ({"s0": 0.5, "s1": 0.7}, {"s0": 1, "s1": 2})
    with pytest.raises(KeyError, match="no layer 'b', target 'input', recipe 'wide'; there are"):
        found.cell("b", "input", "wide")


def test_accuracies_are_told_not_errors() -> None:
    found = pf.compare_recipes({"wide": runs([0.1, 0.2], metric="error"), "narrow": runs([0.3, 0.4], metric="error")})
    wide, narrow = found.rows()
    assert (wide["metric"], wide["best"], wide["last"]) == ("accuracy", pytest.approx(0.85), pytest.approx(0.75))
    assert narrow["best_difference"] == pytest.approx(-0.2)


@pytest.mark.parametrize("counts", [(3, 3), (5, 3), (4, 9), (2, 6)])
def test_intervals_are_welchs(counts: tuple[int, int]) -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(sum(counts))
    one, other = random.normal(0.4, 0.1, counts[0]), random.normal(0.5, 0.03, counts[1])
    parts = one.var(ddof=1) / counts[0], other.var(ddof=1) / counts[1]
    freedom = sum(parts) ** 2 / sum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
    half = stats.t.ppf(0.95, math.floor(freedom)) * math.sqrt(sum(parts))
    found = pf.compare_recipes({"a": runs(one.tolist()), "b": runs(other.tolist())}, confidence=0.9)
    difference = found.cell("a", "input", "b").differences["best"]
    assert difference.value == pytest.approx(other.mean() - one.mean())
    assert difference.high - difference.value == pytest.approx(half, rel=0.01)
    assert difference.value - difference.low == pytest.approx(half, rel=0.01)
    assert difference.excludes_zero is bool(abs(difference.value) > half)


def test_intervals_cover_what_they_say() -> None:
    random = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        one, other = random.normal(0.5, 0.02, 3).tolist(), random.normal(0.5, 0.06, 4).tolist()
        found = pf.compare_recipes({"a": runs(one), "b": runs(other)}).cell("a", "input", "b")
        covered.append(not found.differences["best"].excludes_zero)
    assert np.mean(covered) > 0.93


def test_equal_runs_differ_by_nothing() -> None:
    found = pf.compare_recipes({"a": runs([0.5, 0.5]), "b": runs([0.5, 0.5])}).cell("a", "input", "b")
    assert found.differences["best"] == pf.Difference(0.0, 0.0, 0.0)


def test_runs_without_scatter_tell_nothing_of_chance() -> None:
    alike = {"a": runs([0.2, 0.2], metric="error"), "b": runs([0.2, 0.2, 0.2], metric="error")}
    assert pf.compare_recipes(alike).cell("a", "label", "b").differences["best"] == pf.Difference(0.0, 0.0, 0.0)
    found = pf.compare_recipes({"a": runs([0.5, 0.5]), "b": runs([0.6, 0.6])})
    difference = found.cell("a", "input", "b").differences["best"]
    assert difference.value == pytest.approx(0.1)
    assert math.isnan(difference.low)
    assert math.isnan(difference.high)
    assert not difference.excludes_zero
    assert "+0.1 [-]" in str(found)
    assert json.loads(found.to_json())["cells"][1]["best_low"] is None


@pytest.mark.parametrize("lowest", [1e-90, 1e90, math.nan, math.inf])
def test_losses_of_any_size_are_compared(lowest: float) -> None:
    found = pf.compare_recipes({"a": runs([lowest, 2 * lowest]), "b": runs([lowest, 3 * lowest])})
    difference = found.cell("a", "input", "b").differences["best"]
    assert math.isfinite(difference.high) == math.isfinite(lowest)
    assert not difference.excludes_zero
    assert not {"NaN", "Infinity"} & {*found.to_json().replace(",", "").split()}


def test_runs_without_a_decrease_are_told() -> None:
    flat = {"s0": run(0.5, 0.5, falls=False), "s1": run(0.5, 0.6)}
    found = pf.compare_recipes({"a": runs([0.3, 0.4]), "b": flat})
    assert [row["decreasing"] for row in found.rows()] == [2, 1]
    assert str(found).splitlines()[-1] == "Runs without a decrease, whose minimum means little: a/input b 1 of 2."


def test_runs_that_end_at_different_steps_are_told() -> None:
    short = {"s0": run(0.5, 0.6), "s1": run(0.5, 0.7, end=256)}
    found = pf.compare_recipes({"a": runs([0.3, 0.4]), "b": short})
    assert str(found).splitlines()[-1] == "Runs end at different steps, 256 to 512: their last scores are of these."
    assert found.cell("a", "input", "b").last_steps == {"s0": 512, "s1": 256}


@pytest.mark.parametrize(("layers", "told"), [(9, None), (10, "20 of 20"), (50, "100 of 100")])
def test_how_many_intervals_would_exclude_0_by_chance_is_told(layers: int, told: str | None) -> None:
    def of(values: list[float]) -> dict[str, PhaseReport]:
        found = runs(values)
        names = [f"layer{i}" for i in range(layers)]
        return {
            each: PhaseReport(tuple(replace(own.cells[0], layer=name) for name in names)) for each, own in found.items()
        }

    found = pf.compare_recipes({"a": of([0.1, 0.11, 0.12]), "b": of([0.5, 0.51, 0.52])})
    line = str(found).splitlines()[-1]
    expected = f"{told} intervals exclude 0; if nothing differed, some {layers // 10} would by chance."
    assert (line == expected) is (told is not None)
    alike = pf.compare_recipes({"a": of([0.1, 0.12, 0.13]), "b": of([0.11, 0.12, 0.13])})
    assert ("0 of" in str(alike).splitlines()[-1]) is (told is not None)


def test_it_is_printed_as_a_table_and_as_json() -> None:
    found = pf.compare_recipes({"wide": runs([0.1, 0.2]), "narrow": runs([0.5, 0.7])})
    first, second, head, wide, narrow = str(found).splitlines()
    assert (first, second) == ("wide: 2 runs, s0, s1", "narrow: 2 runs, s0, s1")
    titles = "layer target metric recipe best +- sd difference [95 %] last +- sd difference [95 %] minimum [range]"
    assert " ".join(head.split()) == titles
    assert " ".join(wide.split()) == "a input fvu wide 0.15 +- 0.071 0.25 +- 0.071 1 [1-2]"
    assert " ".join(narrow.split()).startswith("a input fvu narrow 0.6 +- 0.14 +0.45 [")
    assert repr(found) == "RecipeComparison('wide': 2 runs, 'narrow': 2 runs; 2 cells)"
    json_of = json.loads(found.to_json())
    assert json_of["recipes"] == {"wide": ["s0", "s1"], "narrow": ["s0", "s1"]}
    assert json_of["cells"][0]["best_of"] == {"s0": 0.1, "s1": 0.2}
    assert json_of["cells"][0]["best_low"] is None
    assert len(found) == len(list(found)) == 2
    assert hash(found.cells[0]) == hash(found.cells[0])


@pytest.mark.parametrize(
    "reports",
    [
        {"a": runs([0.1, 0.2])},
        {"a": runs([0.1, 0.2]), "b": runs([0.3])},
        {"a": run(0.1, 0.2), "b": run(0.1, 0.2)},
        {},
        3,
    ],
)
def test_two_recipes_of_two_runs_are_needed(reports: Mapping[str, Mapping[str, PhaseReport]]) -> None:
    with pytest.raises(DataError, match="expected two recipes or more, each of the phases of two runs or more"):
        pf.compare_recipes(reports)


def test_what_does_not_fit_is_told() -> None:
    some = runs([0.1, 0.2])
    with pytest.raises(ArgumentError, match=r"confidence: expected a number between 0 and 1, got 95"):
        pf.compare_recipes({"a": some, "b": some}, confidence=95)
    with pytest.raises(DataError, match="no layer and target in common: a/s0 has"):
        pf.compare_recipes({"a": some, "b": runs([0.1, 0.2], metric="error")})
    twice: list[Any] = [{"1": some, 1: some}, {"a": {"1": some["s0"], 1: some["s1"]}, "b": some}]
    for each in [*twice, {"a": {"b/c": some["s0"], "d": some["s1"]}, "a/b": {"c": some["s0"], "d": some["s1"]}}]:
        with pytest.raises(DataError, match="expected a different name for each recipe and run"):
            pf.compare_recipes(each)
    with pytest.raises(DataError, match=r"\{name: PhaseReport\}"):
        pf.compare_recipes({"a": some, "b": {"s0": 1, "s1": 2}})  # type: ignore[dict-item]
