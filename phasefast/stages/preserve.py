"""Leave a model as it was found: mode, buffers, BatchNorm settings, device and random state, after errors too."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ArgumentError
from ..types import BatchNormMode

BATCHNORM_MODES: tuple[BatchNormMode, ...] = ("recompute", "batch", "running")


@contextmanager
def preserved(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluate ``model`` on ``device`` without gradients and with a fixed random state; restore everything after.

    The fixed state makes stochastic layers repeatable, so that a resumed sweep equals an uninterrupted one.
    """
    modes = [(module, module.training) for module in model.modules()]
    home = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), device)
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (models use the global state)
    cuda = [device.index or 0] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda), torch.no_grad(), _full_float32():
            torch.manual_seed(0)
            if home != device:
                model.to(device)
            model.eval()
            yield
    finally:
        if home != device:
            model.to(home)
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                buffer.copy_(value)
                module._buffers[name] = buffer
        for module, training in modes:
            module.training = training
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def _full_float32() -> Iterator[None]:
    # TF32 keeps 10 bits of the mantissa: too few for Gram matrices (pytorch#68020).
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def batchnorm_mode(model: nn.Module, mode: BatchNormMode, batches: Iterable[Tensor]) -> Iterator[None]:
    """Choose the statistics that BatchNorm layers normalise with, inside :func:`preserved`.

    Args:
        mode: ``recompute``: averaged anew over ``batches`` of fit inputs, since running statistics lag behind the
            weights for some thirty steps; ``batch``: of each batch, as the authors of arXiv 2312.06887 measured;
            ``running``: as stored.
        batches: batches of fit inputs on the model's device; only ``recompute`` looks at them.

    Raises:
        ArgumentError: another mode.
    """
    if mode not in BATCHNORM_MODES:
        raise ArgumentError(f"batchnorm: expected one of {BATCHNORM_MODES}, got {mode!r}")
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    try:
        if norms and mode != "running":
            for norm in norms:
                norm.train()
        if norms and mode == "recompute":
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # None asks for the plain average over batches
            for batch in batches:
                model(batch)
            for norm in norms:
                norm.eval()
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
