"""Why no decrease and no increase is named."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from phasefast.stages.phases import detect_curve
from phasefast.types import PhaseReport

from .test_phases import DIGITS, find, kinds, log_steps


def test_a_curve_with_a_change_needs_no_reason() -> None:
    cell = find(DIGITS)
    assert cell.evidence["reason"] is None
    assert cell.why == ""


def test_order_that_explains_nothing() -> None:
    rng = np.random.default_rng(7)
    cell = find(0.4 + 0.03 * rng.normal(size=12))
    assert kinds(cell) == "c"
    assert cell.why == f"the order of the steps explains nothing (p = {cell.evidence['order_p']:.2g})"


def test_a_change_too_small_to_count() -> None:
    cell = find(np.linspace(0.400, 0.394, 14), scatter=0)
    assert kinds(cell) == "c"
    assert cell.why == "stays within 0.003 of its mean, a change of 0.0079 would count"


def test_a_hump_comes_back() -> None:
    cell = find(0.3 + 0.2 * np.sin(np.linspace(0, np.pi, 14)), scatter=0)
    assert kinds(cell) == ""
    found = re.fullmatch(r"changes by 0.2 that come back: falls by (\S+) \(needed (\S+)\), rises by .*", cell.why)
    assert found is not None
    assert float(found[1]) < float(found[2])
    assert float(found[2]) == pytest.approx(cell.evidence["needed"]["decrease"], rel=0.05)


@pytest.mark.parametrize(("verb", "sign"), [("falls", -1), ("rises", 1)])
def test_a_change_that_other_samples_may_undo(verb: str, sign: int) -> None:
    rng = np.random.default_rng(0)
    slopes = 0.6 * rng.normal(size=(1, 40))
    samples = 0.4 + np.linspace(0, 1, 14)[:, None] * (slopes - slopes.mean() + sign * 0.05)
    cell = detect_curve(log_steps(14), samples)
    assert kinds(cell) == ""
    found = re.fullmatch(rf"{verb} by (\S+), but its interval, (\S+) to (\S+), does not exclude 0", cell.why)
    assert found is not None
    assert float(found[1]) == pytest.approx(0.05, rel=0.02)
    assert float(found[2]) < 0 < float(found[3])


def test_the_reason_is_written() -> None:
    cell = find(np.full(14, 0.4), scatter=0)
    (written,) = json.loads(PhaseReport((cell,)).to_json())["cells"]
    assert written["evidence"]["reason"] == cell.why != ""
