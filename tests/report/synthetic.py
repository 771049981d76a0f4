"""Scores of imagined runs, with the three phases in the last layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from phasefast.phases.phase_report import PhaseReport
from phasefast.report import plot_phases
from phasefast.results.scores import Scores

SAMPLES = 200


def log2_steps(count: int) -> list[int]:
    return [0, *(2**k for k in range(count - 1))]


def make_scores(
    layers: Sequence[str],
    steps: Sequence[int],
    *,
    scale: float = 0.4,
    fvu: bool = True,
    accuracy: bool = True,
    network: bool = True,
) -> Scores:
    """Layers of growing FVU, from ``1e-6 scale`` to ``scale``: flat, then down by a fifth, then up by a half."""
    rng = np.random.default_rng(0)
    hard = rng.gamma(20.0, 1 / 20.0, SAMPLES)
    luck = rng.random(SAMPLES)
    rows = []
    for index, step in enumerate(steps):
        place = index / max(1, len(steps) - 1)
        shape = 1 - 0.2 * np.exp(-(((place - 0.5) / 0.12) ** 2)) + max(0.0, place - 0.5)
        for depth, layer in enumerate(layers):
            level = scale * 10 ** (-6 * (len(layers) - 1 - depth) / len(layers))
            if fvu:
                samples = level * shape * hard / hard.mean() * rng.normal(1, 0.02, SAMPLES)
                rows.append(row(step, layer, "input", "fvu", samples))
            if accuracy:
                rows.append(row(step, layer, "label", "accuracy", luck < 0.6 + 0.3 * place - 0.01 * depth))
        if network:
            rows.append(row(step, "model", "label", "accuracy", luck < 0.1 + 0.8 * place))
    return Scores.from_rows(rows)


def of_widths(widths: dict[str, int], model: int | None, steps: Sequence[int] = (0, 1)) -> Scores:
    """Scores of layers of so many features, and of a model of so many outputs, if any."""
    rows = make_scores(list(widths), steps, network=model is not None).to_arrow().to_pylist()
    return Scores.from_rows([{**each, "dim": {**widths, "model": model}[each["layer"]]} for each in rows])


def row(step: int, layer: str, target: str, metric: str, samples: np.ndarray) -> dict[str, object]:
    values = np.asarray(samples, dtype=np.float32)
    return {
        "run": "imagined",
        "step": step,
        "layer": layer,
        "dim": 8,
        "target": target,
        "split": "heldout",
        "metric": metric,
        "value": float(values.mean()),
        "n": len(values),
        "samples": values,
    }


def figure_of(
    scores: Scores, report: PhaseReport, folder: Path, monkeypatch: pytest.MonkeyPatch, title: str = "Phases"
) -> Figure:
    """What would be written as the picture."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: path.touch() or figures.append(figure))
    plot_phases(scores, report, folder / "phases.png", title)
    return figures[0]


def targets_apart(long: str = "colour") -> Scores:
    """Layers decode a task, of which the model itself knows nothing: it is scored on the label."""
    scores = make_scores(["a", "b"], log2_steps(8), network=False).to_arrow().to_pylist()
    for entry in scores:
        entry["target"] = {"label": long}.get(entry["target"], entry["target"])
    own = make_scores([], log2_steps(8))
    return Scores.concat([Scores.from_rows(scores), own])


def write_run(directory: Path, scores: Scores) -> Path:
    for step in scores.steps:
        scores.filter(step=step).write_shard(directory)
    return directory
