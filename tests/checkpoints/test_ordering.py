"""Folders of checkpoints: what is swept, what is left out, and what is said of it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phasefast.checkpoints import find_checkpoints, order_checkpoints, weights_files
from phasefast.checkpoints.entries import entry_of
from phasefast.errors import CheckpointError
from tests.quiet import no_warnings


def test_files_of_a_folder_without_a_step_are_left_out_aloud(tmp_path: Path) -> None:
    for name in ("step_2.pt", "step_1.pt", "last.ckpt", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.warns(RuntimeWarning, match=r"left out \['last.ckpt'\]"):
        assert order_checkpoints(tmp_path) == {1: tmp_path / "step_1.pt", 2: tmp_path / "step_2.pt"}
    (tmp_path / "last.ckpt").unlink()
    with no_warnings():
        assert list(order_checkpoints(tmp_path)) == [1, 2]


def test_a_folder_without_any_step_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "run", "best.pt")
    with pytest.raises(CheckpointError, match=r"best.pt: expected a step in its name"):
        order_checkpoints(tmp_path / "run")


def touch(folder: Path, *names: str) -> None:
    for path in (folder / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture(autouse=True)
def _no_warnings() -> None:
    warnings.simplefilter("error", RuntimeWarning)


def test_files_and_folders_are_ordered_together(tmp_path: Path) -> None:
    entries = {
        0: "step_0.safetensors",
        64: "checkpoint-64/model.safetensors",
        100: "step_100/model.safetensors.index.json",
        128: "checkpoint-128/pytorch_model.bin",
        200: "epoch=0-step=200/pytorch_model.bin.index.json",
        500: "global_step500/.metadata",
        1000: "epoch=1-step=1000.ckpt/.metadata",
    }
    touch(tmp_path, *entries.values(), "logs/events.bin", "config.json", "step_7.txt")
    expected = {step: tmp_path / name.split("/")[0] for step, name in entries.items()}
    for ordered in (order_checkpoints(tmp_path), find_checkpoints(str(tmp_path))):
        assert ordered == expected
        assert list(ordered) == sorted(entries)


def test_what_trainers_save_beside_the_weights_is_not_taken_for_them(tmp_path: Path) -> None:
    beside = ("optimizer.pt", "optimizer_1.bin", "scheduler.pt", "scaler.pt", "training_args.bin", "rng_state_0.pth")
    beside += ("optim-00001.pt", "lr_scheduler_2.pt", "dataloader_3.pt")
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")
    folder = tmp_path / "checkpoint-64"
    touch(folder, *beside, *shards, "global_step64/mp_rank_00_model_states.pt")
    assert order_checkpoints(folder) == {64: folder}
    assert order_checkpoints([folder]) == {64: folder}
    touch(tmp_path, *beside)
    assert order_checkpoints(tmp_path) == {64: folder}


def test_folders_without_weights_are_left_out_aloud_where_they_have_a_step(tmp_path: Path) -> None:
    touch(tmp_path, "checkpoint-1/model.safetensors", "checkpoint-2/config.json", "logs/a.txt")
    with pytest.warns(
        RuntimeWarning, match=r"left out \['checkpoint-2'\], which .* not hold one of model.safetensors, "
    ):
        assert list(order_checkpoints(tmp_path)) == [1]


def test_weights_of_the_end_beside_the_steps_are_left_out_aloud(tmp_path: Path) -> None:
    touch(tmp_path, "checkpoint-1/model.safetensors", "model.safetensors", "best/model.safetensors")
    with pytest.warns(RuntimeWarning, match=r"left out \['best', 'model.safetensors'\], which have no step"):
        assert list(order_checkpoints(tmp_path)) == [1]


@pytest.mark.parametrize(
    ("folder", "step"), [("checkpoint-64", 64), ("epoch_3", 3), ("step_5", 5), ("epoch=1-step=9.ckpt", 9)]
)
def test_a_folder_with_a_step_that_is_a_checkpoint_is_one(tmp_path: Path, folder: str, step: int) -> None:
    touch(tmp_path / folder, "model.safetensors", "model_1.safetensors", "pytorch_model_fsdp_0/.metadata")
    assert order_checkpoints(tmp_path / folder) == {step: tmp_path / folder}
    assert find_checkpoints(tmp_path / folder) == {}
    assert find_checkpoints(tmp_path) == {step: tmp_path / folder}


def test_a_folder_of_a_step_is_read_by_its_only_weights(tmp_path: Path) -> None:
    entries = {
        1: "step_1/model.pt",
        2: "step-00000002/lit_model.pth",
        3: "epoch_3/ft-model-00001-of-00001.safetensors",
        4: "4/weights.ckpt",
        5: "step_5/step_5.pt",
        6: "global_step6/mp_rank_00_model_states.pt",
    }
    touch(tmp_path, *entries.values(), "step_1/optimizer.pt", "step_1/.model.pt", "step_1/config.json")
    touch(
        tmp_path,
        "global_step6/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "step-00000002/scheduler.pth.tar",
        "step_7/a.pt",
        "step_7/b.pt",
    )
    with (
        pytest.warns(RuntimeWarning, match=r"its folders hold weights of different names, \['ft-model-00001-of-0"),
        pytest.warns(RuntimeWarning, match=r"left out \['step_7'\], .* or a single file ending in .pt, "),
        pytest.warns(
            RuntimeWarning, match="names have numbers as in 4, epochs as in epoch_3, steps as in global_step6"
        ),
    ):
        assert order_checkpoints(tmp_path) == {step: tmp_path / name.split("/")[0] for step, name in entries.items()}
    for step, name in entries.items():
        assert order_checkpoints((tmp_path / name).parent) == {step: (tmp_path / name).parent}
        assert weights_files((tmp_path / name).parent) == [tmp_path / name]
        assert find_checkpoints((tmp_path / name).parent) == {}


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("step_64", ("model.pt", "ema.pt")),  # which of them?
        ("epoch_3", ("step_500.pt",)),
        ("run-2", ("final.pt",)),
        ("seed0", ("final.pt",)),
        ("step_64", ("optimizer.pt",)),
        ("step_64", ("model.pt.tmp",)),
        ("step_64", ("parts.pt/0",)),
    ],
)
def test_other_folders_are_no_checkpoints_by_their_only_file(
    tmp_path: Path, folder: str, names: tuple[str, ...]
) -> None:
    touch(tmp_path / "all" / folder, *names)
    assert find_checkpoints(tmp_path / "all") == {}
    with pytest.raises(CheckpointError, match="holds no files"):
        order_checkpoints(tmp_path / "all")


def test_of_several_files_of_a_step_a_glob_chooses(tmp_path: Path) -> None:
    for step in (1, 2):
        touch(tmp_path / f"step_{step}", "model.pt", "ema.pt", "optimizer.pt")
    several = r"step_1 holds \['ema.pt', 'model.pt'\]: choose one with a glob such as '.*/\*/model.pt'"
    with pytest.raises(CheckpointError, match=several):
        order_checkpoints(tmp_path)
    touch(
        tmp_path / "numbered",
        *(f"step_{step}/{name}_{step}.pt" for step in (1, 2) for name in ("ema", "model", "model_ema")),
    )
    with pytest.raises(CheckpointError, match=r"with a glob such as '.*numbered/\*/model_\[0-9\]\*.pt'"):
        order_checkpoints(tmp_path / "numbered")
    assert list(order_checkpoints(tmp_path / "numbered/*/model_[0-9]*.pt")) == [1, 2]
    shutil.rmtree(tmp_path / "numbered")
    found = {step: tmp_path / f"step_{step}" / "ema.pt" for step in (1, 2)}
    assert order_checkpoints(tmp_path / "*" / "ema.pt") == order_checkpoints(list(found.values())) == found
    assert order_checkpoints(found[2]) == {2: found[2]}
    with pytest.raises(
        CheckpointError, match=r"expected a folder with one of .*; holds \['ema.pt', 'model.pt'\]: choose"
    ):
        entry_of(tmp_path / "step_1")
    touch(tmp_path, "step_3/model.pt")
    with pytest.warns(RuntimeWarning, match=several):
        assert list(order_checkpoints(tmp_path)) == [3]


def test_a_glob_leaves_out_what_is_temporary_aloud(tmp_path: Path) -> None:
    touch(tmp_path, "tmp-step_2/model_2.pt", "tmp-step_2/resnet_50.pt", "tmp-step_2/step_2.pt", "tmp-step_2/last.pt")
    for name in ("model_*", "resnet_*", "step_*", "last"):
        with (
            pytest.warns(RuntimeWarning, match=r"left out \['.*tmp-step_2/"),
            pytest.raises(CheckpointError, match="nothing matches it"),
        ):
            order_checkpoints(tmp_path / "*" / f"{name}.pt")
    shutil.rmtree(tmp_path / "tmp-step_2")
    touch(tmp_path, "step_500/ema.pt", "tmp-step_600/ema.pt", "step_700.tmp/ema.pt", "step_800/tmp.ema.pt")
    for take in (order_checkpoints, find_checkpoints):
        with pytest.warns(
            RuntimeWarning, match=r"left out \['.*step_700.tmp/ema.pt', '.*tmp-step_600/ema.pt'\], which have"
        ):
            assert take(str(tmp_path / "*" / "ema.pt")) == {500: tmp_path / "step_500/ema.pt"}
    assert find_checkpoints(tmp_path / "none_*") == {}
    with pytest.raises(CheckpointError, match="no such file"):
        find_checkpoints(tmp_path / "absent")


def test_folders_that_say_no_step_may_have_any_name(tmp_path: Path) -> None:
    for folder in ("tmp1234", ".checkpoints", "all.tmp"):
        touch(tmp_path, f"{folder}/step_5.pt", f"{folder}/step_7/model.pt")
        assert list(order_checkpoints(tmp_path / folder / "step_?.pt")) == [5]
        assert list(order_checkpoints(tmp_path / folder / "*" / "model.pt")) == [7]


def test_shards_without_their_index_are_no_checkpoint(tmp_path: Path) -> None:
    touch(tmp_path, "checkpoint-1/model.safetensors", "checkpoint-2/pytorch_model-00001-of-00002.bin")
    with pytest.warns(RuntimeWarning, match=r"left out \['checkpoint-2'\], .*: still being written\?"):
        assert list(order_checkpoints(tmp_path)) == [1]


def test_named_files_have_their_steps_in_folders_of_any_name(tmp_path: Path) -> None:
    for folder in ("ckpt1", "epoch_3", "step_7"):
        touch(tmp_path, *(f"{folder}/net_{step}.pt" for step in (100, 200)))
        found = {step: tmp_path / f"{folder}/net_{step}.pt" for step in (100, 200)}
        assert order_checkpoints(tmp_path / folder) == order_checkpoints(tmp_path / folder / "net_*.pt") == found
        assert order_checkpoints(list(found.values())) == find_checkpoints(tmp_path / folder) == found
        assert order_checkpoints(found[100]) == {100: found[100]}
        found[200].unlink()
        assert order_checkpoints(tmp_path / folder) == {100: found[100]}


def test_a_file_alone_in_the_folder_of_a_step_is_of_that_step(tmp_path: Path) -> None:
    touch(tmp_path, "step_500/model_0.pt")
    assert list(order_checkpoints(tmp_path / "step_*" / "model_0.pt")) == [500]
    touch(tmp_path, "step_600/model_0.pt")
    assert list(order_checkpoints(tmp_path / "*" / "model_0.pt")) == list(order_checkpoints(tmp_path)) == [500, 600]
    assert list(order_checkpoints(tmp_path / "step_500" / "model_0.pt")) == [0]  # given alone, as its name says


def test_weights_of_different_names_are_asked_about(tmp_path: Path) -> None:
    touch(tmp_path, "step_1/model.safetensors", "step_2/pytorch_model.bin", "step_4/model.pt")
    assert list(order_checkpoints(tmp_path)) == [1, 2, 4]
    touch(tmp_path, "step_3/ema.safetensors")
    with pytest.warns(RuntimeWarning, match=r"its folders hold weights of different names, \['ema.safetensors', '"):
        assert list(order_checkpoints(tmp_path)) == [1, 2, 3, 4]
    touch(tmp_path / "b", "epoch_1/val_loss=0.53.ckpt", "epoch_2/val_loss=1e-05.ckpt")
    assert list(order_checkpoints(tmp_path / "b")) == [1, 2]


def test_a_number_in_a_file_is_no_step_beside_the_word_of_its_folder(tmp_path: Path) -> None:
    touch(tmp_path, "step_500/resnet_50.pt", "step_600/resnet_50.pt")
    assert order_checkpoints(tmp_path) == {step: tmp_path / f"step_{step}" for step in (500, 600)}
    assert list(order_checkpoints(tmp_path / "*" / "resnet_50.pt")) == [500, 600]
    touch(tmp_path / "epochs", "epoch_3/resnet_50.pt", "epoch_4/resnet_50.pt")
    assert list(order_checkpoints(tmp_path / "epochs")) == [3, 4]
    shutil.rmtree(tmp_path / "epochs")
    touch(tmp_path, "step_700/step_70.pt")
    with pytest.warns(RuntimeWarning, match=r"step_700 holds step_70.pt, which names another step"):
        assert list(order_checkpoints(tmp_path)) == [500, 600]


def test_a_folder_of_runs_names_them(tmp_path: Path) -> None:
    touch(tmp_path, "seed0/step_1.pt", "seed1/step_1/model.pt", "logs/a.txt")
    with pytest.raises(
        CheckpointError, match=r"no folders of weights; its folders \['seed0', 'seed1'\] do: give one of these"
    ):
        order_checkpoints(tmp_path)


def test_steps_in_a_folder_of_a_run_stay_its_own(tmp_path: Path) -> None:
    for folder, name, step in (
        ("run-2", "step_64.pt", 64),
        ("1", "64.pt", 64),
        ("checkpoints", "step_5.pt", 5),
        ("checkpoint2", "9.pt", 9),
    ):
        touch(tmp_path / folder, name)
        assert order_checkpoints(tmp_path / folder) == {step: tmp_path / folder / name}


def test_a_named_step_of_a_folder_counts_before_those_in_it(tmp_path: Path) -> None:
    touch(tmp_path / "checkpoint-64", "model.safetensors", "global_step64/.metadata")
    assert order_checkpoints(tmp_path / "checkpoint-64") == {64: tmp_path / "checkpoint-64"}


def test_the_number_of_a_run_is_no_step_where_there_are_named_ones(tmp_path: Path) -> None:
    touch(tmp_path / "run-2", "model.safetensors", "checkpoint-64/model.safetensors", "step_128.pt")
    with pytest.warns(RuntimeWarning, match=r"left out \['model.safetensors'\], which have no step"):
        assert list(order_checkpoints(tmp_path / "run-2")) == [64, 128]


@pytest.mark.parametrize(
    "name",
    [
        "tmp-checkpoint-64/model.safetensors",
        "tmp_step_64.pt",
        ".step_64.pt",
        ".checkpoint-64/model.safetensors",
        "step_64.pt.tmp",
        "step_64.pt.part",
        "step_64.safetensors.partial",
        "step_64.safetensors.incomplete",
        "checkpoint-64.tmp/model.safetensors",
    ],
)
def test_what_is_named_as_temporary_is_left_out_aloud(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, "tmp.pt", ".cache/model.safetensors", "notes.tmp")
    assert find_checkpoints(tmp_path) == {}
    with pytest.raises(CheckpointError, match=rf"no folders of weights, and \['{name.split('/')[0]}'\] have temporary"):
        order_checkpoints(tmp_path)
    touch(tmp_path, "step_1.pt", "checkpoint-32/model.safetensors")
    with pytest.warns(RuntimeWarning) as caught:
        assert list(order_checkpoints(tmp_path)) == [1, 32]
    (warning,) = caught
    assert f"left out {[name.split('/')[0]]}, which have temporary names or " in str(warning.message)
    assert "still being written?" in str(warning.message)


def test_temporary_is_only_what_is_named_so(tmp_path: Path) -> None:
    entries = {1: "attempt_step_1.pt", 2: "partial_step_2.pt", 3: "run.tmp-step_3.pt"}
    touch(tmp_path, *entries.values())
    assert find_checkpoints(tmp_path) == {step: tmp_path / name for step, name in entries.items()}


def test_folders_with_nothing_to_sweep_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no files ending in \.pt, .*, no folders of weights$"):
        order_checkpoints(tmp_path)
    touch(tmp_path, "checkpoint-2/config.json")
    with pytest.raises(CheckpointError, match=r"\['checkpoint-2'\] .* not hold one of model.safetensors"):
        order_checkpoints(tmp_path)
    touch(tmp_path, "final/model.safetensors")
    with (
        pytest.warns(RuntimeWarning, match="checkpoint-2"),
        pytest.raises(CheckpointError, match="final: expected a step in its name"),
    ):
        order_checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match="final: expected a step in its name"):
        order_checkpoints(tmp_path / "final")


def test_a_folder_with_none_yet_is_no_error_to_who_waits(tmp_path: Path) -> None:
    assert find_checkpoints(tmp_path) == {}
    touch(tmp_path, "checkpoint-2/config.json", "logs/a.txt", "optimizer.pt")
    assert find_checkpoints(tmp_path) == {}
    touch(tmp_path, "checkpoint-2/model.safetensors")
    assert find_checkpoints(tmp_path / "checkpoint-2") == {}
    assert find_checkpoints(tmp_path) == {2: tmp_path / "checkpoint-2"}
    touch(tmp_path / "others", "final.pt", "best/model.safetensors", "step_3/config.json")
    with pytest.warns(RuntimeWarning, match=r"left out \['step_3'\], .*still being written\?"):
        assert find_checkpoints(tmp_path / "others") == {}


@pytest.mark.parametrize(("name", "words"), [("nowhere", "no such file"), ("step_1.pt", "cannot be read")])
def test_what_is_no_folder_is_named(tmp_path: Path, name: str, words: str) -> None:
    touch(tmp_path, "step_1.pt")
    with pytest.raises(CheckpointError, match=f"{name}: {words}"):
        find_checkpoints(tmp_path / name)


@pytest.mark.parametrize("ordering", [order_checkpoints, find_checkpoints])
def test_a_step_as_a_file_and_as_a_folder_is_refused(tmp_path: Path, ordering: Callable[[Path], object]) -> None:
    touch(tmp_path, "step_1.pt", "step_1/model.safetensors", "step_2.pt", "step_3.pt", "step_3/model.safetensors")
    with pytest.raises(CheckpointError, match=r"step 1: given twice, as .*, likewise 3; give"):
        ordering(tmp_path)


def test_a_glob_is_a_list_of_files(tmp_path: Path) -> None:
    for name in ("step_1.pt", "step_2.pt", "step_1_ema.pt", "step_10.pth.tar"):
        (tmp_path / name).touch()
    assert order_checkpoints(tmp_path / "step_?.pt") == {1: tmp_path / "step_1.pt", 2: tmp_path / "step_2.pt"}
    with pytest.raises(
        CheckpointError, match=r"step 1: given twice, as .*step_1.pt and .*step_1_ema.pt; give .* or a glob"
    ):
        find_checkpoints(tmp_path)
    (tmp_path / "step_1_ema.pt").unlink()
    assert list(find_checkpoints(tmp_path)) == [1, 2, 10]
    (tmp_path / "step_final.pt").touch()
    with pytest.warns(RuntimeWarning, match=r"left out \['step_final.pt'\], which have no step in their names"):
        assert list(order_checkpoints(tmp_path / "step_*.pt")) == [1, 2]
    with pytest.raises(CheckpointError, match="expected a folder of checkpoints, a file or a glob; nothing matches it"):
        order_checkpoints(tmp_path / "epoch_*")


@pytest.mark.parametrize("given", [{1: len}, [len], [(1, "step_1.pt")], {1: None}])
def test_what_is_no_checkpoint_is_named(given: Any) -> None:
    with pytest.raises(
        CheckpointError, match=r"expected paths or state dicts, .*, got (builtin_function|tuple|NoneType)"
    ):
        order_checkpoints(given)


@pytest.mark.parametrize("ordering", [find_checkpoints, lambda folder: order_checkpoints(sorted(folder.iterdir()))])
def test_steps_that_begin_anew_in_each_epoch_are_told(tmp_path: Path, ordering: Callable[[Path], object]) -> None:
    touch(tmp_path, "epoch_0_step_310.pt", "epoch_0_step_655.pt", "epoch=1-step=700.ckpt", "epoch_2_step_701.pt")
    with no_warnings():
        assert list(ordering(tmp_path)) == [310, 655, 700, 701]  # type: ignore[call-overload]
    touch(tmp_path, "epoch_3_step_280.pt")
    with pytest.warns(RuntimeWarning, match=r"epoch_3_step_280.pt is of a later epoch than epoch_2_step_701.pt, but"):
        assert list(ordering(tmp_path)) == [280, 310, 655, 700, 701]  # type: ignore[call-overload]
