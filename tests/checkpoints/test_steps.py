"""Steps in names of files and folders."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from phasefast.checkpoints import order_checkpoints
from phasefast.checkpoints.steps import parse_step
from phasefast.errors import CheckpointError


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step_128.pt", 128),
        ("2024-05-01_12-30-00_step500.pt", 500),
        ("ckpt_2024_05_01T12:30_500.pt", 500),
        ("step_2024.pt", 2024),
        ("step_2048_64_32.pt", 2048),
        ("step_2024-0.5.pt", 2024),
        ("net_it512_acc0.9.pt", 512),
        ("w4-it0.pt", 0),
        ("net2_ep07.pt", 7),
        ("epoch2_step_2000_10_12.pt", 2000),
        ("steps-2024-01-01_12-00_500.pt", 500),
        ("footsteps_2024_05_06_500.pt", 500),
        ("run_steps_2024-01-02_epoch=3.ckpt", 3),
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
        ("step_500_0.83.pt", 500),
        ("ckpt_1000_0.12.ckpt", 1_000),
        ("step_2000_20240101.pt", 2_000),
        ("128.pt", 128),
        ("1M.pt", 1_000_000),
        ("vgg8_128.pt", 128),
        ("cnn_v2_128.pt", 128),
        ("net.128.pth", 128),
        ("epoch3.pt", 3),
        ("model128.pt", 128),
        ("model_00010000.safetensors", 10_000),
        ("epoch=99-step=500400.ckpt", 500_400),
        ("global_step500", 500),
        ("step_100", 100),
        ("run/epoch=1-step=64/", 64),
        ("epoch=3-val_loss=0.53.ckpt", 3),
        ("checkpoint_0010.pth.tar", 10),
    ],
)
def test_a_step_is_read_as_it_is_meant(name: str, step: int) -> None:
    assert parse_step(name) == step


@pytest.mark.parametrize(
    "name",
    [
        "last.ckpt",
        "ckpt_2024-05-01_12-00-00.pt",
        "model-2024.05.01.pt",
        "resnet18.pt",
        "step1e3.pt",
        "step1.5.pt",
        "step1.5e3.pt",
        "step1.5B.pt",
        "v1.5.pt",
        "model_1_2.pt",
        "mp_rank_00_model_states.pt",
        "step_1_000.pt",
        "step128a.pt",
        "step-1,000.pt",
        "1,000.pt",
        "resnet_epochs100_5.pt",
        "lr0.1_epochs300_20.pt",
        "epoch_1_000-x_5.pt",
        "step_-5.pt",
        "step=-1.ckpt",
        "seed_1_final.pt",
        "net_fold-2.pt",
        "seed.3.pt",
        "kfold_3.pt",
        "rank=0.pt",
        "fold 2.pt",
        "splits_5.pt",
        "fold_2_of_5.pt",
        "seed_1_bs_32.pt",
        "seed_10_000.pt",
        "trial=4.pt",
        "net_version_2.pt",
    ],
)
def test_what_may_mean_something_else_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="expected a step in its name"):
        parse_step(name)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["epoch_1", "epoch_2", "step_1200"], "epochs as in epoch_1.pt, steps as in step_1200.pt"),
        (["epoch_1", "epoch_2", "model_best_12"], "epochs as in epoch_1.pt, the best as in model_best_12.pt"),
        (["epoch=1-step=10", "epoch=2-step=20"], ""),
        (["step_1", "step64k", "checkpoint-100"], ""),
        (["net_1", "net_2"], ""),
        (["manifold_20", "scaffold_30", "10fold_40"], ""),
        (["init_0", "step_100", "step_200"], ""),
        (["0", "epoch_1"], ""),
        (["epoch=0", "epoch=1-step=500"], "epochs as in epoch=0.pt, steps as in epoch=1-step=500.pt"),
        (["epoch=1-step=10", "best-epoch=2-step=20"], ""),
        (["epoch_1_best", "epoch_2"], ""),
    ],
)
def test_names_that_count_different_things_are_told(names: list[str], told: str, tmp_path: Path) -> None:
    for name in names:
        torch.save({"a": torch.ones(1)}, tmp_path / f"{name}.pt")
    for given in (tmp_path, tmp_path / "*.pt", sorted(tmp_path.iterdir())):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert len(order_checkpoints(given)) == len(names)
        assert [told in str(each.message) for each in caught] == [True] * bool(told)
