"""Files of ``torch.save`` read for their tensors alone: whatever else they name stays a placeholder that does nothing.

Python's unpickler calls what ``find_class`` gives it, and nothing else. Here that makes tensors, or placeholders.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

_MODULE = {"_parameters", "_buffers", "_modules"}  # of the state of a torch.nn.Module


class Inert(dict[Any, Any]):
    """In place of an object of any class, or of what a function would have given: the entries of a dictionary's kind.

    Attributes:
        state: what was to be set on it.
    """

    state: Any = None  # of objects that are made without __init__, too
    dump_patches = False  # which torch asks modules in its old format for

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __call__(self, *_: Any, **__: Any) -> Inert:
        """What a function that it stands for would have given."""
        return Inert()

    def append(self, *_: Any) -> None:
        """Nothing, as of the items of a list's kind."""

    extend = add = append
    __hash__ = object.__hash__  # type: ignore[assignment]


class _Plain(Inert):
    """In place of torch's own class of tensors."""


def read_inert(path: Path) -> Any:
    """What a file of ``torch.save`` holds, on the CPU; modules in it as their state dicts.

    Of those that torch reads with ``weights_only=True`` up to something that is not plain: no TorchScript, no tar.
    """
    loaded = torch.load(path, map_location="cpu", weights_only=False, mmap=None, pickle_module=_PICKLE)
    if isinstance(loaded, dict) and loaded and not _is_module(loaded):
        return {key: _as_state_dict(value) for key, value in loaded.items()}
    return _as_state_dict(loaded)


def _as_state_dict(value: Any) -> Any:
    return dict(_entries(value, "")) if _is_module(value) else value


def _is_module(value: Any) -> bool:
    return isinstance(value, Inert) and isinstance(value.state, dict) and value.state.keys() >= _MODULE


def _entries(module: Inert, prefix: str) -> Iterator[tuple[str, Any]]:
    """The names and tensors that ``state_dict`` gives of modules without one of their own, or an extra state.

    And placeholders of what is no tensor.
    """
    passing = module.state.get("_non_persistent_buffers_set", ())
    for name, value in (*module.state["_parameters"].items(), *module.state["_buffers"].items()):
        if value is not None and name not in passing:
            yield f"{prefix}{name}", value.detach() if isinstance(value, Tensor) else value
    for name, part in module.state["_modules"].items():
        if _is_module(part):
            yield from _entries(part, f"{prefix}{name}.")
        elif part is not None:
            yield f"{prefix}{name}", part


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _of_subclass(rebuild: Callable[..., Any], kind: Any, arguments: tuple[Any, ...], *_: Any) -> Any:
    """A tensor of a class of its own, as a plain one; not of integers, which mean something else than weights there.

    Tensors with attributes are written so too.
    """
    made = rebuild(*arguments)
    return made if kind is _Plain or (isinstance(made, Tensor) and made.is_floating_point()) else Inert()


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("torch", "Size"): torch.Size,
    ("torch", "Tensor"): _Plain,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_subclass,
}
_BUILD = pickle.BUILD[0]


class _Unpickler(pickle._Unpickler):  # that in C sets states of whatever it finds, classes too
    stack: list[Any]

    def load(self) -> Any:
        """What the file holds; of its classes torch's old format has the source code, which torch would compare."""
        read = self.persistent_load
        self.persistent_load = lambda saved: saved[1] if saved[0] == "module" else read(saved)  # type: ignore[assignment]
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of that name, where it makes tensors; else what stands for it."""
        if module == "torch" and isinstance(own := vars(torch).get(name), torch.dtype):
            return own
        return _KNOWN.get((module.replace("__builtin__", "builtins"), name), Inert)

    def get_extension(self, code: int) -> None:
        """Refused: what a process has registered is found without ``find_class``."""
        raise pickle.UnpicklingError(f"expected no registered extension, got {code}")

    def _build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].state = state

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, _BUILD: _build}


def _load(file: Any, **how: Any) -> Any:
    return _Unpickler(file, **how).load()


_PICKLE = SimpleNamespace(__name__="inert", Unpickler=_Unpickler, load=_load)
