"""Which modules are probed: names of ``named_modules()``, by glob, in the order of the model."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import nn

from ..common.globs import chosen, idle
from ..errors import LayerError
from ..results.scores import MODEL_LAYER
from .defaults import default_names
from .models import unwrap

Layers = Sequence[str | nn.Module] | str | nn.Module


def select_layers(model: nn.Module, patterns: Layers | None = None) -> list[str]:
    """Names of the modules to probe, in the order of ``named_modules()``: usually that of depth.

    Args:
        patterns: fnmatch globs over ``named_modules()``, or modules themselves; by default the model's direct children,
            except losses, dropouts and lists called ``experts``. Some of these are replaced: another ModuleList or
            ModuleDict by its members; an only child (unless it is PyTorch's own), the only child with a list of blocks
            in it, as in a transformer or a MobileNet, or several, such as an encoder and a decoder, and a network with
            nine tenths of the parameters that follows only layers and plain sequences of them, by their children; one
            or two Sequentials with half of the layers that are no children, as in a VGG, or in an autoencoder, by each
            layer with what follows it, such as its activation. What matches a glob that begins with ``!`` is left out
            of what the others match, or of the default. ``"model"`` is the name of the model's own metrics: of a module
            with that name, the parts are probed instead.

    Raises:
        LayerError: a pattern matches nothing, or nothing is left; the message lists near misses.
    """
    model = unwrap(model)
    if patterns is None:
        if not (default := default_names(model)):
            raise LayerError(f"{type(model).__name__} has no submodules to probe; wrap it: torch.nn.Sequential(model)")
        return default
    patterns = _as_names(model, patterns)
    if not patterns:
        raise LayerError("layers: expected at least one pattern, got none")
    if MODEL_LAYER in patterns:
        raise LayerError(
            f"layer {MODEL_LAYER!r}: this name stands for the model's own metrics; probe the parts: 'model.*'"
        )
    available = [name for name, _ in model.named_modules() if name not in ("", MODEL_LAYER)]
    if (pattern := idle(available, patterns)) is not None:
        if (module := pattern.lstrip("!").rpartition(":")[0]) in available:
            raise LayerError(
                f"layers: {pattern!r} is one call of {module!r}; all calls of a module are probed, or none: to probe "
                "that one, pass its output through an nn.Identity() of its own"
            )
        if (first := _first_names(model).get(pattern.lstrip("!"))) is not None:
            raise LayerError(f"layers: {pattern!r} is the same module as {first!r}: give it by that name")
        near = difflib.get_close_matches(pattern.lstrip("!"), available, n=5, cutoff=0.5)
        named = f"closest: {near}" if near else f"the first: {available[:20]}"
        raise LayerError(f"no layer matches {pattern!r} among {len(available)} module names; {named}")
    names = chosen(available, patterns, lambda: default_names(model))
    if not names:
        raise LayerError(f"layers: {list(patterns)} leave none of {len(available)} modules to probe")
    return names


def given_names(model: nn.Module, patterns: Layers | None) -> set[str]:
    """The modules that are asked for as such: one that only a glob matches may turn out not to be used."""
    there = {name for name, _ in unwrap(model).named_modules()}
    return set() if patterns is None else there.intersection(_as_names(unwrap(model), patterns))


def _first_names(model: nn.Module) -> dict[str, str]:
    """Under which name a module that has several is probed, by all of its names."""
    first = {id(module): name for name, module in model.named_modules()}
    return {name: first[id(module)] for name, module in model.named_modules(remove_duplicate=False)}


def _as_names(model: nn.Module, given: Layers) -> list[str]:
    """Patterns as they are, modules by their names."""
    names = {id(module): name for name, module in model.named_modules() if name}
    several = [given] if isinstance(given, (str, nn.Module)) else list(given)
    for each in several:
        if not isinstance(each, str) and id(each) not in names:
            what = ", which is not in it" if isinstance(each, nn.Module) else ""
            raise LayerError(f"layers: expected names, globs or modules of the model, got {type(each).__name__}{what}")
    return [each if isinstance(each, str) else names[id(each)] for each in several]
