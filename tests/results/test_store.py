"""What is said of scores that are of something else: in words, without hashes."""

from __future__ import annotations

import errno
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import phasefast as pf
from phasefast.engine import Engine
from phasefast.errors import ArgumentError, StoreError, SweepError
from phasefast.options import ProbeOptions
from phasefast.report import read_phases
from phasefast.results.failures import read_failures
from phasefast.results.scores import Scores
from phasefast.results.settings import _NAMES, _changes
from phasefast.results.store import write_step

from ..conftest import SmallNet, images


@pytest.fixture
def state(net: SmallNet) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def refused(out: Path, state: dict, model: torch.nn.Module, probe_set: pf.ProbeSet, **options: object) -> str:
    """What the error says, but for the name of the shard."""
    with pytest.raises(StoreError) as caught:
        pf.sweep(model, {3: state}, probe_set, out=out, **{"layers": "hidden", **options})  # type: ignore[arg-type]
    message = str(caught.value).replace(str(out), "")
    assert not re.search(r"\b[0-9a-f]{16,}\b", message)
    assert message.endswith("give another out= (--out), or overwrite=True (--overwrite) to start over")
    return message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"run": "b"}, 'run stored "run", now "b"'),
        ({"noise": 0.1}, "noise stored null, now 0.1"),
        (
            {"alphas": [k / 7 for k in range(1, 9)]},
            "alphas stored 17 from 1e-06 to 100, now 8 from 0.142857 to 1.14286",
        ),
        ({"penalty_per": "column"}, "penalty_per='column' stored false, now true"),
        ({"selection": "loo", "batch_size": 7}, 'selection stored "gcv", now "loo"; batch_size stored 256, now 7'),
        ({"tokens": "mean"}, 'tokens stored "flatten", now "mean"'),
        ({"layer_sketch": 8}, "layer_sketch stored null, now 8"),
    ],
)
def test_which_options_differ_is_told_by_name(
    net: SmallNet, probe_set: pf.ProbeSet, state: dict, tmp_path: Path, options: dict, words: str
) -> None:
    pf.sweep(net, {3: state}, probe_set, out=tmp_path, layers="hidden")
    told = refused(tmp_path, state, net, probe_set, **options)
    assert f"measured with another configuration: {words}; give the same model, run, options and data, or" in told


def test_another_model_and_other_data_are_told_by_name(
    net: SmallNet, probe_set: pf.ProbeSet, state: dict, tmp_path: Path
) -> None:
    pf.sweep(net, {3: state}, probe_set, out=tmp_path, layers="hidden")
    net.unused = torch.nn.Linear(4, 4)
    told = refused(tmp_path, state, net, probe_set)
    assert "another configuration: the model's parameters differ; the model's modules differ; give" in told
    inputs, labels = images(150, 3)
    heldout = images(60, 4)
    other = pf.ProbeSet.from_tensors(inputs, labels, *heldout)
    told = refused(tmp_path, state, SmallNet(), other)
    assert "another configuration: the probe set's inputs differ; give" in told
    (settings,) = (tmp_path / "scores").glob("_settings-*.json")
    settings.unlink()
    told = refused(tmp_path, state, net, probe_set)
    assert "measured with another configuration, whose settings were not kept; give the same model" in told


def test_other_weights_are_told_without_hashes(
    net: SmallNet, probe_set: pf.ProbeSet, state: dict, tmp_path: Path
) -> None:
    pf.sweep(net, {3: state}, probe_set, out=tmp_path / "a", layers="hidden")
    other = {**state, "hidden.bias": state["hidden.bias"] + 1}
    message = "step 3 is stored already, but was measured on other weights: another training, rank, key or function? If"
    assert message in refused(tmp_path / "a", other, net, probe_set)
    path = tmp_path / "step_3.pt"
    torch.save(state, path)
    pf.sweep(net, {3: path}, probe_set, out=tmp_path / "b", layers="hidden")
    torch.save(other, path)
    assert "other weights: another training, rank, key or function?" in refused(tmp_path / "b", path, net, probe_set)


@pytest.mark.parametrize(
    ("stored", "now", "words"),
    [
        (["running", 128], ["batch", 128], ['batchnorm stored "running", now "batch"']),
        (["batch", 128, 2], ["batch", 128], ['batchnorm, batch_size stored ["batch", 128, 2], now ["batch", 128]']),
        ("batch", ["batch", 128], ['batchnorm, batch_size stored "batch", now ["batch", 128]']),
        (None, ["batch", 128], ['batchnorm, batch_size stored null, now ["batch", 128]']),
    ],
)
def test_settings_of_other_versions_are_told_whole(stored: object, now: object, words: list[str]) -> None:
    assert list(_changes("batchnorm", stored, now)) == words


def test_checkpoints_of_another_folder_are_told(
    net: SmallNet, probe_set: pf.ProbeSet, state: dict, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for place in ("a/step_1", "a/step_2", "b/step_3"):
        (tmp_path / place).mkdir(parents=True)
        torch.save(state, tmp_path / place / "model.pt")
    options: dict = {"out": tmp_path / "out", "layers": "hidden"}
    pf.sweep(net, str(tmp_path / "a/*/model.pt"), probe_set, **options)
    pf.sweep(net, [tmp_path / "a/step_2/model.pt"], probe_set, **options)
    pf.sweep(net, {9: state}, probe_set, **options)
    (tmp_path / "a").rename(tmp_path / "c")  # some of which are measured already: the same training
    pf.sweep(net, str(tmp_path / "c"), probe_set, **options)
    (tmp_path / "c").rename(tmp_path / "a")
    pf.sweep(net, str(tmp_path / "a"), probe_set, **options)
    assert not [each for each in recwarn if "another training" in str(each.message)]
    with pytest.warns(RuntimeWarning, match=rf"scores of checkpoints in {tmp_path}/a, but these are in {tmp_path}/b"):
        pf.sweep(net, str(tmp_path / "b"), probe_set, **options)
    with pytest.warns(
        RuntimeWarning, match=rf"checkpoints in {tmp_path}/a, {tmp_path}/b: do they belong to one training"
    ):
        read_phases(tmp_path / "out")
    (tmp_path / "all").mkdir()
    for place in ("a/step_1", "a/step_2", "b/step_3"):
        shutil.copytree(tmp_path / place, tmp_path / "all" / Path(place).name)
    torch.save(state, tmp_path / "all/step_9.pt")
    pf.sweep(net, str(tmp_path / "all/step_*"), probe_set, **options)  # all that are measured
    recwarn.clear()
    read_phases(tmp_path / "out")
    pf.sweep(net, str(tmp_path / "b"), probe_set, overwrite=True, **options)
    pf.sweep(net, str(tmp_path / "b"), probe_set, **options)
    assert not [each for each in recwarn if "another training" in str(each.message)]


def test_jobs_that_add_to_one_step_at_once_lose_nothing(
    net: SmallNet, probe_set: pf.ProbeSet, state: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One writes where the other has read what is there, unless it waits."""
    pf.sweep(net, {0: state}, probe_set, out=tmp_path, layers="hidden")
    write, begun = Scores.write_shard, threading.Event()

    def slowly(scores: Scores, directory: Path) -> None:
        if not begun.is_set():
            begun.set()
            time.sleep(0.5)
        write(scores, directory)

    net.load_state_dict(state)
    engines = {layer: Engine(net, probe_set, layers=layer) for layer in ("conv", "head")}
    scores = {layer: engine.measure(0) for layer, engine in engines.items()}
    store = engines["conv"].store(tmp_path)
    monkeypatch.setattr(Scores, "write_shard", slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(write_step, store, scores["conv"], {})
        assert begun.wait(10), first.result()
        second = pool.submit(write_step, store, scores["head"], {})
        for job in (first, second):
            job.result(10)
    assert pf.read_scores(tmp_path).layers == ["conv", "hidden", "head"]


def test_the_reason_of_a_checkpoint_that_is_damaged_since_stays(
    net: SmallNet, probe_set: pf.ProbeSet, state: dict, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in range(3):
        torch.save(state, folder / f"step_{step}.pt")
    pf.sweep(net, folder, probe_set, out=tmp_path, layers="hidden")
    (folder / "step_1.pt").write_bytes(b"damaged")
    with pytest.raises(SweepError):
        pf.sweep(net, folder, probe_set, out=tmp_path, layers="conv")
    before = read_failures(tmp_path)
    assert list(before) == [1]
    with pytest.raises(SweepError):
        pf.sweep(net, folder, probe_set, out=tmp_path, layers="hidden")
    assert read_failures(tmp_path) == before


def test_starting_over_removes_nothing_where_the_arguments_are_refused(
    net: SmallNet, probe_set: pf.ProbeSet, state: dict, tmp_path: Path
) -> None:
    options: dict = {"out": tmp_path, "layers": "hidden"}
    pf.sweep(net, [state, state], probe_set, **options)
    pictures = [tmp_path / f"{name}.pdf" for name in ("phases", "reconstructions")]
    for path in pictures:
        path.touch()
    with pytest.raises(ArgumentError, match="holds the model's own tensors"):
        pf.sweep(net, [net.state_dict(), state], probe_set, overwrite=True, **options)
    assert (pf.read_scores(tmp_path).steps, [path.exists() for path in pictures]) == ([0, 1], [True, True])
    pf.sweep(net, [state], probe_set, overwrite=True, **options)
    assert (pf.read_scores(tmp_path).steps, [path.exists() for path in pictures]) == ([0], [False, False])


def test_a_tracker_stores_later_what_the_disk_refused(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = pf.PhaseTracker(net, probe_set, out=tmp_path, layers="hidden")
    tracker.step(0)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", full)
        with pytest.warns(RuntimeWarning, match="step 1 was not stored: .*No space left.*; tried again at"):
            assert tracker.step(1) is not None
        with pytest.warns(RuntimeWarning, match="steps 1, 2 were not stored: "):
            tracker.step(2)
        assert tracker.step(2) is None
    assert (tracker.scores.steps, pf.read_scores(tmp_path).steps) == ([0, 1, 2], [0])
    (shard := tmp_path / "scores/step-000000000001.parquet").mkdir()  # which stops no other step
    with pytest.warns(RuntimeWarning, match="step 1 was not stored: "):
        tracker.step(2, force=True)
    shard.rmdir()
    tracker.step(4)
    assert pf.read_scores(tmp_path).steps == [0, 1, 2, 4]


OTHERWISE = {
    "alphas": [0.1],
    "noise": 0.3,
    "batchnorm": "running",
    "precision": "fast",
    "selection": "loo",
    "penalty_per": "column",
    "classifier": "lda",
    "splits": "heldout",
    "layer_sketch": 4,
    "tokens": "mean",
    "padding": 0,
    "pool": 2,
    "batch_size": 7,
}
# What is measured beside them is added to a step, and where and by which way changes no number.
NO_SETTINGS = {"layers", "targets", "predicts", "target_components", "device", "route", "memory"}


def test_every_option_that_changes_numbers_is_a_setting(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    """Else a sweep with another value would go on among the scores of the one before."""
    assert OTHERWISE.keys() | NO_SETTINGS == ProbeOptions.__annotations__.keys()
    common = {"padding": {"tokens": "mean"}}  # which asks for another one
    for name, value in OTHERWISE.items():
        before = Engine(net, probe_set, "run", None, **common.get(name, {}))
        after = Engine(net, probe_set, "run", None, **common.get(name, {}), **{name: value})
        assert before.config_hash != after.config_hash, name


def test_each_part_of_a_setting_has_a_name(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    settings = Engine(net, probe_set, "run", None, padding=0, tokens="mean").settings
    parts = {key: names for key, names in _NAMES.items() if len(names) > 1}
    assert parts.keys() <= settings.keys()
    assert {key: len(settings[key]) for key in parts} == {key: len(names) for key, names in parts.items()}


def test_a_sweep_of_a_lazy_model_says_so(probe_set: pf.ProbeSet, state: dict, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3))
    with pytest.raises(ArgumentError, match="its module '1' is lazy"):
        pf.sweep(model, [state, dict(state)], probe_set, out=tmp_path)
