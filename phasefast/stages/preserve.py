"""Leave a model as it was found: mode, parameters, buffers, device, random state; after errors and interrupts too."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from ..common.interrupts import interrupts_held
from ..common.modes import changes_with_modes, modes_kept, modes_left
from ..common.random_state import random_state_kept


@contextmanager
def preserved(
    model: nn.Module, device: torch.device, keep: torch.device | None = None
) -> Iterator[dict[str, list[str]]]:
    """Evaluate ``model`` on ``device`` without gradients, matrix products in full float32; restore everything after.

    Buffers are replaced by copies meanwhile, so that a backward pass under way still finds the ones it saved.

    Args:
        keep: where copies of all tensors lie meanwhile, to put back the values that ``forward`` changes; None: they
            are not put back, for models that get other weights next.

    Yields:
        Lists that name, in the end, the ``"parameters"`` whose values were put back, and the ``"buffers"`` of numbers,
        except BatchNorm's, which other modes than theirs may change.
    """
    changed: dict[str, list[str]] = {"parameters": [], "buffers": []}
    with (
        interrupts_held(),
        modes_kept(model),
        random_state_kept(device),
        torch.no_grad(),
        full_float32(device),
        _uncompiled(),
        _own_forward(model),
        _uncached(),
        on_device(model, device),
        _values_kept(model, keep, changed["parameters"]) as note_changes,
        modes_left(model),
    ):
        found, merges = _numbers(model) if keep is not None else {}, changes_with_modes(model)
        copies = {id(buffer): buffer.detach().clone() for buffer in model.buffers()}
        for module in model.modules():
            named = {name: copies[id(b)] for name, b in module._buffers.items() if b is not None}
            module._buffers.update(named)
        model.eval()
        if merges and keep is not None:  # what has changed by now is no work of forward's
            found = {name: own.clone() for name, own in _numbers(model).items()}
            note_changes()
        yield changed
        now = _numbers(model) if found else {}
        alike = [
            name
            for name, own in found.items()
            if name in now and (now[name].shape, now[name].dtype) == (own.shape, own.dtype)
        ]
        differ = _differ([(now[name], found[name]) for name in alike])
        changed["buffers"] += [name for name, differs in zip(alike, differ, strict=True) if differs]


def _numbers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of numbers by name, except BatchNorm's."""
    return {
        f"{place}.{name}".lstrip("."): buffer
        for place, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
        and (buffer.is_floating_point() or buffer.is_complex())
        and buffer.layout == torch.strided
        and not isinstance(module, _NormBase)
    }


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Move ``model`` to ``device``, and back after; it gets the very parameters and buffers back that it had."""
    home = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), device)
    modules = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
    moved = [(own, own.data, own.grad) for own in model.parameters()] if home != device else []

    def give_back(sharded: bool) -> None:
        for module, parameters, buffers in modules:
            if not sharded:
                module._parameters.clear()
                module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
        for own, data, _ in moved:
            own.data = data  # the very memory, which others may share

    try:
        for own, _, _ in moved:
            own.grad = None  # which need not be moved
        if home != device:
            model.to(device)
        yield
    finally:
        give_back(sharded := _reshard(model))
        if home != device:
            model.to(home)  # what modules move themselves, as those that keep tensors beside their buffers do
            give_back(sharded)  # parts may have been elsewhere
        for own, _, grad in moved:
            own.grad = grad


@contextmanager
def _values_kept(model: nn.Module, where: torch.device | None, changed: list[str]) -> Iterator[Callable[[], None]]:
    """Put back the values of tensors that ``forward`` changes, and add the names of such parameters to ``changed``.

    Copies are compared, since changes made through ``.data`` leave no other trace; of dense tensors.

    Yields:
        What takes note of changes that are not ``forward``'s, when it is called: they are put back, but not added.
    """
    tensors = {} if where is None else {**dict(model.named_parameters()), **dict(model.named_buffers())}
    dense = {name: each for name, each in tensors.items() if each.layout == torch.strided and not each.is_quantized}
    kept = {name: (each, each.data, _local(each).to(where, copy=True)) for name, each in dense.items()}
    expected = set[str]()

    def compared() -> list[bool]:
        return _differ([(_local(tensor), values) for tensor, _, values in kept.values()])

    try:
        yield lambda: expected.update(itertools.compress(kept, compared()))
    finally:
        differ = compared()
        for (name, (tensor, data, values)), differs in zip(kept.items(), differ, strict=True):
            if differs:
                changed += [name] if isinstance(tensor, nn.Parameter) and name not in expected else []
                _local(data).copy_(values)
                tensor.data = data  # the very memory it had


def _differ(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[bool]:
    """Which tensors differ from copies of them, on whose device they are compared; NaN is the same as itself."""
    if all(copied.device.type == "cpu" for _, copied in pairs):  # or there are none
        return [not torch.equal(_integers(own.cpu()), _integers(copied)) for own, copied in pairs]
    flags = [(_integers(own.to(copied.device)) != _integers(copied)).any() for own, copied in pairs]
    found: list[bool] = torch.stack(flags).tolist()  # a GPU is waited for once
    return found


def _integers(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, as few numbers as may be."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(tensor.element_size(), torch.int64)
    return tensor.resolve_conj().resolve_neg().contiguous().flatten().view(kind)


def _local(tensor: Tensor) -> Tensor:
    """The part that this rank has, of what is sharded over ranks."""
    own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own.detach()


def _reshard(model: nn.Module) -> bool:
    """Whether a model is sharded, so that its modules have other parameters while they run.

    Without a backward pass the outermost ones of ``fully_shard`` would stay gathered: without gradients, and as they
    are before the optimizer's step.
    """
    if "torch.distributed.fsdp" not in sys.modules:
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    sharded = [module for module in model.modules() if isinstance(module, (FSDPModule, FullyShardedDataParallel))]
    for module in sharded:
        if isinstance(module, FSDPModule):
            module.reshard()
    return bool(sharded)


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
    """Modules run as they were before ``torch.compile``, which runs no hooks, or refuses them.

    Not in a function that is compiled itself, where that is forbidden.
    """
    compiles = "torch._dynamo" in sys.modules and not torch.compiler.is_compiling()
    return torch.compiler.set_stance("force_eager") if compiles else nullcontext()


@contextmanager
def _uncached() -> Iterator[None]:
    """Parametrized tensors are made of the weights as they are, also inside ``parametrize.cached()``."""
    enabled, cache = parametrize._cache_enabled, parametrize._cache
    parametrize._cache_enabled, parametrize._cache = 0, {}
    try:
        yield
    finally:
        parametrize._cache_enabled, parametrize._cache = enabled, cache


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """Without the autocast that accelerate puts around the ``forward`` of models that it prepares, or parts of one."""
    found = [
        attributes
        for module in model.modules()
        if (own := (attributes := vars(module)).get("_original_forward")) and _wraps(attributes.get("forward"), own)
    ]
    wrapped = [attributes["forward"] for attributes in found]
    for attributes in found:
        attributes["forward"] = attributes["_original_forward"]
    try:
        yield
    finally:
        for attributes, forward in zip(found, wrapped, strict=True):
            attributes["forward"] = forward


def _wraps(function: Any, own: Any) -> bool:
    """Whether a function is another one in decorators; others may keep what theirs takes the place of by that name."""
    names, inside = {own, getattr(own, "__func__", own)}, getattr(function, "__func__", function)
    while inside is not None and inside not in names:
        inside = getattr(inside, "__wrapped__", None)
    return inside is not None
