"""The model's own errors, from outputs taken batch by batch: all of them together may be large."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..common.fetching import fetched
from ..data.target_matrix import balanced_weights
from ..errors import NonFiniteError, PhasefastError
from ..metrics import FVU, LOSS, MSE, accuracy_by
from ..results.scores import MODEL_LAYER
from ..types import Score

_SHOWING, _ROUNDING = 64, 1e-4  # rows of a batch that show whether they are probabilities, whose sums may be off
Expected = tuple[Tensor | None, Tensor | None]


class OwnOutputs:
    """Scores of the model's own outputs for a target, layer ``"model"``.

    Args:
        name: of the target. shape: of an output, without samples.
        expected: by split, what outputs of samples and of tokens that are rows should be, [n, ...] each; or None.
        sizes: by split, how many samples and rows there are.

    Attributes:
        numbers: whether outputs are numbers like the target's, of any shape, or rows of one for each class.
        lost: why there are no scores, if the outputs are not numbers.
    """

    numbers: ClassVar[bool]
    _at_once: ClassVar[int]  # numbers, of which copies are made
    _no_rows: ClassVar[str]  # why there are no scores, if no outputs are rows

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        expected: Mapping[str, Expected],
        sizes: Mapping[str, tuple[int, int]],
    ) -> None:
        self.lost = dict[str, PhasefastError]()
        self._name, self._shape, self._expected, self._sizes = name, shape, expected, sizes
        self._found: dict[str, list[tuple[bool, int, tuple[int, ...]]]] = {split: [] for split in expected}
        self._sums: dict[str, list[Tensor]] = {split: [] for split in expected}
        self._rows: dict[str, list[Tensor]] = {split: [] for split in expected}

    def add(self, split: str, of_tokens: bool, start: int, outputs: Tensor) -> None:
        """Outputs [b, ...] of the samples, or [b, c] of the tokens, from ``start`` on."""
        shape = tuple(outputs.shape[1:])
        self._found[split].append((of_tokens, len(outputs), shape))
        expected = self._expected[split][of_tokens]
        if expected is None or not self.fits(of_tokens, shape):
            return
        for part in outputs.split(max(self._at_once // max(outputs[0].numel(), 1), 1)):
            sums, rows = self._errors(part, expected[start : start + len(part)].to(part.device))
            self._sums[split].append(sums)
            self._rows[split].append(rows)
            start += len(part)

    def fits(self, of_tokens: bool, shape: Sequence[int], exact: bool = False) -> bool:
        """Whether outputs [b, *shape] are of those expected; ``exact``: not if one is flat."""
        known = any(own[of_tokens] is not None for own in self._expected.values())
        return known and self._is_like(tuple(shape), exact)

    def _is_like(self, shape: tuple[int, ...], exact: bool) -> bool:
        """Whether a shape is what is expected."""
        return shape == self._shape

    def _errors(self, outputs: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
        """Sums [k] over some outputs, and what there is of each, [b]."""
        raise NotImplementedError

    def scores(self) -> list[Score]:
        """None of splits without outputs for each sample or row, or of which nothing is expected, and none of NaN."""
        scores = []
        there = [split for split, sums in self._sums.items() if self._kind is not None and sums]
        sums = [torch.stack(self._sums[split]).sum(0) for split in there]
        found = fetched(*sums, *(part for split in there for part in self._of_rows(split)))
        totals, own = self._totals(found[: len(there)]), iter(found[len(there) :])
        for split, total, rows, weights in zip(there, totals, own, own, strict=True):
            if math.isnan(total):
                text = f"NaN or Inf in the model's outputs on the {split} rows; the weights have diverged or overflow"
                self.lost.setdefault(MODEL_LAYER, NonFiniteError(f"layer {MODEL_LAYER!r}: {text}"))
                continue
            scores += self._scores(split, total, rows, weights)
        return scores

    def _totals(self, sums: list[Tensor]) -> list[float]:
        """What is lost in each split, of its sums [k]; NaN where outputs are none."""
        raise NotImplementedError

    def _of_rows(self, split: str) -> tuple[Tensor, Tensor]:
        """What there is of each row, [n], and what they count, [n] or nothing."""
        rows = torch.cat(self._rows[split])
        return rows, rows.new_empty(0)

    def _scores(self, split: str, total: float, rows: Tensor, weights: Tensor) -> list[Score]:
        raise NotImplementedError

    @property
    def problem(self) -> str:
        """Why there are no scores, if the model's outputs are the reason; else empty."""
        none = f"no rows of layer {MODEL_LAYER!r}"
        if self._kind is None:
            return f"{none}: {self._no_rows}"
        of_tokens, shape = self._kind
        if any(expected[of_tokens] is None for expected in self._expected.values()):
            return f"{none}: the model's output is for samples, but target {self._name!r} for their tokens"
        return "" if self.fits(of_tokens, shape) else f"{none}: {self._misfit(shape, of_tokens)}"

    def _misfit(self, shape: tuple[int, ...], of_tokens: bool) -> str:
        """Why outputs of a shape are not those expected."""
        raise NotImplementedError

    @property
    def _kind(self) -> tuple[bool, tuple[int, ...]] | None:
        """Whether outputs are of tokens, and their shape, if there are some for all samples, or rows, and all alike.

        Such as [b, b] are none of classes.
        """
        kinds = {(of_tokens, shape) for found in self._found.values() for of_tokens, _, shape in found}
        if len(kinds) != 1:
            return None
        ((of_tokens, shape),) = kinds
        counts = {split: sum(rows for _, rows, _ in found) for split, found in self._found.items()}
        whole = all(counts[split] == sizes[of_tokens] for split, sizes in self._sizes.items())
        return (of_tokens, shape) if whole else None


class OwnClasses(OwnOutputs):
    """Cross-entropy ``loss`` and ``accuracy`` of logits, or of probabilities.

    Args:
        classes: how many. expected: labels. balanced: ``balanced_accuracy`` instead: all classes that a split has count
            alike. others: as for :class:`OwnOutputs`.
    """

    numbers, _at_once = False, 1 << 26
    _no_rows = (
        "the model's output, or the first of several, has no row of numbers, such as logits, for each sample or token; "
        "its own accuracy is not known; predicts='none' if it predicts no classes"
    )

    def __init__(
        self,
        name: str,
        classes: int,
        expected: Mapping[str, Expected],
        sizes: Mapping[str, tuple[int, int]],
        balanced: bool = False,
    ) -> None:
        super().__init__(name, (classes,), expected, sizes)
        self._classes, self._balanced = classes, balanced

    def add(self, split: str, of_tokens: bool, start: int, outputs: Tensor) -> None:
        """Outputs [b, c]; those of other shapes are no logits."""
        if outputs.dim() == 2:
            super().add(split, of_tokens, start, outputs)

    def _errors(self, outputs: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of the losses of logits and of probabilities, and whether the outputs are none of these."""
        rounding = torch.finfo(outputs.dtype)
        outputs = outputs if outputs.element_size() > 1 else outputs.float()  # few ops take these
        share = outputs.gather(1, expected[:, None])[:, 0].double()  # float32 has none as small as float64's
        outputs = outputs.float()
        top, guess = outputs.max(1)  # NaN where there is any
        # In float64 wide outputs would take longer than the model.
        totals = (outputs - top[:, None]).exp_().sum(1).double()
        of_logits = totals.log() + (top - outputs.gather(1, expected[:, None])[:, 0]).double()
        least = rounding.tiny * rounding.eps  # what is less was rounded to 0
        of_shares = torch.where(top.isnan(), math.nan, -share.clamp(min=least).log())
        some = outputs[:_SHOWING]
        sums_up = (some.sum(1) - 1).abs() < _ROUNDING + rounding.eps
        shares = (((some >= 0).all(1) & sums_up) | some.isnan().any(1)).all()
        sums = torch.stack([of_logits.sum(), of_shares.sum(), (~shares).double()])
        return sums, (guess == expected) & ~top.isnan()

    def _totals(self, sums: list[Tensor]) -> list[float]:
        of_shares = all(not bool(own[2]) for own in sums)
        return [float(own[int(of_shares)]) for own in sums]

    def _of_rows(self, split: str) -> tuple[Tensor, Tensor]:
        hits, weights = super()._of_rows(split)
        if not self._balanced:
            return hits, weights
        ((of_tokens, _, _), *_) = self._found[split]
        labels = self._expected[split][of_tokens]
        assert labels is not None
        weights = balanced_weights(labels.to(hits.device), self._classes)
        return hits * weights, weights

    def _scores(self, split: str, total: float, rows: Tensor, weights: Tensor) -> list[Score]:
        samples = rows.float() if split == "heldout" else None
        units = weights.float() if self._balanced and samples is not None else None
        same, accuracy = (MODEL_LAYER, self._classes, self._name, split), accuracy_by(self._balanced)
        return [
            Score(*same, LOSS, total / len(rows), len(rows)),
            Score(*same, accuracy, float(rows.mean()), len(rows), samples=samples, weights=units),
        ]

    def _misfit(self, shape: tuple[int, ...], of_tokens: bool) -> str:
        tops = {
            split: int(found.max())
            for split, labels in self._expected.items()
            if (found := labels[of_tokens]) is not None
        }
        to = " and ".join(f"{top} in {split}" for split, top in tops.items())
        up = f" (up to {to} samples)" if len(set(tops.values())) > 1 else ""
        outputs = f"{shape[0]} output{'s' * (shape[0] != 1)}"
        if shape == (1,) and self._classes == 2:
            mend = "if this is a logit z, or a probability p, wrap the model to give [0, z], or [1 - p, p]"
        else:
            mend = (
                "if it was trained on these labels, give them numbered as in training, from 0, or Label(classes), or "
                "num_classes= of values"
            )
        return (
            f"the model has {outputs}, but target {self._name!r} has {self._classes} classes{up}, as for an encoder; "
            f"{mend}; if not, predicts='none'"
        )


class OwnNumbers(OwnOutputs):
    """``mse`` and ``fvu`` of predicted numbers, such as reconstructions of the input.

    Args:
        expected: the target's values as they were given. wholes: by split, ``TargetMatrix.wholes``.
        others: as for :class:`OwnOutputs`.
    """

    numbers, _at_once = True, 1 << 22  # of two in float64
    _no_rows = "the model's output has no numbers for each sample, or token; its own error is not known"

    def __init__(
        self,
        name: str,
        expected: Mapping[str, Expected],
        sizes: Mapping[str, tuple[int, int]],
        wholes: Mapping[str, Mapping[str, float]],
    ) -> None:
        one = next(own for own in expected["fit"] if own is not None)
        super().__init__(name, tuple(one.shape[1:]), expected, sizes)
        self._wholes = wholes

    def _is_like(self, shape: tuple[int, ...], exact: bool) -> bool:
        """Axes of length 1 aside, or, not exact, one is flat: [b, h, w, c] are not [b, c, h, w]."""
        own, given = ([side for side in sides if side != 1] for sides in (self._shape, shape))
        flat = not exact and min(len(own), len(given)) < 2
        return own == given or (flat and torch.Size(own).numel() == torch.Size(given).numel())

    def _errors(self, outputs: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
        rows = (outputs.double().flatten(1) - expected.reshape(len(expected), -1)).square_().sum(1)
        return rows.sum()[None], rows

    def _totals(self, sums: list[Tensor]) -> list[float]:
        return [total if math.isfinite(total) else math.nan for total in map(float, sums)]

    def _scores(self, split: str, total: float, rows: Tensor, weights: Tensor) -> list[Score]:
        whole = self._wholes[split]
        same = MODEL_LAYER, torch.Size(self._shape).numel(), self._name, split
        samples = (rows * (len(rows) / whole[FVU])).float() if split == "heldout" else None
        return [
            Score(*same, MSE, total / whole[MSE], len(rows)),
            Score(*same, FVU, total / whole[FVU], len(rows), samples=samples),
        ]

    def _misfit(self, shape: tuple[int, ...], of_tokens: bool) -> str:
        of, given, own = "token" if of_tokens else "sample", list(shape), list(self._shape) or [1]
        return f"the model gives {given} numbers for each {of}, but target {self._name!r} has {own}"
