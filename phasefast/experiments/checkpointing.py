"""Train once, keep checkpoints at chosen steps, and go on where a killed training stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import load_into
from ..common.files import save
from ..errors import ArgumentError, CheckpointError, StoreError
from .training import sgd, train

_RESUME = "resume.state"  # not a suffix that a sweep over the folder reads


def log2_steps(last: int, first: int = 1) -> list[int]:
    """0, ``first``, 2 ``first``, 4 ``first``, ... and the last step."""
    steps, step = {0, last}, first
    while step < last:
        steps.add(step)
        step *= 2
    return sorted(steps)


def checkpoint_path(folder: str | Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return Path(folder) / f"step_{step:07d}.pt"


def train_checkpoints(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    folder: str | Path,
    *,
    steps: Sequence[int],
    lr: float,
    momentum: float = 0.9,
    batch_size: int = 128,
    seed: int = 0,
    recipe: dict[str, Any] | None = None,
) -> dict[int, Path]:
    """Train ``model`` and store its state dict at ``steps``; those that ``folder`` holds already are not trained again.

    Args:
        inputs, labels, lr, momentum, batch_size, seed: see :func:`phasefast.experiments.training.train`.
        steps: ascending; the last one ends the training.
        recipe: whatever else tells this training from another (model, data); stored with the settings and compared.

    Returns:
        Checkpoint files by step, ready for :func:`phasefast.sweep`.

    Raises:
        ArgumentError: the folder holds checkpoints of another training.
        StoreError: the folder cannot be written. CheckpointError: the state to go on from cannot be read.
    """
    folder = Path(folder)
    paths = {step: checkpoint_path(folder, step) for step in steps}
    settings = {**(recipe or {}), "lr": lr, "momentum": momentum, "batch_size": batch_size, "seed": seed}
    optimizer = sgd(model, lr, momentum)
    start = _resume(model, optimizer, folder, settings, list(steps))
    if start is None:
        return paths

    def keep(step: int) -> None:
        if step in paths and not (step == start and paths[step].exists()):
            state = {
                "settings": settings,
                "step": step,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            _save(model.state_dict(), paths[step])
            _save(state, folder / _RESUME)

    train(
        model,
        inputs,
        labels,
        steps=max(steps),
        lr=lr,
        batch_size=batch_size,
        seed=seed,
        start=start,
        optimizer=optimizer,
        on_step=keep,
    )
    return paths


def _resume(
    model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, settings: dict[str, Any], steps: list[int]
) -> int | None:
    """The step to go on from, its state loaded; None where all steps are there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write to {folder}: {error}; choose another directory") from error
    path = folder / _RESUME
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"{path}: cannot be read ({error}); delete it to train from the start") from error
    if state["settings"] != settings:
        changed = sorted(k for k in {*settings, *state["settings"]} if settings.get(k) != state["settings"].get(k))
        listed = ", ".join(f"{k}: {state['settings'].get(k)!r} there, {settings.get(k)!r} now" for k in changed)
        raise ArgumentError(f"{folder}: holds checkpoints of another training ({listed}); give another out=")
    missing = [step for step in steps if not checkpoint_path(folder, step).exists()]
    if not missing:
        return None
    if min(missing) <= state["step"]:
        return 0  # a step in between was not kept: only training anew gives it
    load_into(model, state["model"], str(path))
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _save(state: dict[str, Any], path: Path) -> None:
    save(state, path, "the state of the training to")
