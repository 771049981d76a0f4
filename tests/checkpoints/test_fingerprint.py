"""Fingerprints of files and folders change with the weights, and with nothing else."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from phasefast.checkpoints import constants_of, file_hash, state_hash, weights_hash
from phasefast.errors import CheckpointError

from .test_reading import write_shards


def test_folders_are_known_by_their_weights(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    _, second = write_shards(folder, save_file, "model.safetensors")
    before = file_hash(folder)
    torch.save({"state": {}}, folder / "optimizer.pt")
    assert file_hash(folder) == before
    assert file_hash(shutil.copytree(folder, tmp_path / "elsewhere")) == before
    save_file({"a.bias": torch.zeros(2).half(), "b.count": torch.tensor(3)}, second)
    assert file_hash(folder) != before
    second.unlink()
    with pytest.raises(CheckpointError, match=rf"{second.name}: no such file"):
        file_hash(folder)
    with pytest.raises(CheckpointError, match="expected a folder with one of"):
        file_hash(tmp_path)


@pytest.mark.parametrize(
    "kind",
    [
        torch.Tensor.to_sparse,
        torch.Tensor.to_sparse_csr,
        torch.Tensor.to_sparse_csc,
        lambda dense: dense.to_sparse_bsr((2, 2)),
        lambda dense: torch.complex(dense, dense).conj(),
        lambda dense: torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8),
    ],
    ids=["coordinates", "rows", "columns", "blocks", "conjugates", "quantised"],
)
@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")
def test_tensors_of_any_layout_are_known_by_their_values_and_places(kind: Callable[[Tensor], Tensor]) -> None:
    dense = torch.eye(4)
    elsewhere = dense.roll(2, 1)
    hashes = [state_hash({"mask": kind(value)}) for value in (dense, dense.clone(), 2 * dense, elsewhere)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_a_change_amid_a_large_safetensors_file_is_seen(tmp_path: Path) -> None:
    weights = torch.zeros(1 << 19)
    hashes = set()
    for value in (0.0, 1.0):
        weights[1 << 17 : -(1 << 17)] = value
        save_file({"weight": weights}, tmp_path / "model.safetensors")
        hashes |= {file_hash(tmp_path), file_hash(tmp_path / "model.safetensors")}
    assert len(hashes) == 4


def test_another_head_on_a_frozen_backbone_is_seen(tmp_path: Path) -> None:
    before, after = torch.randn(3_000_000), torch.randn(1_500_000)
    hashes = set()
    for head in (torch.zeros(10, 50), torch.zeros(10, 50).index_fill(1, torch.tensor(49), 1.0), torch.ones(10, 50)):
        save_file({"a": before, "head.weight": head, "z": after}, tmp_path / "model.safetensors")
        hashes.add(file_hash(tmp_path / "model.safetensors"))
    assert len(hashes) == 3


def test_first_and_last_bytes_of_every_tensor_count_and_the_whole_header(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    names = [f"{'long' * 30}{number:05}" for number in range(4_000)]
    state = {name: torch.zeros(2) for name in names} | {"large": torch.zeros(500_000), "zlarge": torch.zeros(500_000)}
    save_file(state, path)
    content, before = path.read_bytes(), file_hash(path)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    start, end = (8 + length + offset for offset in header["large"]["data_offsets"])
    assert length > 2 << 18
    for place in (start, end - 1, content.index(names[2500].encode())):
        path.write_bytes(content[:place] + b"k" + content[place + 1 :])
        assert file_hash(path) != before


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"[]", b'{"a": 1}', b'{"a": {"data_offsets": [0, 99999999]}}', b'{"a": {"data_offsets": ["b", 2]}}'],
)
def test_a_header_that_cannot_be_read_is_sampled_as_any_file(tmp_path: Path, header: bytes) -> None:
    for length in (len(header), 1 << 62):
        content = bytearray(length.to_bytes(8, "little") + header + bytes(1_000_000))
        hashes = set()
        for content[1 << 19] in (0, 1):
            (tmp_path / "a.safetensors").write_bytes(content)
            hashes.add(file_hash(tmp_path / "a.safetensors"))
        assert len(hashes) == 2


def test_blocks_of_files_without_checksums_are_close(tmp_path: Path) -> None:
    path, content = tmp_path / "__0_0.distcp", bytearray(3 << 20)
    hashes = set()
    for changed in range(0, len(content), 1 << 16):
        content[changed + 255] = 1
        path.write_bytes(content)
        content[changed + 255] = 0
        hashes.add(file_hash(path))
    assert len(hashes) == 48


def test_the_fingerprint_of_a_file_of_torch_is_that_of_its_ends(tmp_path: Path) -> None:
    torch.save({f"{place}": torch.full((1 << 16,), place) for place in range(9)}, path := tmp_path / "step_1.pt")
    content = path.read_bytes()
    ends = f"{len(content)}".encode() + content[: 1 << 18] + content[-(1 << 18) :]
    assert file_hash(path) == hashlib.blake2b(ends, digest_size=8).hexdigest()


def test_another_small_head_in_a_file_of_torch_without_checksums_is_seen(tmp_path: Path) -> None:
    hashes, large = set(), torch.ones(1 << 20)
    torch.serialization.set_crc32_options(False)
    try:
        for value in range(4):
            torch.save(
                {"a": large, "head": torch.full((64,), value), "b": large.clone()}, path := tmp_path / "step_1.pt"
            )
            hashes.add(file_hash(path))
    finally:
        torch.serialization.set_crc32_options(True)
    assert len(hashes) == 4


@pytest.mark.parametrize("how", ["many", "unchecked", "old"])
def test_a_change_that_the_tail_of_a_file_of_torch_does_not_tell_is_seen(tmp_path: Path, how: str) -> None:
    count = 6_000 if how == "many" else 9  # whose checksums are more than the tail
    state = {f"{place}": torch.full((64 if how == "many" else 1 << 16,), 0.5) for place in range(count)}
    hashes = []
    torch.serialization.set_crc32_options(how != "unchecked")
    try:
        for place in (count // 3, count // 2, count - 1):
            torch.save(state, path := tmp_path / "step_1.pt", _use_new_zipfile_serialization=how != "old")
            hashes.append(file_hash(path))
            state[f"{place}"] += 1
    finally:
        torch.serialization.set_crc32_options(True)
    assert len(set(hashes)) == 3


def test_of_a_sharded_model_the_buffers_of_each_rank_do_not_count() -> None:
    class Sharded(Tensor):
        def full_tensor(self) -> Tensor:
            return self.as_subclass(Tensor)

    class Parts(nn.Module):
        def __init__(self, kind: type[Tensor]) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 2)
            self.register_buffer("rows", torch.ones(3, 2).as_subclass(kind))

    torch.manual_seed(0)
    model, whole = Parts(Sharded), Parts(Tensor)
    whole.load_state_dict(model.state_dict())
    before = weights_hash(model), weights_hash(whole)
    assert before[1] == state_hash(whole.state_dict())
    for each in (model, whole):
        each.norm.running_mean += 1
    assert weights_hash(model) == before[0]
    assert weights_hash(whole) != before[1]
    with torch.no_grad():  # what all ranks have counts, sharded or not
        model.head.bias += 1
    changed = weights_hash(model)
    assert changed != before[0]
    model.rows += 1
    assert weights_hash(model) != changed


def test_constants_are_what_no_state_dict_has() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 3)
            self.register_buffer("kept", torch.randn(2))
            self.register_buffer("drawn", torch.randn(2), persistent=False)
            self.register_buffer("none", None, persistent=False)
            self.plain, self.number = torch.randn(2), 1.0
            self.calls = torch.zeros(1)

    torch.manual_seed(0)
    first, second = nn.Sequential(Features()), nn.Sequential(Features())
    assert sorted(constants_of(first)) == ["0.drawn", "0.plain"]
    assert constants_of(first) == constants_of(copy.deepcopy(first)) != constants_of(second)
    assert constants_of(Features()).keys() == {"drawn", "plain"}
    first[0].loss = first[0].linear(torch.ones(4, 2)).mean(1)  # of a training
    first[0].plain = torch.randn(4, 4).to_mkldnn()  # whose values are not looked at
    assert sorted(constants_of(first)) == ["0.drawn"]
