"""What modules give: of several tensors, or of packed sequences, the rows of numbers in it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, OneHotCategorical, RelaxedOneHotCategorical
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.overrides import TorchFunctionMode

from ..errors import LayerError

_CHANCE = 1e-3  # that samples come in the order of their lengths
_IN_PLACE = re.compile(r"__i\w+__|(?!__)\w+_$")  # names of functions that change what they are given
_SIGMOIDS = {"sigmoid", "special_expit", "hardsigmoid", "softmax"}
_KEEPING = {  # shares
    *("clamp", "clip", "clone", "contiguous", "nan_to_num", "reshape", "cat", "stack", "mean", "relu"),
    *("detach", "requires_grad", "resize_as", "squeeze", "swapaxes", "swapdims", "t", "transpose", "unsqueeze"),
    *("bfloat16", "double", "float", "half", "to", "type"),
}


def rows_in(output: Any, preferred: str = "") -> Any:
    """A module's output; of several the first that may hold rows of numbers, one called ``preferred`` before others.

    If none may, the first of all. A packed sequence may.
    """
    if (found := _found(output, preferred)) is not None:
        return found
    while entries := _entries(output):
        output = next(iter(entries.values()))
    return output


def tensors_in(output: Any) -> Iterator[Tensor]:
    """All tensors of a module's output, in their order."""
    if isinstance(output, Tensor):
        yield output
    for each in _entries(output).values():
        yield from tensors_in(each)


def called(output: Any, name: str) -> Iterator[Tensor]:
    """The tensors of that name in a module's output, in whichever containers."""
    for key, each in _entries(output).items():
        if key == name and isinstance(each, Tensor):
            yield each
        yield from called(each, name)


def ends_in_sigmoid(run: Callable[[], Tensor]) -> bool:
    """Whether the tensor that ``run`` gives is one of shares, as far as PyTorch's functions that it calls tell.

    Its numbers do not: logits, too, may lie between 0 and 1.
    """
    shares: list[Tensor] = []

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found, name = func(*args, **(kwargs or {})), getattr(func, "__name__", "")
            first, plain = args[0] if args else None, name.rstrip("_")
            into = (kwargs or {}).get("out")
            if isinstance(found, Tensor) and (plain in _SIGMOIDS or (plain in _KEEPING and _are_of(first, shares))):
                shares.append(found)
            elif name == "__setitem__" or into is not None or (_IN_PLACE.match(name) and found is first):
                changed = first if into is None else into
                changed = changed if isinstance(changed, (list, tuple)) else [changed]
                shares[:] = [each for each in shares if not any(_are_of(other, [each]) for other in changed)]
            return found

    with Watching():
        output = run()
    return _are_of(output, shares)


def _are_of(given: Any, shares: Sequence[Tensor]) -> bool:
    """Whether a tensor, or all of several, are views of some of these."""
    if isinstance(given, (list, tuple)):
        return len(given) > 0 and all(_are_of(each, shares) for each in given)
    return isinstance(given, Tensor) and any(same_memory(given, share) for share in shares)


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are views of the same numbers, as far as that is known."""
    try:
        return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # of those that are sparse, nested, or in a function's transform
        return one is other


def _found(output: Any, preferred: str) -> Tensor | PackedSequence | None:
    if isinstance(output, PackedSequence):
        return output
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and (output.is_nested or output.dim() > 1) else None
    entries = _entries(output)
    ordered = [entries[preferred]] if preferred in entries else []
    ordered += [value for name, value in entries.items() if name != preferred]
    return next((found for each in ordered if (found := _found(each, preferred)) is not None), None)


def _entries(output: Any) -> dict[Any, Any]:
    """What a container holds, by name or place; empty for anything else."""
    if isinstance(output, Mapping):
        return dict(output)
    if is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    if isinstance(output, Distribution):
        return _parameters(output)
    if not isinstance(output, (tuple, list)):
        return {}
    names = getattr(output, "_fields", range(len(output)))
    return dict(zip(names, output, strict=True))


def _parameters(distribution: Distribution) -> dict[str, Any]:
    """What a distribution over actions and the like is known by: its logits, if it is over classes, or its mean."""
    if isinstance(distribution, (Categorical, OneHotCategorical, RelaxedOneHotCategorical)):
        return {"logits": distribution.logits}
    try:
        return {"mean": distribution.mean}
    except (NotImplementedError, AttributeError):  # of transformed ones, and some of a user's own
        return {}


def _is_sorted(packed: PackedSequence, lengths: Tensor) -> bool:
    """Whether the model has sorted them itself, or is likely to: few orders of as many would be that of the lengths."""
    if packed.sorted_indices is None:
        return True
    known = lengths.tolist()  # the indices say little, as sorting does not keep the order of equal ones
    same = known == sorted(known, reverse=True)
    ties = sum(math.lgamma(count + 1) for count in lengths.unique(return_counts=True)[1].tolist())
    return same and ties - math.lgamma(len(lengths) + 1) < math.log(_CHANCE)


def unpacked(name: str, packed: PackedSequence) -> tuple[Tensor, Tensor]:
    """A packed sequence as [b, t, f], and which of its positions it has: bool [b, t].

    Raises:
        LayerError: which sample is which is not known.
    """
    rows, lengths = pad_packed_sequence(packed, batch_first=True)
    if len(lengths) > 1 and _is_sorted(packed, lengths):
        raise LayerError(
            f"layer {name!r}: gives packed sequences sorted by their lengths, so that which sample is which is not "
            "known; pack them unsorted, with enforce_sorted=False, or give samples in another order"
        )
    return rows, torch.arange(rows.shape[1], device=rows.device) < lengths[:, None].to(rows.device)
