"""What the tests of the ops share: both implementations as one parametrised fixture, thread counts, seeds."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from phasefast import ops
from phasefast.ops import reference


@pytest.fixture(params=["ops", "reference"])
def impl(request: pytest.FixtureRequest) -> ModuleType:
    """The wrappers (compiled where built), and the reference that they must agree with."""
    return {"ops": ops, "reference": reference}[request.param]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
