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
        groups: [n] and [m], which samples belong together, if any do: then all of one split must lie apart from all of
            the other.
    """
    if not fit.is_floating_point() or min(len(fit), len(heldout)) < _FEWEST:
        return
    moments = _moments(fit), _moments(heldout)
    own, other = (_with_errors(each) for each in moments)
    if groups and not _lie_apart(*(_of_groups(*each) for each in zip(moments, groups, strict=True))):
        return
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


def _moments(inputs: Tensor) -> Tensor:
    """Of each sample the mean, and the mean square of what its numbers are from the mean of all: [2, n] float64."""
    flat = inputs.detach().flatten(1)
    dtype = torch.promote_types(flat.dtype, torch.float32)
    norms = torch.linalg.vector_norm(flat, dim=1, dtype=dtype).double().cpu()
    means = flat.mean(1, dtype=dtype).double().cpu()
    # About a mean that is the samples' own, of which the error is of second order.
    return torch.stack([means, norms.square() / flat.shape[1] - means.mean() * (2 * means - means.mean())])


def _with_errors(moments: Tensor) -> Tensor:
    """Mean and variance of all numbers, and the squared standard errors of both: [2, 2]."""
    mean, variance = moments.mean(1)
    return torch.stack([torch.stack([mean, variance.clamp(min=0)]), moments.var(1) / moments.shape[1]])


def _of_groups(moments: Tensor, groups: Tensor) -> Tensor:
    """The same of each group, [2, g]: its mean, and its variance about that."""
    names, places = groups.cpu().unique(return_inverse=True)
    sums = moments.new_zeros(2, len(names)).index_add_(1, places, moments)
    means, squares = sums / places.bincount(minlength=len(names))
    return torch.stack([means, (squares - (means - moments[0].mean()).square()).clamp(min=0)])


def _lie_apart(one: Tensor, other: Tensor) -> bool:
    """Whether all groups of one split lie above all of the other, [2, g] and [2, h], by what is told, in a moment."""
    (means, variances), (others, their_variances) = one, other
    gap = torch.maximum(means.min() - others.max(), others.min() - means.max())
    beyond = gap > _APART * torch.maximum(variances.max(), their_variances.max()).sqrt()
    pairs = (variances, their_variances), (their_variances, variances)
    return bool(beyond) or any(bool(large.min() > _WIDER**2 * small.max()) for large, small in pairs)


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
