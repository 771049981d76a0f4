"""Leave a model as it was found: mode, buffers, BatchNorm settings, device and random state, after errors too."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ArgumentError
from ..notices import shown, warn
from ..types import BatchNormMode

BATCHNORM_MODES: tuple[BatchNormMode, ...] = ("recompute", "batch", "running")


@contextmanager
def preserved(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluate ``model`` on ``device`` without gradients, matrix products in full float32; restore everything after.

    Buffers are replaced by copies meanwhile, so that a backward pass under way still finds the ones it saved.
    """
    modes = [(module, module.training) for module in model.modules()]
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (models use the global state)
    cuda = [_cuda_index(device)] if device.type == "cuda" else []
    try:
        with (
            torch.random.fork_rng(devices=cuda),
            torch.no_grad(),
            full_float32(device),
            _own_forward(model),
            on_device(model, device),
        ):
            copies = {id(buffer): buffer.detach().clone() for buffer in model.buffers()}
            for module in model.modules():
                named = {name: copies[id(b)] for name, b in module._buffers.items() if b is not None}
                module._buffers.update(named)
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Move ``model`` to ``device``, and back after; it gets the very buffers back that it had."""
    home = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), device)
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        if home != device:
            model.to(device)
        yield
    finally:
        if home != device:
            model.to(home)
        for module, named in buffers:
            module._buffers.clear()
            module._buffers.update(named)


def fix_random_state(device: torch.device) -> None:
    """Make stochastic layers repeatable inside :func:`preserved`: a resumed sweep then equals an uninterrupted one."""
    torch.default_generator.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.default_generators[_cuda_index(device)].manual_seed(0)


def _cuda_index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Matrix products of float32 as exact as they are, and no autocast.

    Convolutions of a model stay as PyTorch is set, by default in TF32 on a GPU: it is measured as it runs.
    """
    # TF32 and bfloat16 products keep 10 and 7 bits of the mantissa: too few for Gram matrices (pytorch#68020).
    settings = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """Without the autocast that accelerate puts around the ``forward`` of models that it prepares."""
    attributes = vars(model)
    wrapped, own = attributes.get("forward"), attributes.get("_original_forward")
    if wrapped is None or own is None:
        yield
        return
    attributes["forward"] = own
    try:
        yield
    finally:
        attributes["forward"] = wrapped


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
            with _averaging({name: m for name, m in model.named_modules() if m in norms}):
                for batch in batches:
                    with several_rows(mode):
                        model(batch)
            for norm in norms:
                norm.eval()
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def fresh_statistics(model: nn.Module) -> dict[str, Tensor]:
    """The running statistics of a model's BatchNorm layers by name, as they are before any batch."""
    fresh = {"running_mean": torch.zeros_like, "running_var": torch.ones_like, "num_batches_tracked": torch.zeros_like}
    norms = [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
    return {
        f"{name}.{key}".lstrip("."): make(buffer)
        for name, norm in norms
        for key, make in fresh.items()
        if (buffer := getattr(norm, key)) is not None
    }


@contextmanager
def _averaging(norms: Mapping[str, _BatchNorm]) -> Iterator[None]:
    """Running statistics from here on are plain averages over the calls; as they were of those that are not called.

    ``momentum = None`` would ask for the same, but reads the number of calls from the device at each of them.
    """
    calls = dict.fromkeys(norms, 0)

    def hook_for(name: str) -> Callable[[_BatchNorm, Any], None]:
        def before(norm: _BatchNorm, _args: Any) -> None:
            calls[name] += 1
            norm.momentum = 1 / calls[name]

        return before

    stored = {name: [buffer.clone() for buffer in norm.buffers()] for name, norm in norms.items()}
    handles = []
    for name, norm in norms.items():
        norm.reset_running_stats()
        handles.append(norm.register_forward_pre_hook(hook_for(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if uncalled := [name for name in norms if not calls[name]]:
        warn(
            f"batchnorm='recompute': {shown(uncalled)} keep their statistics, as the model does not call these modules "
            "(unused, or through a function); batchnorm='running' keeps all"
        )
    for name in uncalled:
        for buffer, own in zip(norms[name].buffers(), stored[name], strict=True):
            buffer.copy_(own)


@contextmanager
def several_rows(mode: BatchNormMode) -> Iterator[None]:
    """Name the mend where a batch is too small for batch statistics.

    Raises:
        ArgumentError: BatchNorm saw one value per channel.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ArgumentError(
            f"batchnorm={mode!r} needs batches of at least 2 rows: {error}; "
            "use a larger batch_size, a larger split, or 'running'"
        ) from error
