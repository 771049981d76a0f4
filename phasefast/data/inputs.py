"""The inputs of a probe set, which the model of every checkpoint is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batches import chunk_bounds, first_rows, model_inputs
from .probe_set import ProbeSet


@dataclass(frozen=True, eq=False)
class Inputs:
    """Both splits, on the device that the model is on if there is room.

    Attributes:
        fit: [n, ...]. heldout: [m, ...]. nbytes: that copies of them take on the device.
        mixed: an order [n] of the fit inputs for BatchNorm: rows of a group resemble each other, so that batches of
            them scatter less than all. None where they stand in such an order.
    """

    device: torch.device
    fit: Tensor
    heldout: Tensor
    nbytes: int
    mixed: Tensor | None

    @classmethod
    def of(cls, probe_set: ProbeSet, device: torch.device, most: float) -> Inputs:
        """Of a probe set; on a GPU they are kept there if that takes so many bytes at ``most``."""
        splits = probe_set.fit_inputs, probe_set.heldout_inputs
        taken = sum(split.nbytes for split in splits if split.device.type == "cpu")
        keeps = device.type == "cuda" and taken <= most
        fit, heldout = (split.to(device) if keeps else split for split in splits)
        mixed = probe_set.mixed
        return cls(device, fit, heldout, taken * keeps, None if mixed is None else mixed.to(fit.device))

    def first(self, model: nn.Module) -> Iterator[Tensor]:
        """The samples that layers are discovered with, then so many others."""
        return model_inputs(self.fit, first_rows(self.fit), model, self.device)

    def mixed_batches(self, model: nn.Module, size: int) -> Iterator[Tensor]:
        """All fit inputs, in batches that resemble each other."""
        bounds = chunk_bounds(0, len(self.fit), size)
        return model_inputs(self.fit, bounds, model, self.device, self.mixed)
