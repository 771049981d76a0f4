"""The targets that the model itself predicts: what its own outputs are compared with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .data.target_matrix import TargetMatrix
from .data.target_types import Input, Label, OwnTarget, Split, Target
from .data.token_rows import Units
from .errors import ArgumentError
from .results.failures import lost_name
from .results.scores import MODEL_LAYER
from .stages.own_outputs import OwnClasses, OwnNumbers, OwnOutputs
from .stages.targets import given_values
from .types import OwnPlace

NOTHING = "none"  # in the place of a name


@dataclass(frozen=True, eq=False)
class Predicted:
    """A target that the model itself predicts, and what outputs of both splits should be.

    Attributes:
        splits: inputs and labels of the fit and the held-out samples. inputs: both, on the device if there is room.
        units: what rows are.
        matrix: of all targets. device: where outputs are. balanced: all classes count alike.
        asked: the user named the target. others: the names of the other targets. taken: of those predicted too.
    """

    target: Target
    splits: Mapping[str, Split]
    inputs: tuple[Tensor, Tensor]
    units: Units
    matrix: TargetMatrix
    device: torch.device
    balanced: bool
    asked: bool
    others: frozenset[str]
    taken: frozenset[str]

    @property
    def name(self) -> str:
        """Of the target."""
        return self.target.name

    @property
    def numbers(self) -> bool:
        """Whether outputs are to be numbers like the target's, of any shape, or one for each class."""
        return self.target.kind != "classes"

    @property
    def of_inputs(self) -> bool:
        """Whether the target is the inputs, which stay what they are where a model changes them in place."""
        return isinstance(self.target, Input)

    def likeness(self, of_tokens: bool, shape: tuple[int, ...]) -> int:
        """How much outputs [b, *shape] are like those expected: 0 if they are none, 3 for the very shape.

        Numbers may have other axes of length 1 (2), or one of both is flat (1): [b, h, w, c] are not [b, c, h, w].
        """
        if self._given(of_tokens) is None:
            return 0
        if shape == self._shape:
            return 3
        if not self.numbers:
            return int(shape == (1,) and self._classes == 2)  # the logit of the second, or its share
        own, given = ([side for side in sides if side != 1] for sides in (self._shape, shape))
        same = torch.Size(own).numel() == torch.Size(given).numel()
        return 2 if own == given else int(min(len(own), len(given)) < 2 and same)

    def misfit(self, place: OwnPlace | None) -> str:
        """Why outputs at a place are not those expected; empty if they are. Args: place: None if there is none."""
        if place is not None and self.likeness(place.of_tokens, place.shape):
            return ""
        if place is None or (not self.numbers and len(place.shape) != 1):
            numbers = "numbers" if self.numbers else "row of numbers, such as logits,"
            return f"the model's output has no {numbers} for each sample or token; predicts='none' if it predicts none"
        if self._given(place.of_tokens) is None:
            return (
                f"the model's output is for samples, but target {self.name!r} for their tokens, as tokens='each' "
                "decodes it from each of them"
            )
        elsewhere = "if it is in another tensor of the output, or in some columns of it, wrap the model to give that"
        if self.numbers:
            of, own = "token" if place.of_tokens else "sample", list(self._shape) or [1]
            return (
                f"the model gives {list(place.shape)} numbers for each {of}, but target {self.name!r} has {own}; "
                f"{elsewhere}"
            )
        labels = {split: own[place.of_tokens] for split, own in self._expected.items()}
        tops = {split: int(found.max()) for split, found in labels.items() if found is not None}
        to = " and ".join(f"{top} in {split}" for split, top in tops.items())
        up = f" (up to {to} samples)" if len(set(tops.values())) > 1 else ""
        outputs = f"{place.shape[0]} output{'s' * (place.shape[0] != 1)}"
        return (
            f"the model has {outputs}, but target {self.name!r} has {self._classes} classes{up}, as for an encoder; if "
            "it was trained on these labels, give them numbered as in training, from 0, or Label(classes), or "
            f"num_classes= of values; {elsewhere}; if it does not predict it, predicts='none'"
        )

    def outputs(self, place: OwnPlace) -> OwnOutputs:
        """What the model's predictions are given to, for one measurement. Args: place: that fits."""
        expected = {split: own for split, both in self._expected.items() if (own := both[place.of_tokens]) is not None}
        if not self.numbers:
            return OwnClasses(self.name, place, expected, self._classes, self.balanced)
        where = next(index for index, block in enumerate(self.matrix.blocks) if block.name == self.name)
        rows = {"fit": len(self.matrix.fit), "heldout": len(self.matrix.heldout)}
        wholes = {split: self.matrix.wholes(where, split, count) for split, count in rows.items()}
        return OwnNumbers(self.name, place, expected, wholes)

    def _given(self, of_tokens: bool) -> Tensor | None:
        """What is expected on the fit rows, of samples or of tokens; None if nothing is, of either split."""
        own = [both[of_tokens] for both in self._expected.values()]
        return None if any(each is None for each in own) else own[0]

    @cached_property
    def _shape(self) -> tuple[int, ...]:
        """Of what is expected of a sample, or of a token."""
        if not self.numbers:
            return (self._classes,)
        return tuple(next(own for own in self._expected["fit"] if own is not None).shape[1:])

    @cached_property
    def _expected(self) -> dict[str, tuple[Tensor | None, Tensor | None]]:
        """By split, of samples and of tokens that are rows; on the device, since a GPU waits for copies.

        But inputs for which there is no room.
        """
        both = self.splits["fit"], self.splits["heldout"]
        if self.target.kind == "classes" and isinstance(self.target, OwnTarget):
            labels = (own.flatten() if own.shape[1:] == (1,) else own for own in self.target.given(*both))
            return {
                split: self.units.labels(split, own.long(), self.device)
                for split, own in zip(self.splits, labels, strict=True)
            }
        if type(self.target) is Input:
            both = (self.inputs[0], None), (self.inputs[1], None)
            fit, heldout = given_values(self.target, *both, self.units.tokens)
        else:
            fit, heldout = (own.to(self.device) for own in given_values(self.target, *both, self.units.tokens))
        # One-hot columns of a user's own.
        values = (fit.argmax(1), heldout.argmax(1)) if self.target.kind == "classes" else (fit, heldout)
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


class Predictions:
    """All targets that the model itself predicts, and where in its output it does, once that was ``found``."""

    def __init__(self, every: Sequence[Predicted]) -> None:
        self._every = list(every)
        self._places: dict[str, OwnPlace] = {}
        self._misfits: dict[str, str] = {}

    @classmethod
    def of(
        cls,
        targets: Sequence[Target],
        names: Sequence[str] | None,
        splits: Mapping[str, Split],
        inputs: tuple[Tensor, Tensor],
        units: Units,
        matrix: TargetMatrix,
        device: torch.device,
        balanced: bool,
    ) -> Predictions:
        """Of the targets of these names, by default of the first :class:`Label`; of none for ``"none"`` alone.

        Args: splits, inputs, units, matrix, device, balanced: as for :class:`Predicted`.

        Raises:
            ArgumentError: there is no target of that name.
        """
        known = {each.name: each for each in targets}
        asked = names is not None
        if names is None:
            names = [each.name for each in targets if isinstance(each, Label)][:1]
        if [*names] == [NOTHING]:
            return cls([])
        if NOTHING in names:
            raise ArgumentError(f"predicts: {NOTHING!r} stands alone, got {[*names]}")
        for name in names:
            if name not in known:
                raise ArgumentError(
                    f"predicts: expected one of the targets {[*known]}, got {name!r}; targets= (--target) chooses them"
                )
        how = splits, inputs, units, matrix, device, balanced, asked
        every = frozenset(known), frozenset(names)
        return cls([Predicted(known[name], *how, *(each - {name} for each in every)) for name in dict.fromkeys(names)])

    def __iter__(self) -> Iterator[Predicted]:
        return iter(self._every)

    @property
    def there(self) -> bool:
        """Whether any was found in the model's output."""
        return bool(self._places)

    def found(self, places: Mapping[str, OwnPlace | None]) -> None:
        """Take note of what in the model's output comes closest to each; ArgumentError if one that was asked for fails.

        Args:
            places: by target; None if there is none.
        """
        misfits = {each.name: each.misfit(places[each.name]) for each in self}
        for each in self:
            if each.asked and (why := misfits[each.name]):
                raise ArgumentError(f"predicts={each.name!r}: {why}")
        self._misfits = {name: why for name, why in misfits.items() if why}
        self._places = {name: own for name, own in places.items() if own is not None and name not in self._misfits}

    def outputs(self, tell: Callable[[str], None]) -> list[OwnOutputs]:
        """What the predictions are given to, for one measurement; ``tell`` gets why there are none of a target."""
        for why in self._misfits.values():
            tell(f"no rows of layer {MODEL_LAYER!r}: {why}")
        return [each.outputs(self._places[each.name]) for each in self if each.name in self._places]

    def missing(self, lost: Collection[str], asked: bool) -> list[str]:
        """Names of the targets that there should be predictions of, but for those that were ``lost``.

        Args:
            asked: only those that the user named.
        """
        names = [each.name for each in self if each.asked or not asked]
        return [name for name in names if lost_name(MODEL_LAYER, name) not in lost]
