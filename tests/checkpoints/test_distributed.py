"""Folders of torch.distributed.checkpoint, as torch itself saves them."""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.state_dict import get_state_dict

from phasefast.checkpoints import file_hash, load_into, read_state_dict, weights_files
from phasefast.errors import CheckpointError

from .test_reading import STATE, equal

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def save(state: dict[str, Any], folder: Path, **options: Any) -> Path:
    dcp.save(state, checkpoint_id=folder, no_dist=True, **options)
    return folder


class App:
    """What torch asks for its state, as in its tutorial."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer

    def state_dict(self) -> dict[str, object]:
        model, optim = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optim": optim}

    def load_state_dict(self, state: dict[str, object]) -> None:
        raise NotImplementedError


def trained() -> App:
    """A model and its optimizer after a step, so that this one has tensors and settings."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return App(model, optimizer)


FORMS: list[Callable[[App], dict[str, object]]] = [
    lambda app: dict(app.model.state_dict()),
    lambda app: {"model": app.model, "optimizer": app.optimizer, "epoch": 3},
    lambda app: {"model": app.model.state_dict(), "ema": trained().model.state_dict()},
    lambda app: {"app": app},
    lambda app: {"state_dict": {"model": app.model.state_dict()}, "lr_scheduler": {"last": torch.ones(1)}},
    lambda app: {**app.model.state_dict(), "optimizer": app.optimizer, "train_state": {"step": torch.tensor(3)}},
]


@pytest.mark.parametrize("form", FORMS)
def test_the_weights_alone_are_read_whatever_is_beside_them(tmp_path: Path, form: Callable[..., Any]) -> None:
    app, other = trained(), trained()
    folder = save(form(app), tmp_path / "step_1")
    state = read_state_dict(folder)
    assert equal(state, app.model.state_dict())
    load_into(other.model, state, "step_1")
    assert equal(other.model.state_dict(), app.model.state_dict())


def test_weights_under_any_other_key_load_and_what_is_of_the_optimizer_is_not_read(tmp_path: Path) -> None:
    app, other = trained(), trained()
    moments = {"state": {"exp_avg": torch.ones(2)}, "lr": 0.1}
    beside = {"optimizer_0": moments, "optim": moments, "rng_state": {"cpu": torch.ones(2)}}
    state = read_state_dict(save({"net": app.model.state_dict(), **beside}, tmp_path / "step_1"))
    assert equal(state, {f"net.{name}": value for name, value in app.model.state_dict().items()})
    load_into(other.model, state, "step_1")
    assert equal(other.model.state_dict(), app.model.state_dict())


@pytest.mark.parametrize("name", ["optimizer", "scheduler", "model", "rng"])
@pytest.mark.parametrize("flatten", [True, False])
def test_a_module_named_like_something_else_keeps_its_weights(tmp_path: Path, name: str, flatten: bool) -> None:
    state = {f"{name}.weight": torch.ones(2), name: torch.zeros(1), "head.weight": torch.ones(3)}
    planner = dcp.DefaultSavePlanner(flatten_state_dict=flatten)
    folder = save(dict(state), tmp_path / "step_1", planner=planner)
    assert equal(read_state_dict(folder), state)


def test_parts_are_put_together_and_a_lost_one_is_named(tmp_path: Path) -> None:
    folder = save(dict(STATE), tmp_path / "step_1")
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    (whole,) = metadata.state_dict_metadata["a.weight"].chunks
    rows = [ChunkStorageMetadata(torch.Size([row, 0]), torch.Size([1, 3])) for row in (0, 1)]
    metadata.state_dict_metadata["a.weight"].chunks = rows
    stored = metadata.storage_data.pop(MetadataIndex("a.weight", whole.offsets))
    for row, chunk in enumerate(rows):
        (folder / f"row{row}").write_bytes(_saved(STATE["a.weight"][row : row + 1]))
        where = dataclasses.replace(
            stored, relative_path=f"row{row}", offset=0, length=(folder / f"row{row}").stat().st_size
        )
        metadata.storage_data[MetadataIndex("a.weight", chunk.offsets)] = where
    path.write_bytes(pickle.dumps(metadata))
    assert equal(read_state_dict(folder), STATE)
    del rows[1]
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"step_1: 'a.weight': expected a whole tensor, but only parts"):
        read_state_dict(folder)


def _saved(tensor: torch.Tensor) -> bytes:
    file = io.BytesIO()
    torch.save(tensor.clone(), file)
    return file.getvalue()


class Touching:
    """Pickled so that unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_code_in_the_metadata_is_not_run(tmp_path: Path) -> None:
    folder, mark = save(dict(STATE), tmp_path / "step_1"), tmp_path / "ran"
    content = pickle.dumps(Touching(mark))
    pickle.loads(content)
    mark.unlink()  # so it does run where nothing looks
    (folder / ".metadata").write_bytes(content)
    with pytest.raises(CheckpointError, match="more than plain tensors"):
        read_state_dict(folder)
    assert not mark.exists()


@pytest.mark.parametrize("weights_only", [True, False])
def test_code_in_other_entries_is_not_run(tmp_path: Path, weights_only: bool) -> None:
    mark = tmp_path / "ran"
    folder = save({"model": {**STATE, "extra": Touching(mark)}, "args": Touching(mark)}, tmp_path / "step_1")
    assert equal(read_state_dict(folder, weights_only=weights_only), STATE)
    assert not mark.exists()


def test_a_description_of_other_classes_is_read_only_where_it_is_trusted(tmp_path: Path) -> None:
    folder = save(dict(STATE), tmp_path / "step_1")
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    metadata.storage_meta.modules = Counter("a")
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"step_1: holds more than plain tensors; .*weights_only=False"):
        read_state_dict(folder)
    assert equal(read_state_dict(folder, weights_only=False), STATE)


def test_damaged_and_incomplete_folders_are_named(tmp_path: Path) -> None:
    folder = save(dict(STATE), tmp_path / "step_1")
    (part,) = folder.glob("*.distcp")
    whole, metadata = part.read_bytes(), folder / ".metadata"
    for content in (whole[: len(whole) // 2], b""):
        part.write_bytes(content)
        with pytest.raises(CheckpointError, match="step_1: cannot be read, perhaps truncated"):
            read_state_dict(folder)
    part.unlink()
    with pytest.raises(CheckpointError, match=f"step_1/{part.name}: no such file"):
        read_state_dict(folder)
    part.write_bytes(whole)
    metadata.write_bytes(metadata.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="step_1: cannot be read, perhaps truncated"):
        read_state_dict(folder)
    metadata.unlink()
    with pytest.raises(CheckpointError, match="expected a folder with one of"):
        read_state_dict(folder)


def test_the_fingerprint_is_that_of_all_parts(tmp_path: Path) -> None:
    folder = save(dict(STATE), tmp_path / "step_1")
    before = file_hash(folder)
    (part,) = folder.glob("*.distcp")
    assert weights_files(folder) == [folder / ".metadata", part]
    part.write_bytes(part.read_bytes().replace(b"\x00\x3c", b"\x00\x3d"))
    assert file_hash(folder) != before
