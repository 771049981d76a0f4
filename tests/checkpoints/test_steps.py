"""Steps in file names, and folders of files."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from phasefast.checkpoints import order_checkpoints, parse_step
from phasefast.errors import CheckpointError


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step_128.pt", 128),
        ("iter-000128.pth", 128),
        ("checkpoint-48000", 48_000),
        ("epoch=3-step=500.ckpt", 500),
        ("step_5-v1.ckpt", 5),
        ("step64k.pt", 64_000),
        ("step-1.5k.pt", 1_500),
        ("step8.2k.pt", 8_200),
        ("1.5k", 1_500),
        ("step1000-tokens4B", 1_000),
        ("ckpt_12_best.pt", 12),
        ("128.pt", 128),
        ("1M.pt", 1_000_000),
        ("vgg8_128.pt", 128),
        ("cnn_v2_128.pt", 128),
        ("net.128.pth", 128),
        ("epoch3.pt", 3),
        ("model128.pt", 128),
    ],
)
def test_a_step_is_read_as_it_is_meant(name: str, step: int) -> None:
    assert parse_step(name) == step


@pytest.mark.parametrize(
    "name",
    [
        "last.ckpt",
        "resnet18.pt",
        "step1e3.pt",
        "step1.5.pt",
        "step1.5e3.pt",
        "step1.5B.pt",
        "v1.5.pt",
        "model_1_2.pt",
        "step128a.pt",
    ],
)
def test_what_may_mean_something_else_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="no step in its name"):
        parse_step(name)


def test_files_of_a_folder_without_a_step_are_left_out_aloud(tmp_path: Path) -> None:
    for name in ("step_2.pt", "step_1.pt", "last.ckpt", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.warns(RuntimeWarning, match=r"left out \['last.ckpt'\]"):
        assert order_checkpoints(tmp_path) == {1: tmp_path / "step_1.pt", 2: tmp_path / "step_2.pt"}
    (tmp_path / "last.ckpt").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(order_checkpoints(tmp_path)) == [1, 2]


def test_a_folder_without_any_step_is_refused(tmp_path: Path) -> None:
    (tmp_path / "best.pt").touch()
    with pytest.raises(CheckpointError, match=r"best.pt: no step in its name"):
        order_checkpoints(tmp_path)
