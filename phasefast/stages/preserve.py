"""Leave a model as it was found: mode, parameters, buffers, device and random state, after errors too."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn


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
            _uncompiled(),
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


@contextmanager
def parameters_kept(parameters: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Put back the values of parameters that ``forward`` changes; yields a list that names those in the end.

    Copies are compared, since changes made through ``.data`` leave no other trace; they lie in the CPU's memory, since
    a GPU's may be full in a training.
    """
    kept = {name: (each.data, _local(each).to("cpu", copy=True)) for name, each in parameters.items()}
    changed: list[str] = []
    try:
        yield changed
    finally:
        for name, (data, values) in kept.items():
            if not _same_bytes(parameters[name], values):
                changed.append(name)
                _local(data).copy_(values)
                parameters[name].data = data  # the very memory it had


def _same_bytes(tensor: Tensor, other: Tensor) -> bool:
    """NaN is the same as itself."""
    first, second = (_local(each).cpu().contiguous().flatten().view(torch.uint8) for each in (tensor, other))
    return torch.equal(first, second)


def _local(tensor: Tensor) -> Tensor:
    """The part that this rank has, of what is sharded over ranks."""
    own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own.detach()


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


def _uncompiled() -> AbstractContextManager[None]:
    """Modules run as they were before ``torch.compile``, which runs no hooks, or refuses them."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


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
