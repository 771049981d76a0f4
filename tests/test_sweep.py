"""``sweep``: resumes where it was killed, loses nothing, names what it cannot read."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

import phasefast as pf
from phasefast.errors import ArgumentError, CheckpointError, DependencyError, LayerError, StoreError, SweepError
from phasefast.report import read_phases, write_phases
from phasefast.results.scores import Scores
from phasefast.results.shards import list_shards
from tests.conftest import SmallNet

STEPS = (0, 1, 2, 4)


@pytest.fixture
def checkpoints(net: SmallNet) -> dict[int, dict[str, torch.Tensor]]:
    states = {}
    for step in STEPS:
        with torch.no_grad():
            net.hidden.weight += 0.1 * torch.randn(net.hidden.weight.shape)
        states[step] = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    return states


def without_seconds(scores: pf.Scores) -> list[dict]:
    """All that a measurement gives but its duration and, for files, the fingerprint of the file."""
    return scores.to_arrow().drop_columns(["seconds", "source_hash"]).to_pylist()


def test_equals_probing_each_checkpoint(
    net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    swept = pf.sweep(net, checkpoints, probe_set, out=tmp_path, layers="hidden")
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert swept.steps == list(STEPS)
    assert without_seconds(pf.read_scores(tmp_path)) == without_seconds(swept)
    for step, state in checkpoints.items():
        net.load_state_dict(state)
        alone = pf.probe(net, probe_set, layers="hidden", step=step)
        assert without_seconds(alone) == without_seconds(swept.filter(step=step))


def test_a_sweep_that_is_broken_off_reads_no_further(
    net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise StoreError("no room left")

    before = set(threading.enumerate())
    monkeypatch.setattr(Scores, "write_shard", broken)
    with pytest.raises(StoreError, match="no room left"):
        pf.sweep(net, checkpoints, probe_set, out=tmp_path, layers="hidden")
    for reader in set(threading.enumerate()) - before:  # it is not waited for, as it may be in a download
        reader.join(60)
    assert set(threading.enumerate()) <= before


def test_files_folders_and_prefixes(net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path) -> None:
    expected = pf.sweep(net, checkpoints, probe_set, out=tmp_path / "a", layers="hidden")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step, state in checkpoints.items():
        saved = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
        torch.save({"state_dict": saved, "epoch": 3}, folder / f"epoch=0-step={step}.ckpt")
    single = pf.sweep(net, folder / "epoch=0-step=2.ckpt", probe_set, out=tmp_path / "single", layers="hidden")
    assert without_seconds(single) == without_seconds(expected.filter(step=2))
    for number, source in enumerate([folder, sorted(folder.iterdir(), reverse=True)]):
        got = pf.sweep(net, source, probe_set, out=tmp_path / str(number), layers="hidden")
        assert without_seconds(got) == without_seconds(expected)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_folder_of_checkpoints_in_folders(
    net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path
) -> None:
    expected = pf.sweep(net, checkpoints, probe_set, out=tmp_path / "a", layers="hidden")
    folder, last = tmp_path / "checkpoints", STEPS[-1]
    for step, state in checkpoints.items():
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        torch.save({"state": {}}, folder / f"checkpoint-{step}/optimizer.pt")
        if step != last:
            save_file(state, folder / f"checkpoint-{step}/model.safetensors")
    beside = {"optimizer": {"lr": 0.1, "momentum": torch.ones(3)}, "epoch": 3}
    dcp.save({"model": checkpoints[last], **beside}, checkpoint_id=folder / f"checkpoint-{last}", no_dist=True)
    options = {"out": tmp_path / "b", "layers": "hidden"}
    got = pf.sweep(net, folder, probe_set, **options)
    assert without_seconds(got) == without_seconds(expected)
    assert pf.sweep(net, folder, probe_set, **options).to_arrow().equals(got.to_arrow())

    torch.save({"state": {1: torch.ones(1)}}, folder / "checkpoint-1/optimizer.pt")
    pf.sweep(net, folder, probe_set, **options)
    save_file(checkpoints[2], folder / "checkpoint-1/model.safetensors")
    with pytest.raises(StoreError, match="step 1 is stored already, but was measured on other weights"):
        pf.sweep(net, folder, probe_set, **options)


def test_without_safetensors_what_to_install_is_said_at_the_first(
    net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step, state in checkpoints.items():
        save_file(state, tmp_path / f"step_{step}.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(DependencyError, match=r"step_0.safetensors: .*pip install safetensors"):
        pf.sweep(net, tmp_path, probe_set, out=tmp_path / "out", layers="hidden")
    mixed = {**checkpoints, 9: tmp_path / "step_1.safetensors"}
    with pytest.raises(SweepError, match=r"(?s)1 of 5 .*step_1.safetensors: .*pip install safetensors"):
        pf.sweep(net, mixed, probe_set, out=tmp_path / "out", layers="hidden")
    assert pf.read_scores(tmp_path / "out").steps == list(STEPS)


def test_killed_between_checkpoints_continues_and_ends_identical(
    net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path
) -> None:
    for step, state in checkpoints.items():
        torch.save(state, tmp_path / f"step_{step}.pt")
    # A process that dies by SIGKILL as its third measurement begins.
    script = f"""
import os, signal
import phasefast as pf
from phasefast.engine import Engine
from tests.conftest import SmallNet, images
measure = Engine.measure
def dying(self, step, **options):
    if step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(self, step, **options)
Engine.measure = dying
probe_set = pf.ProbeSet.from_tensors(*images(150, 1), *images(60, 2))
pf.sweep(SmallNet(), {str(tmp_path)!r}, probe_set, out={str(tmp_path / "killed")!r}, layers=["conv", "hidden"])
"""
    root = Path(__file__).parents[1]
    killed = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert list(list_shards(tmp_path / "killed")) == [0, 1]
    (tmp_path / "killed/scores/step-000000000002.123.partial").write_bytes(b"half a shard")
    stamps = {step: path.stat().st_mtime_ns for step, path in list_shards(tmp_path / "killed").items()}

    pf.sweep(net, tmp_path, probe_set, out=tmp_path / "killed", layers=["conv", "hidden"])
    pf.sweep(net, tmp_path, probe_set, out=tmp_path / "whole", layers=["conv", "hidden"])
    assert without_seconds(pf.read_scores(tmp_path / "killed")) == without_seconds(pf.read_scores(tmp_path / "whole"))
    assert all(list_shards(tmp_path / "killed")[step].stat().st_mtime_ns == stamp for step, stamp in stamps.items())


def test_shards_share_a_sweep_and_resume_it_in_another_number(
    net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path
) -> None:
    whole = pf.sweep(net, checkpoints, probe_set, out=tmp_path / "whole", layers="hidden")
    steps = [pf.sweep(net, checkpoints, probe_set, out=tmp_path, layers="hidden", shard=(i, 3)).steps for i in (2, 0)]
    assert steps == [[2], [0, 4]]
    stamps = {step: path.stat().st_mtime_ns for step, path in list_shards(tmp_path).items()}
    for index in range(5):  # the fifth has nothing to do
        pf.sweep(net, checkpoints, probe_set, out=tmp_path, layers="hidden", shard=(index, 5))
    assert without_seconds(pf.read_scores(tmp_path)) == without_seconds(whole)
    assert all(list_shards(tmp_path)[step].stat().st_mtime_ns == stamp for step, stamp in stamps.items())


def test_what_all_checkpoints_would_meet_is_raised_at_the_first(
    net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LayerError, match="'unused': its forward hook never fired"):
        pf.sweep(net, checkpoints, probe_set, out=tmp_path, layers=["conv", "unused"])
    assert "step 1" not in capsys.readouterr().err


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0), (0,), (0.0, 2.0)])
def test_shards_that_cannot_be_are_refused(
    net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path, shard: tuple[int, int]
) -> None:
    with pytest.raises(ArgumentError, match="0 <= i < n"):
        pf.sweep(net, checkpoints, probe_set, out=tmp_path, shard=shard)
    with pytest.raises(ArgumentError, match="what other shards write"):
        pf.sweep(net, checkpoints, probe_set, out=tmp_path, shard=(0, 2), overwrite=True)
    assert not list(tmp_path.iterdir())


def test_bad_checkpoints_are_named_and_the_others_stored(
    net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path
) -> None:
    good = tmp_path / "step_0.pt"
    torch.save(checkpoints[0], good)
    truncated = tmp_path / "step_1.pt"
    truncated.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    torch.save([1, 2, 3], tmp_path / "step_2.pt")
    torch.save({k: v for k, v in checkpoints[0].items() if k != "head.bias"}, tmp_path / "step_3.pt")
    torch.save({**checkpoints[0], "extra.weight": torch.zeros(1)}, tmp_path / "step_4.pt")
    torch.save({**checkpoints[0], "head.bias": torch.zeros(9)}, tmp_path / "step_5.pt")
    torch.save(SimpleNamespace(weights=1), tmp_path / "step_6.pt")
    torch.save({**checkpoints[0], "hidden.weight": torch.full((20, 54), torch.nan)}, tmp_path / "step_7.pt")
    with pytest.raises(SweepError) as caught:
        pf.sweep(net, tmp_path, probe_set, out=tmp_path / "out", layers="hidden")
    message = str(caught.value)
    for words in (
        "7 of 8 checkpoints failed, the other 1 is stored in",
        "; sweep again to retry step 1:\n",
        "step 1: " + str(truncated),
        "truncated",
        "got list",
        "lacks the keys ['head.bias']",
        "unexpected keys ['extra.weight']",
        "it has head.bias of shape (9,), while the model's is (3,)",
        "step_6.pt: holds more than plain tensors",
        "layer 'hidden': NaN or Inf",
    ):
        assert words in message, message
    assert pf.read_scores(tmp_path / "out").steps == [0]
    torch.save(checkpoints[1], truncated)
    again = pf.sweep(net, {0: good, 1: truncated}, probe_set, out=tmp_path / "out", layers="hidden")
    assert again.steps == [0, 1]


def test_checkpoints_that_fail_alike_share_a_line(
    net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path
) -> None:
    torch.save(checkpoints[0], tmp_path / "step_0.pt")
    for step in (1, 2, 10):
        torch.save({**checkpoints[0], "extra.weight": torch.zeros(1)}, tmp_path / f"step_{step}.pt")
    torch.save([1, 2, 3], tmp_path / "step_20.pt")
    with pytest.raises(SweepError) as caught:
        pf.sweep(net, tmp_path, probe_set, out=tmp_path / "out", layers="hidden")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "retry" not in lines[0]
    assert lines[1].startswith(f"  step 1: {tmp_path / 'step_1.pt'} does not fit")
    assert lines[1].endswith(
        "unexpected keys ['extra.weight']; load= (--load) can leave keys out; likewise 2 more: 2, 10"
    )
    assert lines[2].startswith("  step 20: ")


def test_after_five_that_cannot_be_used_alike_the_others_are_not_tried(
    net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path
) -> None:
    tried: list[str] = []

    def load(path: Path) -> dict:
        tried.append(path.name)
        return dict(torch.load(path))

    for step in range(12):
        torch.save({"net": checkpoints[0]}, tmp_path / f"step_{step}.pt")
    options: dict = {"out": tmp_path / "out", "layers": "hidden", "load": load}
    with pytest.raises(SweepError) as caught:
        pf.sweep(net, tmp_path, probe_set, key="ema", **options)
    lines = str(caught.value).splitlines()
    assert len(tried) <= 7  # the first five, one that was read ahead, and the last
    assert lines[0] == "12 of 12 checkpoints failed, none was measured:"
    assert lines[1].startswith("  step 0: ")
    assert "expected weights under the key 'ema'" in lines[1]
    assert lines[2].startswith("  step 5: not tried, as the first 5 and the last failed the same way; likewise 5 more:")
    torch.save({"net": checkpoints[0], "ema": checkpoints[0]}, tmp_path / "step_11.pt")
    with pytest.raises(SweepError, match=r"11 of 12 checkpoints failed, the other 1 is stored"):
        pf.sweep(net, tmp_path, probe_set, key="ema", **{**options, "out": tmp_path / "late"})
    assert pf.sweep(net, tmp_path, probe_set, key="net", **options).steps == list(range(12))


def test_state_dict_of_a_diverged_step_does_not_reach_the_model(
    net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path
) -> None:
    bad = {**checkpoints[0], "conv.weight": torch.full((6, 1, 3, 3), torch.nan)}
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(SweepError, match="step 3"):
        pf.sweep(net, {3: bad}, probe_set, out=tmp_path, layers="hidden")
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_another_configuration_is_refused_before_any_work(
    net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path
) -> None:
    pf.sweep(net, checkpoints, probe_set, out=tmp_path, layers="hidden")
    with pytest.raises(StoreError, match="another configuration"):
        pf.sweep(net, checkpoints, probe_set, out=tmp_path, layers="hidden", alphas=[0.1])
    pf.sweep(net, checkpoints, probe_set, out=tmp_path, layers="hidden", alphas=[0.1], overwrite=True)
    assert set(pf.read_scores(tmp_path).filter(layer="hidden").to_pandas()["alpha"].round(6)) == {0.1}


def test_overwriting_removes_the_report_of_the_removed_scores_and_nothing_else(
    net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path
) -> None:
    kept = [tmp_path / name for name in ("notes.txt", "results.png", "phases.json.bak", "cache/mine.pt", "scores/mine")]
    reports = [tmp_path / name for name in ("phases.json", "phases.png", "maps.pdf", "maps-selected.png")]
    options = {"out": tmp_path, "layers": "hidden", "alphas": [0.1]}
    for path in (*kept, *reports):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    few = {step: checkpoints[step] for step in (0, 1)}
    pf.sweep(net, few, probe_set, overwrite=True, **options)  # no scores, so that these are of others
    pf.sweep(net, few, probe_set, **options)
    assert all(path.exists() for path in (*kept, *reports))
    write_phases(tmp_path, read_phases(tmp_path)[1])
    pf.sweep(net, few, probe_set, overwrite=True, **options)
    assert not any(path.exists() for path in reports)
    assert all(path.exists() for path in kept)
    reports[0].mkdir()
    pf.sweep(net, few, probe_set, overwrite=True, **options)
    assert reports[0].is_dir()


def test_stored_steps_never_stand_in_for_other_weights(
    net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path
) -> None:
    expected = pf.sweep(net, checkpoints, probe_set, out=tmp_path / "a", layers="hidden")
    wrapped = {k: {f"module.{n}": t.double() for n, t in reversed(c.items())} for k, c in checkpoints.items()}
    again = pf.sweep(net, wrapped, probe_set, out=tmp_path / "a", layers="hidden")
    assert again.to_arrow().equals(expected.to_arrow())
    with pytest.raises(StoreError, match="step 2 is stored already, but was measured on other weights"):
        pf.sweep(net, {2: checkpoints[4]}, probe_set, out=tmp_path / "a", layers="hidden")
    with pytest.raises(StoreError, match="another configuration"):
        pf.sweep(net, checkpoints, probe_set, out=tmp_path / "a", layers="hidden", run="another")
    path = tmp_path / "step_7.pt"
    torch.save(checkpoints[0], path)
    pf.sweep(net, [path], probe_set, out=tmp_path / "b", layers="hidden")
    torch.save(checkpoints[1], path)
    with pytest.raises(StoreError, match="other weights"):
        pf.sweep(net, [path], probe_set, out=tmp_path / "b", layers="hidden")
    path.unlink()
    assert pf.sweep(net, [path], probe_set, out=tmp_path / "b", layers="hidden").steps == [7]


def test_shard_under_another_name_is_refused(
    net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path
) -> None:
    pf.sweep(net, {1: checkpoints[1]}, probe_set, out=tmp_path, layers="hidden")
    shard = list_shards(tmp_path)[1]
    shard.rename(shard.with_name("step-000000000002.parquet"))
    with pytest.raises(StoreError, match="renamed"):
        pf.read_scores(tmp_path)


@pytest.mark.parametrize("bad", ["file/out", "/proc/phasefast"])
def test_unwritable_output_is_named_before_any_work(
    net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path, bad: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=bad.split("/")[-1]):
        pf.sweep(net, checkpoints, probe_set, out=tmp_path / bad, layers="hidden")


def test_empty_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no scores"):
        pf.read_scores(tmp_path)
    with pytest.raises(StoreError, match=f"give the run directory {tmp_path}"):
        pf.read_scores(tmp_path / "scores")


@pytest.mark.parametrize(
    ("checkpoints", "words"),
    [
        ({}, "at least one"),
        ([], "at least one"),
        ({-1: {}}, "-1"),
        (["weights.pt"], "expected a step in its name"),
        (["a/step_1.pt", "b/step_1.pt"], "given twice"),
        ("nowhere", "nowhere"),
    ],
)
def test_checkpoints_that_cannot_be_ordered(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path, checkpoints: object, words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        pf.sweep(net, checkpoints, probe_set, out=tmp_path)  # type: ignore[arg-type]


def test_missing_file_is_named(net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"(?s)none was measured; sweep again to retry:\n.*no such file"):
        pf.sweep(net, [tmp_path / "step_9.pt"], probe_set, out=tmp_path / "out")


def test_targets_of_equal_counts_are_told_apart(
    net: SmallNet, probe_set: pf.ProbeSet, checkpoints: dict, tmp_path: Path
) -> None:
    def first(x: torch.Tensor) -> torch.Tensor:
        return (torch.arange(len(x)) % 2).long()

    def second(x: torch.Tensor) -> torch.Tensor:
        return 1 - first(x)

    options = {"out": tmp_path, "layers": "hidden"}
    pf.sweep(net, checkpoints, probe_set, targets=[pf.Function(first, "classes", "task")], **options)
    with pytest.raises(StoreError, match="another configuration"):
        pf.sweep(net, checkpoints, probe_set, targets=[pf.Function(second, "classes", "task")], **options)


def test_a_child_named_like_a_prefix_loads_its_own_state_dict(probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    model = torch.nn.Sequential()
    model.add_module("module", torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3)))
    assert pf.sweep(model, [model.state_dict()], probe_set, out=tmp_path).layers == ["module.0", "module.1"]
