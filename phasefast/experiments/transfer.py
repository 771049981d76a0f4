"""The advice and its back-test: what the checkpoint costs that reconstruction alone recommends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints import load_into, read_state_dict
from ..errors import ArgumentError
from .datasets import Splits
from .training import train


@dataclass(frozen=True)
class BackTest:
    """Accuracy of a transfer task at the checkpoints that different rules choose.

    Attributes:
        window: first and last step of the stop window, found from the reconstruction of the input, without labels.
        in_window: mean accuracy over the probed steps in the window; at_end: at its last step. best, last: at the best
            and at the last step.
    """

    window: tuple[int, int]
    in_window: float
    at_end: float
    best: float
    best_step: int
    last: float

    @property
    def regret(self) -> float:
        """What the window loses against the best step, in percentage points."""
        return 100 * (self.best - self.in_window)

    @property
    def regret_of_last(self) -> float:
        """What the last step loses against the best step, in percentage points."""
        return 100 * (self.best - self.last)


def back_test(
    steps: Sequence[int] | np.ndarray, accuracy: Sequence[float] | np.ndarray, window: tuple[int, int]
) -> BackTest:
    """What following the advice gives on one transfer task.

    Args:
        steps: [K] probed steps, ascending. accuracy: [K] held-out accuracy of the task at each.
        window: stop window, whose two ends are probed steps.

    Raises:
        ArgumentError: no probed step lies in the window, or lengths differ.
    """
    places, values = np.asarray(steps), np.asarray(accuracy, dtype=float)
    inside = (places >= window[0]) & (places <= window[1])
    if places.shape != values.shape or not inside.any():
        raise ArgumentError(f"back_test: expected one accuracy per step and a step in {window}, got {places.tolist()}")
    best = int(values.argmax())
    return BackTest(
        window=(int(window[0]), int(window[1])),
        in_window=float(values[inside].mean()),
        at_end=float(values[inside][-1]),
        best=float(values[best]),
        best_step=int(places[best]),
        last=float(values[-1]),
    )


def fine_tune(
    model: nn.Module,
    checkpoint: str | Path,
    data: Splits,
    *,
    n_fit: int = 1_000,
    steps: int = 200,
    lr: float = 0.01,
    batch_size: int = 50,
    seed: int = 0,
) -> float:
    """Held-out accuracy after training the whole network of a checkpoint on a few samples of another task.

    The network gets a new ``classifier``; everything else starts from the checkpoint.

    Args:
        model: the network that the checkpoint is of, with a child ``classifier`` that is Linear; left as it was.
        data: the task, in the network's input shape.
        n_fit: fit samples used. steps, lr, batch_size: of SGD with momentum 0.9. seed: of the samples, the new weights
            and the order of the batches.

    Raises:
        ArgumentError: the model has no such classifier. CheckpointError: the checkpoint does not fit.
    """
    old = dict(model.named_children()).get("classifier")
    if not isinstance(old, nn.Linear):
        raise ArgumentError(f"fine_tune: expected a model with a Linear named 'classifier', got {type(old).__name__}")
    training = model.training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count = min(n_fit, len(data.fit_inputs))
    chosen = torch.randperm(len(data.fit_inputs), generator=torch.Generator().manual_seed(seed))[:count]
    try:
        load_into(model, read_state_dict(checkpoint), str(checkpoint))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.add_module("classifier", nn.Linear(old.in_features, data.num_classes).to(old.weight.device))
        inputs, labels = (x[chosen].to(old.weight.device) for x in (data.fit_inputs, data.fit_labels))
        train(model, inputs, labels, steps=steps, lr=lr, batch_size=min(batch_size, count), seed=seed)
        return _accuracy(model, data.heldout_inputs, data.heldout_labels)
    finally:
        model.add_module("classifier", old)
        model.load_state_dict(before)
        model.train(training)


@torch.no_grad()
def _accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    model.eval()
    place = next(model.parameters()).device
    hits = [model(x.to(place)).argmax(1).cpu() == y for x, y in zip(inputs.split(500), labels.split(500), strict=True)]
    return float(torch.cat(hits).double().mean())
