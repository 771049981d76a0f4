"""What can be decoded from the activations: the input, the label, values of each sample, any function of the input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from ..common.notices import warn
from ..common.scalars import is_integer
from ..errors import ArgumentError, DataError
from ..types import TargetKind
from .samples import as_numbers, instead_of_a_pair

_CHUNK = 1024
_MOST_CLASSES = 1_000_000  # vocabularies have a quarter of that
_MOST_COLUMNS = 20_000  # integers may be numbers
_WHOLE = 256  # classes of which each has a column, whether a row is of it or not
_EACH = "give tokens='each', inputs [n, t, ...] and one integer for each token"
_LACKING = (
    "number classes from 0, and leave samples without one out of the probe set; only labels of tokens may be -100"
)
Split = tuple[Tensor, Tensor | None]


@runtime_checkable
class Target(Protocol):
    """Anything with a name, a kind and columns for the two splits."""

    @property
    def name(self) -> str:
        """Name in the scores, unique in a run."""

    @property
    def kind(self) -> TargetKind:
        """Regression, or classes as one-hot columns scored by accuracy."""

    def columns(self, fit: Split, heldout: Split) -> tuple[Tensor, Tensor]:
        """Target columns [n, p] and [m, p] for (inputs, labels) of the fit and the held-out split.

        With ``tokens="each"`` columns [n, t, p] and [m, t, p] belong to the tokens.
        """


class OwnTarget:
    """What the package's targets have in common: the columns are ``encoded`` from what is ``given`` of each sample."""

    name: str
    kind: TargetKind

    def columns(self, fit: Split, heldout: Split) -> tuple[Tensor, Tensor]:
        """Columns [n, p] and [m, p]; DataError for what cannot be decoded."""
        return self.encoded(*self.given(fit, heldout))

    def given(self, fit: Split, heldout: Split) -> tuple[Tensor, Tensor]:
        """The values for both splits, [n, ...] and [m, ...], or for tokens [n, t, ...]; DataError if there are none."""
        raise NotImplementedError

    def encoded(self, values: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """Columns of given values: numbers float32, or one-hot; DataError for those of the wrong shape or kind."""
        raise NotImplementedError


@dataclass(frozen=True)
class Input(OwnTarget):
    """The network's own input, flattened: its error is the reconstruction loss (arXiv 2312.06887, section 3)."""

    name: str = "input"
    kind: TargetKind = field(default="regression", init=False)

    def given(self, fit: Split, heldout: Split) -> tuple[Tensor, Tensor]:
        """The inputs; DataError if they are not floating-point."""
        if not fit[0].is_floating_point():
            mend = "give images as the floats that the model takes, such as x.float() / 255, or leave this target out"
            if fit[0].dim() == 2:
                mend = (
                    "leave this target out, and decode a phasefast.Function of ids, such as their one-hot columns, or "
                    "with tokens='each' phasefast.Function(lambda ids: ids, kind='classes', name='token')"
                )
            raise DataError(
                f"target {self.name!r}: expected floating-point inputs to reconstruct, got {fit[0].dtype}; {mend}"
            )
        return fit[0], heldout[0]

    def encoded(self, values: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """Flattened, float32."""
        return in_float32(values.reshape(len(values), -1), held.reshape(len(held), -1))


@dataclass(frozen=True)
class Label(OwnTarget):
    """The labels of the probe set, one-hot over ``num_classes`` columns, scored by accuracy."""

    num_classes: int
    name: str = "label"
    kind: TargetKind = field(default="classes", init=False)

    def __post_init__(self) -> None:
        if self.num_classes is None:
            raise ArgumentError("Label: expected the number of classes, got None")
        _check_kind(f"Label {self.name!r}", self.kind, self.num_classes)

    def given(self, fit: Split, heldout: Split) -> tuple[Tensor, Tensor]:
        """The labels; DataError if there are none."""
        if fit[1] is None or heldout[1] is None:
            raise DataError(f"target {self.name!r}: the probe set has no labels; give labels or leave this target out")
        return fit[1], heldout[1]

    def encoded(self, values: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """One-hot columns [n, k] and [m, k]; DataError if labels are out of range, or belong to tokens."""
        if values.dim() != 1:
            raise DataError(f"target {self.name!r}: labels {tuple(values.shape)} belong to tokens: {_EACH}")
        return _one_hot(self.name, values, held, self.num_classes)


@dataclass(frozen=True)
class Function(OwnTarget):
    """Any function of a batch of inputs, such as a transfer task; it is called without autocast, its
    matrix products without TF32.

    Args:
        fn: takes inputs [b, ...]; returns [b] or [b, q] numbers (``regression``) or [b] integers (``classes``). With
            ``tokens="each"`` and inputs [b, t, ...], results [b, t] or [b, t, q] belong to the tokens.
        kind: ``"regression"`` or ``"classes"``.
        name: name in the scores; the function's own by default.
        num_classes: for ``classes``; one more than the largest value by default.
    """

    fn: Callable[[Tensor], Tensor]
    kind: TargetKind = "regression"
    name: str = ""
    num_classes: int | None = None

    def __post_init__(self) -> None:
        _check_kind(f"Function {self.name or self.fn!r}", self.kind, self.num_classes)
        if not self.name:
            object.__setattr__(self, "name", getattr(self.fn, "__name__", "function").strip("<>"))

    def given(self, fit: Split, heldout: Split) -> tuple[Tensor, Tensor]:
        """Its values for both splits."""
        return self.values(fit[0]), self.values(heldout[0])

    def encoded(self, values: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """Values [n, q] and [m, q], or one-hot columns; DataError for values of the wrong shape or kind."""
        if self.kind == "regression" and not values.is_floating_point():
            warn(f"target {self.name!r}: integers are decoded as numbers; give kind='classes', or floats for numbers")
        return _columns(self, values, held)

    def values(self, inputs: Tensor) -> Tensor:
        """Its values [b, ...] for inputs [b, ...]; DataError if there is not one row for each input."""
        parts = []
        for batch in inputs.split(_CHUNK):
            try:
                given = self.fn(batch.clone())
            except Exception as error:
                error.add_note(f"raised by the function of target {self.name!r}, for inputs {tuple(batch.shape)}")
                if isinstance(error, TypeError) and "argument" in str(error):
                    error.add_note("it gets nothing but inputs: for what is made of labels see ProbeSet.with_values")
                raise
            value = as_numbers(f"target {self.name!r}", given)
            if value.dim() == 0 or len(value) != len(batch):
                raise DataError(
                    f"target {self.name!r}: expected one row for each of {len(batch)} inputs, got {tuple(value.shape)}"
                )
            parts.append(value)
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class Values(OwnTarget):
    """What a probe set holds of each sample beside input and label; see :meth:`phasefast.ProbeSet.target`.

    Args:
        fit: [n] or [n, q] numbers (``regression``) or [n] integers (``classes``), of tokens [n, t] or [n, t, q].
        heldout: likewise.
        of: the fit and held-out inputs whose rows they belong to.
        num_classes: for ``classes``; one more than the largest value by default.
    """

    name: str
    kind: TargetKind
    fit: Tensor = field(repr=False)
    heldout: Tensor = field(repr=False)
    of: tuple[Tensor, Tensor] = field(repr=False)
    num_classes: int | None = None

    def __post_init__(self) -> None:
        _check_kind(f"target {self.name!r}", self.kind, self.num_classes)

    def given(self, fit: Split, heldout: Split) -> tuple[Tensor, Tensor]:
        """The values; DataError for those of another probe set."""
        if not all(
            here is own or torch.equal(here, own.to(here.device))
            for here, own in zip((fit[0], heldout[0]), self.of, strict=True)
        ):
            raise DataError(f"target {self.name!r}: it belongs to another probe set; call target() of the one probed")
        return self.fit, self.heldout

    def encoded(self, values: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """Values [n, q] and [m, q], or one-hot columns."""
        return _columns(self, values, held)


def _check_kind(what: str, kind: str, num_classes: int | None) -> None:
    if kind not in get_args(TargetKind):
        raise ArgumentError(f"{what}: expected kind 'regression' or 'classes', got {kind!r}")
    if num_classes is not None and not is_integer(num_classes, 1):
        raise ArgumentError(f"{what}: expected num_classes to be a positive integer, got {num_classes!r}")


def own_columns(target: Target, fit: Split, heldout: Split, of_tokens: bool) -> tuple[Tensor, Tensor]:
    """The columns that a target of the user's own has, of any numbers, [n, p] and [m, p], or [n, t, p] of tokens.

    Raises:
        DataError: they are not of these shapes. ArgumentError: they are of no known kind.
    """
    _check_kind(f"target {target.name!r}", target.kind, None)
    both: Any = target.columns(fit, heldout)
    if got := instead_of_a_pair(both):
        raise DataError(f"target {target.name!r}: expected (columns of fit samples, of held-out samples), got {got}")
    found = []
    for name, own, (inputs, _) in zip(("fit", "held-out"), both, (fit, heldout), strict=True):
        columns = as_numbers(f"target {target.name!r}", own)
        of_each = of_tokens and columns.dim() == 3 and columns.shape[:2] == inputs.shape[:2]
        if not of_each and (columns.dim() != 2 or len(columns) != len(inputs)):
            axes = f"[{len(inputs)}, p]" + (f" or [{len(inputs)}, {inputs.shape[1]}, p]" if of_tokens else "")
            shape = tuple(columns.shape)
            raise DataError(f"target {target.name!r}: expected columns {axes} of the {name} samples, got {shape}")
        found.append(columns)
    return found[0], found[1]


def in_float32(values: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Values [n, q] and [m, q] in float32; wider types without their mean, beside which what varies would be lost."""
    wide = values.dtype == torch.float64 or not values.is_floating_point()
    if wide and values.shape[1:] == held.shape[1:]:
        mean = values.double().mean(0)
        values, held = values.double() - mean, held.double() - mean.to(held.device)
    return values.float(), held.float()


def _columns(target: Values | Function, values: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of values [n, ...] and [m, ...]: themselves, or one-hot."""
    values, held = (own.reshape(len(own), -1) for own in (values, held))
    if target.kind == "regression":
        return in_float32(values, held)
    for own in (values, held):
        if own.shape[1] != 1 or own.is_floating_point():
            shape = (len(own),) if own.shape[1] == 1 else tuple(own.shape)
            mend = f"; for several labels give a target of each; for classes of tokens: {_EACH}"
            mend = "" if own.is_floating_point() else mend
            raise DataError(f"target {target.name!r}: expected [b] integers for classes, got {own.dtype} {shape}{mend}")
    labels, held_labels = values[:, 0].long(), held[:, 0].long()
    low, high = min(int(labels.min()), int(held_labels.min())), max(int(labels.max()), int(held_labels.max()))
    count = target.num_classes or high + 1
    if target.num_classes is None and (low < 0 or count > _MOST_CLASSES):
        mend = f"; {_LACKING}" if low < 0 else ""
        raise DataError(
            f"target {target.name!r}: expected classes from 0 to {_MOST_CLASSES - 1} at most, got integers {low} to "
            f"{high}; for numbers give floats, or kind='regression'{mend}"
        )
    return _one_hot(target.name, labels, held_labels, count)


def _one_hot(name: str, labels: Tensor, held: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Columns [n, k] and [m, k]: of many classes only of those that rows have."""
    if count > _MOST_CLASSES:
        raise DataError(
            f"target {name!r}: expected {_MOST_CLASSES} classes at most, numbered from 0, got {count}; where numbers "
            "are names, labels.unique(return_inverse=True)[1] has the classes"
        )
    for own in (labels, held):
        low, high = int(own.min()), int(own.max())
        if low < 0 or high >= count:
            more = f"; give {high + 1} classes, or labels that begin with 0" if high == count else ""
            mend = f"; {_LACKING}" if low < 0 else more
            raise DataError(f"target {name!r}: expected labels from 0 to {count - 1}, got {low} to {high}{mend}")
    if count > _WHOLE and len(there := torch.cat([labels, held.to(labels.device)]).unique()) < count:
        if len(there) > _MOST_COLUMNS:
            raise DataError(
                f"target {name!r}: expected {_MOST_COLUMNS} classes among the samples at most, got {len(there)}; for "
                "numbers give floats, or kind='regression'"
            )
        labels, held, count = (
            torch.searchsorted(there, labels),
            torch.searchsorted(there.to(held.device), held),
            len(there),
        )
    columns, held_columns = (
        torch.zeros(len(own), count, dtype=torch.float32, device=own.device) for own in (labels, held)
    )
    return columns.scatter_(1, labels[:, None], 1), held_columns.scatter_(1, held[:, None], 1)
