"""What names on the command line stand for: models, functions and probe sets."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ..data.probe_set import ProbeSet
from ..data.target_types import Target
from ..errors import ArgumentError, PhasefastError
from ..experiments.models import torchvision_model
from ..named_targets import by_name, named_target

Made = TypeVar("Made")


def load_model(name: str) -> nn.Module:
    """The model that ``package.module:callable`` or a torchvision name stands for; ArgumentError if there is none.

    Both may be given arguments: ``resnet18(num_classes=10)``.
    """
    plain, given = _parted(name, "model")
    if ":" in plain:
        return _made(plain, given, "model", nn.Module)
    try:
        return torchvision_model(plain, "package.module:callable", **given)
    except PhasefastError:
        raise
    except Exception as error:  # of whatever kind networks have for them
        if not given:
            raise
        raise ArgumentError(f"model {name!r}: expected arguments that it takes; {error}") from error


def load_probe_set(name: str) -> ProbeSet:
    """The probe set in a file, or the one that ``package.module:callable`` makes; ArgumentError if there is none."""
    if Path(name).is_file():
        return ProbeSet.load(name)
    if ":" not in name:
        raise ArgumentError(f"probe set {name!r}: expected a file written by ProbeSet.save or package.module:callable")
    return _made(*_parted(name, "probe set"), "probe set", ProbeSet)


def load_targets(names: Sequence[str], probe_set: ProbeSet, each: bool = False) -> list[Target]:
    """The targets that names stand for: ``input``, ``label``, values of the probe set, or ``package.module:target``.

    The latter may be a list of them. Args: each: whether tokens are decoded one by one.
    """
    found: list[Target] = []
    for name in names:
        if ":" not in name or name in probe_set.fit_values:
            found.append(named_target(name, probe_set, each, "package.module:target"))
        elif "(" not in name and isinstance(several := _import(name, "target"), (list, tuple)):
            found += by_name(several, probe_set, each)
        else:
            found.append(_made(*_parted(name, "target"), "target", Target))  # type: ignore[type-abstract]
    return found


def load_function(name: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` stands for; ArgumentError if there is none."""
    found = _import(name, "function")
    if not callable(found):
        raise ArgumentError(f"function {name!r}: expected a callable, got {type(found).__name__}")
    return found


def _made(name: str, given: dict[str, Any], what: str, kind: type[Made]) -> Made:
    """What ``package.module:name`` is, or makes where it has to be called, such as with given arguments."""
    made = _import(name, what)
    asks = _misfit(made, given) if callable(made) else ""
    if kind is Target and inspect.isfunction(made) and asks and not given:
        raise ArgumentError(f"{what} {name!r}: expected a target, got a function; give pf.Function({made.__name__})")
    if callable(made) and (isinstance(made, type) or not isinstance(made, kind)):  # a class has what its instances have
        if asks:
            named = (
                "arguments that it takes" if given else f"a callable without required arguments, or {name}(name=value)"
            )
            raise ArgumentError(f"{what} {name!r}: expected {named}; {asks}")
        made = made(**given)
    elif given:
        raise ArgumentError(f"{what} {name!r}: expected something that takes arguments, got {type(made).__name__}")
    if not isinstance(made, kind):
        raise ArgumentError(f"{what} {name!r}: expected a {kind.__name__}, got {type(made).__name__}")
    return made


def _parted(name: str, what: str) -> tuple[str, dict[str, Any]]:
    """A name without, and the arguments after it, of plain values: ``package.module:callable(width=64)``."""
    plain, bracket, arguments = name.strip().partition("(")
    plain = plain.rstrip()
    of_file = re.search(r"\.[a-z]\w*$", name.strip(), re.IGNORECASE) or (":" not in plain and re.search(r"[/ ]", plain))
    if not bracket or of_file:
        return name, {}
    with contextlib.suppress(SyntaxError, ValueError):
        call = ast.parse(f"f({arguments}", mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            given = {own.arg: ast.literal_eval(own.value) for own in call.keywords if own.arg is not None}
            if len(given) == len(call.keywords):
                return plain, given
    raise ArgumentError(f"{what} {name!r}: expected plain values by name, such as {plain}(num_classes=10)")


def _misfit(function: Callable[..., Any], given: dict[str, Any]) -> str:
    """Why a function cannot be called with these arguments; empty if it can."""
    try:
        inspect.signature(function).bind(**given)
    except TypeError as error:
        return str(error)
    except ValueError:  # of a builtin without a signature
        return ""
    return ""


def _import(name: str, what: str) -> object:
    """The object that ``package.module:name`` stands for."""
    module_name, _, attribute = name.partition(":")
    # An installed command, unlike `python -m`, does not look for modules where it is called.
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        # Not where a module that it imports is missing.
        absent = isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]
        mend = f", looked for in {here} and on PYTHONPATH" if absent else ""
        raise ArgumentError(f"{what} {name!r}: expected package.module:callable; {error}{mend}") from error
