"""Under which key a checkpoint keeps the weights."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ..common.notices import shown, warn
from ..errors import CheckpointError
from .inert import Inert
from .messages import IF_TRUSTED
from .sources import BESIDE, NESTED

OF_MODULES = re.compile(r"(?:.*\.)?(?:_extra_state|_packed_params(?:\.\w+)?)")  # which may be no tensors in state dicts
_DEPTH = 8  # of a mapping under such keys, which may hold itself
_BESIDE = re.compile(BESIDE)
# What holds moments of the weights, of the same names and shapes, in optimizers and penalties of users' own.
_MOMENTS = re.compile(
    r"(?:opt|optim|optimi[sz]ers?|\w?adam\w?|sgd|lion|muon|exp_avg(?:_sq)?s?|momentums?|momenta|momentum_buffers?|grads?"
    r"|gradients?|fisher|ewc)(?:_states?)?(?:_dicts?)?(?:[-_]?\d+)?",
    re.IGNORECASE,
)


def weights_in(loaded: Any, name: str, key: str | None = None) -> tuple[dict[str, Any], str]:
    """The state dict in what a checkpoint holds, and the keys that it was under, with dots between them.

    All of its values are tensors, but for what modules keep of their own, such as packed weights.

    Args:
        name: of the checkpoint. key: as for ``read_state_dict``.

    Raises:
        CheckpointError: there is none, or several.
    """
    if key is not None and (found := _under(loaded, key.rstrip("."), _DEPTH)) is not None:
        loaded = found
    elif key is not None and not (key in NESTED and _is_state(loaded)):  # which alone is what such keys have
        there = shown(map(str, loaded)) if isinstance(loaded, Mapping) else type(loaded).__name__
        longer = next(_longer(loaded, key.rstrip("."), _DEPTH), None)
        mend = f"; is it {longer!r}?" if longer else ""
        raise CheckpointError(f"{name}: expected weights under the key {key!r} (key=, --key), got {there}{mend}")
    whole, way = loaded, ("" if key is None else f"{key.rstrip('.')}.")
    for _ in range(_DEPTH):
        if not (nested := _nested(loaded)):
            break
        way += f"{nested}."
        loaded = loaded[nested]
    if key is None and way and (others := _twins(whole, loaded)):
        warn(
            f"checkpoints: weights are read from {way[:-1]!r}, but {shown(others)} has tensors of the same names "
            f"too: key={others[0]!r} (--key) reads these, key={way[:-1]!r} silences this warning"
        )
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(key, str) for key in loaded):
        kind = "an empty one" if isinstance(loaded, Mapping) and not loaded else type(loaded).__name__
        raise CheckpointError(f"{name}: expected a state dict (names to tensors), got {kind}; save model.state_dict()")
    rest = {entry: value for entry, value in loaded.items() if not isinstance(value, Tensor)}
    if bad := [entry for entry, value in rest.items() if _has_inert(value, _DEPTH) or not OF_MODULES.fullmatch(entry)]:
        found, several = [way + state for state in _all_states(loaded)], len(_states(loaded)) > 1
        under = f"give key= (--key), one of {shown(found)}" if found else "save model.state_dict()"
        under += ", or load= to read the tensors beside it" if found and not several else ""
        inert = any(_has_inert(loaded[entry], _DEPTH) for entry in bad)
        under += f", or, if you trust the file, {IF_TRUSTED}" if inert else ""
        raise CheckpointError(
            f"{name}: expected a state dict (names to tensors), but {shown(bad)} are not tensors; {under}"
        )
    return with_versions(loaded, versions_of(loaded)), way[:-1]


def _has_inert(value: Any, depth: int) -> bool:
    """Whether it, or something in it, stands for an object."""
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return isinstance(value, Inert) or (depth > 0 and any(_has_inert(each, depth - 1) for each in inside))


def versions_of(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Versions of the modules that a state dict is of, by name, as far as it has them."""
    known = getattr(state, "_metadata", None)  # where torch.nn.Module.state_dict keeps them
    return known if isinstance(known, Mapping) else {}


def with_versions(state: Mapping[str, Any], versions: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the state dict for which modules load what their classes of these versions have saved."""
    found = OrderedDict(state)
    if versions:
        found._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    return found


def _longer(loaded: Any, key: str, depth: int) -> Iterator[str]:
    """Keys under which something lies that end in this one."""
    for name in _strings(loaded):
        inside = loaded[name] if depth else None
        if isinstance(inside, Mapping):
            found = [key] if _under(inside, key, depth) is not None else _longer(inside, key, depth - 1)
            yield from (f"{name}.{each}" for each in found)
        elif (place := name.find(f".{key}.")) > 0:
            yield f"{name[:place]}.{key}"


def _strings(loaded: Any) -> list[str]:
    """The keys of a mapping that are text."""
    return [key for key in loaded if isinstance(key, str)] if isinstance(loaded, Mapping) else []


def _nested(loaded: Any) -> str | None:
    """The key under which a checkpoint keeps its weights beside other things, if it does and there is but one."""
    if not isinstance(loaded, Mapping):
        return None
    known, states = [key for key in NESTED if _holds_tensors(loaded.get(key), _DEPTH)], _states(loaded)
    weights = [key for key in states if _is_of_weights(loaded[key])]
    found = known[:1] or weights or _ways(loaded, _DEPTH) or states
    return found[0] if len(found) == 1 else None


def _ways(loaded: Any, depth: int) -> list[str]:
    """The keys under which mappings lead to a state dict, in a mapping without tensors of its own."""
    if not isinstance(loaded, Mapping) or not depth or any(isinstance(value, Tensor) for value in loaded.values()):
        return []
    keys = [key for key in loaded if isinstance(key, str) and not _BESIDE.fullmatch(key)]
    found = [key for key in keys if _is_of_weights(loaded[key]) or _ways(loaded[key], depth - 1)]
    return [key for key in found if not _MOMENTS.fullmatch(key)] or found


def _is_of_weights(value: Any) -> bool:
    """Whether it is a state dict that holds more than numbers by name, as metrics are."""
    tensors = {name: own for name, own in value.items() if isinstance(own, Tensor)} if _is_state(value) else {}
    return any(own.dim() > (0 if "." in name else 1) for name, own in tensors.items())


def _twins(loaded: Mapping[Any, Any], weights: Mapping[Any, Any]) -> list[str]:
    """Where further state dicts with names and shapes of ``weights`` are, which is one: averages of them."""

    def known(state: Mapping[Any, Any]) -> set[tuple[str, Any]]:
        tensors = ((str(name), own.shape) for name, own in state.items() if isinstance(own, Tensor))
        return {(name.removeprefix("module."), shape) for name, shape in tensors}

    own, others = known(weights), _all_states(loaded)
    return [key for key, state in others.items() if state is not weights and 2 * len(known(state) & own) > len(own)]


def _holds_tensors(value: Any, depth: int) -> bool:
    """Whether a mapping, or one in it, holds any: else it is something beside the weights, such as a model's sizes."""
    inside = value.values() if isinstance(value, Mapping) and depth else ()
    return any(isinstance(each, Tensor) or _holds_tensors(each, depth - 1) for each in inside)


def _states(loaded: Mapping[Any, Any]) -> list[str]:
    """The keys of state dicts; none beside tensors that are weights themselves.

    Such are as many as in any of these, have names with a dot, or the same names.
    """
    states = _candidates(loaded)
    tensors = [str(key) for key, value in loaded.items() if isinstance(value, Tensor)]
    names = [f".{name}" for state in states.values() for name in state]
    many = len(tensors) >= max(map(len, states.values()), default=0)
    alike = any("." in key or name.endswith(f".{key}") for key in tensors for name in names)
    return [] if many or alike else list(states)


def _candidates(loaded: Mapping[Any, Any]) -> dict[str, Mapping[str, Tensor]]:
    """Mappings from names to tensors by key, but those that are no weights by their names."""
    return {
        key: value
        for key, value in loaded.items()
        if isinstance(key, str)
        and _is_state(value)
        and not _BESIDE.fullmatch(key)
        and not key.endswith("_extra_state")  # of a module, as torch.nn.Module.get_extra_state names it
    }


def _all_states(loaded: Any, depth: int = _DEPTH) -> dict[str, Mapping[str, Tensor]]:
    """``_candidates`` of a mapping and of those in it, by the keys that lead there with dots between them."""
    if not isinstance(loaded, Mapping) or not depth:
        return {}
    found = _candidates(loaded)
    others = {key: own for key, own in loaded.items() if isinstance(key, str) and key not in found}
    closed = {key for key in others if _BESIDE.fullmatch(key) or _MOMENTS.fullmatch(key)}
    inside = {key: _all_states(own, depth - 1) for key, own in others.items() if key not in closed}
    return found | {f"{key}.{inner}": state for key, states in inside.items() for inner, state in states.items()}


def _is_state(value: Any) -> bool:
    """Whether it is a mapping from names to tensors, and to what modules keep beside these."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    rest = [name for name, each in value.items() if not isinstance(each, Tensor)]
    return len(rest) < len(value) and all(map(OF_MODULES.fullmatch, rest))


def _under(loaded: Any, key: str, depth: int) -> Any:
    """What lies under a key, or has names that begin with it, itself or in what keeps weights; None if nothing does."""
    if not isinstance(loaded, Mapping) or not depth:
        return None
    if isinstance(loaded.get(key), Mapping):
        return loaded[key]
    start, parts = f"{key}.", key.split(".")  # keys may have dots themselves
    names = [name for name in loaded if isinstance(name, str) and name.startswith(start)]
    named = {name[len(start) :]: loaded[name] for name in names}
    ways = [(".".join(parts[:end]), ".".join(parts[end:])) for end in range(1, len(parts))]
    inside = [(loaded.get(each), rest) for each, rest in [*ways, *((each, key) for each in NESTED)]]
    found = (_under(each, part, depth - 1) for each, part in inside)
    return named or next((each for each in found if each is not None), None)  # type: ignore[arg-type]
