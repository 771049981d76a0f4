"""A plain training loop: SGD with momentum, seeded, with a progress bar on a terminal and plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from torch import Tensor, nn

from ..common.console import of_work
from ..common.progress import progress
from ..errors import ArgumentError, NonFiniteError

_LINES = 10
_BAR_UPDATES = 200


def train(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    steps: int,
    lr: float,
    momentum: float = 0.9,
    batch_size: int = 64,
    seed: int = 0,
    start: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    on_step: Callable[[int], object] | None = None,
    console: Console | None = None,
) -> float:
    """Train ``model`` in place with cross-entropy and SGD.

    Args:
        inputs: [n, ...] on the model's device. labels: [n] int64.
        batch_size: at most ``n``; rows that do not fill a last batch sit that epoch out.
        seed: of the order of the rows, new in each epoch.
        start: updates that the model and ``optimizer`` have had already; their batches are passed over.
        optimizer: instead of a new SGD with ``lr`` and ``momentum``.
        on_step: called with ``k`` when ``k`` updates are done, from k = ``start`` (0: the untrained network) to
            k = ``steps``.
        console: where progress is shown; standard error by default.

    Returns:
        Seconds spent training, ``on_step`` not counted.

    Raises:
        ArgumentError: steps, batch size or learning rate out of range.
        NonFiniteError: the loss is NaN or Inf at one of the looks at it, which are as many as progress is shown.
    """
    if not 0 <= start <= steps or not 0 < batch_size <= len(inputs) or not 0 <= lr < math.inf:
        raise ArgumentError(
            f"train: expected steps >= start >= 0, lr >= 0 and 1 <= batch_size <= {len(inputs)} rows, "
            f"got steps={steps}, start={start}, lr={lr}, batch_size={batch_size}"
        )
    if inputs.dim() == 4:
        # oneDNN's convolutions work in this layout; in the other one, every activation is converted there and back.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    optimizer = optimizer or sgd(model, lr, momentum)
    batches = _batches(inputs, labels, batch_size, torch.Generator().manual_seed(seed), start)
    console = console or of_work()
    shown = _BAR_UPDATES if console.is_terminal else _LINES
    callback_seconds, begin = 0.0, time.perf_counter()
    with progress("training", steps, "steps", console) as update:
        for step in range(start, steps + 1):
            if on_step is not None:
                before = time.perf_counter()
                on_step(step)
                callback_seconds += time.perf_counter() - before
            if step == steps:
                break
            model.train()
            rows, classes = next(batches)
            loss = nn.functional.cross_entropy(model(rows), classes)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            # Reading the loss waits for the device, so it is read only when it is shown.
            if (step + 1) * shown // steps > step * shown // steps:
                update(step + 1, f"loss {_finite(loss.item(), step, lr):.3f}")
    return time.perf_counter() - begin - callback_seconds


def sgd(model: nn.Module, lr: float, momentum: float = 0.9) -> torch.optim.Optimizer:
    """The optimiser of the paper: SGD with momentum, no weight decay."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, foreach=True)


@contextmanager
def cpu_threads(limit: int) -> Iterator[None]:
    """At most ``limit`` CPU threads inside the block: on small tensors, more of them mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, limit))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _batches(
    inputs: Tensor, labels: Tensor, size: int, generator: torch.Generator, skip: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        # All batches of one size: BatchNorm's statistics of a small remainder would be far noisier than the others'.
        for start in range(0, len(order) - size + 1, size):
            if skip:
                skip -= 1
                continue
            chosen = order[start : start + size]
            yield inputs[chosen], labels[chosen]


def _finite(loss: float, step: int, lr: float) -> float:
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"training diverged: the loss of update {step + 1} is {loss}; lower the learning rate {lr}"
        )
    return loss
