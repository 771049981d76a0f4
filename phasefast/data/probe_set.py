"""The fixed samples on which every cell of a sweep is measured."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.files import save
from ..common.notices import warn
from ..common.random_state import random_state_kept
from ..errors import ArgumentError, DataError
from ..types import TargetKind
from .checking import check_pairs, check_split, checked_values, of_array
from .contents import hash_of, warn_of_copies, warn_of_scales
from .groups import Groups, numbered, taken
from .samples import as_numbers, draw, random_order
from .target_types import Values

Numbers = Tensor | np.ndarray | Sequence[Any]
_FEWEST = 10  # samples of each class on average, or else they may be numbers


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """Fit rows, on which decoders are solved, and held-out rows, on which they are scored.

    Make one with :meth:`from_tensors` or :meth:`from_dataset`: they put the fit rows into random order, so that
    contiguous ranges of them can serve as folds.

    Attributes:
        fit_inputs: [n, ...] as the model takes them, n >= 2. heldout_inputs: [m, ...], m >= 1.
        fit_labels: [n], heldout_labels: [m], int64, or None. With inputs [n, t] or [n, t, c] also [n, t], one for each
            token, for ``tokens="each"``, which leaves out tokens labelled -100.
        fit_values: other things to decode by name, [n] or [n, q] each, or of tokens [n, t, q]. heldout_values:
            likewise, of the same names.
        fit_rows: [n] which of the given samples these are, int64; None if that is not known. heldout_rows: [m]
            likewise. Per-sample scores are in this order, or in that of the groups' first samples.
        fit_groups: [n] int64, the same number for samples that belong together; None where each stands for itself.
            heldout_groups: [m] likewise. Samples of a group lie side by side in the fit split.

    Raises:
        DataError: too few rows, shapes or lengths that do not match, NaN or Inf, labels that are not integers.
    """

    fit_inputs: Tensor
    fit_labels: Tensor | None
    heldout_inputs: Tensor
    heldout_labels: Tensor | None
    fit_values: Mapping[str, Tensor] = field(default_factory=dict)
    heldout_values: Mapping[str, Tensor] = field(default_factory=dict)
    fit_rows: Tensor | None = None
    heldout_rows: Tensor | None = None
    fit_groups: Tensor | None = None
    heldout_groups: Tensor | None = None

    def __post_init__(self) -> None:
        for split, minimum in (("fit", 2), ("heldout", 1)):
            labels = check_split(split, getattr(self, f"{split}_inputs"), getattr(self, f"{split}_labels"), minimum)
            object.__setattr__(self, f"{split}_labels", labels)
        if self.fit_inputs.shape[1:] != self.heldout_inputs.shape[1:]:
            raise DataError(
                f"heldout_inputs: expected samples of shape {tuple(self.fit_inputs.shape[1:])} as in fit_inputs, "
                f"got {tuple(self.heldout_inputs.shape[1:])}"
            )
        if (self.fit_labels is None) != (self.heldout_labels is None):
            raise DataError("labels: expected them for both splits or for none, got them for one")
        shapes = [tuple(each.shape) for each in (self.fit_labels, self.heldout_labels) if each is not None]
        if len({len(shape) for shape in shapes}) > 1:
            raise DataError(f"labels: expected one per sample, or one per token, in both splits, got shapes {shapes}")
        if (self.fit_groups is None) != (self.heldout_groups is None):
            raise DataError("groups: expected them for both splits or for none, got them for one")
        if names := set(self.fit_values) ^ set(self.heldout_values):
            raise DataError(f"values: expected the same names for both splits, got {sorted(names)} in one of them only")
        if taken := {"input", "label"} & set(self.fit_values):
            raise DataError(f"values {sorted(taken)}: expected other names, since these mean the inputs and labels")
        for split in ("fit", "heldout"):
            given, rows = getattr(self, f"{split}_values"), len(getattr(self, f"{split}_inputs"))
            shape = getattr(self, f"{split}_inputs").shape
            object.__setattr__(
                self, f"{split}_values", {name: checked_values(split, name, of, shape) for name, of in given.items()}
            )
            for name in (f"{split}_rows", f"{split}_groups"):
                if (which := getattr(self, name)) is not None:
                    which = as_numbers(name, which)
                    if which.shape != (rows,) or which.is_floating_point() or which.dtype == torch.bool:
                        got = f"{which.dtype} {tuple(which.shape)}"
                        raise DataError(f"{name}: expected {rows} integers, one for each input, got {got}")
                    object.__setattr__(self, name, which.long().cpu())
        for name, own in self.fit_values.items():
            held = self.heldout_values[name]
            if own.shape[1:] != held.shape[1:] or own.is_floating_point() != held.is_floating_point():
                got = f"{own.dtype} {tuple(own.shape)} and {held.dtype} {tuple(held.shape)}"
                raise DataError(f"values {name!r}: expected the same columns and type in both splits, got {got}")

    @classmethod
    def from_tensors(
        cls,
        fit_inputs: Tensor | np.ndarray,
        fit_labels: Numbers | None,
        heldout_inputs: Tensor | np.ndarray,
        heldout_labels: Numbers | None,
        *,
        values: Mapping[str, tuple[Numbers, Numbers]] | None = None,
        groups: tuple[Numbers, Numbers] | str | None = None,
        seed: int = 0,
    ) -> ProbeSet:
        """A probe set from tensors; fit rows, with their labels and values, are shuffled by ``seed``.

        Warns if half of the held-out samples or more are fit samples too, or a tenth of the fit samples are copies, or
        if the numbers of the splits lie apart.

        Args:
            fit_inputs: [n, ...] as the model takes them, n >= 2. heldout_inputs: [m, ...], m >= 1.
            fit_labels: [n] integers, or [n, t] of tokens, or None. heldout_labels: likewise.
            values: more to decode, such as measurements or other labels: ``{name: (of fit, of held-out samples)}``,
                [n] and [m] or [n, q] and [m, q]; see :meth:`target`.
            groups: which samples belong together, such as those of one subject, or overlapping windows of one
                recording: integers or texts ([n], [m]), or the name of the values that hold them. Then a group counts
                as one sample in intervals, phases and :func:`phasefast.best_checkpoint`, and folds are of whole groups.

        Raises:
            DataError: too few rows, shapes or lengths that do not match, NaN or Inf, labels that are not integers.
        """
        values = dict(values) if isinstance(values, Mapping) else values
        of_groups = taken(values, groups) if isinstance(groups, str) else groups
        check_pairs(values)
        fit_inputs, heldout_inputs = of_array("fit", fit_inputs), of_array("heldout", heldout_inputs)
        fit_values, heldout_values = ({name: both[i] for name, both in (values or {}).items()} for i in (0, 1))
        parts: Any = (fit_inputs, fit_labels, heldout_inputs, heldout_labels, fit_values, heldout_values)
        given = cls(*parts)  # which makes tensors of them
        warn_of_copies(given.fit_inputs, given.heldout_inputs)
        of_both = () if of_groups is None else numbered(of_groups, (given.n_fit, given.n_heldout))
        warn_of_scales(given.fit_inputs, given.heldout_inputs, of_both)
        order = random_order(given.n_fit, seed)
        if of_both:
            order = Groups(of_both[0]).shuffled(order)
            of_both = of_both[0][order], of_both[1]
        order = order.to(given.fit_inputs.device)
        labels = None if given.fit_labels is None else given.fit_labels[order.to(given.fit_labels.device)]
        shuffled = {name: own[order.to(own.device)] for name, own in given.fit_values.items()}
        return cls(
            given.fit_inputs[order],
            labels,
            given.heldout_inputs.clone(),
            None if given.heldout_labels is None else given.heldout_labels.clone(),
            shuffled,
            {name: held.clone() for name, held in given.heldout_values.items()},
            order.cpu(),
            torch.arange(given.n_heldout, device="cpu"),
            *of_both,
        )

    @classmethod
    def from_dataset(
        cls,
        fit: Any,
        heldout: Any,
        *,
        n_fit: int | None = None,
        n_heldout: int | None = None,
        groups: str | None = None,
        seed: int = 0,
    ) -> ProbeSet:
        """A probe set of randomly chosen samples of two map-style datasets.

        They yield ``(input, label)``, the input alone, or ``(input, label, {name: value, ...})`` with more to decode,
        see :meth:`target`. A label may be None. Transforms should not be random: there is a warning; random states
        stay as they are.

        Args:
            fit: dataset with ``len`` and ``[i]``. heldout: likewise, disjoint from ``fit``.
            n_fit: how many samples of ``fit``; all by default. n_heldout: likewise.
            groups: the name of the values that say which samples belong together, as for :meth:`from_tensors`.

        Raises:
            DataError: fewer samples than asked for, or what ``from_tensors`` raises.
        """
        if not isinstance(groups, (str, NoneType)):
            raise DataError(f"groups: expected the name of values of the data sets, got {type(groups).__name__}")
        with random_state_kept(torch.device("cpu")):  # which data sets may draw from, as a training does
            inputs, labels, own, rows = draw("fit", fit, n_fit, seed, text=groups)
            held_inputs, held_labels, held, held_rows = draw("heldout", heldout, n_heldout, seed + 1, text=groups)
        if own.keys() != held.keys():
            raise DataError(f"values: expected the same names for both splits, got {sorted(own)} and {sorted(held)}")
        values = {name: (own[name], held[name]) for name in own}
        made = cls.from_tensors(inputs, labels, held_inputs, held_labels, values=values, groups=groups, seed=seed)
        # Not a copy, all of whose samples would be checked once more.
        object.__setattr__(made, "fit_rows", rows[made.fit_rows])
        object.__setattr__(made, "heldout_rows", held_rows)
        return made

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ProbeSet:
        """The probe set in a file of :meth:`save`, on the CPU, its content compared with the hash stored beside it.

        Raises:
            DataError: the file is missing, unreadable, damaged, or holds something else.
        """
        name, mend = os.fspath(path), "write it with ProbeSet.save"
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise DataError(f"{name}: cannot be read ({error.strerror or error}); {mend}") from error
        except Exception as error:  # a damaged file can raise anything
            kind = type(error).__name__
            raise DataError(
                f"{name}: expected a probe set, got a file that is truncated or of another kind ({kind}); {mend}"
            ) from error
        names = ["digest", *(each.name for each in fields(cls))]
        if not isinstance(found, dict) or found.keys() != set(names):
            got = sorted(map(str, found)) if isinstance(found, dict) else type(found).__name__
            raise DataError(f"{name}: expected a probe set with {names}, got {got}; {mend}")
        expected = found.pop("digest")
        try:
            loaded = cls(**found)
        except (TypeError, ValueError, RuntimeError) as error:  # ValueError: DataError is one
            raise DataError(f"{name}: {error}; {mend}") from error
        if loaded.digest != expected:
            raise DataError(
                f"{name}: expected samples of digest {expected}, got {loaded.digest}: damaged or changed; {mend}"
            )
        return loaded

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all samples to one file, whole or not at all, for jobs that need not decode and transform them again.

        Raises:
            StoreError: the file cannot be written.
        """
        content = {each.name: _compact(getattr(self, each.name)) for each in fields(self)}
        save({"digest": self.digest, **content}, path, "the probe set to", parents=True)

    def with_values(self, values: Mapping[str, tuple[Numbers, Numbers]]) -> ProbeSet:
        """The same samples with more to decode, such as another task: scores of these samples may be added to.

        Args:
            values: ``{name: (of fit, of held-out samples)}`` in the order of ``fit_inputs`` and ``heldout_inputs``, as
                what is made of ``fit_labels`` and ``heldout_labels`` is. They replace those of the same names.

        Raises:
            DataError: shapes or lengths that do not match, NaN or Inf.
        """
        check_pairs(values)
        fit, heldout = ({name: both[i] for name, both in values.items()} for i in (0, 1))
        of_both: Any = {**self.fit_values, **fit}, {**self.heldout_values, **heldout}
        return replace(self, fit_values=of_both[0], heldout_values=of_both[1])

    def target(
        self, name: str, kind: TargetKind | None = None, num_classes: int | None = None, each: bool = False
    ) -> Values:
        """One of the ``values`` as a target: ``targets=[pf.Input(), probe_set.target("age")]``.

        Args:
            kind: ``"classes"``, the default for integers [n], or ``"regression"``, the default for other numbers.
            num_classes: for ``classes``; one more than the largest value by default.
            each: for ``tokens="each"``: integers [n, t] are classes by default, as they are for targets given by name.

        Raises:
            ArgumentError: there are no such values.
        """
        if name not in self.fit_values:
            mend = "; labels are classes: give numbers as values=" if name == "label" else ""
            known = sorted(self.fit_values)
            raise ArgumentError(f"target {name!r}: expected one of the probe set's values, {known}{mend}")
        own, held = self.fit_values[name], self.heldout_values[name]
        of_tokens = each and own.shape == self.fit_inputs.shape[:2]
        numbers = own.is_floating_point() or (own.dim() > 1 and not of_tokens)
        if kind is None and not numbers and own.numel() < _FEWEST * (count := len(own.unique())):
            units = "tokens" if of_tokens else "samples"
            warn(
                f"target {name!r}: {count} different integers in {own.numel()} fit {units} are decoded as classes; for "
                "numbers give floats, or kind='regression'"
            )
        if kind is None and numbers and not own.is_floating_point():
            shape = ", ".join(map(str, own.shape[1:]))
            warn(
                f"target {name!r}: integers [n, {shape}] are decoded as numbers; for classes give each column as "
                "values [n] of its own, or for tokens kind='classes'; for numbers give floats, or kind='regression'"
            )
        kind = kind or ("regression" if numbers else "classes")
        return Values(name, kind, own, held, (self.fit_inputs, self.heldout_inputs), num_classes)

    @property
    def splits(self) -> dict[str, tuple[Tensor, Tensor | None, Tensor | None]]:
        """By name, inputs, labels and rows of both splits."""
        return {
            "fit": (self.fit_inputs, self.fit_labels, self.fit_rows),
            "heldout": (self.heldout_inputs, self.heldout_labels, self.heldout_rows),
        }

    @property
    def n_fit(self) -> int:
        """Number of fit rows."""
        return len(self.fit_inputs)

    @property
    def n_heldout(self) -> int:
        """Number of held-out rows."""
        return len(self.heldout_inputs)

    @cached_property
    def digest(self) -> str:
        """Content hash of all inputs, labels, values and groups, in hexadecimal."""
        digest = hash_of(self.fit_inputs, self.fit_labels, self.heldout_inputs, self.heldout_labels)
        for split in (self.fit_values, self.heldout_values):
            for name, tensor in sorted(split.items()):
                digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().data)
        if self.groups is not None:
            digest.update("".join(own.digest for own in self.groups.values()).encode())
        return digest.hexdigest()

    @cached_property
    def groups(self) -> dict[str, Groups] | None:
        """By split, which samples belong together; None if each stands for itself."""
        if self.fit_groups is None or self.heldout_groups is None:
            return None
        return {"fit": Groups(self.fit_groups), "heldout": Groups(self.heldout_groups)}

    @property
    def mixed(self) -> Tensor | None:
        """An order [n] of the fit rows that mixes groups, as they would stand without them; None without groups."""
        if self.groups is None:
            return None
        order = random_order(self.n_fit, 0)
        return order if self.fit_rows is None else self.fit_rows.argsort()[order]

    @cached_property
    def inputs_digest(self) -> str:
        """Content hash of the inputs alone, in hexadecimal."""
        return hash_of(self.fit_inputs, self.heldout_inputs).hexdigest()

    @property
    def classes(self) -> int:
        """One more than the largest label; 0 without labels."""
        labels = [each for each in (self.fit_labels, self.heldout_labels) if each is not None]
        return max((int(each.max()) + 1 for each in labels), default=0)

    def __repr__(self) -> str:
        shape, labels = tuple(self.fit_inputs.shape[1:]), "with" if self.fit_labels is not None else "without"
        values = f", values {sorted(self.fit_values)}" if self.fit_values else ""
        if self.groups is not None:
            values += f", in {' and '.join(str(len(own.counts)) for own in self.groups.values())} groups"
        return (
            f"ProbeSet(n_fit={self.n_fit}, n_heldout={self.n_heldout}, sample shape {shape}, {labels} labels{values})"
        )


def _compact(given: Any) -> Any:
    """On the CPU, without the rest of a larger tensor that it is a part of."""
    if not isinstance(given, Tensor):
        return given if given is None else {name: _compact(each) for name, each in given.items()}
    tensor = given.detach().cpu()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
