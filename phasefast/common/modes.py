"""Training and evaluation: which of the two modules are in, and those that change their numbers with it."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .notices import warn


def _acts(module: nn.Module) -> bool:
    """Whether a module may change its numbers with its mode, as layers that merge adapters into their weights do."""
    own = ((getattr(module, name), getattr(nn.Module, name)) for name in ("train", "eval"))
    return any(getattr(given, "__func__", given) is not usual for given, usual in own)


def _numbers(module: nn.Module) -> list[Tensor]:
    """What a module may have merged something into."""
    return [own.detach() for own in [*module.parameters(), *module.buffers()] if own.layout == torch.strided]


def changes_with_modes(model: nn.Module) -> bool:
    """Whether some part of a model in training may change its numbers in evaluation."""
    return any(module.training and _acts(module) for module in model.modules())


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put back which modules are in training, and which parameters are trained."""
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, trains in trained:
            if parameter.requires_grad != trains:
                parameter.requires_grad = trains


@contextmanager
def modes_left(model: nn.Module, by_eval: Container[nn.Module] = ()) -> Iterator[None]:
    """Let modules that change with their mode leave another one as they do by themselves: what was merged is taken out.

    Of others only which mode they are in is to be put back.

    Args:
        by_eval: parts whose own ``eval()`` the user has called; that of the model calls their ``train(False)`` instead.
    """
    acting = [(module, module.training) for module in model.modules() if _acts(module)]
    try:
        yield
    finally:
        failed: dict[str, Exception] = {}
        for _ in range(2):  # those around others change these too, and of shared ones several do
            for module, training in acting:
                if module.training != training:
                    try:
                        own = not training and (module is model or module in by_eval)
                        module.eval() if own else module.train(training)
                    except Exception as error:  # its own; others are still to be put back
                        failed[type(module).__name__] = error
        for name, why in failed.items():
            warn(f"{name}.train() has failed after a measurement, so that its weights may not be those before: {why}")


@contextmanager
def in_training(model: nn.Module) -> Iterator[bool]:
    """Have modules that change with their mode in training, which the weights of checkpoints are of.

    Yields:
        Whether there are any that were not.
    """
    modes = [(module, module.training) for module in model.modules()]
    acting, merged = [module for module, training in modes if not training and _acts(module)], set[nn.Module]()
    with modes_kept(model), modes_left(model, merged):
        for module in acting:
            before = [tensor.clone() for tensor in _numbers(module)]
            with contextlib.suppress(Exception):  # of one that cannot be trained
                module.train(True)
            now = _numbers(module)
            if len(now) != len(before) or not all(map(torch.equal, now, before)):
                merged.add(module)
        for module, training in modes if acting else ():
            if not _acts(module):
                module.training = training or not modes[0][1]
        yield bool(acting)
