"""Shared networks and probe sets; tests marked ``cuda`` run only where there is a device."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import phasefast as pf


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        absent = pytest.mark.skip(reason="no CUDA device")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(absent)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """A test that draws from the global generators draws the same numbers in every run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


class SmallNet(nn.Module):
    """Convolution, BatchNorm, dropout, a ReLU used twice, an unused layer and a head of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.hidden = nn.Linear(6 * 9, 20)
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        return self.head(self.drop(self.relu(self.hidden(x.flatten(1)))))


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [count, 1, 6, 6] of three classes that differ by a pattern, and their labels."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=g)
    patterns = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(99))
    return patterns[labels] + 0.5 * torch.randn(count, 1, 6, 6, generator=g), labels


@pytest.fixture
def net() -> SmallNet:
    torch.manual_seed(0)
    return SmallNet()


@pytest.fixture(scope="session")
def probe_set() -> pf.ProbeSet:
    return pf.ProbeSet.from_tensors(*images(150, 1), *images(60, 2))
