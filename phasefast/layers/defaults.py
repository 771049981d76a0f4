"""Which modules are probed if none are asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.loss import _Loss
from torch.nn.parameter import is_lazy

from ..results.scores import MODEL_LAYER
from .models import unwrap

_LISTS = (nn.ModuleList, nn.ModuleDict)
_NORMS = {f"torch.nn.modules.{name}" for name in ("batchnorm", "instancenorm", "normalization")}
_ARRANGING = {
    f"torch.nn.modules.{name}"
    for name in ("channelshuffle", "dropout", "flatten", "fold", "padding", "pixelshuffle", "upsampling")
}
_OF_ALL = (nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd)  # pool whole maps
# In names of the user's classes: those that arrange numbers anew, and, without parameters, that pass them on, or a few.
_SHAPING = re.compile("flat|view|shape|permut|transpos|squeeze|arrange|lambda", re.IGNORECASE)
_PASSING = re.compile("drop|identity|global|adaptive|mean$|meanpool|gap$", re.IGNORECASE)
_EXPERTS = re.compile("experts?", re.IGNORECASE)  # name of a list of modules that get some of the samples each
_STACK = 0.25  # of a model's parameters, beside its embeddings, that its blocks have at least
_MOST = 0.9  # of a model's parameters that its network, or the part with its blocks, has beside other things


class _Model(NamedTuple):
    """What its parts need to know.

    least: how many parameters blocks have. shared: modules that are there twice. counts: of layers, once each is known.
    experts: lists of experts are like others. beside: dropouts and losses are layers where there is nothing else.
    """

    least: float
    shared: frozenset[int]
    counts: dict[int, int]
    experts: bool = False
    beside: bool = False

    def layers(self, module: nn.Module) -> int:
        """How many modules with weights it has, which are its layers; one of PyTorch's own is one."""
        if (known := self.counts.get(id(module))) is not None:
            return known
        if _is_whole(module):
            count = int(_has_weights(module))
        else:
            count = int(_has_own_weights(module)) + sum(map(self.layers, module.children()))
        return self.counts.setdefault(id(module), count)


def is_beside(module: nn.Module, model: nn.Module, called: bool) -> bool:
    """Whether it is no layer but beside them, of which nothing need be said where it has no rows.

    That is what has no weights, and a table, such as of positions; one that is not ``called`` if another module has it.
    """
    if not isinstance(module, nn.Embedding):
        return not _has_weights(module)
    owners = sum(own is module.weight for part in model.modules() for own in part._parameters.values())
    return called or owners > 1


def default_names(model: nn.Module) -> list[str]:
    """Names of the layers that ``select_layers`` takes by default, as described there; there may be none."""
    count = Counter(id(part) for module in model.modules() for part in module._modules.values() if part is not None)
    whole = _Model(_least_stack(model), frozenset(own for own, times in count.items() if times > 1), {})
    wider = whole, whole._replace(experts=True), whole._replace(beside=True)
    names = next((found for each in wider if (found := _names(model, "", True, each))), [])
    chosen = {id(model.get_submodule(name)) for name in names}
    return [name for name, module in model.named_modules() if id(module) in chosen]  # the name that counts


def _names(model: nn.Module, prefix: str, alone: bool, of: _Model) -> list[str]:
    """Args: alone: whether the module is the whole model, but for what wraps it."""
    children = _candidates(model, alone, of)
    named = [] if isinstance(model, _LISTS) else children
    bodies = _bodies(named, of.least, isinstance(model, nn.Sequential))
    parts = [child for _, child in named]
    network = _network(children, [] if bodies else parts, of) if alone else None
    flat = _flat(parts, of) if alone or not isinstance(model, nn.Sequential) else []
    names: list[str] = []
    for name, child in children:
        whole = f"{prefix}{name}"
        if _are_experts(name, child) and not of.experts:
            continue
        # A list that a Sequential calls has a forward of its own.
        called = isinstance(model, nn.Sequential) and type(child).forward is not nn.Module.forward
        opened = child is network or any(child is body for body in bodies) or whole == MODEL_LAYER
        if opened or (isinstance(child, _LISTS) and not called):
            names += _names(child, f"{whole}.", child is network, of)
        elif any(child is own for own in flat):
            names += [f"{whole}.{end}" for end, _ in _ends(child, of)]
        else:
            names.append(whole)
    return names


def _candidates(model: nn.Module, alone: bool, of: _Model) -> list[tuple[str, nn.Module]]:
    """The children that may be layers: of a Sequential within a model the ends, else all but losses and dropouts."""
    children = list(model.named_children())
    if isinstance(model, nn.Sequential) and not alone:
        return _ends(model, of)
    return [each for each in children if not _is_beside(each[1])] or (children if of.beside else [])


def _network(children: Sequence[tuple[str, nn.Module]], parts: Sequence[nn.Module], of: _Model) -> nn.Module | None:
    """What is the model but for what wraps it: an only child with parts that it calls, or nearly all of ``parts``."""
    if len(children) > 1:
        return _nearly_all(parts, of)
    return next((child for _, child in children if any(True for _ in child.children()) and not _is_whole(child)), None)


def _are_experts(name: str, module: nn.Module) -> bool:
    """Whether a child is a list of experts, each of which gets some of the samples: the module around them has all."""
    return isinstance(module, _LISTS) and _EXPERTS.fullmatch(name) is not None


def _is_whole(module: nn.Module) -> bool:
    """Whether a module of PyTorch may not call its parts, such as attention's, or those of a parametrized one."""
    holds = isinstance(module, (nn.Sequential, nn.Transformer, *_LISTS))
    holds = holds or any(isinstance(part, _LISTS) for part in module.children())
    return (_is_torch(module) and not holds) or nn.utils.parametrize.is_parametrized(module)


def _stacks(module: nn.Module, of: type[nn.Module]) -> Iterator[nn.Module]:
    """The lists of blocks of that class in it; none in the blocks of another list."""
    if _kinds(module):
        if isinstance(module, of):
            yield module
    elif isinstance(module, nn.Sequential) or not (isinstance(module, nn.ModuleList) or _is_whole(module)):
        for name, part in module.named_children():
            if not _are_experts(name, part):
                yield from _stacks(part, of)


def _kinds(module: nn.Module) -> set[type[nn.Module]]:
    """Of a list's blocks: most members, of one kind or of two that both occur again, as branches do not; or none."""
    if not isinstance(module, (nn.ModuleList, nn.Sequential)):
        return set()
    parts = [part for part in module if part is not None]
    kinds = Counter(type(unwrap(part)) for part in parts if any(True for _ in part.children()))
    again = {kind: count for kind, count in kinds.items() if count > 1}
    return set(again) if 2 * sum(again.values()) > len(parts) and len(again) <= 2 else set()


def _bodies(children: Sequence[tuple[str, nn.Module]], least: float, in_a_row: bool) -> list[nn.Module]:
    """The only child with blocks of so many parameters in it, or several, such as an encoder and a decoder.

    No stages, as ResNets have. Where one has blocks in ModuleLists and another one in Sequentials, as heads may, that
    of more parameters counts. Others are no stages either that have blocks of another kind and hardly any parameters
    beside it, such as a stem.

    Args:
        in_a_row: whether they are the members of a Sequential, of which those of one class are alike.
    """
    found = [(of, child, list(_stacks(child, of))) for _, child in children for of in (nn.ModuleList, nn.Sequential)]
    large = [own for own in found if any(_parameters(stack) >= least for stack in own[2])]
    if not large:
        return []
    of, child, stacks = max(large, key=lambda own: sum(map(_parameters, own[2])))
    if any(own[0] is of and own[1] is not child for own in large):
        several = [(name, other) for name, other in children if any(own[0] is of and own[1] is other for own in large)]
        return [other for _, other in several] if not in_a_row and of is nn.ModuleList and _differ(several) else []
    others = [other for _, other in children if other is not child]
    if in_a_row and any(type(unwrap(other)) is type(unwrap(child)) and _holds_lists(other) for other in others):
        return []
    if of is nn.Sequential:
        kinds = tuple(set().union(*map(_kinds, stacks)) - {nn.Sequential})
        if any(isinstance(part, kinds) for other in others for part in other.modules()):
            return []
        like = [child, *(other for other in others if any(map(_kinds, other.modules())))]
        return [child] if _parameters(child) >= _MOST * sum(map(_parameters, like)) else []
    return [child]


def _differ(children: Sequence[tuple[str, nn.Module]]) -> bool:
    """Whether children have names of their own, as stages, which are numbered or in a list, have not."""
    names = {re.sub(r"\d+", "", name) for name, _ in children}
    return len(names) == len(children) and not any(isinstance(child, _LISTS) for _, child in children)


def _holds_lists(module: nn.Module) -> bool:
    return any(isinstance(part, (nn.Sequential, *_LISTS)) for part in module.modules() if part is not module)


def _least_stack(model: nn.Module) -> float:
    """How many parameters a model's blocks have at least."""
    embeddings = _embeddings([model])
    words = max(map(len, embeddings), default=0)
    logits = (own for own in model.parameters() if not is_lazy(own) and own.shape[:1].numel() == words)
    return _STACK * _parameters(model, {*map(id, embeddings), *map(id, logits)})


def _nearly_all(children: Sequence[nn.Module], of: _Model) -> nn.Module | None:
    """The network that is a model but for what is beside it, such as a normalisation, a head or a loss with weights.

    One of the user's own with most parameters, but of embeddings, and more than one module that has any, after nothing
    but layers and plain sequences of them: else it may be a head, or a stage, which there are several of.
    """
    embeddings = {*map(id, _embeddings(children))}
    sizes = [_parameters(child, embeddings) for child in children]
    for child, size in zip(children, sizes, strict=True):
        inner = getattr(child, "_orig_mod", child)  # of torch.compile
        own = not isinstance(inner, nn.Sequential) and not _is_torch(inner)
        own = own and not any(_are_experts(*each) for each in inner.named_children())
        if own and size >= _MOST * sum(sizes) > 0 and sum(map(_has_weights, inner.children())) > 1:
            before = _several(children[: children.index(child)], of)
            alike = sum(type(other) is type(child) for other in _several(children, of)) > 1
            return child if all(_is_plain(each, of) for each in before) and not alike else None
    return None


def _embeddings(modules: Iterable[nn.Module]) -> list[Tensor]:
    return [part.weight for module in modules for part in module.modules() if isinstance(part, nn.Embedding)]


def _size(tensor: Tensor) -> int:
    return 0 if is_lazy(tensor) else tensor.numel()


def _parameters(module: nn.Module, but: Collection[int] = ()) -> int:
    """How many numbers its parameters hold. Args: but: the ``id`` of those that do not count."""
    return sum(_size(own) for own in module.parameters() if id(own) not in but)


def _flat(children: Sequence[nn.Module], of: _Model) -> list[nn.Module]:
    """The Sequentials of layers that are written one by one, with half of the layers that are not children themselves.

    Where more than two children hold several layers they are blocks. Of one alone that does, members may be blocks.
    """
    several = _several(children, of)
    only = len(several) == 1 and type(several[0]).forward is nn.Sequential.forward
    found = [child for child in several if only or _is_plain(child, of)] if len(several) <= 2 else []
    inside = (child for child in _singly(children) if any(True for _ in child.children()))
    return found if 2 * sum(map(of.layers, found)) >= sum(map(of.layers, inside)) else []


def _several(modules: Iterable[nn.Module], of: _Model) -> list[nn.Module]:
    """Those with more than one layer, of lists each member."""
    return [each for each in _singly(modules) if of.layers(each) > 1]


def _singly(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    return (each for own in modules for each in (own.children() if isinstance(own, _LISTS) else [own]))


def _is_plain(module: nn.Module, of: _Model) -> bool:
    """Whether it is a Sequential most of whose members have one layer."""
    layers = [*map(of.layers, module.children())] if type(module).forward is nn.Sequential.forward else []
    return 2 * layers.count(1) > sum(own > 0 for own in layers)


def _has_weights(module: nn.Module) -> bool:
    """Whether it has other parameters than scales and shifts, as norms have."""
    return any(map(_has_own_weights, module.modules()))


def _has_own_weights(module: nn.Module) -> bool:
    """``_has_weights`` of a module without its parts. One of the user's may have scales of shape [1, f, 1, 1]."""

    def is_scale(own: Tensor) -> bool:
        return own.dim() < 2 or (own.dim() > 2 and not _is_torch(module) and sum(side > 1 for side in own.shape) < 2)

    own = module.parameters(recurse=False)
    return not _is_of(module, _NORMS) and any(is_lazy(each) or not is_scale(each) for each in own)


def _is_of(module: nn.Module, places: Collection[str]) -> bool:
    """Whether it is of a class of these modules of PyTorch, or of one made of such."""
    return any(base.__module__ in places for base in type(module).__mro__)


def _ends(sequence: nn.Module, of: _Model) -> list[tuple[str, nn.Module]]:
    """Of a Sequential's members each with weights; of one layer what comes last before the next, as an activation.

    Not what pools whole maps, nor what the model uses elsewhere too.
    """
    ends: list[tuple[str, nn.Module]] = []
    alone = False
    for name, member in sequence._modules.items():  # one that is there twice too
        if member is None:
            continue
        if layers := of.layers(member):
            ends.append((name, member))
            alone = layers == 1
        elif alone and id(member) not in of.shared and _finishes(member):
            ends[-1] = (name, member)
    return ends


def _finishes(module: nn.Module) -> bool:
    """Whether it belongs to the layer before it, such as an activation, a norm or a pooling.

    Not what gives the same numbers in another order or shape, nor what pools whole maps, as far as classes tell.
    """
    parts = [part for part in module.modules() if not any(True for _ in part.children())]
    same = [isinstance(part, nn.Identity) or _is_of(part, _ARRANGING) for part in parts]
    own = {
        type(part).__name__: any(True for _ in part.parameters()) for part in (module, *parts) if not _is_torch(part)
    }
    named = any(_SHAPING.search(name) or (_PASSING.search(name) and not scaled) for name, scaled in own.items())
    return not all(same) and not named and not any(isinstance(part, _OF_ALL) for part in parts)


def _is_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _is_beside(module: nn.Module) -> bool:
    """Whether it is no layer, but says how well the model does, or in evaluation gives what it gets."""
    says = isinstance(module, _Loss) or type(module).__module__.startswith("torchmetrics.")
    return says or _is_of(module, ("torch.nn.modules.dropout",))
