"""The random numbers that a model draws: the same ones at each measurement, and none from the training's sequence."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ROUNDING = 1e-4  # by which two calls may be apart
_SOME = 1 << 20  # numbers that are compared, of those that are not all the same
# Masks fill in values that are so many times the next smaller one, and at least so large; one in so many lies below, or
# those above are alike.
_FAR, _LARGE, _BELOW, _ALIKE = 1e2, 1e4, 10, 2
# NumPy's global state is what a model's forward would draw from.
# ruff: noqa: NPY002


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Put the random states of Python, NumPy and PyTorch, and of the GPU if it is one, back after."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    states = [(each, each.get_state()) for each in _generators(device)]
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for generator, state in states:
            generator.set_state(state)


def fix_random_state(device: torch.device, seed: int = 0) -> None:
    """Make stochastic layers repeatable in :func:`random_state_kept`: resumed sweeps then equal uninterrupted ones."""
    random.seed(seed)
    np.random.seed(seed)
    for generator in _generators(device):
        generator.manual_seed(seed)


def repeats(device: torch.device, outputs: Callable[[], Any], tell: Callable[[str], None]) -> bool:
    """Whether a model gives the same each time; tell what it depends on else.

    That may be random numbers, though in evaluation mode dropout draws none, or what it keeps from one call to the
    next. To be used inside :func:`random_state_kept`.

    Args:
        outputs: runs the model, on the same samples each time.
    """
    fix_random_state(device)
    before = _states(device)
    first = outputs()
    drawn = _states(device) != before
    fix_random_state(device, seed=int(drawn))
    apart = differ(first, outputs(), rounding=not drawn)
    if not drawn and apart:
        tell(
            "the model gives other outputs for the same samples when it is called again: it keeps a state from call to "
            "call, such as the hidden one of a recurrent network, or random numbers of its own. Scores then depend on "
            "the order and the size of batches: make forward begin anew at each call"
        )
    if drawn and apart is not False:
        tell(
            "the model's outputs depend on random numbers, which its forward draws in evaluation mode too. These are "
            "the same at every measurement, but differ between samples: if they mask or shuffle what a layer gets, as "
            "in masked autoencoders, a feature does not mean the same in all samples, and little can be decoded. Give "
            "a model whose forward is not random"
        )
    return not (drawn or apart)


def rounding_of(dtype: torch.dtype) -> float:
    """The share of numbers by which two calls may be apart."""
    return max(_ROUNDING, 4 * torch.finfo(dtype).eps)


def differ(one: Any, other: Any, rounding: bool) -> bool | None:
    """Whether two outputs of a model differ; None where that is not known, as of sparse tensors.

    Args:
        rounding: not by what two calls may be apart, on GPUs and where memory is aligned in another way.
    """
    if not all(
        isinstance(each, Tensor) and not each.is_nested and each.layout == torch.strided for each in (one, other)
    ):
        return None
    if one.shape != other.shape or one.dtype != other.dtype:
        return True
    if one.is_complex():
        one, other = torch.view_as_real(one.resolve_conj()), torch.view_as_real(other.resolve_conj())
    if not one.is_floating_point():
        return not torch.equal(one, other)
    if torch.equal(*(each.view(torch.uint8) if one.element_size() == 1 else each for each in (one, other))):
        return False
    if not rounding:
        return one.element_size() == 1 or bool(((one != other) & ~(one.isnan() & other.isnan())).any())
    limit = rounding_of(one.dtype)
    one, other = one.flatten(), other.flatten()
    if len(one) > _SOME:
        some = torch.randint(len(one), (_SOME,), generator=torch.Generator().manual_seed(0), device="cpu")
        one, other = one[some.to(one.device)], other[some.to(one.device)]
    one, other = one.double(), other.double()
    finite = one.isfinite()
    signs = (each.masked_fill(each.isfinite(), 0).nan_to_num(2, 1, -1) for each in (one, other))
    if not torch.equal(*signs):
        return True
    one, other = one[finite], other[finite]
    return bool(((one - other).abs() > limit * (_usual(one) + one.abs())).any())


def _usual(values: Tensor) -> float:
    """The root mean square of values, but of those that are 0, and of those far above others, as masks fill in."""
    sizes = values.abs()[values != 0].sort()[0]
    far = ((sizes[1:] > _FAR * sizes[:-1]) & (sizes[1:] >= _LARGE)).nonzero()
    alike = sizes[-1:] <= _ALIKE * sizes[1:][far[:, 0]]
    far = far[(far[:, 0] >= len(sizes) // _BELOW) | alike]  # not where but few are small, by chance
    sizes = sizes[: int(far[0, 0]) + 1] if len(far) else sizes
    return float(sizes.square().mean().sqrt()) if len(sizes) else 0.0


def _generators(device: torch.device) -> list[torch.Generator]:
    """PyTorch's of the CPU, and of the GPU if it is one."""
    if device.type != "cuda":
        return [torch.default_generator]
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[index]]


def _states(device: torch.device) -> list[bytes]:
    """What all generators are at, to compare."""
    python = [pickle.dumps(random.getstate()), pickle.dumps(np.random.get_state())]
    return python + [each.get_state().numpy().tobytes() for each in _generators(device)]
