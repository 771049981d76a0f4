"""Transfer tasks on hand-made images and on other data sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from phasefast.errors import ArgumentError, DataError
from phasefast.experiments.datasets import digits
from phasefast.experiments.settings import find_setting
from phasefast.experiments.tasks import colour_dominance, draw, input_tasks, other_task, quadrant_dominance


def test_colour_dominance() -> None:
    images = torch.zeros(3, 3, 4, 4)
    images[0, 2, 1, 1] = 1
    images[1, 0] = 0.1
    images[1, 1, 0, 0] = 1.5
    images[2] = -1
    images[2, 1, 0, 0] = 0
    assert colour_dominance(images).tolist() == [2, 0, 1]


def test_quadrant_dominance() -> None:
    images = torch.zeros(4, 2, 8, 8)
    for index, (row, column) in enumerate([(0, 0), (1, 6), (5, 2), (7, 7)]):
        images[index, 1, row, column] = 1
    assert quadrant_dominance(images).tolist() == [0, 1, 2, 3]


def test_grey_images_have_no_colour() -> None:
    assert [task.name for task in input_tasks((1, 8, 8))] == ["quadrant"]
    assert [task.name for task in input_tasks((3, 8, 8))] == ["colour", "quadrant"]


def test_rest_is_the_other_classes() -> None:
    setting = find_setting("digits-half")
    whole = setting.load()
    rest = other_task("rest", setting, whole)
    assert rest.data.num_classes == 5
    assert len(rest.data.fit_labels) == int((whole.fit_labels >= 5).sum())
    with pytest.raises(ArgumentError, match="all classes"):
        other_task("rest", replace(setting, classes=None), whole)


def test_other_data_sets_come_in_the_networks_shape(tmp_path: Path) -> None:
    whole = digits()
    images = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "pictures.npz", x_train=images, y_train=np.arange(10), x_test=images, y_test=np.arange(10))
    task = other_task(str(tmp_path / "pictures.npz"), find_setting("digits-vgg"), whole)
    assert (task.name, task.target.name, task.data.sample) == ("pictures", "pictures", (1, 8, 8))
    colour = whole._replace(fit_inputs=torch.zeros(3, 3, 32, 32))
    assert other_task("digits", find_setting("vgg8-cifar10"), colour).data.sample == (3, 32, 32)
    with pytest.raises(DataError, match=r"none\.npz"):
        other_task("none.npz", find_setting("digits-vgg"), whole)


def test_draw_takes_at_most_what_is_there() -> None:
    assert (draw(digits(), 100, 5000).n_fit, draw(digits(), 100, 5000).n_heldout) == (100, 597)
    assert draw(digits(), None, None).n_fit == 1200
