"""Samples that belong together, such as those of one subject, or windows of one recording that overlap."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.notices import warn
from ..errors import DataError
from .samples import instead_of_a_pair

_FEW = 10  # held-out groups
Names = Tensor | np.ndarray | Sequence[Any]  # of groups, one for each sample: integers or text


@dataclass(frozen=True, eq=False)
class Groups:
    """Which group each of n samples is of.

    Attributes:
        numbers: [n] int64 on the CPU, the same for all samples of a group.
    """

    numbers: Tensor

    @cached_property
    def _places(self) -> Tensor:
        """[n] from 0 on, in the order of the groups' first samples."""
        _, places = self.numbers.unique(return_inverse=True)
        first = torch.full((int(places.max()) + 1,), len(places), device="cpu")
        first.scatter_reduce_(0, places, torch.arange(len(places), device="cpu"), "amin")
        return first.argsort().argsort()[places]

    @cached_property
    def counts(self) -> Tensor:
        """How many samples each group has, [g]."""
        return self._places.bincount()

    @cached_property
    def weights(self) -> Tensor | None:
        """The same over their mean, float32; None where all have as many."""
        counts = self.counts.double()
        return None if bool((counts == counts[0]).all()) else (counts / counts.mean()).float()

    @cached_property
    def digest(self) -> str:
        """Content hash in hexadecimal."""
        return hashlib.blake2b(self._places.numpy().tobytes(), digest_size=8).hexdigest()

    def shuffled(self, order: Tensor) -> Tensor:
        """An order [n] of the samples in which those of each group follow each other, from a random one."""
        groups = Groups(self.numbers[order])
        return order[groups._places.argsort(stable=True)]

    def folds(self, offsets: Sequence[int]) -> list[int]:
        """Offsets of folds, moved to the nearest ends of groups, whose samples follow each other.

        Raises:
            DataError: a group's samples do not, or there are not two groups for folds.
        """
        if bool((self._places.diff() < 0).any()):
            raise DataError("fit_groups: expected the samples of each group side by side; from_tensors sorts them")
        ends = [0, *self.counts.cumsum(0).tolist()]
        count = min(len(offsets), len(ends)) - 1
        if len(offsets) > 2 and count < 2:
            raise DataError("groups: expected two or more among the fit samples, to make folds of, got one")
        found = [0]
        for fold in range(1, count):
            wanted = ends[-1] * fold // count
            place = bisect.bisect_left(ends, wanted)
            place -= place > 0 and wanted - ends[place - 1] < ends[place] - wanted
            found.append(min(max(place, found[-1] + 1), len(ends) - 1 - (count - fold)))
        return [ends[place] for place in [*found, len(ends) - 1]]

    def sums(self, values: Tensor) -> Tensor:
        """Of values [n] over each group [g], in their type: their sum over the mean count, of the same mean."""
        sums = torch.zeros(len(self.counts), dtype=torch.float64, device="cpu")
        sums.index_add_(0, self._places, values.double().cpu())
        return (sums * (len(self.counts) / len(self.numbers))).to(values.dtype)


def taken(values: Any, name: str) -> Any:
    """The values of a name, which are no longer among them; DataError where there are none."""
    if not isinstance(values, dict) or name not in values:
        there = sorted(map(str, values)) if isinstance(values, dict) else []
        raise DataError(f"groups {name!r}: expected the name of one of the values, {there}, or groups of both splits")
    return values.pop(name)


def numbered(given: tuple[Names, Names], sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The groups of fit and held-out samples [n] and [m], as integers.

    Warns where a group has samples in both splits, and where few are held out.

    Raises:
        DataError: there is not one for each sample.
    """
    if got := instead_of_a_pair(given):
        raise DataError(f"groups: expected (of fit, of held-out samples), or the name of values, got {got}")
    both = [_names("fit", given[0], sizes[0]), _names("heldout", given[1], sizes[1])]
    names, numbers = np.unique(np.concatenate(both), return_inverse=True)
    fit, heldout = (torch.from_numpy(own.astype(np.int64)) for own in np.split(numbers, [sizes[0]]))
    if shared := np.intersect1d(fit, heldout).tolist():
        warn(
            f"groups: {len(shared)} have samples in both splits, such as group {names[shared[0]]}: decoders may know "
            "their held-out samples from the others; split by groups"
        )
    if (count := len(heldout.unique())) < _FEW:
        warn(
            f"groups: {count} among the held-out samples: intervals, phases and best_checkpoint rest on how groups "
            f"differ, which fewer than {_FEW} hardly show; hold out more of them"
        )
    return fit, heldout


def _names(split: str, given: Any, size: int) -> np.ndarray:
    """The group of each sample [size], integers or texts: of arrays of objects and [size, 1] too."""
    try:
        names = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"{split}_groups: expected {size} integers or texts, one for each sample; {error}") from error
    names = names[:, 0] if names.shape == (size, 1) else names
    if names.dtype == object:  # such as columns of a table
        if missing := sum(name is None or name != name for name in names.flat):
            raise DataError(f"{split}_groups: expected the group of each sample, got none for {missing} of them")
        if all(isinstance(name, (str, int, np.integer)) for name in names.flat):
            names = names.astype(str)
    if names.shape != (size,) or names.dtype.kind not in "iubUS":
        got = f"{names.dtype} {names.shape}"
        raise DataError(f"{split}_groups: expected {size} integers or texts, one for each sample, got {got}")
    return names
