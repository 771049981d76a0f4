"""Scores as text: a line for each layer of the last step."""

from __future__ import annotations

from phasefast.results.scores import Scores


def row(step: int, layer: str, target: str, metric: str, value: float, run: str = "run", **others: object) -> dict:
    fixed = {"run": run, "step": step, "layer": layer, "dim": 64, "target": target, "metric": metric, "value": value}
    return {**fixed, "split": "heldout", **others}


def test_a_line_for_each_layer() -> None:
    solved = {"alpha": 1e-3, "route": "primal"}
    scores = Scores.from_rows(
        [
            row(0, "stage1", "input", "fvu", 0.5, **solved),
            row(8, "stage1", "input", "fvu", 0.00123456, **solved),
            row(8, "stage1", "input", "mse", 7.0, **solved),
            row(8, "stage1", "label", "accuracy", 0.75, alpha=10.0, route="dual"),
            row(8, "classifier", "input", "fvu", 0.9, approximation="sketch of 8 of 64 features", **solved),
            row(8, "stage1", "input", "fvu", 0.4, **(solved | {"split": "fit"})),
            row(8, "model", "label", "loss", 1.25),
        ]
    )
    assert str(scores).splitlines() == [
        "run: step 8, the last of 2, held-out rows",
        "layer       features  input fvu  input penalty  label accuracy  label penalty  label loss  route",
        "stage1            64   0.001235          1e-03            0.75          1e+01              primal, dual",
        "classifier        64       ~0.9          1e-03                                             primal",
        "model             64                                                                 1.25",
    ]


def test_each_run_has_lines_of_its_own_and_nothing_has_none() -> None:
    both = Scores.from_rows([row(1, "a", "input", "fvu", 0.1), row(2, "a", "input", "fvu", 0.2, run="other")])
    assert [line for line in str(both).splitlines() if ":" in line] == [
        "run: step 1, held-out rows",
        "other: step 2, held-out rows",
    ]
    assert str(Scores.from_rows([])) == repr(Scores.from_rows([]))


def test_of_many_targets_there_is_a_column_for_each_layer() -> None:
    names = [f"att{i:02}" for i in range(8)]
    rows = [
        row(0, layer, name, "accuracy", 0.5 + place, alpha=0.1, route="primal")
        for name in names
        for place, layer in enumerate(("a", "b"))
    ]
    title, header, features, first, penalty, *others, route = str(Scores.from_rows(rows)).splitlines()
    assert title == "run: step 0, held-out rows"
    assert [line.split() for line in (header, features, route)] == [
        ["layer", "a", "b"],
        ["features", "64", "64"],
        ["route", "primal", "primal"],
    ]
    assert first.split() == ["att00", "accuracy", "0.5", "1.5"]
    assert penalty.split() == ["att00", "penalty", "1e-01", "1e-01"]
    assert len(others) == 14
