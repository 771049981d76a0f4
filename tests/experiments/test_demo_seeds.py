"""The claim of the demo over many seeds: three phases where there is learning, none where there is not."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from phasefast.experiments.demo import run_demo
from phasefast.phases.phase_report import CellPhases

SEEDS = range(10)


def features(out: Path, seed: int, lr: float) -> CellPhases:
    return run_demo(out, seed=seed, lr=lr, console=Console(file=io.StringIO())).cell("features", "input")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_last_features_pass_three_phases_in_nine_of_ten_seeds(tmp_path: Path) -> None:
    cells = [features(tmp_path / str(seed), seed, lr=0.002) for seed in SEEDS]
    seen = [([phase.kind for phase in cell.phases], cell.minimum_step) for cell in cells]
    complete = [kinds == ["constant", "decrease", "increase"] and 16 <= minimum <= 128 for kinds, minimum in seen]
    print(*seen, sep="\n")
    assert sum(complete) >= 9, seen


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_changes_without_learning(tmp_path: Path) -> None:
    for seed in SEEDS:
        cell = features(tmp_path / str(seed), seed, lr=0.0)
        assert [phase.kind for phase in cell.phases] == ["constant"], (seed, cell)
        assert cell.stop_window is None
