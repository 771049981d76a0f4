"""Which statistics the BatchNorm layers of a model normalise with while it is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..common.notices import shown
from ..errors import ArgumentError
from ..types import BatchNormMode

_SETTLED = 10.0  # times the span over which running statistics average: what they were before has no share any more
_OTHER = 3.0  # times the variance, or variances of the distance: samples of the training are not so far apart


@contextmanager
def batchnorm_mode(
    model: nn.Module, mode: BatchNormMode, batches: Iterable[Tensor], tell: Callable[[str], None]
) -> Iterator[None]:
    """Choose the statistics that BatchNorm layers normalise with, in a model in evaluation mode.

    Args:
        mode: ``recompute``: averaged anew over ``batches`` of fit inputs, since running statistics lag behind the
            weights for some thirty steps; ``batch``: of each batch, as the authors of arXiv 2312.06887 measured;
            ``running``: as stored.
        batches: batches of fit inputs on the model's device; only ``recompute`` looks at them.
        tell: gets which layers these do not reach.
    """
    norms = {name: norm for name, norm in _norms(model) if norm.running_mean is not None}
    if not norms or mode == "running":
        yield
        return
    momenta = {name: norm.momentum for name, norm in norms.items()}
    try:
        with _of_this_rank_alone():
            for norm in norms.values():
                norm.train()
            if mode == "recompute":
                with _averaging(norms, tell):
                    for batch in batches:
                        with several_rows(mode):
                            model(batch)
                for norm in norms.values():
                    norm.eval()
            yield
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]


def frozen_norms(model: nn.Module) -> list[str]:
    """Names of BatchNorm layers in evaluation mode in a model in training: their statistics are constants to it."""
    kept = (name for name, norm in _norms(model) if norm.running_mean is not None and not norm.training)
    return list(kept) if model.training else []


def fresh_statistics(model: nn.Module) -> dict[str, Tensor]:
    """The running statistics of a model's BatchNorm layers by name, as they are before any batch."""
    fresh = {"running_mean": torch.zeros_like, "running_var": torch.ones_like, "num_batches_tracked": torch.zeros_like}
    return {
        f"{name}.{key}".lstrip("."): make(buffer)
        for name, norm in _norms(model)
        for key, make in fresh.items()
        if (buffer := getattr(norm, key)) is not None
    }


def _norms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm))


@contextmanager
def _of_this_rank_alone() -> Iterator[None]:
    """SyncBatchNorm does what BatchNorm does: other ranks, which it would wait for, need not be measuring.

    In the class, as what derives from it calls ``super().forward``.
    """
    synchronised = nn.SyncBatchNorm.forward
    nn.SyncBatchNorm.forward = _BatchNorm.forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.SyncBatchNorm.forward = synchronised  # type: ignore[method-assign]


@contextmanager
def _averaging(norms: Mapping[str, _BatchNorm], tell: Callable[[str], None]) -> Iterator[None]:
    """Running statistics from here on are plain averages over the calls; as they were of those that are not called.

    ``momentum = None`` would ask for the same, but reads the number of calls from the device at each of them.
    """
    calls = dict[str, int]()
    momenta = {name: norm.momentum for name, norm in norms.items()}

    def hook_for(name: str) -> Callable[[_BatchNorm, Any], None]:
        def before(norm: _BatchNorm, _args: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            norm.momentum = 1 / calls[name]

        return before

    stored = {name: {key: own.clone() for key, own in norm.named_buffers()} for name, norm in norms.items()}
    handles = []
    for name, norm in norms.items():
        norm.reset_running_stats()
        handles.append(norm.register_forward_pre_hook(hook_for(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    first = next(iter(calls), None)
    if first is not None and _are_others(stored[first], norms[first], momenta[first]):
        tell(
            f"the running statistics of {first!r}, the first BatchNorm, are far from those that the probe set has: "
            "are its inputs normalised and scaled as in the training? Averages of weights may also be stored with "
            "others' statistics. They are recomputed, so scores may look as usual; batchnorm='running' shows what the "
            "model makes of such inputs"
        )
    if uncalled := [name for name in norms if name not in calls]:
        tell(
            f"batchnorm='recompute': {shown(uncalled)} keep their statistics, as the model does not call these modules "
            "(unused, or called through a function); batchnorm='running' keeps those of all"
        )
    for name in uncalled:
        for key, buffer in norms[name].named_buffers():
            buffer.copy_(stored[name][key])


def _are_others(stored: Mapping[str, Tensor], norm: _BatchNorm, momentum: float | None) -> bool:
    """Whether running statistics, once they have settled, are of other inputs than those of a layer now.

    False on a GPU, which would be waited for, and where they average over all updates.
    """
    known = [stored.get(name) for name in ("num_batches_tracked", "running_mean", "running_var")]
    own = [*known, norm.running_mean, norm.running_var]
    if momentum is None or any(each is None or each.device.type != "cpu" for each in own):
        return False
    count, mean, variance, now, scatter = (each.double() for each in own if each is not None)
    if float(count) * momentum < _SETTLED:
        return False
    # Of all features at once: many may be constant, or nearly so.
    was, has = float(variance.sum()), float(scatter.sum())
    wider = max(was, has) > _OTHER * min(was, has)
    return wider or float((mean - now).square().sum()) > _OTHER * min(was, has)


@contextmanager
def several_rows(mode: BatchNormMode) -> Iterator[None]:
    """Name the remedy if a batch is too small for batch statistics.

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
