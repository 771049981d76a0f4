"""What is asked of scores."""

from __future__ import annotations

import itertools
import math
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import phasefast as pf
from phasefast.errors import ArgumentError, DataError, StoreError
from phasefast.results.scores import PER_SAMPLE, SCHEMA, Scores
from phasefast.results.selecting import in_order
from phasefast.results.shards import read_shard

from ..conftest import SmallNet
from ..report.synthetic import make_scores


def test_curves_that_are_not_there_are_named(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    scores = pf.probe(net, probe_set, layers="conv", step=3)
    value = scores.value(layer="conv", target="input", metric="fvu", split="heldout")
    assert [part.tolist() for part in scores.curve("conv", "input", "fvu")] == [[3], [value]]
    assert scores.has_curve("conv", "input", "mse", "fit")
    assert not scores.has_curve("conv", "input", "accuracy")
    for given, message in (
        (("cov", "input", "fvu"), r"no scores of layer 'cov': expected one of \['model', 'conv'\]"),
        (("conv", "inputs", "fvu"), r"no scores of target 'inputs': expected one of \['input', 'label'\]"),
        (("conv", "input", "accuracy"), r"no scores of metric 'accuracy': expected one of \["),
        (("conv", "input", "fvu", "test"), r"no scores of split 'test': expected one of \['heldout', 'fit'\]"),
    ):
        with pytest.raises(LookupError, match=message):
            scores.curve(*given)
    both = pf.Scores.concat([scores, scores.with_column("run", "other")])
    with pytest.raises(LookupError, match=r"expected the scores of one run, got those of \['run', 'other'\]"):
        both.curve("conv", "input", "fvu")
    assert both.filter(run="other").curve("conv", "input", "fvu")[1].tolist() == [value]


def test_steps_are_selected_with_the_models_own() -> None:
    scores = make_scores(["a", "b"], [0, 1, 2, 4, 8])
    found = scores.select(["a"], steps=range(1, 5))
    assert found.steps == [1, 2, 4]
    assert found.values_of("layer") == ["a", "model"]
    assert scores.select(steps=np.array([8, 0, 3])).steps == [0, 8]
    with pytest.raises(ArgumentError, match=r"no scores of layers \['a'\], steps \[3\]; they have steps 0 to 8"):
        scores.select(["a"], steps=iter([3]))
    for steps in (8, ["8"], [8.5], [-1]):
        with pytest.raises(ArgumentError, match=r"steps: expected integers >= 0, such as range\(1000\), got"):
            scores.select(steps=steps)  # type: ignore[arg-type]


def test_layers_are_in_the_order_of_a_step_that_lost_none() -> None:
    assert in_order([(0, "b"), (0, "c"), (1, "a"), (1, "b"), (1, "c"), (2, "d")]) == ["a", "b", "c", "d"]
    assert in_order([]) == []
    assert make_scores(["a"], [0]).select(["a", "!model"]).layers == ["a"]
    for layers in (["!model", "!a"], ["model", "!model"]):
        with pytest.raises(pf.PhasefastError, match=r"^no scores of layers \[[^]]*\]; they have steps"):
            make_scores(["a"], [0]).select(layers)
    lost = make_scores(["a", "b", "c"], [0, 1]).to_arrow().to_pylist()
    scores = Scores.from_rows([row for row in lost if row["step"] == 1 or row["layer"] != "a"])
    assert scores.layers == ["a", "b", "c"]


def test_scores_of_one_training_are_put_together_once(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    one, other = (pf.probe(net, probe_set, layers=layer, step=3) for layer in ("conv", "hidden"))
    both = pf.Scores.concat([one, other, one])
    assert both.layers == ["conv", "hidden"]
    assert len(both) == len(one) + len(other.filter(layer="hidden"))
    assert len(both.curve("model", "label", "accuracy")[0]) == 1
    alphas = pf.Scores.concat([one, pf.probe(net, probe_set, layers="conv", step=3, alphas=[0.1])])
    assert len(alphas) == 2 * len(one)
    with pytest.raises(DataError, match=r"run 'run', target '(input|label)': expected .* of different values"):
        pf.Scores.concat([one, one.with_column("target_hash", "other")])
    fewer = one.with_column("target_hash", "other").with_column("config_hash", "of fewer rows")  # as experiments draw
    assert len(pf.Scores.concat([one, fewer])) == 2 * len(one)
    bare = pf.Scores.from_rows(one.to_arrow().drop_columns(["target_hash", "place"]).to_pylist())
    assert len(pf.Scores.concat([one, bare])) == len(one)
    with torch.no_grad():
        net.hidden.weight.add_(1)
    changed = pf.probe(net, probe_set, layers="hidden", step=3)
    with pytest.raises(DataError, match="run 'run', step 3: expected those of one training"):
        pf.Scores.concat([one, changed])
    assert len(pf.Scores.concat([one, changed.with_column("run", "b")])) == len(one) + len(changed)


def test_a_shard_without_a_column_is_named_with_the_column(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path
) -> None:
    path = pf.probe(net, probe_set, layers="hidden", step=3).write_shard(tmp_path)
    pq.write_table(pq.read_table(path).drop_columns(["place"]), path)
    with pytest.raises(
        StoreError, match=r"step-000000000003\.parquet: .*lacks the columns \['place'\]; it has \['run', "
    ):
        pf.read_scores(tmp_path)


def test_of_equal_rows_those_with_samples_are_kept(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    whole, later = (pf.probe(net, probe_set, layers="hidden", step=step) for step in (3, 4))
    for parts in (
        [whole.without_samples, whole],
        [whole, whole.without_samples],
        [whole.without_samples, later, whole],
    ):
        assert pf.Scores.concat(parts).filter(step=3).to_arrow().equals(whole.to_arrow())


def test_no_file_of_pythons_is_given_to_other_threads(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that lets go of such a file after the interpreter's end ends the process."""
    path = pf.probe(net, probe_set, layers="hidden", step=3).write_shard(tmp_path / os.fsdecode(b"caf\xe9:\xff"))
    opened: list[tuple[type, dict[str, Any]]] = []
    read: list[dict[str, Any]] = []

    class Seen(pq.ParquetFile):
        def __init__(self, file: Any, **options: Any) -> None:
            opened.append((type(file), options))
            super().__init__(file, **options)

        def read(self, **options: Any) -> pa.Table:
            read.append(options)
            return super().read(**options)

    monkeypatch.setattr(pq, "ParquetFile", Seen)
    assert read_shard(path).steps == [3]
    ((kind, options),) = opened
    assert kind is pa.OSFile
    assert not options.get("pre_buffer")  # by which threads would read
    assert read == [{"use_threads": False}]


def random_rows(rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
    """Rows of few names each, so that some are there twice, with lists of some, and steps in no order."""
    columns = {
        "run": ("a", "b"),
        "layer": ("model", "x", "y"),
        "target": ("input", "label"),
        "split": ("heldout", "fit"),
        "metric": ("fvu", "mse"),
        "step": range(4),
        "approximation": (None, "sketch"),
        "samples": ([1.0, -0.0], [math.inf, 2.0], [1.0, 3.0], [], [None, 1.0], None),
        "baseline_samples": ([0.0, 1.0], [-0.0, 1.0], [1.0], [], [None], None),
    }
    drawn = {name: rng.integers(len(values), size=count) for name, values in columns.items()}
    rows = [{name: values[drawn[name][row]] for name, values in columns.items()} for row in range(count)]
    return [{**row, "value": float(place)} for place, row in enumerate(rows)]


@pytest.mark.parametrize("count", [0, 1, 7, 300])
def test_rows_are_those_of_a_plain_scan(count: int) -> None:
    rows = random_rows(np.random.default_rng(count), count)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    steps = sorted(rows, key=lambda row: row["step"])
    plain = pa.Table.from_pylist(steps, schema=SCHEMA)
    given = pa.concat_tables([table.slice(0, count // 3), table.slice(count // 3)])  # two chunks, the second at a place
    scores = Scores(given)
    assert scores.to_arrow().equals(plain)
    assert scores.without_samples.to_arrow().drop_columns(PER_SAMPLE).equals(plain.drop_columns(PER_SAMPLE))
    assert scores.without_samples.to_arrow().column("samples").null_count == count
    assert scores.targets == list(dict.fromkeys(row["target"] for row in steps if row["layer"] != "model"))
    assert scores.select().to_arrow().equals(plain)
    for equal in (
        {"run": "a"},
        {"step": 2, "layer": "x"},
        {"value": 3.0},
        {"approximation": "sketch"},
        {"layer": "z"},
        {"layer": "model", "target": "label", "split": "fit", "metric": "mse", "run": "b"},
    ):
        wanted = [row for row in steps if all(row[name] == value for name, value in equal.items())]
        found = scores.filter(**equal)
        assert found.to_arrow().equals(pa.Table.from_pylist(wanted, schema=SCHEMA))
        _check_curves(found, wanted)
        _check_curves(found.without_samples, [{**row, **dict.fromkeys(PER_SAMPLE)} for row in wanted])
        _check_curves(found.with_column("layer", "x"), [{**row, "layer": "x"} for row in wanted])
    _check_curves(scores, steps)


def _check_curves(scores: Scores, rows: list[dict[str, Any]]) -> None:
    """What is asked of each curve is what a plain scan of the rows finds."""
    for layer, target, metric, split in itertools.product(
        ("model", "x", "z"), ("input", "label"), ("fvu", "mse"), ("heldout", "fit")
    ):
        own = [row for row in rows if (row["layer"], row["target"]) == (layer, target)]
        own = [row for row in own if (row["metric"], row["split"]) == (metric, split)]
        assert scores.has_curve(layer, target, metric, split) == bool(own)
        if not own:
            with pytest.raises(LookupError, match="no scores of"):
                scores.curve(layer, target, metric, split)
            continue
        once = len({row["step"] for row in own}) == len(own) or len({row["run"] for row in rows}) == 1
        with nullcontext() if once else pytest.raises(LookupError, match="expected the scores of one run"):
            found = [part.tolist() for part in scores.curve(layer, target, metric, split)]
            assert found == [[row[name] for row in own] for name in ("step", "value")]
        if split == "fit":
            continue
        assert scores.estimated(layer, target, metric).tolist() == [row["approximation"] is not None for row in own]
        first = next((row["baseline_samples"] for row in own if row["baseline_samples"] is not None), None)
        baseline = scores.baseline_samples(layer, target, metric)
        assert _bits(baseline) == _bits(None if first is None else np.array(first, np.float32))
        lists = [row["samples"] for row in own]
        wrong = LookupError if None in lists else StoreError if len({len(each) for each in lists}) > 1 else None
        with pytest.raises(wrong) if wrong else nullcontext():
            found_steps, samples = scores.samples(layer, target, metric)
            assert found_steps.tolist() == [row["step"] for row in own]
            assert [_bits(each) for each in samples] == [_bits(np.array(each, np.float32)) for each in lists]


def _bits(numbers: np.ndarray | None) -> bytes | None:
    """NaN stands for null."""
    return None if numbers is None else numbers.tobytes()


def test_parts_of_scores_are_put_together_as_they_were() -> None:
    rows = list(
        {tuple(map(str, list(row.values())[:6])): row for row in random_rows(np.random.default_rng(1), 200)}.values()
    )
    whole = Scores.from_rows(rows)
    parts = [whole.filter(step=step) for step in reversed(whole.steps)]
    assert Scores.concat([*parts, parts[0], whole.filter(layer="z")]).to_arrow().equals(whole.to_arrow())
    assert len(Scores.concat([])) == 0
    shared = Scores.concat([Scores.from_rows([row]) for row in rows])
    assert shared.to_arrow().equals(whole.to_arrow())
    kept = [bytes(each.flatten().buffers()[1])[:8] for each in shared._lists["baseline_samples"] if len(each[0]) == 2]
    assert len(kept) == len(set(kept)) == 2  # that differ in a sign


def test_shards_are_read_as_they_were_written(tmp_path: Path) -> None:
    whole = make_scores(["a", "b"], [0, 1, 2])
    for step in whole.steps:
        whole.filter(step=step).write_shard(tmp_path)
    assert pf.read_scores(tmp_path).to_arrow().equals(whole.to_arrow())


def test_scores_kept_in_memory_are_saved_as_a_run(tmp_path: Path) -> None:
    whole = make_scores(["a", "b"], [0, 1, 2])
    whole.save(tmp_path / "run")
    assert pf.read_scores(tmp_path / "run").to_arrow().equals(whole.to_arrow())
    with pytest.raises(StoreError, match="holds scores already; give an empty directory"):
        make_scores(["a", "b"], [4]).save(tmp_path / "run")
    with pytest.raises(DataError, match="save: there are no scores yet"):
        Scores.from_rows([]).save(tmp_path / "none")
    with pytest.raises(DataError, match="expected the scores of one run"):
        Scores.concat([whole, whole.with_column("run", "other")]).save(tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_one_step_is_a_dictionary_for_loggers(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    scores = pf.probe(net, probe_set, layers=["conv", "hidden"], step=3)
    found, of_fit = scores.to_dict(), scores.to_dict("fit")
    assert found["hidden/label/accuracy"] == scores.value(layer="hidden", metric="accuracy", split="heldout")
    assert of_fit["conv/input/fvu"] == scores.value(layer="conv", target="input", metric="fvu", split="fit")
    assert len(found) == len(scores.filter(split="heldout")) == len(of_fit)
    assert {"model/label/loss", "model/label/accuracy"} < found.keys()
    with pytest.raises(ArgumentError, match=r"to_dict: expected one step, .* got Scores\(.*steps \[0, 1\]"):
        make_scores(["a"], [0, 1]).to_dict()
    with pytest.raises(ArgumentError, match="to_dict: expected one step, measured in one way"):
        pf.Scores.concat([scores, pf.probe(net, probe_set, layers="conv", step=3, batchnorm="running")]).to_dict()
    assert Scores.from_rows([]).to_dict() == {}


def test_notebooks_show_results_as_they_are_printed(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    class Printer:
        shown = ""

        def text(self, given: str) -> None:
            self.shown += given

    scores = pf.probe(net, probe_set, layers="conv")
    planned = pf.plan(net, probe_set, layers="conv")
    for result in (scores, pf.detect_phases(make_scores(["a"], [0, 1, 2, 4])), planned):
        printer = Printer()
        result._repr_pretty_(printer, False)
        assert printer.shown == str(result)
    assert repr(planned).startswith("Plan(1 layers: ")


def test_completion_offers_the_public_names() -> None:
    assert dir(pf) == sorted(pf.__all__)
    assert all(hasattr(pf, name) for name in dir(pf))
