"""Samples of loss curves, and their phases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from phasefast.phases.detect import detect_curve
from phasefast.phases.phase_report import CellPhases
from phasefast.phases.rules import DEFAULT_RULES

QUICK: dict[str, Any] = {"replicates": 100, "rules": replace(DEFAULT_RULES, permutations=300)}


def log_steps(count: int) -> np.ndarray:
    """0, 1, 2, 4, ..."""
    return np.array([0] + [2**i for i in range(count - 1)])


def draw(curve: Any, seed: int = 0, m: int = 600, scatter: float = 0.1) -> np.ndarray:
    """[K, m]: each sample's difficulty, shared by all steps, times the curve, plus independent scatter."""
    rng = np.random.default_rng(seed)
    level = np.asarray(curve, dtype=float)[:, None]
    difficulty = rng.gamma(4, 0.25, m)
    return level * (difficulty / difficulty.mean() + scatter * rng.normal(size=(len(level), m)))


def find(
    curve: Any, steps: Any = None, seed: int = 0, m: int = 600, scatter: float = 0.1, **options: Any
) -> CellPhases:
    """Phases of a mean curve, at steps 0, 1, 2, 4, ... unless given."""
    steps = log_steps(len(curve)) if steps is None else np.asarray(steps)
    return detect_curve(steps, draw(curve, seed, m, scatter), seed=seed, **options)


def kinds(cell: CellPhases) -> str:
    """``cdi`` for constant, decrease, increase."""
    return "".join(phase.kind[0] for phase in cell.phases)
