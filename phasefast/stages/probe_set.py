"""The fixed samples on which every cell of a sweep is measured."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sized
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, StoreError
from ..files import replacing


@dataclass(frozen=True)
class ProbeSet:
    """Fit rows, on which decoders are solved, and held-out rows, on which they are scored.

    Make one with :meth:`from_tensors` or :meth:`from_dataset`: they put the fit rows into random order, so that
    contiguous ranges of them can serve as folds.

    Attributes:
        fit_inputs: [n, ...] as the model takes them, n >= 2. heldout_inputs: [m, ...], m >= 1.
        fit_labels: [n], heldout_labels: [m], int64, or None.

    Raises:
        DataError: too few rows, shapes or lengths that do not match, NaN or Inf, labels that are not integers.
    """

    fit_inputs: Tensor
    fit_labels: Tensor | None
    heldout_inputs: Tensor
    heldout_labels: Tensor | None

    def __post_init__(self) -> None:
        for split, minimum in (("fit", 2), ("heldout", 1)):
            labels = _check_split(split, getattr(self, f"{split}_inputs"), getattr(self, f"{split}_labels"), minimum)
            object.__setattr__(self, f"{split}_labels", labels)
        if self.fit_inputs.shape[1:] != self.heldout_inputs.shape[1:]:
            raise DataError(
                f"heldout_inputs: expected samples of shape {tuple(self.fit_inputs.shape[1:])} as in fit_inputs, "
                f"got {tuple(self.heldout_inputs.shape[1:])}"
            )
        if (self.fit_labels is None) != (self.heldout_labels is None):
            raise DataError("labels: expected for both splits or for none, got them for one")

    @classmethod
    def from_tensors(
        cls,
        fit_inputs: Tensor,
        fit_labels: Tensor | None,
        heldout_inputs: Tensor,
        heldout_labels: Tensor | None,
        *,
        seed: int = 0,
    ) -> ProbeSet:
        """A probe set from tensors; fit rows are shuffled by ``seed``.

        Args:
            fit_inputs: [n, ...] as the model takes them, n >= 2. heldout_inputs: [m, ...], m >= 1.
            fit_labels: [n] integers or None. heldout_labels: [m] integers or None.

        Raises:
            DataError: too few rows, shapes or lengths that do not match, NaN or Inf, labels that are not integers.
        """
        given = cls(fit_inputs, fit_labels, heldout_inputs, heldout_labels)
        order = torch.randperm(given.n_fit, generator=torch.Generator().manual_seed(seed)).to(given.fit_inputs.device)
        labels = None if given.fit_labels is None else given.fit_labels[order.to(given.fit_labels.device)]
        return cls(given.fit_inputs[order], labels, given.heldout_inputs.clone(), given.heldout_labels)

    @classmethod
    def from_dataset(
        cls,
        fit: Any,
        heldout: Any,
        *,
        n_fit: int | None = None,
        n_heldout: int | None = None,
        seed: int = 0,
    ) -> ProbeSet:
        """A probe set of randomly chosen samples of two map-style datasets that yield ``(input, label)``.

        Args:
            fit: dataset with ``len`` and ``[i]``. heldout: likewise, disjoint from ``fit``.
            n_fit: how many samples of ``fit``; all by default. n_heldout: likewise.

        Raises:
            DataError: fewer samples than asked for, or what ``from_tensors`` raises.
        """
        inputs, labels = _draw("fit", fit, n_fit, seed)
        held_inputs, held_labels = _draw("heldout", heldout, n_heldout, seed + 1)
        return cls.from_tensors(inputs, labels, held_inputs, held_labels, seed=seed)

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
        names = [field.name for field in fields(cls)]
        if not isinstance(found, dict) or found.keys() != {"digest", *names}:
            got = sorted(map(str, found)) if isinstance(found, dict) else type(found).__name__
            raise DataError(f"{name}: expected a probe set with {['digest', *names]}, got {got}; {mend}")
        expected = found.pop("digest")
        try:
            loaded = cls(**found)
        except (TypeError, ValueError, RuntimeError) as error:  # ValueError: DataError is one
            raise DataError(f"{name}: {error}; {mend}") from error
        if loaded.digest != expected:
            raise DataError(
                f"{name}: expected samples of digest {expected}, found {loaded.digest}: damaged or changed; {mend}"
            )
        return loaded

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all samples to one file, whole or not at all, for jobs that need not decode and transform them again.

        Raises:
            StoreError: the file cannot be written.
        """
        path = Path(path)
        content = {field.name: _compact(getattr(self, field.name)) for field in fields(self)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                torch.save({"digest": self.digest, **content}, partial)
        except (OSError, RuntimeError) as error:  # torch.save raises either where the disk is full
            raise StoreError(f"cannot write the probe set to {path}: {error}; choose another file") from error

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
        """Content hash of all inputs and labels, in hexadecimal."""
        digest = hashlib.blake2b(digest_size=16)
        for tensor in (self.fit_inputs, self.fit_labels, self.heldout_inputs, self.heldout_labels):
            if tensor is not None:
                digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def classes(self) -> int:
        """One more than the largest label; 0 without labels."""
        labels = [each for each in (self.fit_labels, self.heldout_labels) if each is not None]
        return int(torch.cat(labels).max()) + 1 if labels else 0

    def __repr__(self) -> str:
        shape, labels = tuple(self.fit_inputs.shape[1:]), "with" if self.fit_labels is not None else "without"
        return f"ProbeSet(n_fit={self.n_fit}, n_heldout={self.n_heldout}, sample shape {shape}, {labels} labels)"


def _check_split(split: str, inputs: Tensor, labels: Tensor | None, minimum: int) -> Tensor | None:
    if not isinstance(inputs, Tensor) or inputs.dim() < 2:
        got = f"shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise DataError(f"{split}_inputs: expected a tensor [rows, ...] with at least 2 dimensions, got {got}")
    if len(inputs) < minimum or inputs.numel() == 0:
        raise DataError(f"{split}_inputs: expected at least {minimum} non-empty rows, got shape {tuple(inputs.shape)}")
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        row = int((~torch.isfinite(inputs.flatten(1))).any(1).nonzero()[0])
        raise DataError(f"{split}_inputs: expected finite values, got NaN or Inf, first in row {row}")
    if labels is None:
        return None
    labels = torch.as_tensor(labels)
    if labels.shape != (len(inputs),):
        raise DataError(f"{split}_labels: expected shape ({len(inputs)},) like the inputs, got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"{split}_labels: expected integers, got {labels.dtype}")
    return labels.long()


def _compact(tensor: Tensor | None) -> Tensor | None:
    """On the CPU, without the rest of a larger tensor that it is a part of."""
    if tensor is None:
        return None
    tensor = tensor.detach().cpu()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _draw(split: str, dataset: Sized, count: int | None, seed: int) -> tuple[Tensor, Tensor]:
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(f"{split}: expected a data set with len() and [i], got {type(dataset).__name__}")
    size = len(dataset)
    count = size if count is None else count
    if not 0 < count <= size:
        raise DataError(f"n_{split}: expected between 1 and the {size} samples of the dataset, got {count}")
    chosen = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count].tolist()
    samples = [dataset[i] for i in chosen]  # type: ignore[index]
    if not all(isinstance(sample, (tuple, list)) and len(sample) >= 2 for sample in samples):
        raise DataError(
            f"{split}: expected a dataset of (input, label) pairs, got items of {type(samples[0]).__name__}"
        )
    if not isinstance(samples[0][0], Tensor):
        kind = type(samples[0][0]).__name__
        raise DataError(f"{split}: expected inputs that are tensors, got {kind}; add a transform such as ToTensor()")
    return torch.stack([sample[0] for sample in samples]), torch.tensor([int(sample[1]) for sample in samples])
