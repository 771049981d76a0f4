"""Models as their users give them: what wraps them, and whether their modules run hooks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..common.notices import few
from ..errors import ArgumentError


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, DataParallel and DistributedDataParallel, whose hooks always fire."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def check_usable(model: nn.Module) -> None:
    """Refuse models without a forward, and those whose modules run no hooks, or have no weights yet.

    Raises:
        ArgumentError: no forward, TorchScript, lazy modules that were never called, or the meta device; it names the
            module.
    """
    own = [getattr(type(model), name, None) for name in ("forward", "__call__")]
    if own == [nn.Module.forward, nn.Module.__call__] and "forward" not in vars(model):
        parts = [name for name, _ in model.named_children()]
        mend = f"; give one of its parts, {few(parts)}" if parts else ""
        raise ArgumentError(f"model: {type(model).__name__} has no forward{mend}")
    for name, module in model.named_modules():
        what = f"its module {name!r}" if name else "it"
        if isinstance(module, torch.jit.ScriptModule):
            raise ArgumentError(
                f"model: {what} is TorchScript, which runs no hooks; give the module that it was made from"
            )
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if any(tensor.is_meta for tensor in tensors):
            raise ArgumentError(
                f"model: {what} is on the meta device, without memory; give model.to_empty(device='cpu')"
            )
        if any(map(is_lazy, tensors)):
            raise ArgumentError(
                f"model: {what} is lazy, and has no weights before its first batch; call the model once first"
            )
