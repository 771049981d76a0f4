"""``watch``: measures what arrives, once, and waits for what is not finished."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import phasefast as pf
from phasefast.errors import ArgumentError, CheckpointError, StoreError, SweepError
from tests.conftest import SmallNet


class Done(Exception):
    """The end of a test's rounds."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "checkpoints"
    made.mkdir()
    return made


def between_rounds(monkeypatch: pytest.MonkeyPatch, actions: list[Callable[[], object]]) -> list[float]:
    """Do one of ``actions`` instead of each sleep; the seconds that would have been slept."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if not actions:
            raise Done
        actions.pop(0)()

    monkeypatch.setattr("time.sleep", sleep)
    return slept


def test_yields_whenever_there_are_new_checkpoints(
    net: SmallNet, probe_set: pf.ProbeSet, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def write(step: int) -> None:
        torch.save({name: tensor + 0.1 * step for name, tensor in state.items()}, folder / f"step_{step}.pt")

    def nothing() -> None:
        pass

    slept = between_rounds(
        monkeypatch,
        [nothing, lambda: write(0), nothing, lambda: (write(1), write(3)), (folder / "step_0.pt").unlink, nothing],
    )
    seen = []
    with contextlib.suppress(Done):
        for scores in pf.watch(net, folder, probe_set, out=tmp_path / "out", every=7, layers="hidden"):
            seen.append(scores.steps)
            assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert seen == [[0], [0, 1, 3]]  # a checkpoint that is deleted stays measured
    assert slept == [7] * 7
    write(2)
    swept = pf.sweep(net, folder, probe_set, out=tmp_path / "swept", layers="hidden")
    again = next(pf.watch(net, folder, probe_set, out=tmp_path / "out", layers="hidden"))
    assert again.steps == [0, 1, 2, 3]
    for step in (1, 2, 3):
        expected, got = (each.filter(step=step).to_arrow().drop_columns(["seconds"]) for each in (swept, again))
        assert got == expected


def test_the_newest_folder_is_read_when_no_second_file_has_come(
    net: SmallNet, probe_set: pf.ProbeSet, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(step: int, name: str) -> None:
        (folder / f"step_{step}").mkdir(exist_ok=True)
        torch.save({key: tensor + step for key, tensor in net.state_dict().items()}, folder / f"step_{step}/{name}")

    between_rounds(monkeypatch, [lambda: write(2, "ema.pt"), lambda: write(2, "model.pt"), lambda: None, lambda: None])
    write(1, "model.pt")
    seen = []

    def take(place: Path, out: str) -> None:
        with contextlib.suppress(Done):
            for scores in pf.watch(net, place, probe_set, out=tmp_path / out, layers="hidden"):
                seen.append(scores.steps)

    with pytest.warns(RuntimeWarning, match=r"step_2 holds \['ema.pt', 'model.pt'\]"):
        take(folder, "out")
    assert seen == [[1]]
    (folder / "step_2/ema.pt").unlink()
    write(2, "model.pt")

    def two() -> None:
        write(3, "ema.pt")
        write(4, "ema.pt")

    seen.clear()
    between_rounds(monkeypatch, [lambda: None, two, lambda: (write(3, "model.pt"), write(4, "model.pt")), lambda: None])
    with pytest.warns(RuntimeWarning, match=r"step_3 holds \['ema.pt', 'model.pt'\]"):
        take(folder, "more")
    assert seen == [[1], [1, 2]]
    seen[:] = [[1]]
    between_rounds(monkeypatch, [lambda: None])
    take(folder / "*" / "model.pt", "glob")
    assert seen == [[1], [1, 2, 3, 4]]
    with pytest.raises(CheckpointError, match="expected a folder to watch, or a glob"):
        pf.watch(net, folder / "none" / "*" / "model.pt", probe_set, out=tmp_path / "none")


def test_an_unfinished_checkpoint_is_read_again_when_it_has_changed(
    net: SmallNet, probe_set: pf.ProbeSet, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.pt"
    torch.save(net.state_dict(), whole)
    path = folder / "step_5.pt"
    path.write_bytes(whole.read_bytes()[:2000])
    between_rounds(monkeypatch, [lambda: None, lambda: None, lambda: path.write_bytes(whole.read_bytes())])
    with pytest.warns(
        RuntimeWarning, match=r"step 5 is tried 2 more times, and again once it has changed: .*step_5.pt"
    ) as caught:
        scores = next(pf.watch(net, folder, probe_set, out=tmp_path / "out", layers="hidden"))
    assert scores.steps == [5]
    assert sum("more times" in str(warning.message) for warning in caught) == 1


def test_another_training_in_the_folder_is_refused(
    net: SmallNet, probe_set: pf.ProbeSet, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(net.state_dict(), folder / "step_1.pt")
    write = lambda: torch.save(SmallNet().state_dict(), folder / "step_1.pt")  # noqa: E731
    between_rounds(monkeypatch, [write, lambda: None])
    watching = pf.watch(net, folder, probe_set, out=tmp_path / "out", layers="hidden")
    assert next(watching).steps == [1]
    with pytest.raises(StoreError, match="step 1 is stored already, but was measured on other weights"):
        next(watching)


def test_a_second_training_in_the_folder_is_refused_at_the_first_step_that_both_have(
    net: SmallNet, probe_set: pf.ProbeSet, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(step: int) -> None:
        torch.save(SmallNet().state_dict(), folder / f"step_{step}.pt")

    for step in (8, 16):
        save(step)
    between_rounds(monkeypatch, [lambda: save(4), lambda: save(8), lambda: None])
    watching = pf.watch(net, folder, probe_set, out=tmp_path / "out", layers="hidden")
    assert next(watching).steps == [8, 16]
    assert next(watching).steps == [4, 8, 16]  # of which nothing tells yet
    with pytest.raises(StoreError, match="step 8 is stored already, but was measured on other weights"):
        next(watching)


def test_another_training_is_refused_though_the_first_ones_checkpoints_are_gone(
    net: SmallNet, probe_set: pf.ProbeSet, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*steps: int) -> None:
        for step in steps:
            torch.save(SmallNet().state_dict(), folder / f"step_{step}.pt")

    save(8, 16, 24)
    rounds = [lambda: [(folder / f"step_{step}.pt").unlink() for step in (8, 16, 24)], lambda: save(16), lambda: None]
    between_rounds(monkeypatch, rounds)  # type: ignore[arg-type]
    watching = pf.watch(net, folder, probe_set, out=tmp_path / "out", layers="hidden")
    assert next(watching).steps == [8, 16, 24]
    with pytest.raises(StoreError, match="step 16 is stored already, but was measured on other weights"):
        next(watching)


@pytest.mark.parametrize("pattern", ["checkpoints", "checkpoints/step_*.pt"])
def test_the_directory_may_change_between_two_looks(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    place = tmp_path / "[exp] 1"
    (place / "checkpoints").mkdir(parents=True)
    torch.save(net.state_dict(), place / "checkpoints/step_1.pt")
    later = lambda: torch.save(net.state_dict(), place / "checkpoints/step_2.pt")  # noqa: E731
    between_rounds(monkeypatch, [later])
    monkeypatch.chdir(place)
    watching = pf.watch(net, pattern, probe_set, out="out", layers="hidden")
    assert next(watching).steps == [1]
    monkeypatch.chdir(tmp_path)
    assert next(watching).steps == [1, 2]
    assert pf.read_scores(place / "out").steps == [1, 2]


def test_layers_are_added_to_all_but_what_was_written_again(
    net: SmallNet, probe_set: pf.ProbeSet, folder: Path, tmp_path: Path
) -> None:
    def sweep(layers: list[str]) -> pf.Scores:
        return pf.sweep(net, folder, probe_set, out=tmp_path / "out", layers=layers)

    def save(step: int) -> None:
        torch.save(SmallNet().state_dict(), folder / f"step_{step}.pt")

    for step in (8, 16, 24):
        save(step)
    sweep(["hidden"])
    for step in (24, 32):
        save(step)
    with pytest.raises(SweepError, match=r"(?s)1 of 4 checkpoints failed.*step 24: is stored already") as error:
        sweep(["hidden", "conv"])
    assert list(error.value.failed) == [24]
    scores = pf.read_scores(tmp_path / "out")
    assert [scores.filter(step=step).layers for step in scores.steps] == [["conv", "hidden"]] * 2 + [["hidden"]] + [
        ["conv", "hidden"]
    ]
    (tmp_path / "out" / "scores" / "step-000000000024.parquet").unlink()
    assert sweep(["hidden", "conv"]).filter(step=24).layers == ["conv", "hidden"]
    assert not pf.read_failures(tmp_path / "out")


def test_a_measured_checkpoint_may_be_saved_again_or_removed_piece_by_piece(
    net: SmallNet, probe_set: pf.ProbeSet, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = folder / "checkpoint-1", folder / "step_2.pt"
    one.mkdir()
    state = net.state_dict()
    index = {"weight_map": {name: f"part-{i}.bin" for i, name in enumerate(state)}}
    (one / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for i, (name, tensor) in enumerate(state.items()):
        torch.save({name: tensor}, one / f"part-{i}.bin")
    torch.save(state, two)
    whole = two.read_bytes()
    rounds = [
        lambda: (two.write_bytes(whole[:500]), (one / "part-0.bin").unlink()),
        lambda: (two.write_bytes(whole), (one / "part-1.bin").unlink()),
        lambda: None,
        lambda: None,
        lambda: torch.save(state, folder / "step_3.pt"),
    ]
    between_rounds(monkeypatch, rounds)  # type: ignore[arg-type]
    watching = pf.watch(net, folder, probe_set, out=tmp_path / "out", layers="hidden")
    assert next(watching).steps == [1, 2]
    with pytest.warns(RuntimeWarning, match="step 1 is tried 2 more times, and again once it has changed"):
        assert next(watching).steps == [1, 2, 3]


def test_what_fails_once_is_tried_again_and_a_folder_in_disorder_is_waited_for(
    net: SmallNet, probe_set: pf.ProbeSet, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads = torch.load, []

    def fails_once(*arguments: object, **options: object) -> object:
        reads.append(1)
        if len(reads) == 1:
            raise OSError("stale file handle")
        return read(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "load", fails_once)
    torch.save(net.state_dict(), folder / "step_1.pt")
    twice = folder / "checkpoint_1.pt"
    between_rounds(
        monkeypatch,
        [
            lambda: None,
            lambda: torch.save({}, twice),
            twice.unlink,
            lambda: torch.save(net.state_dict(), folder / "2.pt"),
        ],
    )
    watching = pf.watch(net, folder, probe_set, out=tmp_path / "out", layers="hidden")
    with pytest.warns(RuntimeWarning, match="step 1 is tried 2 more times.*stale file handle"):
        assert next(watching).steps == [1]
    with pytest.warns(RuntimeWarning, match="waiting: step 1: given twice"):
        assert next(watching).steps == [1, 2]


def test_a_step_that_is_there_twice_holds_up_no_other(
    net: SmallNet, probe_set: pf.ProbeSet, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(name: str) -> None:
        torch.save(net.state_dict(), folder / name)

    save("step_4.pt")
    between_rounds(monkeypatch, [lambda: (save("step_4-v1.pt"), save("step_8.pt"))])
    watching = pf.watch(net, folder, probe_set, out=tmp_path / "out", layers="hidden")
    assert next(watching).steps == [4]
    with pytest.warns(RuntimeWarning, match="waiting: step 4: given twice"):
        assert next(watching).steps == [4, 8]


def test_a_training_that_goes_on_from_an_older_checkpoint_stops_nothing(
    net: SmallNet, probe_set: pf.ProbeSet, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(step: int, seed: int) -> None:
        torch.manual_seed(seed)
        torch.save(SmallNet().state_dict(), folder / f"step_{step}.pt")

    for step in (0, 8, 16, 24):
        save(step, step)
    # 24 is written again, of other weights, and the training goes on.
    between_rounds(monkeypatch, [lambda: save(24, 1), lambda: save(32, 2), lambda: None])
    watching = pf.watch(net, folder, probe_set, out=tmp_path / "out", layers="hidden")
    assert next(watching).steps == [0, 8, 16, 24]
    with pytest.warns(RuntimeWarning, match="step 24 is stored already, but was measured on other weights"):
        assert next(watching).steps == [0, 8, 16, 24, 32]
    save(40, 3)
    with pytest.raises(SweepError, match=r"(?s)1 of 6 .*the other 5 are stored.*keeps what it had of step 24") as error:
        pf.sweep(net, folder, probe_set, out=tmp_path / "out", layers="hidden")
    assert list(error.value.failed) == [24]
    assert pf.read_failures(tmp_path / "out")[24].partial
    assert pf.read_scores(tmp_path / "out").steps == [0, 8, 16, 24, 32, 40]
    for step in (0, 8, 16):  # another training begins: none of what is stored is known to be of it
        save(step, 100 + step)
    with pytest.raises(StoreError, match="step 0 is stored already, but was measured on other weights"):
        pf.sweep(net, folder, probe_set, out=tmp_path / "out", layers="hidden")


def test_a_folder_that_is_not_there_is_named_at_once(net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing: expected a folder to watch"):
        pf.watch(net, tmp_path / "missing", probe_set, out=tmp_path / "out")
    with pytest.raises(ArgumentError, match="every: expected seconds >= 0, got -1"):
        pf.watch(net, tmp_path, probe_set, out=tmp_path / "out", every=-1)
