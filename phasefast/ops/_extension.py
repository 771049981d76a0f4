"""The compiled extension: loaded once, on first use; if that fails, the reason is kept, with the remedy."""

from __future__ import annotations

import functools
import importlib
import os
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from ..common.notices import warn
from . import _cuda

OPS = ("capture", "gram", "ridge_solve", "residual")
_LOADING = threading.Lock()
_MEND = (
    "install phasefast again with this Python and this torch, by pip install --no-build-isolation, with a C++20 "
    "compiler; PHASEFAST_REQUIRE_EXTENSION=1 then shows what fails"
)


def _load() -> tuple[ModuleType | None, str | None]:
    """The module and None, or None and why there is none; whichever thread asks first."""
    with _LOADING:
        return _loaded()


@functools.cache
def _loaded() -> tuple[ModuleType | None, str | None]:
    if os.environ.get("PHASEFAST_REFERENCE") == "1":
        return None, "PHASEFAST_REFERENCE=1 selects the PyTorch reference; unset it to use the compiled ops"
    try:
        module = importlib.import_module("phasefast._C")
    except ModuleNotFoundError as error:
        if error.name != "phasefast._C":
            raise
        return None, f"phasefast._C is missing: no compiler was found, or it was built for another Python; {_MEND}"
    except (ImportError, OSError, RuntimeError) as error:
        reason = f"phasefast._C does not load under torch {torch.__version__}: {error}; {_MEND}"
        warn(f"{reason}; the PyTorch reference is used, which is slower")
        return None, reason
    if not hasattr(module, "pools"):
        return None, f"phasefast._C was built from an older version; {_MEND}"
    for op in OPS:
        torch.library.register_fake(f"phasefast::{op}", _fake)
    library, built = _cuda_library(), module.build_info()["cuda"]
    for op in OPS:
        library.impl(op, _cuda.implementation(op, built), "CUDA")
    return module, None


@functools.cache
def _warn_of_products(taken: str) -> None:
    wanted = os.environ.get("PHASEFAST_PRODUCTS") or taken
    if wanted != taken:
        expected = "expected blas, avx2, avx512 or amx, if this processor and build have it"
        warn(f"PHASEFAST_PRODUCTS={wanted}: {expected}; {taken} is used")


@functools.cache
def _cuda_library() -> torch.library.Library:
    """Holds the registrations for CUDA tensors: they live as long as this object."""
    return torch.library.Library("phasefast", "IMPL")


def _fake(*_: object) -> None:
    """All four ops write into tensors that the caller gives, so a fake has nothing to make."""


def available() -> bool:
    """Whether the compiled ops are there and wanted."""
    return _load()[0] is not None


@functools.cache
def compiled(op: str) -> Callable[..., None] | None:
    """The compiled op of that name, or None where the reference has to do."""
    return getattr(torch.ops.phasefast, op).default if available() else None


def function(name: str) -> Callable[..., Any] | None:
    """A function of the extension that is no op, or None where Python has to do."""
    module, _ = _load()
    return None if module is None else getattr(module, name)


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether products of bfloat16 rows take less time than those of float32 ones there."""
    return device.type == "cuda" or (device.type == "cpu" and bool(build_info().get("bfloat16_is_fast")))


def halves_are_slow(device: torch.device) -> bool:
    """Whether it is a processor that is known to have no instructions for numbers of 16 bits."""
    return device.type == "cpu" and build_info().get("bfloat16_is_fast") is False


def float32_is_fast(device: torch.device) -> bool:
    """Whether ``gram`` takes much less time for float32 rows there than PyTorch's products."""
    return device.type == "cuda" and bool(build_info().get("cuda")) and _cuda.hopper(device)


def build_info() -> dict[str, Any]:
    """How the extension was built, or why there is none.

    Keys: ``compiled`` and ``problem``; with an extension also ``torch`` (built with), ``compiler``, ``cuda``,
    ``cuda_version``, ``archs``, ``flags``, ``abi_target``, ``bfloat16_is_fast``, and ``products``, how the CPU ops
    multiply: ``blas``, ``avx2``, ``avx512`` or ``amx``, the fastest of them or what ``PHASEFAST_PRODUCTS`` names.
    """
    module, reason = _load()
    info: dict[str, Any] = {"compiled": module is not None, "problem": reason}
    if module is not None:
        info.update(module.build_info())
        _warn_of_products(info["products"])
    return info
