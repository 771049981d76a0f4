"""Numbers fetched from a device: each wait lets a GPU run out of work, so they are fetched together, and late."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def fetched(*tensors: Tensor) -> list[Tensor]:
    """The tensors as float64 on the CPU, in one transfer: every copy from a GPU waits for all queued work.

    Those that are float64 on the CPU already are given back as they are.
    """
    wide = [tensor.double() for tensor in tensors]
    if all(tensor.device.type == "cpu" for tensor in wide):
        return wide
    return _apart(_joined(wide).cpu(), wide)


def later(*tensors: Tensor) -> Callable[[], list[np.ndarray]]:
    """The same as arrays, which take less time than tensors where they are small.

    Returns:
        What gives them: it waits for what a GPU was asked before, not for what it is asked from here on.
    """
    wide = [tensor.double() for tensor in tensors]
    if not any(tensor.is_cuda for tensor in wide):
        return lambda: [tensor.cpu().numpy() for tensor in wide]
    joined = _joined(wide)
    copied, done = joined.to("cpu", non_blocking=True), torch.cuda.Event()
    done.record(torch.cuda.current_stream(joined.device))

    def read() -> list[np.ndarray]:
        done.synchronize()
        return [part.numpy() for part in _apart(copied, wide)]

    return read


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _apart(joined: Tensor, like: list[Tensor]) -> list[Tensor]:
    parts = joined.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]
