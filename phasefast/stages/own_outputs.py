"""The model's own loss and accuracy, from outputs taken batch by batch: all of them together may be large."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..common.fetching import fetched
from ..errors import NonFiniteError, PhasefastError
from ..metrics import LOSS, accuracy_by
from ..results.scores import MODEL_LAYER
from ..types import Score, balanced_weights

_AT_ONCE = 1 << 26  # logits, of which a copy is made
Labels = tuple[Tensor | None, Tensor | None]


class OwnOutputs:
    """Cross-entropy ``loss`` and ``accuracy`` of the model's own outputs for a label, layer ``"model"``.

    Args:
        name: of the label target. classes: its number of them.
        labels: by split, of samples and of tokens that are rows, [n] each; None where there are none of these.
        sizes: by split, how many samples and rows there are.
        balanced: ``balanced_accuracy`` instead: all classes that a split has count alike.

    Attributes:
        lost: why there are no scores, if the outputs are not numbers.
    """

    def __init__(
        self,
        name: str,
        classes: int,
        labels: Mapping[str, Labels],
        sizes: Mapping[str, tuple[int, int]],
        balanced: bool = False,
    ) -> None:
        self._balanced, self.lost = balanced, dict[str, PhasefastError]()
        self._name, self._classes, self._labels, self._sizes = name, classes, labels, sizes
        self._found: dict[str, list[tuple[bool, int, int]]] = {split: [] for split in labels}  # of tokens, rows, width
        self._losses: dict[str, list[Tensor]] = {split: [] for split in labels}
        self._hits: dict[str, list[Tensor]] = {split: [] for split in labels}

    def add(self, split: str, of_tokens: bool, start: int, logits: Tensor) -> None:
        """Outputs [b, c] of the samples, or of the tokens, from ``start`` on."""
        self._found[split].append((of_tokens, *logits.shape))
        labels = self._labels[split][of_tokens]
        if labels is None or logits.shape[1] != self._classes:
            return
        for part in logits.split(max(_AT_ONCE // logits.shape[1], 1)):
            expected = labels[start : start + len(part)].to(part.device)
            top, guess = part.max(1)  # NaN where there is any
            # In float64 wide outputs would take longer than the model.
            totals = (part - top[:, None]).exp_().sum(1).double()
            below = (top - part.gather(1, expected[:, None])[:, 0]).double()
            self._losses[split].append((totals.log() + below).sum())
            self._hits[split].append((guess == expected) & ~top.isnan())
            start += len(part)

    def scores(self) -> list[Score]:
        """None of splits without outputs for each sample or row, or without labels, and none of NaN or Inf."""
        scores = []
        there = [split for split, losses in self._losses.items() if self._kind is not None and losses]
        own = iter(fetched(*(part for split in there for part in self._sums(split))))
        for split, loss, hits, weights in zip(there, own, own, own, strict=True):
            if loss.isnan():
                text = f"NaN or Inf in the model's outputs on the {split} rows; the weights have diverged or overflow"
                self.lost.setdefault(MODEL_LAYER, NonFiniteError(f"layer {MODEL_LAYER!r}: {text}"))
                continue
            rows, samples = len(hits), hits.float() if split == "heldout" else None
            same = MODEL_LAYER, self._classes, self._name, split
            units = weights.float() if self._balanced and samples is not None else None
            scores.append(Score(*same, LOSS, float(loss) / rows, rows))
            accuracy = accuracy_by(self._balanced)
            scores.append(Score(*same, accuracy, float(hits.mean()), rows, samples=samples, weights=units))
        return scores

    def _sums(self, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """The sum of all losses, what each row is right about, [n], and counts, [n] or nothing."""
        hits = torch.cat(self._hits[split])
        weights = hits.new_empty(0)
        if self._balanced:
            ((of_tokens, _, _), *_) = self._found[split]
            labels = self._labels[split][of_tokens]
            assert labels is not None
            weights = balanced_weights(labels.to(hits.device), self._classes)
            hits = hits * weights
        return torch.stack(self._losses[split]).sum(), hits, weights

    @property
    def problem(self) -> str:
        """Why there are no scores, if the model's outputs are the reason; else empty."""
        if self._kind is None:
            return (
                f"no rows of layer {MODEL_LAYER!r}: the model's output has no row of numbers, such as logits, for each "
                "sample or token; its own accuracy is not known"
            )
        of_tokens, width = self._kind
        if any(labels[of_tokens] is None for labels in self._labels.values()):
            return (
                f"no rows of layer {MODEL_LAYER!r}: the model's output is for samples, but target {self._name!r} for "
                "their tokens"
            )
        if width == self._classes:
            return ""
        tops = {
            split: int(found.max())
            for split, labels in self._labels.items()
            if (found := labels[of_tokens]) is not None
        }
        to = " and ".join(f"{top} in {split}" for split, top in tops.items())
        up = f" (up to {to} samples)" if len(set(tops.values())) > 1 else ""
        return (
            f"no rows of layer {MODEL_LAYER!r}: the model has {width} outputs, but target {self._name!r} has "
            f"{self._classes} classes{up}, as for an encoder; if it was trained on these labels, give them numbered as "
            "in training, from 0, or Label(classes)"
        )

    @property
    def _kind(self) -> tuple[bool, int] | None:
        """Whether outputs are of tokens, and their width, if there are some for all samples, or rows, and all as wide.

        Such as [b, b] are none of classes.
        """
        kinds = {(of_tokens, width) for found in self._found.values() for of_tokens, _, width in found}
        if len(kinds) != 1:
            return None
        ((of_tokens, width),) = kinds
        counts = {split: sum(rows for _, rows, _ in found) for split, found in self._found.items()}
        return (
            (of_tokens, width)
            if all(counts[split] == sizes[of_tokens] for split, sizes in self._sizes.items())
            else None
        )
