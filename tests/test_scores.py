"""What is asked of scores."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import phasefast as pf
from phasefast.errors import DataError, StoreError
from phasefast.scores import Scores, in_order
from phasefast.shards import read_shard

from .conftest import SmallNet
from .report.synthetic import make_scores


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


def test_layers_are_in_the_order_of_a_step_that_lost_none() -> None:
    assert in_order([(0, "b"), (0, "c"), (1, "a"), (1, "b"), (1, "c"), (2, "d")]) == ["a", "b", "c", "d"]
    assert in_order([]) == []
    assert make_scores(["a"], [0]).select(["a", "!model"]).layers == ["a"]
    for layers in (["!model", "!a"], ["model", "!model"]):
        with pytest.raises(pf.PhasefastError, match=r"^no scores of layers \[[^]]*\]$"):
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
    older = pf.Scores(one.to_arrow().drop_columns(["target_hash", "place"]))
    assert len(pf.Scores.concat([one, older])) == len(one)
    with torch.no_grad():
        net.hidden.weight.add_(1)
    changed = pf.probe(net, probe_set, layers="hidden", step=3)
    with pytest.raises(DataError, match="run 'run', step 3: expected those of one training"):
        pf.Scores.concat([one, changed])
    assert len(pf.Scores.concat([one, changed.with_column("run", "b")])) == len(one) + len(changed)


def test_no_file_of_pythons_is_given_to_other_threads(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that lets go of such a file after the interpreter's end ends the process."""
    path = pf.probe(net, probe_set, layers="hidden", step=3).write_shard(tmp_path / os.fsdecode(b"caf\xe9:\xff"))
    read, files = pq.read_table, []
    monkeypatch.setattr(
        pq, "read_table", lambda file, **options: files.append((type(file), options)) or read(file, **options)
    )
    assert read_shard(path).steps == [3]
    ((kind, options),) = files
    assert kind is pa.OSFile
    assert not options["pre_buffer"]
    assert not options["use_threads"]


def test_a_damaged_shard_is_named_or_read_as_it_was(net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    """Whatever bit of a page is flipped; what lies beside the pages may be of no consequence."""
    path = pf.probe(net, probe_set, layers="hidden", step=3).write_shard(tmp_path)
    whole, scores = path.read_bytes(), read_shard(path)
    rng, refused, read = np.random.default_rng(0), 0, 0
    for place in rng.integers(4, len(whole) - 4, 150):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            found = read_shard(path)
        except StoreError as error:
            refused += str(path) in str(error)
        else:
            same = ["value", "samples", "baseline_samples", "step", "layer"]
            assert found.to_arrow().select(same).equals(scores.to_arrow().select(same))
            read += 1
    assert refused + read == 150
    assert refused > 75
