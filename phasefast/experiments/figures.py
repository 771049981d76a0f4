"""Figures of a reproduction: published beside measured, and exact beside trained decoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..common.files import writing
from ..report.page import picture

_OURS, _THEIRS, _CONV = "#0072B2", "#D55E00", "#009E73"


@picture
def plot_published(results: dict[str, Any], path: Path) -> Path:
    """Loss, colour dominance and test accuracy over the steps: published, and each seed of ours.

    Raises:
        DependencyError: matplotlib is missing. StoreError: the file cannot be written.
    """
    published, curves = results["published"], [seed["batch"] for seed in results["seeds"]]
    panels = (("mse", "reconstruction loss per element"), ("colour", "colour dominance"), ("test", "test accuracy"))
    figure, axes = _figure(len(panels))
    for axis, (key, title) in zip(axes, panels, strict=True):
        for index, curve in enumerate(curves):
            label = f"ours, {len(curves)} seeds" if index == 0 else None
            axis.plot(_octaves(curve["steps"]), curve[key], color=_OURS, alpha=0.8, lw=1.2, marker=".", label=label)
        axis.plot(_octaves(published["steps"]), published[key], color=_THEIRS, lw=1.6, ls="--", label="published")
        _label(axis, title, published["steps"])
    axes[0].legend(frameon=False, fontsize=9)
    return _save(figure, path)


@picture
def plot_decoders(results: dict[str, Any], path: Path) -> Path:
    """Held-out error against seconds of the exact, the linear and the convolutional decoder, one panel per step."""
    rows = results["decoders"]
    figure, axes = _figure(len(rows))
    for axis, row in zip(axes, rows, strict=True):
        for kind, colour, marker in (("exact", _OURS, "o"), ("linear", _THEIRS, "s"), ("conv", _CONV, "^")):
            found = row[kind]
            axis.plot(found["seconds"], found["heldout_mse"], marker, color=colour, ms=8)
            axis.annotate(kind, (found["seconds"], found["heldout_mse"]), xytext=(0, 9), textcoords="offset points",
                          ha="center", fontsize=9, color=colour)  # fmt: skip
        axis.set_xscale("log")
        axis.margins(0.2)
        axis.set_xlabel("seconds")
        axis.set_title(f"step {row['step']}", fontsize=10)
    axes[0].set_ylabel("held-out error per element")
    return _save(figure, path)


@picture
def plot_theory(found: dict[str, Any], path: Path) -> Path:
    """Loss of the softmax layer without and with deviating samples, and the largest rise over the grid.

    Args:
        found: what :func:`phasefast.experiments.theory.run_theory` returns.
    """
    figure, axes = _figure(2)
    for (rho, shown), colour in zip(found["curves"].items(), (_OURS, _THEIRS), strict=True):
        steps = _octaves(shown["steps"])
        axes[0].plot(steps, shown["loss"], color=colour, marker=".", lw=1.4, label=f"{float(rho):.0%} deviating")
        axes[0].plot(steps, shown["residual"], color=colour, ls=":", lw=1, label="without noise")
        _label(axes[0], "reconstruction loss of the outputs", shown["steps"])
    axes[0].legend(frameon=False, fontsize=8)
    grid = found["grid"]
    for noise, colour in zip(grid["noise"], ("#D55E00", "#E69F00", "#009E73", "#56B4E9", "#0072B2") * 3):
        rows = [row for row in found["rows"] if row["noise"] == noise]
        rises = [np.mean([row["rise"] for row in rows if row["rho"] == rho]) for rho in grid["rho"]]
        axes[1].plot(grid["rho"], rises, color=colour, marker=".", label=f"noise variance {noise:g}")
    axes[1].axhline(found["change"], color="#666666", lw=0.8, ls="--")
    axes[1].set_xlabel("share of deviating samples")
    axes[1].set_title("rise after the minimum, mean", fontsize=10)
    axes[1].legend(frameon=False, fontsize=8)
    return _save(figure, path)


def _figure(panels: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.3 * panels, 3.0), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def _octaves(steps: list[int]) -> np.ndarray:
    """Steps in octaves; step 0 lies one octave before step 1."""
    octaves: np.ndarray = np.log2(np.maximum(np.asarray(steps, dtype=float), 0.5))
    return octaves


def _label(axis: Any, title: str, steps: list[int]) -> None:
    shown = [step for step in steps if step in (0, 8, 64, 512, 4096, 32768)]
    axis.set_xticks(_octaves(shown), [str(step) for step in shown])
    axis.set_xlabel("training step")
    axis.set_title(title, fontsize=10)


def _save(figure: Any, path: Path) -> Path:
    with writing(path, "the picture") as partial:
        figure.savefig(partial, dpi=150, format="png")
    return path
