"""Every form of a checkpoint gives the tensors that were saved; what is damaged or incomplete is named."""

from __future__ import annotations

import argparse
import copyreg
import functools
import io
import json
import os
import pickle
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from phasefast.checkpoints import order_checkpoints, read_state_dict, weights_files
from phasefast.checkpoints.entries import is_there
from phasefast.checkpoints.inert import Inert, _load
from phasefast.errors import CheckpointError, DependencyError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2).half(), "b.count": torch.tensor(3)}
FORMS: list[tuple[Callable[..., object], str]] = [(save_file, "model.safetensors"), (torch.save, "pytorch_model.bin")]


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    same = all(left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left)
    return left.keys() == right.keys() and same


def write_shards(folder: Path, save: Callable[..., object], name: str) -> list[Path]:
    """STATE in two shards with their index."""
    stem, suffix = name.split(".")
    shards = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    parts = [{"a.weight": STATE["a.weight"]}, {name: STATE[name] for name in ("a.bias", "b.count")}]
    folder.mkdir(exist_ok=True)
    for shard, part in zip(shards, parts):
        save(part, folder / shard)
    weight_map = {name: shard for shard, part in zip(shards, parts) for name in part}
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {"total_size": 44}, "weight_map": weight_map}))
    return [folder / shard for shard in shards]


@pytest.mark.parametrize(("save", "name"), FORMS)
def test_files_folders_and_shards(tmp_path: Path, save: Callable[..., object], name: str) -> None:
    save(STATE, tmp_path / name)
    torch.save({"state": {}}, tmp_path / "optimizer.pt")
    assert equal(read_state_dict(tmp_path / name), STATE)
    assert equal(read_state_dict(str(tmp_path)), STATE)
    write_shards(tmp_path / "shards", save, name)
    assert equal(read_state_dict(tmp_path / "shards"), STATE)
    assert equal(read_state_dict(tmp_path / f"shards/{name}.index.json"), STATE)


@pytest.mark.parametrize(("save", "name"), FORMS)
def test_the_files_of_the_weights_are_those_that_are_read(
    tmp_path: Path, save: Callable[..., object], name: str
) -> None:
    save(STATE, tmp_path / name)
    torch.save({"state": {}}, tmp_path / "optimizer.pt")
    assert weights_files(tmp_path) == weights_files(str(tmp_path / name)) == [tmp_path / name]
    shards = write_shards(tmp_path / "shards", save, name)
    assert weights_files(tmp_path / "shards") == [tmp_path / f"shards/{name}.index.json", *shards]
    with pytest.raises(CheckpointError, match="expected a folder with one of"):
        weights_files(tmp_path.parent)


@pytest.mark.parametrize(("save", "name"), FORMS)
def test_weights_that_were_deleted_are_not_there_whatever_is_left_beside_them(
    tmp_path: Path, save: Callable[..., object], name: str
) -> None:
    assert not is_there(tmp_path / "step_1.pt")
    (tmp_path / "config.json").touch()
    torch.save({"state": {}}, tmp_path / "optimizer.pt")
    assert not is_there(tmp_path)
    save(STATE, tmp_path / name)
    assert is_there(tmp_path)
    assert is_there(str(tmp_path / name))
    first, second = write_shards(tmp_path / "shards", save, name)
    index = tmp_path / f"shards/{name}.index.json"
    first.unlink()
    assert is_there(tmp_path / "shards")
    assert is_there(index)
    second.unlink()
    assert not is_there(tmp_path / "shards")
    assert not is_there(index)
    index.unlink()
    assert not is_there(tmp_path / "shards")
    assert not is_there(index)


def test_of_a_distributed_folder_the_description_alone_is_no_weights(tmp_path: Path) -> None:
    for name in (".metadata", "__0_0.distcp"):
        assert not is_there(tmp_path)
        (tmp_path / name).touch()
    assert is_there(tmp_path)


def test_names_in_capital_letters_are_the_same(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "STEP_5.PT")
    save_file(STATE, tmp_path / "step_9.SafeTensors")
    for name in ("OPTIMIZER_5.PT", "TMP-step_7.PT", "Scheduler.pt"):
        (tmp_path / name).touch()
    with pytest.warns(RuntimeWarning, match=r"left out \['TMP-step_7.PT'\]"):
        found = order_checkpoints(tmp_path)
    assert list(found) == [5, 9]
    for path in found.values():
        assert torch.equal(read_state_dict(path)["a.weight"], STATE["a.weight"])


def test_of_two_forms_in_a_folder_safetensors_counts(tmp_path: Path) -> None:
    torch.save({"other": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    save_file(STATE, tmp_path / "model.safetensors")
    assert equal(read_state_dict(tmp_path), STATE)


@pytest.mark.parametrize(("save", "name"), FORMS)
def test_incomplete_shards_are_named(tmp_path: Path, save: Callable[..., object], name: str) -> None:
    first, second = write_shards(tmp_path, save, name)
    save({"a.bias": STATE["a.bias"]}, second)
    with pytest.raises(CheckpointError, match=rf"{second.name}: lacks \['b.count'\], which {name}.index.json lists"):
        read_state_dict(tmp_path)
    first.unlink()
    with pytest.raises(CheckpointError, match=rf"index.json: lists 2 shards, but \['{first.name}'\] are missing;"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize(("save", "name"), FORMS)
def test_shards_give_what_the_index_says_and_what_it_does_not_list(
    tmp_path: Path, save: Callable[..., object], name: str
) -> None:
    first, second = write_shards(tmp_path, save, name)
    extra = torch.full((2,), 7.0)
    save({"a.weight": STATE["a.weight"], "b.count": torch.tensor(9), "extra": extra}, first)
    save({"a.bias": STATE["a.bias"], "b.count": STATE["b.count"], "a.weight": torch.zeros(1)}, second)
    assert equal(read_state_dict(tmp_path), {**STATE, "extra": extra})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read, perhaps truncated"),
        ("[]", "expected a 'weight_map'"),
        ('{"metadata": {}}', "expected a 'weight_map'"),
        ('{"weight_map": {"a": 1}}', "expected a 'weight_map'"),
        ('{"weight_map": {}}', "expected a 'weight_map'"),
        ('{"weight_map": {"a": "model.safetensors.index.json"}}', "expected a 'weight_map'"),
        ('{"weight_map": {"a": "../other.safetensors"}}', "expected a 'weight_map'"),
    ],
)
def test_a_bad_index_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"model.safetensors.index.json: {words}"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 60, -4])
def test_damaged_safetensors_are_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "step_1.safetensors"
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"step_1.safetensors: cannot be read, perhaps truncated"):
        read_state_dict(path)


def test_types_that_safetensors_reads_from_files_alone_are_read(tmp_path: Path) -> None:
    state = {"a": torch.ones(3), "scale": torch.tensor([1, 2], dtype=torch.uint8).view(torch.float8_e8m0fnu)}
    try:
        save_file(state, tmp_path / "step_1.safetensors")
    except KeyError as error:
        pytest.skip(f"this safetensors does not write {error}")
    found = read_state_dict(tmp_path / "step_1.safetensors")
    assert found["scale"].dtype == torch.float8_e8m0fnu
    assert torch.equal(found["scale"].view(torch.uint8), state["scale"].view(torch.uint8))


def test_what_was_read_of_safetensors_stays_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "step_1.safetensors"
    save_file({"weight": torch.ones(100_000)}, path)
    state = read_state_dict(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(state["weight"], torch.ones(100_000))


def test_without_safetensors_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(STATE, tmp_path / "step_1.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(DependencyError, match=r"step_1.safetensors: .* pip install safetensors"):
        read_state_dict(tmp_path / "step_1.safetensors")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"step_1.safetensors: no such file"):
        read_state_dict(tmp_path / "step_1.safetensors")
    with pytest.raises(CheckpointError, match=r"expected a folder with one of model.safetensors, .*still being"):
        read_state_dict(tmp_path)


def test_weights_beside_other_things(tmp_path: Path) -> None:
    for number, saved in enumerate(({"state_dict": STATE, "epoch": 3}, {"app": {"model": STATE, "optim": {}}})):
        torch.save(saved, tmp_path / f"{number}.ckpt")
        assert equal(read_state_dict(tmp_path / f"{number}.ckpt"), STATE)


def test_a_mapping_that_holds_itself_ends(tmp_path: Path) -> None:
    itself: dict[str, object] = {}
    itself["model"] = itself
    torch.save(itself, tmp_path / "step_1.pt")
    for source in (itself, tmp_path / "step_1.pt"):
        with pytest.raises(CheckpointError, match=r"\['model'\] are not tensors"):
            read_state_dict(source)


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("content", ["version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "<!DOCTYPE html>"])
def test_what_is_no_file_of_torch_is_not_called_untrusted(tmp_path: Path, content: str, weights_only: bool) -> None:
    (tmp_path / "step_1.bin").write_text(content)
    with pytest.raises(CheckpointError, match=r"step_1.bin: cannot be read, perhaps truncated .*\(not what torch.save"):
        read_state_dict(tmp_path / "step_1.bin", weights_only=weights_only)


class Runs:
    """What runs something when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.fspath(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_of_what_lies_beside_the_weights_nothing_is_made(tmp_path: Path, zipped: bool) -> None:
    made = tmp_path / "made"
    beside = {"args": argparse.Namespace(a=[1], path=Path("a")), "best": np.float64(0.5), "time": datetime.now()}
    beside |= {"function": os.system, "partial": functools.partial(max, 1), "runs": Runs(made), "all": {1, 2}}
    source = tmp_path / "step_1.pt"
    for state in (STATE, defaultdict(int, STATE), OrderedDict(STATE)):
        torch.save({"model": state, **beside}, source, _use_new_zipfile_serialization=zipped)
        assert equal(read_state_dict(source), STATE)
    assert not made.exists()
    assert equal(read_state_dict(source, weights_only=False), STATE)
    assert made.exists()


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: {"model": model, "step": 3}])
def test_whole_modules_are_read_from_trusted_files_too(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save(wrap(model), source := tmp_path / "step_1.pt")
    for weights_only in (True, False):
        assert equal(read_state_dict(source, weights_only=weights_only), model.state_dict())


@pytest.mark.filterwarnings("error")  # of other source code, as torch's old format has that of classes
@pytest.mark.parametrize("zipped", [True, False])
def test_whole_modules_are_read_without_their_classes(zipped: bool, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 1, bias=False)))
    net.register_buffer("passing", torch.ones(2), persistent=False)
    source = tmp_path / "step_1.pt"
    for whole in (net, {"model": net, "epoch": 3}, nn.Sequential(OrderedDict(module=net))):
        torch.save(whole, source, _use_new_zipfile_serialization=zipped)
        found = {name.removeprefix("module."): value for name, value in read_state_dict(source).items()}
        assert equal(found, dict(net.state_dict()))
        assert not any(value.requires_grad for value in found.values())


def test_files_of_later_protocols_of_pickle_are_read(tmp_path: Path) -> None:
    for state in (STATE, {"model": STATE, "args": argparse.Namespace()}):
        torch.save(state, tmp_path / "step_1.pt", pickle_protocol=4)
        with pytest.warns(UserWarning, match="pickle protocol 4"):  # torch's own
            assert equal(read_state_dict(tmp_path / "step_1.pt"), STATE)


def test_where_nothing_may_be_unpickled_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step_1.pt"
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    for saved, protocol in (({"model": STATE, "args": argparse.Namespace()}, 2), (STATE, 4)):
        torch.save(saved, path, pickle_protocol=protocol)
        for weights_only in (True, False):
            with pytest.raises(
                CheckpointError, match=r"more than plain tensors as .* TORCH_FORCE_WEIGHTS_ONLY_LOAD makes torch"
            ):
                read_state_dict(path, weights_only=weights_only)
    torch.save(STATE, path)
    assert equal(read_state_dict(path), STATE)


class Scaled(torch.Tensor):
    """Integers times a number."""


def test_tensors_whose_integers_mean_something_else_are_no_weights(tmp_path: Path) -> None:
    weight = torch.ones(3, 2, dtype=torch.int8).as_subclass(Scaled)
    weight.scale = torch.tensor(0.01)  # type: ignore[attr-defined]
    torch.save({"model": {"weight": weight}, "args": argparse.Namespace()}, tmp_path / "step_1.pt")
    with pytest.raises(CheckpointError, match="are not tensors"):
        read_state_dict(tmp_path / "step_1.pt")


def test_tensors_with_attributes_are_read_whatever_is_beside_them(tmp_path: Path) -> None:
    state = {"weight": torch.ones(3, 2), "count": torch.tensor(3)}
    for tensor in state.values():
        tensor.note = "of the user"  # type: ignore[attr-defined]
    for beside in ({}, {"args": argparse.Namespace()}):
        torch.save({"model": state, **beside}, tmp_path / "step_1.pt")
        assert equal(read_state_dict(tmp_path / "step_1.pt"), state)


def test_the_old_format_in_a_later_protocol_is_read(tmp_path: Path) -> None:
    path = tmp_path / "step_1.pt"
    for saved in (STATE, {"model": STATE, "args": argparse.Namespace()}):
        torch.save(saved, path, pickle_protocol=4, _use_new_zipfile_serialization=False)
        assert equal(read_state_dict(path), STATE)
    torch.save(argparse.Namespace(), path, pickle_protocol=4, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="holds more than plain tensors; save"):
        read_state_dict(path)


def test_a_module_in_a_dictionary_of_its_own_kind_is_read(tmp_path: Path) -> None:
    net = nn.Linear(2, 3)
    torch.save(Entries(model=net, epoch=3), tmp_path / "step_1.pt")
    assert equal(read_state_dict(tmp_path / "step_1.pt"), dict(net.state_dict()))


class Entries(dict[str, Any]):
    """As some trainers save them."""


class Closed(nn.Linear):
    """With a state of its own kind."""

    def __getstate__(self) -> Any:
        return (1, 2)


def test_parts_of_modules_that_are_no_tensors_are_named(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 3), Closed(3, 1))
    net[0].register_buffer("adjacent", torch.eye(3).to_sparse())
    torch.save(net, source := tmp_path / "step_1.pt")
    with pytest.raises(CheckpointError, match=r"\['0.adjacent', '1'\] are not tensors; .*weights_only=False"):
        read_state_dict(source)
    torch.save({"model": {"a": torch.ones(2).to(torch.float8_e4m3fn)}, "args": argparse.Namespace()}, source)
    with pytest.raises(CheckpointError, match="holds more than plain tensors"):
        read_state_dict(source)


def test_what_makes_no_tensors_is_called_so(tmp_path: Path) -> None:
    torch.save(argparse.Namespace(a=1), source := tmp_path / "step_1.pt")
    with pytest.raises(CheckpointError, match=r"step_1.pt: holds more than plain tensors; .* weights_only=False"):
        read_state_dict(source)
    torch.save({"a": torch.ones(1), "b": argparse.Namespace(a=1)}, source)
    with pytest.raises(CheckpointError, match=r"\['b'\] are not tensors; .*if you trust .* weights_only=False"):
        read_state_dict(source)


def test_placeholders_change_nothing_that_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    for pickled in (b"ccollections\nOrderedDict\n(dS'evil'\nI1\nsb.", b"ctorch\nSize\n(dS'evil'\nI1\nsb."):
        assert not hasattr(_load(io.BytesIO(pickled)), "evil")
    for name in (b"builtins\ngetattr", b"builtins\neval", b"os\nsystem", b"torch\nload"):
        assert _load(io.BytesIO(b"c" + name + b"\n.")) is Inert
    assert issubclass(_load(io.BytesIO(b"ctorch\nTensor\n.")), Inert)
    monkeypatch.setitem(copyreg._inverted_registry, 77, ("os", "getcwd"))  # type: ignore[attr-defined]
    with pytest.raises(pickle.UnpicklingError, match="registered extension"):
        _load(io.BytesIO(b"\x80\x02\x82\x4d."))


@pytest.mark.parametrize("error", [MemoryError(), OSError(12, "Cannot allocate memory"), None])
def test_out_of_memory_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    def load(*_: object, **__: object) -> object:
        if error:
            raise error
        return torch.empty(10**15)

    torch.save(STATE, tmp_path / "step_1.pt")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(CheckpointError, match=r"step_1.pt: out of memory while it was read \("):
        read_state_dict(tmp_path / "step_1.pt")
