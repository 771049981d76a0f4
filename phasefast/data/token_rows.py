"""Sequences whose tokens are rows of their own: which, and to which sequence they belong."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import DataError, LayerError
from .axes import OF_MAPS, Axes, is_of_features, last_part, runs_as_in_torch
from .groups import Groups
from .sequences import real_tokens

if TYPE_CHECKING:
    from .probe_set import ProbeSet

OWN_TOKENS = 16  # tokens that a model adds: of its class, registers
IGNORED = -100  # the label of tokens that do not count, as torch.nn.functional.cross_entropy has it


@dataclass(frozen=True)
class TokensOfBatch:
    """Those of a batch of sequences of ``length`` positions: ``places`` [r] among all of them; None for all."""

    length: int
    places: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The rows of n sequences, one after the other.

    Attributes:
        real: which positions are rows, bool [n, t] on the CPU.
    """

    real: Tensor

    @classmethod
    def of(
        cls, split: str, inputs: Tensor, labels: Tensor | None, padding: float | None, rows: Tensor | None = None
    ) -> TokenRows:
        """All tokens of inputs [n, t] or [n, t, c] but padding, and such as have labels [n, t] of -100.

        Args:
            rows: [n] which of the user's samples these are, where that is known.

        Raises:
            DataError: inputs of another shape, or a sequence without any row.
        """
        if inputs.dim() not in (2, 3):
            got = f"{tuple(inputs.shape)}{'; cut images into patches: docs/sequences.md' if inputs.dim() > 3 else ''}"
            raise DataError(f"{split}_inputs: expected sequences [n, t] or [n, t, c] for tokens='each', got {got}")
        real = torch.ones(inputs.shape[:2], dtype=torch.bool, device="cpu")
        if padding is not None:
            real &= real_tokens(inputs, padding).cpu()
        if labels is not None and labels.dim() == 2:
            real &= labels.cpu() != IGNORED
        if len(empty := (~real.any(1)).nonzero()[:, 0]):
            first = int(empty[0] if rows is None else rows[empty].min())
            raise DataError(
                f"{split}_inputs: expected a token in each sequence that is not padding and has a label other than "
                f"{IGNORED}, got none in {len(empty)} sequences, first in row {first}; leave them out"
            )
        return cls(real)

    def __len__(self) -> int:
        return self.edges[-1]

    @cached_property
    def edges(self) -> list[int]:
        """Where the rows of each sequence begin, and the last one's end: n + 1 numbers."""
        return [0, *self.real.sum(1).cumsum(0).tolist()]

    @cached_property
    def digest(self) -> str:
        """Content hash in hexadecimal."""
        return hashlib.blake2b(self.real.numpy().tobytes(), digest_size=8).hexdigest()

    @cached_property
    def weights(self) -> Tensor | None:
        """How many rows each sequence has, over their mean, [n] float32; None where all have as many."""
        counts = self.real.sum(1).double()
        return None if bool((counts == counts[0]).all()) else (counts / counts.mean()).float()

    def tokens(self, start: int, stop: int, device: torch.device) -> TokensOfBatch:
        """The rows of some sequences; found once, as a GPU would wait for each copy."""
        if (known := self._tokens.get((start, stop, device))) is None:
            part = self.real[start:stop]
            places = None if bool(part.all()) else part.flatten().nonzero()[:, 0].to(device)
            known = self._tokens[start, stop, device] = TokensOfBatch(part.shape[1], places)
        return known

    @cached_property
    def _tokens(self) -> dict[tuple[int, int, torch.device], TokensOfBatch]:
        return {}

    def rows(self, values: Tensor) -> Tensor:
        """What each row has of values of tokens [n, t, ...], or of its sequence [n, ...]."""
        if values.shape[:2] == self.real.shape:
            return values[self.real.to(values.device)]
        return self.repeated(values)

    def repeated(self, values: Tensor) -> Tensor:
        """What each row has of values of its sequence [n, ...]."""
        return values.repeat_interleave(self.real.sum(1).to(values.device), 0)

    def rows_of(self, sequences: Sequence[int]) -> list[int]:
        """The rows of some sequences."""
        return [row for each in sequences for row in range(self.edges[each], self.edges[each + 1])]

    def by_sequence(self, samples: Tensor) -> Tensor:
        """Of each sequence [n], in the type of values [r] of rows: their sum over the mean count, of the same mean."""
        counts = self.real.sum(1)
        sums = torch.zeros(len(counts), dtype=torch.float64, device="cpu")
        sums.index_add_(0, torch.arange(len(counts), device="cpu").repeat_interleave(counts), samples.double())
        return (sums * (len(counts) / len(self))).to(samples.dtype)


def as_tokens(
    name: str, module: nn.Module, output: Tensor, tokens: TokensOfBatch, axes: Axes | None = None, own: bool = True
) -> Tensor:
    """The rows [r, f] of a module's output [b, t, ...], or [b, f, t] of convolutions and the like.

    So are those of maps [b, f, h, w] or [b, h, w, f] of t = h w places, and of [b, k + t, f], of which the first k are
    the model's own, such as a class token.

    Args:
        axes: of the model. own: whether there may be such.

    Raises:
        LayerError: there is no row of numbers for each position, or more than one way to read them.
    """
    shape, axes = tuple(output.shape), axes or Axes()
    if output.dim() == 3:
        output = output[:, own_tokens(module, output.shape, tokens.length, axes) * own :]
        output = output.mT if axes.positions_last(module, output.shape)[0] else output
    elif output.dim() == 4:
        output = _of_map(name, module, output, tokens.length, axes)
    if output.dim() < 3 or output.shape[1] != tokens.length:
        raise LayerError(
            f"layer {name!r}: expected an output for each of the {tokens.length} positions of the input, since "
            f"tokens='each' decodes them one by one, got shape {shape}; leave this layer out"
        )
    rows = output.flatten(2).flatten(0, 1)
    return rows if tokens.places is None else rows.index_select(0, tokens.places)


def own_tokens(module: nn.Module, shape: torch.Size, length: int, axes: Axes) -> int:
    """How many tokens more an output [b, t, f] has than there are positions: of the model's own, where they are few.

    None of [b, f, t], which padding may make longer.
    """
    more, last = shape[1] - length, shape[2]
    if not 0 < more <= OWN_TOKENS or axes.positions_last(module, shape)[0]:
        return 0
    return more if last != length or is_of_features(module) else 0  # else it may be [b, f, t]


def _of_map(name: str, module: nn.Module, output: Tensor, length: int, axes: Axes) -> Tensor:
    """The rows [b, t, f] of a map of so many places, or of [b, t, h, d]; the output as it is where it is none.

    Raises:
        LayerError: there is more than one way to read it, such as a map of fewer places with many features.
    """
    _, first, second, third = output.shape
    before, after = first * second == length, second * third == length
    module = last_part(module)
    if runs_as_in_torch(module):
        if isinstance(module, OF_MAPS):
            return output.flatten(2).mT if after else output[:, :0]
        if is_of_features(module):
            return output.flatten(1, 2) if before else output
    elif before and first != third and axes.features_last(module, output.shape):
        return output.flatten(1, 2)
    if first == length or (before and (after or first != second)):
        raise LayerError(
            f"layer {name!r}: it is unclear whether its output {tuple(output.shape)} is a map of the {length} "
            "positions; probe a convolution, Linear or LayerNorm in it, or leave it out"
        )
    return output.flatten(2).mT if after else output.flatten(1, 2) if before else output


@dataclass(frozen=True, eq=False)
class Units:
    """What rows are: samples, or their tokens; and which samples belong together.

    Attributes:
        tokens: by split, where they are tokens. groups: by split, where some samples belong together.
    """

    tokens: Mapping[str, TokenRows] | None = None
    groups: Mapping[str, Groups] | None = None

    @classmethod
    def made(cls, probe_set: ProbeSet, each: bool, padding: float | None) -> Units:
        """Of a probe set's samples, or of ``each`` of their tokens but padding; DataError as :meth:`TokenRows.of`."""
        tokens = {
            name: TokenRows.of(name, inputs, labels, padding, rows)
            for name, (inputs, labels, rows) in probe_set.splits.items()
            if each
        }
        return cls(tokens or None, probe_set.groups)

    @property
    def token_digest(self) -> str:
        """Of which tokens are rows; empty where samples are."""
        return "" if self.tokens is None else "-".join(own.digest for own in self.tokens.values())

    @property
    def group_digest(self) -> str:
        """Of which samples belong together; empty where none do."""
        return "" if self.groups is None else "-".join(own.digest for own in self.groups.values())

    def folds(self, samples: Sequence[int]) -> list[int]:
        """Offsets of rows, of those of fit samples, which may be moved to the ends of groups."""
        samples = list(samples) if self.groups is None else self.groups["fit"].folds(samples)
        return samples if self.tokens is None else [self.tokens["fit"].edges[each] for each in samples]

    def of(self, split: str, values: Tensor) -> Tensor:
        """What each row has of values of samples [n, ...] or of tokens [n, t, ...]."""
        return values if self.tokens is None else self.tokens[split].rows(values)

    def heldout(self, samples: Sequence[int]) -> list[int]:
        """The rows of held-out samples."""
        return list(samples) if self.tokens is None else self.tokens["heldout"].rows_of(samples)

    def whole(self, decoded: Tensor, samples: Sequence[int], inputs: Tensor) -> Tensor:
        """Held-out samples [s, ...] of their rows [r, p] as decoded; what is no row is as in ``inputs`` [m, ...]."""
        found = torch.stack([inputs[each].to(decoded.device, decoded.dtype) for each in samples])
        if self.tokens is None:
            return decoded.reshape(found.shape)
        found[self.tokens["heldout"].real[list(samples)]] = decoded.reshape(-1, *inputs.shape[2:])
        return found

    def labels(self, split: str, labels: Tensor | None, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """Those of samples, and of tokens that are rows, [n] each, on ``device``; None where there are none."""
        if labels is None:
            return None, None
        of_tokens = None if self.tokens is None else self.of(split, labels).to(device)
        return labels.to(device) if labels.dim() == 1 else None, of_tokens

    def by_sample(self, values: Tensor, constant: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Values [m] of held-out samples or groups, and of the best constant, of those of rows.

        Tokens of one sequence and samples of one group do not count by themselves, as they resemble each other. Where
        the constant's are not known they are how many rows each has, over the mean, if these are not all the same.
        """
        own = self.tokens and self.tokens["heldout"]
        if own and len(values) == len(own):
            values, constant = own.by_sequence(values), own.weights if constant is None else own.by_sequence(constant)
        if self.groups is not None:
            groups = self.groups["heldout"]
            values, constant = groups.sums(values), groups.weights if constant is None else groups.sums(constant)
        return values, constant
