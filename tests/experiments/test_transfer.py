"""The back-test of the advice, and fine-tuning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from phasefast.errors import ArgumentError, CheckpointError
from phasefast.experiments.datasets import digits, keep_classes
from phasefast.experiments.models import digits_net
from phasefast.experiments.transfer import back_test, fine_tune


def test_back_test_by_hand() -> None:
    test = back_test([0, 2, 4, 8, 16], [0.5, 0.6, 0.8, 0.7, 0.4], (2, 8))
    assert test.in_window == pytest.approx(0.7)
    assert test.at_end == 0.7
    assert (test.best, test.best_step, test.last) == (0.8, 4, 0.4)
    assert test.regret == pytest.approx(10)
    assert test.regret_of_last == pytest.approx(40)


def test_best_step_outside_the_window() -> None:
    test = back_test([0, 1, 2], [0.9, 0.2, 0.3], (1, 2))
    assert (test.best_step, test.regret) == (0, pytest.approx(65))


@pytest.mark.parametrize(("steps", "accuracy"), [([0, 1], [0.5]), ([0, 1], [0.5, 0.6])])
def test_window_without_steps(steps: list[int], accuracy: list[float]) -> None:
    with pytest.raises(ArgumentError, match="step in"):
        back_test(steps, accuracy, (4, 8))


def test_fine_tuning_learns_and_leaves_the_model_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = digits_net(num_classes=5)
    torch.save(model.state_dict(), tmp_path / "step_0.pt")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)  # the checkpoint, not the model's own weights, is where it starts
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task = keep_classes(digits(), [5, 6, 7])
    random = torch.random.get_rng_state()
    few = fine_tune(model, tmp_path / "step_0.pt", task, n_fit=200, steps=60, batch_size=50)
    assert few > 0.8
    assert few == fine_tune(model, tmp_path / "step_0.pt", task, n_fit=200, steps=60, batch_size=50)
    assert torch.equal(random, torch.random.get_rng_state())
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.classifier.out_features == 5


def test_fine_tuning_names_what_is_wrong(tmp_path: Path) -> None:
    task = digits()
    with pytest.raises(ArgumentError, match="classifier"):
        fine_tune(torch.nn.Sequential(torch.nn.Flatten()), tmp_path / "none.pt", task)
    with pytest.raises(CheckpointError, match=r"none\.pt"):
        fine_tune(digits_net(), tmp_path / "none.pt", task)
