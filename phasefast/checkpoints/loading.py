"""State dicts loaded into a model, with errors that name the keys."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..common.notices import shown, warn
from ..errors import ArgumentError, CheckpointError
from .keys import OF_MODULES, versions_of, with_versions

_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")


def load_into(model: nn.Module, state: Mapping[str, Any], name: str, spare: Mapping[str, Tensor] | None = None) -> None:
    """Load a state dict whose keys and shapes must be the model's.

    The state dict's keys may all have one more prefix than the model's, as with ``torch.compile``, DDP or a Lightning
    module: keys without it are ignored. Or the model's keys may have one that the state dict's lack, if the model is
    around the stored module. A head in whose place the model has an ``Identity`` is left out with a warning. Of tensors
    that the model ties, one is enough.

    Args:
        spare: what is loaded where the state lacks it.

    Raises:
        CheckpointError: names the checkpoint and the keys that are missing, unexpected or of another shape, or the
            prefixes where several hold all that the model needs, such as its own weights and an average of them.
    """
    own, versions = model.state_dict(keep_vars=True), versions_of(state)
    spare = {key: value for key, value in (spare or {}).items() if key in own}
    state = _inside(_unpruned(_unwrapped(state, own), own), own, name, spare)
    prefix = _prefix(state, own, name, spare)
    # What a module keeps beside tensors, such as scales, is of no use to a model without such modules.
    state = {
        key: value for key, value in _without_prefix(state, prefix).items() if key in own or isinstance(value, Tensor)
    }
    left = _of_a_head(state, own, model)
    state = _whole({key: value for key, value in state.items() if key not in left}, own, spare)
    problems = [
        f"{what} {shown(keys)}"
        for what, keys in (
            ("lacks the keys", own.keys() - state.keys()),
            ("has the unexpected keys", state.keys() - own.keys()),
        )
        if keys
    ]
    problems += [*_wrong_shapes(state, own)[:5], *_wrong_kinds(state, own)[:5], *_untied(state, own)[:5]]
    if problems:
        under = f" under {prefix!r}" if prefix else ""
        lacking, more = own.keys() - state.keys(), state.keys() - own.keys()
        mend = "; load= (--load) can leave keys out" if more and not lacking else ""
        mend = "; load= (--load) can make a state dict that fits: docs/checkpoints.md" if more and lacking else mend
        of = next((type(part).__name__ for part in model.modules() if hasattr(part, "from_pretrained")), None)
        if of is not None and lacking and more:
            mend = (
                f"; if transformers renames keys, give load= a function that calls {of}.from_pretrained and refuses "
                "missing keys, whose weights that would make up: docs/checkpoints.md"
            )
        raise CheckpointError(f"{name} does not fit {type(model).__name__}: it{under} " + "; it ".join(problems) + mend)
    if left:
        warn(f"checkpoints: {shown(left)} are left out, since the model, like an encoder without a head, lacks them")
    versions = {_WRAPPERS.sub("", f"{path}.").rstrip("."): version for path, version in versions.items()}
    modules = {path: versions.get(f"{prefix}{path}".rstrip("."), now) for path, now in versions_of(own).items()}
    try:
        model.load_state_dict(with_versions(state, modules))
    except RuntimeError as error:  # such as tensors that are sparse or without values
        detail = " ".join(str(error).split())
        raise CheckpointError(f"{name}: cannot be loaded into {type(model).__name__} ({detail})") from error


def _unpruned(state: Mapping[str, Tensor], own: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """What ``torch.nn.utils.prune`` keeps in two tensors, as the one of a model that is not pruned itself."""
    ends = "_orig", "_mask"
    kept = {f".{key}" for key in own if key.endswith(ends[0])}
    exact = {f".{key}" for key in state} & kept  # else one of both has a prefix

    def is_own(key: str) -> bool:
        return any(own.endswith(key) or key.endswith(own) for own in kept) if not exact else key in exact

    pruned = [key.removesuffix(ends[0]) for key in state if key.endswith(ends[0]) and not is_own(f".{key}")]
    pruned = [key for key in pruned if key + ends[1] in state and key not in state]
    parts = {key + end for key in pruned for end in ends}
    made = {key: torch.mul(*(state[key + end] for end in ends)) for key in pruned}
    return {**{key: value for key, value in state.items() if key not in parts}, **made} if pruned else state


def check_copies(model: nn.Module, checkpoints: Mapping[int, object]) -> None:
    """Refuse state dicts that change when others are loaded; warn of those that are the same tensors.

    Raises:
        ArgumentError: one of several holds tensors of the model itself, as ``model.state_dict()`` does.
    """
    own = _memory([*model.parameters(), *model.buffers()])
    held = {step: memory for step, given in checkpoints.items() if (memory := _memory(_tensors(given)))}
    if len(checkpoints) < 2 or not held:
        return
    mend = "keep the weights of each step by copy.deepcopy(model.state_dict())"
    common = frozenset.intersection(*held.values())  # such as a frozen backbone: loading it changes nothing
    same = len(set(held.values())) == 1
    if shared := [step for step, memory in held.items() if (memory & own) - (frozenset() if same else common)]:
        raise ArgumentError(f"checkpoints: step {shared[0]} holds the model's own tensors, not copies; {mend}")
    alike = [step for step, count in zip(held, map(list(held.values()).count, held.values()), strict=True) if count > 1]
    if alike:
        warn(f"checkpoints: steps {shown(map(str, alike))} are the same tensors, so the same weights; {mend}")


def _tensors(given: object) -> Iterator[Tensor]:
    """Those in a state dict, and in mappings in it."""
    for value in given.values() if isinstance(given, Mapping) else ():
        yield from [value] if isinstance(value, Tensor) else _tensors(value)


def _memory(tensors: Iterable[Tensor]) -> frozenset[int]:
    """Where dense tensors lie that are whole."""
    known = (each for each in tensors if not is_lazy(each))
    whole = (each for each in known if each.layout == torch.strided and not hasattr(each, "to_local"))
    return frozenset(each.data_ptr() for each in whole if each.numel()) - {0}  # of tensors without memory


def _prefix(state: Mapping[str, Tensor], own: Mapping[str, Any], name: str, spare: Mapping[str, Tensor]) -> str:
    """Empty where the keys are the model's; else the one under which they all are; else the one with most of them."""
    if _whole(state, own, spare).keys() == own.keys():
        return ""
    counts = Counter(key[:start] for key in state for start in _starts(key) if key[start:] in own)
    enough = len({id(value) for key, value in own.items() if key not in spare})  # tied ones may be there once
    candidates = (prefix for prefix, count in counts.items() if count >= enough)
    fitting = [prefix for prefix in candidates if _fits(_whole(_without_prefix(state, prefix), own, spare), own)]
    if len(fitting) > 1:
        raise CheckpointError(
            f"{name}: expected the model's keys under one prefix, got them under each of {shown(fitting)}; give one of "
            "these as key= (--key)" + (", or load= for those without a prefix" if "" in fitting else "")
        )
    return fitting[0] if fitting else max(counts, key=lambda prefix: counts[prefix], default="")


def _inside(
    state: Mapping[str, Tensor], own: Mapping[str, Any], name: str, spare: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Under the prefix that all of the model's keys have, where those of the state are the model's without it."""
    keys = sorted(own)  # what the first and the last begin with, all do
    commons = (
        [keys[0][:place] for place in _starts(keys[0])[1:] if keys[-1].startswith(keys[0][:place])] if keys else []
    )
    plain = _without_prefix(state, _prefix(state, own, name, spare)) if commons else {}
    if not commons or _fits(_whole(plain, own, spare), own):
        return state
    most, found = len(plain.keys() & own.keys()), state
    for common in commons:
        inner, extra = (_without_prefix(each, common) for each in (own, spare))
        under = _whole(_without_prefix(state, _prefix(state, inner, name, extra)), inner, extra)
        if under.keys() == inner.keys():
            return {common + key: value for key, value in under.items()}
        if (count := len(under.keys() & inner.keys())) > most:  # what does not fit is told of these
            most, found = count, {common + key: value for key, value in under.items()}
    return found


def _unwrapped(state: Mapping[str, Tensor], own: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Without the names that compiled, checkpointed and sharded modules add amid keys, unless the model has some."""
    plain = {_WRAPPERS.sub("", key): value for key, value in state.items()}
    kept = len(plain) < len(state) or any(_WRAPPERS.search(key) for key in own)
    return state if kept else plain


def _untied(state: Mapping[str, Tensor], own: Mapping[str, Any]) -> list[str]:
    """What the model ties and the state has apart."""
    first: dict[int, str] = {}
    pairs = [(first.setdefault(id(value), key), key) for key, value in _tensors_of_both(state, own)]
    return [
        f"has other values in {one} than in {key}, although the model ties them"
        for one, key in pairs
        if one != key and not torch.equal(*(state[each].to_dense().nan_to_num() for each in (one, key)))
    ]


def _starts(key: str) -> tuple[int, ...]:
    return (0, *(place + 1 for place, letter in enumerate(key) if letter == "."))


def _without_prefix(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _of_a_head(state: Mapping[str, Tensor], own: Mapping[str, Any], model: nn.Module) -> set[str]:
    """Keys of a head in whose place the model has a module that does nothing.

    A head is what is defined after all modules that have tensors: amid these others, such as normalisations, matter.
    """
    if state.keys() <= own.keys():
        return set()
    # Wrappers are in the names of modules, and in some keys.
    modules = [(_WRAPPERS.sub("", f"{name}."), each) for name, each in model.named_modules(remove_duplicate=False)]
    parents = {_WRAPPERS.sub("", f"{key.rpartition('.')[0]}.") for key in own}
    last = max((place for place, (name, _) in enumerate(modules) if name in parents), default=len(modules))
    idle = tuple(
        name
        for name, module in modules[last + 1 :]
        if isinstance(module, nn.Identity) or (isinstance(module, nn.Sequential) and not len(module))
    )
    return {key for key in state if key not in own and _WRAPPERS.sub("", key).startswith(idle)}


def _fits(state: Mapping[str, Tensor], own: Mapping[str, Any]) -> bool:
    return own.keys() <= state.keys() and not _wrong_shapes(state, own)


def _wrong_shapes(state: Mapping[str, Tensor], own: Mapping[str, Any]) -> list[str]:
    return [
        f"has {key} of shape {tuple(state[key].shape)}, while the model's is {tuple(value.shape)}"
        for key, value in _tensors_of_both(state, own)
        if state[key].shape != value.shape
    ]


def _wrong_kinds(state: Mapping[str, Tensor], own: Mapping[str, Any]) -> list[str]:
    """Integers, such as of quantised weights, are no numbers of a model without their scale."""
    return [
        f"has {key} of type {state[key].dtype}, while the model's is {value.dtype}"
        for key, value in _tensors_of_both(state, own)
        if value.is_floating_point() and not state[key].is_floating_point()
    ]


def _tensors_of_both(state: Mapping[str, Any], own: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """Those of the model that the state has too, but for what modules check themselves, which may be of any kind."""
    known = ((key, value) for key, value in own.items() if key in state and isinstance(value, Tensor))
    return [(key, value) for key, value in known if not OF_MODULES.fullmatch(key)]


def _whole(state: Mapping[str, Tensor], own: Mapping[str, Any], spare: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state, and where it lacks them what the model ties to others, then what is spare."""
    return _with_ties({**spare, **_with_ties(state, own)}, own)


def _with_ties(state: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state with the values of absent keys whose tensors are, in the model, those of keys that are there."""
    there = {id(own[key]): value for key, value in state.items() if isinstance(own.get(key), Tensor)}
    return {**{key: there[id(value)] for key, value in own.items() if id(value) in there}, **state}
