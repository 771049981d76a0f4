"""Hooks on a model's modules, while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .interrupts import let_interrupts_through


@contextmanager
def hooked(
    model: nn.Module, names: Sequence[str], record: Callable[[str, int, nn.Module, Any], None]
) -> Iterator[Callable[[], None]]:
    """Call ``record(name, call, module, output)`` after each forward of the named modules.

    But for those under ``torch.vmap``, as for derivatives, which are of single samples. Yields what restarts the count.
    """
    calls = dict.fromkeys(names, 0)
    modules = dict(model.named_modules())

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _args: Any, output: Any) -> None:
            if _is_under_vmap():
                return
            calls[name] += 1
            record(name, calls[name] - 1, module, output)

        return hook

    def reset() -> None:
        calls.update(dict.fromkeys(names, 0))

    handles = [modules[name].register_forward_hook(hook_for(name)) for name in names]
    try:
        yield reset
    finally:
        for handle in handles:
            handle.remove()


def _is_under_vmap() -> bool:
    levels: Any = getattr(torch._C._functorch, "get_interpreter_stack", tuple)()  # None outside of torch.func
    return any(level.key().name == "Vmap" for level in levels or ())


def places_of_calls(model: nn.Module, batch: Tensor) -> dict[tuple[str, int], int]:
    """The calls of all modules in the order in which they end, whichever of them are probed.

    Apart from what tells their shapes: hooks may lead transformers' layers another way.
    """
    places: dict[tuple[str, int], int] = {}
    names = [name for name, _ in model.named_modules()]
    let_interrupts_through()
    with hooked(model, names, lambda *call: places.update({call[:2]: len(places)})):
        model(batch.clone())  # which it may change
    return places
