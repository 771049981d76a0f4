"""A training that is killed goes on to the same weights; a finished one is not repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from phasefast.errors import ArgumentError, CheckpointError, StoreError
from phasefast.experiments import checkpointing
from phasefast.experiments.checkpointing import checkpoint_path, log2_steps, train_checkpoints
from phasefast.experiments.training import sgd, train

STEPS = [0, 1, 2, 4, 8, 16]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(50, 6, generator=g), torch.randint(0, 3, (50,), generator=g)


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def run(folder: Path, steps: list[int] = STEPS, **changed: object) -> dict[int, Path]:
    options = {"lr": 0.1, "batch_size": 16, "seed": 3, **changed}
    return train_checkpoints(model(), *data(), folder, steps=steps, **options)


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint_path(folder, step), weights_only=True)


def assert_same(a: Path, b: Path) -> None:
    for step in STEPS:
        one, other = weights(a, step), weights(b, step)
        assert all(torch.equal(one[name], other[name]) for name in one), step


def test_log2_steps() -> None:
    assert log2_steps(16) == STEPS
    assert log2_steps(20, first=2) == [0, 2, 4, 8, 16, 20]
    assert log2_steps(1) == [0, 1]


def test_checkpoints_are_of_the_plain_training(tmp_path: Path) -> None:
    paths = run(tmp_path)
    assert sorted(paths) == STEPS
    net = model()
    train(net, *data(), steps=16, lr=0.1, batch_size=16, seed=3)
    assert all(torch.equal(value, weights(tmp_path, 16)[name]) for name, value in net.state_dict().items())


def test_going_on_is_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole")
    save, calls = checkpointing._save, []

    def killed(state: dict[str, object], path: Path) -> None:
        calls.append(path)
        if len(calls) == 8:  # between the checkpoint of a step and the state to go on from
            raise KeyboardInterrupt
        save(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpointing, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut")
    run(tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")
    run(tmp_path / "longer", steps=STEPS[:4])
    run(tmp_path / "longer")
    assert_same(tmp_path / "whole", tmp_path / "longer")


def test_a_lost_checkpoint_is_made_again(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "lost")
    checkpoint_path(tmp_path / "lost", 2).unlink()
    run(tmp_path / "lost")
    assert_same(tmp_path / "whole", tmp_path / "lost")


def test_a_finished_training_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    monkeypatch.setattr(checkpointing, "train", lambda *a, **k: pytest.fail("trained again"))
    assert run(tmp_path)[8] == checkpoint_path(tmp_path, 8)


def test_another_training_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ArgumentError, match=r"lr: 0.1 there, 0.2 now"):
        run(tmp_path, lr=0.2)
    with pytest.raises(ArgumentError, match="model: None there, 'b' now"):
        run(tmp_path, recipe={"model": "b"})


def test_bad_files_are_named(tmp_path: Path) -> None:
    run(tmp_path / "a")
    (tmp_path / "a" / "resume.state").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"resume\.state"):
        run(tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        run(tmp_path / "file" / "folder")


def test_start_passes_over_batches_and_keeps_momentum() -> None:
    whole, parts = model(), model()
    train(whole, *data(), steps=9, lr=0.1, batch_size=16)
    optimizer = sgd(parts, 0.1)
    train(parts, *data(), steps=5, lr=0.1, batch_size=16, optimizer=optimizer)
    seen: list[int] = []
    train(parts, *data(), steps=9, lr=0.1, batch_size=16, optimizer=optimizer, start=5, on_step=seen.append)
    assert seen == [5, 6, 7, 8, 9]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))
    with pytest.raises(ArgumentError, match="start"):
        train(parts, *data(), steps=3, lr=0.1, start=4, batch_size=16)
