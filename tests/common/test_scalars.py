"""What is taken for a number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from phasefast.common.scalars import as_float, is_integer


@pytest.mark.parametrize("given", [1, np.int8(1), np.uint64(1)])
def test_integers(given: Any) -> None:
    assert is_integer(given, 1)
    assert not is_integer(given, 2)
    assert as_float(given) == 1.0
    assert type(as_float(given)) is float


@pytest.mark.parametrize("given", [0.5, np.float32(0.5), np.float64(0.5)])
def test_floats(given: Any) -> None:
    assert not is_integer(given, 0)
    assert as_float(given) == 0.5


@pytest.mark.parametrize("given", [True, "1", None, 1j, [1]])
def test_others(given: Any) -> None:
    assert not is_integer(given, 0)
    assert math.isnan(as_float(given))


def test_what_no_float_holds_is_infinite() -> None:
    assert as_float(10**400) == math.inf
