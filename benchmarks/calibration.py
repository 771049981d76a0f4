"""How often `detect_phases` is right, on simulated curves whose phases are known.

`python benchmarks/calibration.py --out docs/results/calibration.json` takes a minute or two; docs/phases.md has tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from phasefast.phases.detect import detect_curve
from phasefast.phases.phase_report import CellPhases
from phasefast.phases.rules import DEFAULT_RULES

STEPS = (4, 7, 9, 12, 17, 30, 60)
SAMPLES = 200  # held out, where not said otherwise
DEPTH = 0.2  # of the valley, and of the fall and the rise
_FEW = 30  # curves that tell a share
# Fewer draws than by default: a p-value of .03 and a quantile of .025 are told well enough.
FEWER: dict[str, Any] = {"replicates": 200, "rules": replace(DEFAULT_RULES, permutations=500)}


def flat(x: np.ndarray) -> np.ndarray:
    return np.full_like(x, 0.5)


def fall(x: np.ndarray) -> np.ndarray:
    """A plateau, then a fall that levels off at the middle."""
    return 0.4 + DEPTH / (1 + np.exp(40 * (x - 0.25)))


def early_fall(x: np.ndarray) -> np.ndarray:
    return 0.4 + DEPTH * np.exp(-12 * x)


def late_rise(x: np.ndarray) -> np.ndarray:
    return 0.4 + DEPTH / (1 + np.exp(40 * (0.75 - x)))


def valley(x: np.ndarray, rise: float = 1.0) -> np.ndarray:
    """A plateau until a quarter, a fall until the middle, then a rise by a share of it."""
    return np.interp(x, [0, 0.25, 0.5, 1], [0.6, 0.6, 0.4, 0.4 + rise * DEPTH])


def low_rise(x: np.ndarray) -> np.ndarray:
    return valley(x, 1 / 4)


SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    each.__name__: each for each in (flat, fall, early_fall, late_rise, valley, low_rise)
}


def curve(
    shape: str, steps: int, noise: float, memory: float, spike: float, settled: float, rng: np.random.Generator
) -> np.ndarray:
    """Losses [K]: a shape with step noise, a share of its depth, each step's part of the last one's by ``memory``.

    Args:
        spike: how far, in depths, one of the inner steps, but not the lowest, lies above.
        settled: share of the steps, the last, with a hundredth of the noise, as after convergence.
    """
    true = SHAPES[shape](np.linspace(0, 1, steps))
    white, scatter = rng.normal(size=steps), np.empty(steps)
    scatter[0] = white[0]
    for i in range(1, steps):
        scatter[i] = memory * scatter[i - 1] + np.sqrt(1 - memory**2) * white[i]
    loss = true + noise * DEPTH * scatter * np.where(np.arange(steps) < steps * (1 - settled), 1.0, 0.01)
    if spike:
        inner = [i for i in range(1, steps - 1) if i != true.argmin()]
        loss[rng.choice(inner)] += spike * DEPTH
    return loss


def samples(loss: np.ndarray, count: int, contrast: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Losses [K, m] of held-out samples of unequal difficulty, which are the same at all steps, and their unit [m].

    Args:
        contrast: standard deviation of the logarithm of the deviations, whose mean the losses are told in.
    """
    difficulty = np.exp(0.5 * rng.normal(size=count) - 0.125)
    own = np.exp(0.02 * rng.normal(size=(len(loss), count)) - 0.0002)
    unit = np.exp(contrast * rng.normal(size=count) - contrast**2 / 2) if contrast else np.ones(count)
    return loss[:, None] * difficulty * own / unit.mean(), unit / unit.mean()


def read(cell: CellPhases, true: np.ndarray, loss: np.ndarray, spike: float) -> dict[str, float]:
    """What is counted of a curve whose steps are 0, 1, 2, ...; NaN where it does not come up.

    Args:
        true: [K] without step noise, and with it: loss [K], which held-out samples estimate. spike: of :func:`curve`.
    """
    kinds = {phase.kind for phase in cell.phases}
    found = {kind: float(kind in kinds) for kind in ("decrease", "increase")}
    found["both"] = float({"decrease", "increase"} <= kinds)
    low, window = int(true.argmin()), cell.stop_window
    found["left_out"] = float(cell.evidence["left_out"] == [int((loss - true).argmax())]) if spike else np.nan
    found["window"] = float(window is not None and window[0] <= low <= window[1])
    plateau = next((range(phase.end_step + 1) for phase in cell.phases if phase.kind == "constant"), None)
    kept = [step for step in plateau or () if step not in cell.evidence["left_out"]]
    for kind in ("decrease", "increase"):
        phase = cell.phase(kind)
        found[f"{kind}_covered"] = np.nan
        if phase is not None:
            before = loss[kept].mean() if kept and kept[-1] == phase.start_step else loss[phase.start_step]
            found[f"{kind}_covered"] = float(phase.ci[0] <= loss[phase.end_step] - before <= phase.ci[1])
    return found


def rates(setting: dict[str, Any]) -> dict[str, Any]:
    """Shares of the curves of a setting."""
    shape, steps, count = setting["shape"], setting["steps"], setting["curves"]
    true = SHAPES[shape](np.linspace(0, 1, steps))
    found = []
    for seed in range(count):
        rng = np.random.default_rng([seed, steps, *shape.encode()])
        loss = curve(shape, steps, setting["noise"], setting["memory"], setting["spike"], setting["settled"], rng)
        losses, unit = samples(loss, setting["samples"], setting["contrast"], rng)
        cell = detect_curve(np.arange(steps), losses, baseline_samples=unit, seed=seed, **FEWER)
        found.append(read(cell, true, loss, setting["spike"]))
    table = {name: np.array([each[name] for each in found]) for name in found[0]}
    seen = {name: values[~np.isnan(values)] for name, values in table.items()}
    return setting | {name: round(float(values.mean()), 4) for name, values in seen.items() if len(values) >= _FEW}


def settings(curves: int) -> Iterator[dict[str, Any]]:
    """All that is simulated."""
    common = {"memory": 0.0, "spike": 0.0, "settled": 0.0, "contrast": 0.0, "samples": SAMPLES, "curves": curves}
    for steps in STEPS:
        for shape, noise in product(("fall", "early_fall", "late_rise"), (0.01, 0.03, 0.06)):
            yield {"shape": shape, "steps": steps, "noise": noise, **common}
        for shape, noise in product(("valley", "low_rise"), (0.0, 0.01, 0.03, 0.1)):
            yield {"shape": shape, "steps": steps, "noise": noise, **common}
        yield {"shape": "flat", "steps": steps, "noise": 0.075, **common}  # 3 % of the loss
        for shape, noise in (("flat", 0.075), ("fall", 0.03)):
            yield {"shape": shape, "steps": steps, "noise": noise, **common, "memory": 0.5}
        for shape, noise in (
            ("flat", 0.075),
            ("fall", 0.06),
            ("early_fall", 0.06),
            ("valley", 0.06),
            ("low_rise", 0.03),
        ):
            yield {"shape": shape, "steps": steps, "noise": noise, **common, "settled": 0.5}
        yield {"shape": "valley", "steps": steps, "noise": 0.01, **common, "contrast": 1.0}
        for few in (5, 10, 30):
            yield {"shape": "valley", "steps": steps, "noise": 0.01, **common, "samples": few}
        for spike in (0.25, 0.5, 1.0, 5.0):
            yield {"shape": "valley", "steps": steps, "noise": 0.01, **common, "spike": spike}


def main() -> None:
    """Simulate and write the rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", type=int, default=400, help="per setting")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with ProcessPoolExecutor() as pool:
        found = list(pool.map(rates, settings(given.curves), chunksize=1))
    given.out.write_text(json.dumps({"settings": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
