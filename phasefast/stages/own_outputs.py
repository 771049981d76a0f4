"""The model's own errors, from outputs taken batch by batch: all of them together may be large."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..common.fetching import fetched
from ..common.tables import counted
from ..data.target_matrix import balanced_weights
from ..errors import LayerError, NonFiniteError, PhasefastError
from ..metrics import FVU, LOSS, MSE, accuracy_by
from ..results.failures import lost_name
from ..results.scores import MODEL_LAYER
from ..types import OwnPlace, Score

_SHOWING, _ROUNDING = 64, 1e-4  # rows of a batch that show whether they are probabilities, whose sums may be off


class OwnOutputs(ABC):
    """Scores of the model's own predictions of a target, layer ``"model"``.

    Args:
        name: of the target. place: where the predictions are. expected: by split, what they should be, [n, ...] each.

    Attributes:
        lost: why there are no scores of a split. doubt: why they may not be what they seem, once there are ``scores``.
    """

    _at_once: ClassVar[int]  # numbers, of which copies are made

    def __init__(self, name: str, place: OwnPlace, expected: Mapping[str, Tensor]) -> None:
        self.place, self.lost, self.doubt = place, dict[str, PhasefastError](), ""
        self._name, self._dim, self._expected = name, torch.Size(place.shape).numel(), expected
        self._sums: dict[str, list[Tensor]] = {split: [] for split in expected}
        self._rows: dict[str, list[Tensor]] = {split: [] for split in expected}

    def add(self, split: str, start: int, outputs: Tensor) -> None:
        """Predictions [b, ...] of the samples, or of the tokens that are rows, from ``start`` on."""
        for part in outputs.split(max(self._at_once // max(outputs[0].numel(), 1), 1)):
            expected = self._expected[split][start : start + len(part)]
            sums, rows = self._errors(part, expected.to(part.device))
            self._sums[split].append(sums)
            self._rows[split].append(rows)
            start += len(part)

    @abstractmethod
    def _errors(self, outputs: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
        """Sums [k] over some outputs, and what there is of each, [b]."""

    def scores(self) -> list[Score]:
        """None of splits without predictions for each sample or row, nor of NaN."""
        scores, name = [], lost_name(MODEL_LAYER, self._name)
        counts = {split: sum(map(len, rows)) for split, rows in self._rows.items()}
        there = [split for split, expected in self._expected.items() if counts[split] == len(expected) > 0]
        for split in (split for split in self._expected if split not in there):
            text = (
                f"its output has predictions of {self._name!r} for {counts[split]} of {len(self._expected[split])} "
                f"{split} rows, where {counted(self._dim, 'number')} of each were predictions at first"
            )
            self.lost.setdefault(name, LayerError(f"layer {MODEL_LAYER!r}: {text}"))
        sums = [torch.stack(self._sums[split]).sum(0) for split in there]
        found = fetched(*sums, *(part for split in there for part in self._of_rows(split)))
        totals, own = self._totals(found[: len(there)]), iter(found[len(there) :])
        for split, total, rows, weights in zip(there, totals, own, own, strict=True):
            if math.isnan(total):
                text = (
                    f"NaN or Inf in the model's outputs for {self._name!r} on the {split} rows; the weights have "
                    "diverged or overflow"
                )
                self.lost.setdefault(name, NonFiniteError(f"layer {MODEL_LAYER!r}: {text}"))
                continue
            scores += self._scores(split, total, rows, weights)
        return scores

    @abstractmethod
    def _totals(self, sums: list[Tensor]) -> list[float]:
        """What is lost in each split, of its sums [k]; NaN where outputs are none."""

    def _of_rows(self, split: str) -> tuple[Tensor, Tensor]:
        """What there is of each row, [n], and what they count, [n] or nothing."""
        rows = torch.cat(self._rows[split])
        return rows, rows.new_empty(0)

    @abstractmethod
    def _scores(self, split: str, total: float, rows: Tensor, weights: Tensor) -> list[Score]:
        """Of one split."""


class OwnClasses(OwnOutputs):
    """Cross-entropy ``loss`` and ``accuracy`` of logits, or of probabilities.

    Args:
        expected: labels. classes: how many. balanced: ``balanced_accuracy`` instead: all classes that a split has count
            alike. others: as for :class:`OwnOutputs`.
    """

    _at_once = 1 << 26

    def __init__(
        self, name: str, place: OwnPlace, expected: Mapping[str, Tensor], classes: int, balanced: bool = False
    ) -> None:
        super().__init__(name, place, expected)
        self._classes, self._balanced = classes, balanced

    def _errors(self, outputs: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of the losses of logits and of probabilities; whether the outputs are none of the latter; of single
        logits, how many are beyond 0 and 1, and their loss if they are probabilities.
        """
        rounding = torch.finfo(outputs.dtype)
        outputs = outputs if outputs.element_size() > 2 else outputs.float()
        least = rounding.tiny * rounding.eps  # what is less was rounded to 0
        doubt = outputs.new_zeros(2, dtype=torch.float64)
        if outputs.shape[1] < self._classes:
            beyond = (~((outputs >= 0) & (outputs <= 1))).sum()
            of_share = _both(outputs, True).gather(1, expected[:, None]).double().clamp(min=least).log().sum()
            doubt = torch.stack([beyond.double(), -of_share])
            outputs = _both(outputs, self.place.share)
        top, guess = outputs.max(1)  # NaN where there is any
        share = outputs.gather(1, expected[:, None])[:, 0].double()
        # All in float64 would take longer than the model.
        totals = (outputs - top[:, None]).float().exp_().sum(1).double()
        of_logits = totals.log() + (top.double() - share)
        of_shares = torch.where(top.isnan(), math.nan, -share.clamp(min=least).log())
        some = outputs[:_SHOWING]
        sums_up = (some.sum(1) - 1).abs() < _ROUNDING + rounding.eps
        shares = (((some >= 0).all(1) & sums_up) | some.isnan().any(1)).all()
        sums = torch.stack([of_logits.sum(), of_shares.sum(), (~shares).double()])
        return torch.cat([sums, doubt]), (guess == expected) & ~top.isnan()

    def _totals(self, sums: list[Tensor]) -> list[float]:
        of_shares = all(not bool(own[2]) for own in sums)
        single = self._dim < self._classes and not self.place.share and not any(bool(own[3]) for own in sums)
        if single and any(float(own[4]) < float(own[0]) for own in sums):
            self.doubt = (
                f"the model's output for {self._name!r} is one number, here between 0 and 1, which is taken for a "
                "logit, as it is not seen to come from a sigmoid: if it is a probability, wrap the model to give "
                "[1 - p, p]"
            )
        return [float(own[int(of_shares)]) for own in sums]

    def _of_rows(self, split: str) -> tuple[Tensor, Tensor]:
        hits, weights = super()._of_rows(split)
        if not self._balanced:
            return hits, weights
        weights = balanced_weights(self._expected[split].to(hits.device), self._classes)
        return hits * weights, weights

    def _scores(self, split: str, total: float, rows: Tensor, weights: Tensor) -> list[Score]:
        samples = rows.float() if split == "heldout" else None
        units = weights.float() if self._balanced and samples is not None else None
        same, accuracy = (MODEL_LAYER, self._dim, self._name, split), accuracy_by(self._balanced)
        return [
            Score(*same, LOSS, total / len(rows), len(rows)),
            Score(*same, accuracy, float(rows.mean()), len(rows), samples=samples, weights=units),
        ]


def _both(single: Tensor, share: bool) -> Tensor:
    """The outputs [b, 2] for two classes of the logits [b, 1] of the second, or of its probabilities."""
    return torch.cat([1 - single if share else torch.zeros_like(single), single], 1)


class OwnNumbers(OwnOutputs):
    """``mse`` and ``fvu`` of predicted numbers, such as reconstructions of the input.

    Args:
        expected: the target's values as they were given. wholes: by split, ``TargetMatrix.wholes``.
        others: as for :class:`OwnOutputs`.
    """

    _at_once = 1 << 22  # of two in float64

    def __init__(
        self,
        name: str,
        place: OwnPlace,
        expected: Mapping[str, Tensor],
        wholes: Mapping[str, Mapping[str, float]],
    ) -> None:
        super().__init__(name, place, expected)
        self._wholes = wholes

    def _errors(self, outputs: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
        rows = (outputs.double().flatten(1) - expected.reshape(len(expected), -1)).square_().sum(1)
        return rows.sum()[None], rows

    def _totals(self, sums: list[Tensor]) -> list[float]:
        return [total if math.isfinite(total) else math.nan for total in map(float, sums)]

    def _scores(self, split: str, total: float, rows: Tensor, weights: Tensor) -> list[Score]:
        whole = self._wholes[split]
        same = MODEL_LAYER, self._dim, self._name, split
        samples = (rows * (len(rows) / whole[FVU])).float() if split == "heldout" else None
        return [
            Score(*same, MSE, total / whole[MSE], len(rows)),
            Score(*same, FVU, total / whole[FVU], len(rows), samples=samples),
        ]
