"""Fingerprints of files and folders change with the weights, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from phasefast.checkpoints import file_hash
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


def test_a_change_amid_a_large_safetensors_file_is_seen(tmp_path: Path) -> None:
    weights = torch.zeros(1 << 19)
    hashes = set()
    for value in (0.0, 1.0):
        weights[1 << 17 : -(1 << 17)] = value
        save_file({"weight": weights}, tmp_path / "model.safetensors")
        hashes |= {file_hash(tmp_path), file_hash(tmp_path / "model.safetensors")}
    assert len(hashes) == 4
