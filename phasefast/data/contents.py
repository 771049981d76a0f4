"""What tensors hold: content hashes, and samples that are copies of others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.notices import warn

_COPIES = 10  # one of so many fit samples that are copies is worth a warning
_COMPARED = 256  # numbers of each sample, by which those that are in both splits are found
_APART, _WIDER = 1.0, 2.0  # standard deviations between means, and how many times one is the other: made in other ways
_SURE, _FEWEST = 6.0, 8  # standard errors, beyond which a difference is not of the choice of so many samples or more


def hash_of(*tensors: Tensor | None) -> hashlib.blake2b:
    """Of their shapes, types and numbers."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        if tensor is not None:
            digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(_bytes(tensor.detach().cpu()).numpy().data)
    return digest


def _bytes(tensor: Tensor) -> Tensor:
    """Of its numbers in their order, in one dimension: others of one place may have strides that no view takes."""
    return tensor.reshape(-1).contiguous().view(torch.uint8)


def warn_of_copies(fit: Tensor, heldout: Tensor) -> None:
    """Warn where many fit samples are copies of others, or held-out ones of fit samples."""
    copies, same = _repeated(fit, heldout, _COMPARED)
    if copies * _COPIES >= len(fit) or same * 2 >= len(heldout):  # which may differ in what was not compared
        copies, same = _repeated(fit, heldout, fit[0].numel())
    if copies * _COPIES >= len(fit):
        warn(
            f"{copies} of {len(fit)} fit samples are copies of others: penalties will be too weak, since samples "
            "that are left out to choose them have copies among the rest; remove the copies"
        )
    if same * 2 >= len(heldout):
        warn(
            f"{same} of {len(heldout)} held-out samples are fit samples too: held-out scores will be of samples that "
            "the decoders have seen; give other samples"
        )


def warn_of_scales(fit: Tensor, heldout: Tensor, groups: Sequence[Tensor] = ()) -> None:
    """Warn where the numbers of held-out samples lie elsewhere than those of fit samples, as without normalisation.

    Args:
        groups: [n] and [m], which samples belong together, if any do: then these are what was chosen.
    """
    of_fit, of_heldout = groups or [torch.arange(len(each), device="cpu") for each in (fit, heldout)]
    if not fit.is_floating_point() or min(len(of_fit.unique()), len(of_heldout.unique())) < _FEWEST:
        return
    own, other = _moments(fit, of_fit), _moments(heldout, of_heldout)
    means, variances = zip(own.tolist()[0], other.tolist()[0], strict=True)
    unsure = (_SURE * (own[1] + other[1]).sqrt()).tolist()
    apart = abs(means[0] - means[1]) > max(_APART * max(variances) ** 0.5, unsure[0])
    wider = max(variances) - min(variances) > max((1 - _WIDER**-2) * max(variances), unsure[1])
    if apart or wider:
        was, now = (
            f"mean {mean:.3g} and standard deviation {variance**0.5:.3g}"
            for mean, variance in zip(means, variances, strict=True)
        )
        warn(
            f"held-out inputs have {now}, fit inputs {was}: if they were transformed or normalised in different ways, "
            "held-out scores mean nothing"
        )


def _moments(inputs: Tensor, groups: Tensor) -> Tensor:
    """Mean and variance of all numbers, and the squared standard errors of both, as of groups [n]: [2, 2] float64."""
    flat = inputs.detach().flatten(1)
    dtype = torch.promote_types(flat.dtype, torch.float32)
    norms = torch.linalg.vector_norm(flat, dim=1, dtype=dtype).double().cpu()
    means = flat.mean(1, dtype=dtype).double().cpu()
    # About a mean that is the samples' own, of which the error is of second order.
    of_each = torch.stack([means, norms.square() / flat.shape[1] - means.mean() * (2 * means - means.mean())])
    mean, variance = of_each.mean(1)
    names, places = groups.cpu().unique(return_inverse=True)
    sums = of_each.new_zeros(2, len(names)).index_add_(1, places, of_each - of_each.mean(1, keepdim=True))
    errors = sums.square().sum(1) * (len(names) / (len(names) - 1) / len(flat) ** 2)
    return torch.stack([torch.stack([mean, variance.clamp(min=0)]), errors])


def _repeated(fit: Tensor, heldout: Tensor, most: int) -> tuple[int, int]:
    """How many fit samples are copies of others, and held-out ones of fit samples, by so many numbers of each."""
    keys = _keys(fit, most)
    known = set(keys)
    return len(keys) - len(known), sum(key in known for key in _keys(heldout, most))


def _keys(inputs: Tensor, most: int) -> list[bytes]:
    """A hash of some numbers of each sample, evenly spaced."""
    flat = inputs.detach().flatten(1)
    some = flat[:, :: -(-flat.shape[1] // most)].cpu()
    return [hashlib.blake2b(row, digest_size=16).digest() for row in _bytes(some).reshape(len(some), -1).numpy()]
