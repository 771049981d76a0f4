"""The target that the model itself predicts: what its own outputs are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .data.target_matrix import TargetMatrix
from .data.target_types import Label, OwnTarget, Split, Target
from .data.token_rows import Units
from .errors import ArgumentError
from .stages.own_outputs import OwnClasses, OwnNumbers, OwnOutputs
from .stages.targets import given_values

NOTHING = "none"  # in the place of a name


def not_by_default(targets: Sequence[Target], name: str | None) -> str | None:
    """The name of the target that is predicted, unless it is that by default: the first :class:`Label`, or none."""
    default = next((each.name for each in targets if isinstance(each, Label)), NOTHING)
    return None if name == default else name


@dataclass(frozen=True, eq=False)
class Predicted:
    """A target that the model itself predicts, and what outputs of both splits should be.

    Attributes:
        splits: inputs and labels of the fit and the held-out samples. units: what rows are.
        matrix: of all targets. device: where outputs are. balanced: all classes count alike.
    """

    target: Target
    splits: Mapping[str, Split]
    units: Units
    matrix: TargetMatrix
    device: torch.device
    balanced: bool

    @classmethod
    def of(
        cls,
        targets: Sequence[Target],
        name: str | None,
        splits: Mapping[str, Split],
        units: Units,
        matrix: TargetMatrix,
        device: torch.device,
        balanced: bool,
    ) -> Predicted | None:
        """The target of a name, by default the first :class:`Label`; None where there is none, or for ``"none"``.

        Raises:
            ArgumentError: there is no target of that name.
        """
        if name == NOTHING:
            return None
        wanted = (each for each in targets if (isinstance(each, Label) if name is None else each.name == name))
        if (target := next(wanted, None)) is not None:
            return cls(target, splits, units, matrix, device, balanced)
        if name is not None:
            raise ArgumentError(
                f"predicts: expected one of the targets {[each.name for each in targets]}, got {name!r}; targets= "
                "(--target) chooses them"
            )
        return None

    def outputs(self) -> OwnOutputs:
        """What the model's own outputs are given to, for one measurement."""
        name, rows = self.target.name, {"fit": len(self.matrix.fit), "heldout": len(self.matrix.heldout)}
        sizes = {split: (len(inputs), rows[split]) for split, (inputs, _) in self.splits.items()}
        if self.target.kind == "classes":
            return OwnClasses(name, self._classes, self._expected, sizes, self.balanced)
        place = next(index for index, block in enumerate(self.matrix.blocks) if block.name == name)
        wholes = {split: self.matrix.wholes(place, split, count) for split, count in rows.items()}
        return OwnNumbers(name, self._expected, sizes, wholes)

    @cached_property
    def _expected(self) -> dict[str, tuple[Tensor | None, Tensor | None]]:
        """By split, of samples and of tokens that are rows; labels are on the device, since a GPU waits for copies."""
        both = self.splits["fit"], self.splits["heldout"]
        if self.target.kind == "classes" and isinstance(self.target, OwnTarget):
            labels = (own.flatten() if own.shape[1:] == (1,) else own for own in self.target.given(*both))
            return {
                split: self.units.labels(split, own.long(), self.device)
                for split, own in zip(self.splits, labels, strict=True)
            }
        values = given_values(self.target, *both, self.units.tokens)
        if self.target.kind == "classes":  # one-hot columns of a user's own
            fit, heldout = values
            values = fit.argmax(1).to(self.device), heldout.argmax(1).to(self.device)
        return {
            split: (own, None) if self.units.tokens is None else (None, own)
            for split, own in zip(self.splits, values, strict=True)
        }

    @cached_property
    def _classes(self) -> int:
        """How many classes the target has: of many it may have columns of those only that rows have."""
        if count := getattr(self.target, "num_classes", None):
            return int(count)
        if not isinstance(self.target, OwnTarget):
            return next(block.width for block in self.matrix.blocks if block.name == self.target.name)
        return 1 + max(int(own.max()) for both in self._expected.values() for own in both if own is not None)
