"""Shards of scores that are damaged, or cannot be opened."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import phasefast as pf
from phasefast.errors import DamagedError, StoreError
from phasefast.results.shards import read_shard, set_aside

from ..conftest import SmallNet


@pytest.fixture
def states(net: SmallNet) -> list[dict[str, torch.Tensor]]:
    return [{name: tensor * scale for name, tensor in net.state_dict().items()} for scale in (0.5, 1, 2, 3)]


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


def test_damaged_shards_are_named_and_measured_again(
    net: SmallNet, probe_set: pf.ProbeSet, states: list, tmp_path: Path
) -> None:
    whole = pf.sweep(net, states, probe_set, out=tmp_path, layers="hidden")
    first, second, *_ = sorted((tmp_path / "scores").glob("step-*.parquet"))
    first.write_bytes(b"PAR1 not really")
    second.write_bytes(second.read_bytes()[:-9])
    named = f"2 of {len(states)} shards are damaged: {first.name}, {second.name}"
    with pytest.raises(
        DamagedError, match=f"{first} is damaged .*; a sweep measures the step again, or delete it; {named}"
    ):
        pf.read_scores(tmp_path)
    with pytest.warns(
        RuntimeWarning, match="; likewise 1 more; renamed to _[*].damaged, so that its step can be measured again"
    ):
        again = pf.sweep(net, states, probe_set, out=tmp_path, layers="hidden")
    same = [name for name in whole.to_arrow().column_names if name != "seconds"]
    assert again.to_arrow().select(same).equals(whole.to_arrow().select(same))
    assert pf.read_scores(tmp_path).steps == whole.steps
    assert first.with_name(f"_{first.name}.damaged").read_bytes() == b"PAR1 not really"


def test_pandas_reads_the_folder(net: SmallNet, probe_set: pf.ProbeSet, states: list, tmp_path: Path) -> None:
    states[1]["hidden.weight"] = states[1]["hidden.weight"] * float("nan")
    with pytest.warns(RuntimeWarning, match="left out 2"), pytest.raises(pf.errors.SweepError):
        pf.sweep(net, [*states, {}], probe_set, out=tmp_path, layers=["conv", "hidden"])
    (tmp_path / "scores/_step-000000000009.parquet.damaged").write_bytes(b"PAR1 not really")
    others = {path.name.split("-")[0] for path in (tmp_path / "scores").iterdir()} - {"step"}
    assert others == {"_settings", "_failed", "_step", ".lock"}
    pandas = pytest.importorskip("pandas")
    found = pandas.read_parquet(tmp_path / "scores")
    pandas.testing.assert_frame_equal(found, pf.read_scores(tmp_path).to_pandas(samples=True), check_like=True)


def test_shards_that_the_system_does_not_give_are_left_as_they_are(
    net: SmallNet, probe_set: pf.ProbeSet, states: list, tmp_path: Path
) -> None:
    pf.sweep(net, states, probe_set, out=tmp_path, layers="hidden")
    shard = max((tmp_path / "scores").glob("step-*.parquet"))
    shard.unlink()
    shard.mkdir()
    for call in (pf.read_scores, lambda out: pf.sweep(net, states, probe_set, out=out, layers="hidden")):
        with pytest.raises(StoreError, match=f"cannot open the shard {shard}"):
            call(tmp_path)
    shard.rmdir()
    for file in (tmp_path / "scores").glob("step-*.parquet"):
        file.write_bytes(b"")
        file.with_name(f"_{file.name}.damaged").mkdir()
    with pytest.raises(StoreError, match=r"is damaged .*, or delete it: the file cannot be renamed \("):
        pf.sweep(net, states, probe_set, out=tmp_path, layers="hidden")


def test_what_another_job_has_measured_again_stays(
    net: SmallNet, probe_set: pf.ProbeSet, states: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pf.sweep(net, states, probe_set, out=tmp_path, layers="hidden")
    shard = min((tmp_path / "scores").glob("step-*.parquet"))
    whole = shard.read_bytes()
    shard.write_bytes(b"")

    def late(directory: Path, damaged: list[Path]) -> None:
        assert damaged == [shard]
        shard.write_bytes(whole)  # meanwhile
        set_aside(directory, damaged)

    monkeypatch.setattr(sys.modules["phasefast.results.store"], "set_aside", late)
    pf.sweep(net, states, probe_set, out=tmp_path, layers="hidden")
    assert pf.read_scores(tmp_path).steps == [0, 1, 2, 3]
    assert not list((tmp_path / "scores").glob("*.damaged"))
    monkeypatch.undo()
    shard.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match=r"renamed to _\*\.damaged"):
        pf.sweep(net, states, probe_set, out=tmp_path, layers="hidden")
    pf.sweep(net, states, probe_set, out=tmp_path, layers="hidden", overwrite=True)
    assert not list((tmp_path / "scores").glob("*.damaged"))
