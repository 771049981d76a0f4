"""Which modules are probed: names of ``named_modules()``, by glob, in the order of the model."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss
from torch.nn.parameter import is_lazy

from ..common.globs import chosen, idle
from ..errors import ArgumentError, LayerError
from ..results.scores import MODEL_LAYER

Layers = Sequence[str | nn.Module] | str | nn.Module
_STACK = 0.25  # of a model's parameters, beside its embeddings, that its blocks have at least
_MOST = 0.9  # of a model's parameters, but of embeddings, that the network has which it holds beside other things
_SAME = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)  # give the numbers that they are given


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
    """Refuse models whose modules run no hooks, or have no weights yet.

    Raises:
        ArgumentError: TorchScript, lazy modules that were never called, or the meta device; it names the module.
    """
    for name, module in model.named_modules():
        what = f"its module {name!r}" if name else "it"
        if isinstance(module, torch.jit.ScriptModule):
            raise ArgumentError(
                f"model: {what} is TorchScript, which runs no hooks; give the module that it was made of"
            )
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if any(tensor.is_meta for tensor in tensors):
            raise ArgumentError(
                f"model: {what} is on the meta device, without memory; give model.to_empty(device='cpu')"
            )
        if any(map(is_lazy, tensors)):
            raise ArgumentError(
                f"model: {what} is lazy, and has no weights before its first batch; call the model once before"
            )


def select_layers(model: nn.Module, patterns: Layers | None = None) -> list[str]:
    """Names of the modules to probe, in the order of ``named_modules()``: usually that of depth.

    Args:
        patterns: fnmatch globs over ``named_modules()``, or modules themselves; by default the model's direct children
            but losses, with the members of a ModuleList, a ModuleDict, an only child (but of PyTorch's own) or the only
            child with a list of blocks in it, such as a transformer's or a MobileNet's, in its place. So are those of
            one Sequential of plain layers or two, such as a VGG's, or an encoder and a decoder; of a Sequential in a
            model what comes last before the next weights. What matches a glob that begins with ``!`` is left
            out of what the others match, or of the default. ``"model"`` is the name of the model's own metrics: its
            parts stand in for a module of that name.

    Raises:
        LayerError: a pattern matches nothing, or nothing is left; the message lists near misses.
    """
    default = _default_names(unwrap(model))
    if patterns is None:
        if not default:
            raise LayerError(f"{type(model).__name__} has no submodules to probe; wrap it: torch.nn.Sequential(model)")
        return default
    patterns = _as_names(unwrap(model), patterns)
    if not patterns:
        raise LayerError("layers: expected at least one pattern, got none")
    if MODEL_LAYER in patterns:
        raise LayerError(f"layer {MODEL_LAYER!r}: the name of the model's own metrics; probe its parts: 'model.*'")
    available = [name for name, _ in unwrap(model).named_modules() if name not in ("", MODEL_LAYER)]
    if (pattern := idle(available, patterns)) is not None:
        near = difflib.get_close_matches(pattern.lstrip("!"), available, n=5, cutoff=0.5)
        named = f"closest: {near}" if near else f"the first of them: {available[:20]}"
        raise LayerError(f"no layer matches {pattern!r} among {len(available)} module names; {named}")
    names = chosen(available, patterns, default)
    if not names:
        raise LayerError(f"layers: {list(patterns)} leave no layer of {len(available)}")
    return names


def given_names(model: nn.Module, patterns: Layers | None) -> set[str]:
    """The names that are asked for as such, if they are any; what only a glob matches may turn out not to be used."""
    return set() if patterns is None else set(_as_names(unwrap(model), patterns))


def _as_names(model: nn.Module, given: Layers) -> list[str]:
    """Patterns as they are, modules by their names."""
    names = {id(module): name for name, module in model.named_modules() if name}
    several = [given] if isinstance(given, (str, nn.Module)) else list(given)
    for each in several:
        if not isinstance(each, str) and id(each) not in names:
            what = "is not in the model" if isinstance(each, nn.Module) else "is none of these"
            raise LayerError(f"layers: expected names, globs or modules of the model, {type(each).__name__} {what}")
    return [each if isinstance(each, str) else names[id(each)] for each in several]


def _is_whole(module: nn.Module) -> bool:
    """Whether a module of PyTorch may not call its parts, such as attention's, or those of a parametrized one."""
    lists = (nn.ModuleList, nn.ModuleDict)
    holds = isinstance(module, (nn.Sequential, *lists)) or any(isinstance(part, lists) for part in module.children())
    own = type(module).__module__.startswith("torch.nn.") and not holds
    return own or nn.utils.parametrize.is_parametrized(module)


def _stacks(module: nn.Module, of: type[nn.Module]) -> Iterator[nn.Module]:
    """The lists of blocks of that class in it; none in PyTorch's own modules, nor in the blocks of another list."""
    if _kinds(module):
        if isinstance(module, of):
            yield module
    elif isinstance(module, nn.Sequential) or not (
        isinstance(module, nn.ModuleList) or type(module).__module__.startswith("torch.nn.")
    ):
        for part in module.children():
            yield from _stacks(part, of)


def _kinds(module: nn.Module) -> set[type[nn.Module]]:
    """Of a list's blocks: most members, of one kind or of two that both occur again, as branches do not; or none."""
    if not isinstance(module, (nn.ModuleList, nn.Sequential)):
        return set()
    kinds = Counter(type(unwrap(part)) for part in module if any(True for _ in part.children()))
    again = {kind: count for kind, count in kinds.items() if count > 1}
    return set(again) if 2 * sum(again.values()) > len(module) and len(again) <= 2 else set()


def _only_stack(children: Sequence[nn.Module], least: float) -> nn.Module | None:
    """The only child with blocks of so many parameters in it; not a stage of several, as ResNets have in Sequentials.

    Where one has them in ModuleLists and another one in Sequentials, as heads may, that of more parameters counts.
    """
    found = [(of, child, list(_stacks(child, of))) for child in children for of in (nn.ModuleList, nn.Sequential)]
    large = [own for own in found if any(_parameters(stack) >= least for stack in own[2])]
    if not large:
        return None
    of, child, stacks = max(large, key=lambda own: sum(map(_parameters, own[2])))
    if any(own[0] is of and own[1] is not child for own in large):
        return None
    if of is nn.Sequential:
        kinds = tuple(set().union(*map(_kinds, stacks)) - {nn.Sequential})
        others = (part for other in children if other is not child for part in other.modules())
        if any(isinstance(part, kinds) or _kinds(part) for part in others):
            return None
    return child


def _least_stack(model: nn.Module) -> float:
    """How many parameters a model's blocks have at least."""
    embeddings = [own.weight for own in model.modules() if isinstance(own, nn.Embedding)]
    words, known = max(map(len, embeddings), default=0), set(map(id, embeddings))
    others = (own for own in model.parameters() if id(own) not in known)
    return _STACK * sum(_size(own) for own in others if is_lazy(own) or own.shape[:1].numel() != words)  # as of logits


def _nearly_all(children: Sequence[nn.Module]) -> nn.Module | None:
    """The network that is a model but for what is beside it, such as a normalisation, a head or a loss with weights.

    One of the user's own with most parameters, but of embeddings, and more than one module that has any.
    """
    embeddings = {id(own.weight) for child in children for own in child.modules() if isinstance(own, nn.Embedding)}
    sizes = [sum(_size(own) for own in child.parameters() if id(own) not in embeddings) for child in children]
    for child, size in zip(children, sizes, strict=True):
        several = sum(map(_has_weights, child.children())) > 1
        own = not isinstance(child, nn.Sequential) and not type(child).__module__.startswith("torch.nn.")
        if own and several and size >= _MOST * sum(sizes) > 0:
            return child
    return None


def _size(tensor: Tensor) -> int:
    return 0 if is_lazy(tensor) else tensor.numel()


def _parameters(module: nn.Module) -> int:
    return sum(map(_size, module.parameters()))


def _flat(children: Sequence[nn.Module]) -> list[nn.Module]:
    """The Sequentials of layers that are written one by one, and of blocks between them; more than two are blocks."""

    def is_flat(child: nn.Module) -> bool:
        if type(child).forward is not nn.Sequential.forward:
            return False
        weighted = [part for part in child.children() if _has_weights(part)]
        return len(weighted) > 1 and any(not any(True for _ in part.children()) for part in weighted)

    found = [child for child in children if is_flat(child)]
    return found if len(found) <= 2 else []


def _has_weights(module: nn.Module) -> bool:
    """Whether it has other parameters than scales and shifts, as norms have."""
    return any(is_lazy(own) or own.dim() > 1 for own in module.parameters())


def _ends(members: Sequence[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """Of a Sequential's members each with weights, or what comes last before the next, such as an activation."""
    ends: list[tuple[str, nn.Module]] = []
    for name, member in members:
        if _has_weights(member):
            ends.append((name, member))
        elif ends and not isinstance(member, _SAME):
            ends[-1] = (name, member)
    return ends


def _is_beside(module: nn.Module) -> bool:
    """Whether it is no layer, but says how well the model does."""
    return isinstance(module, _Loss) or type(module).__module__.startswith("torchmetrics.")


def _default_names(model: nn.Module, prefix: str = "", alone: bool = True, least: float | None = None) -> list[str]:
    """Args: alone: whether the module is the whole model, but for what wraps it. least: as for ``_only_stack``."""
    names: list[str] = []
    children, lists = list(model.named_children()), (nn.ModuleList, nn.ModuleDict)
    if alone:
        children = [each for each in children if not _is_beside(each[1])] or children
    elif isinstance(model, nn.Sequential):
        children = _ends(children)
    least = _least_stack(model) if least is None else least
    parts = [] if isinstance(model, lists) else [child for _, child in children]
    only, flat = _only_stack(parts, least), [] if isinstance(model, nn.Sequential) and not alone else _flat(parts)
    net = _nearly_all(parts) if alone and only is None and len(parts) > 1 else None
    for name, child in children:
        member = isinstance(model, nn.Sequential) and type(child).forward is not nn.Module.forward  # is called itself
        listed = isinstance(child, lists) and not member
        inside = listed or child is only or f"{prefix}{name}" == MODEL_LAYER
        wrapped = alone and len(children) == 1 and any(True for _ in child.children()) and not _is_whole(child)
        wrapped = wrapped or child is net
        if inside or wrapped:
            names += _default_names(child, f"{prefix}{name}.", wrapped, least)
        elif any(child is own for own in flat):
            names += [f"{prefix}{name}.{end}" for end, _ in _ends([*child.named_children()])]
        else:
            names.append(f"{prefix}{name}")
    return names
