"""The data sets of the experiments, as normalised tensors: digits, torchvision's, and any ``.npz`` of images."""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError, DataError, DependencyError

DIGITS_FIT = 1200
# Per channel, on a scale of 0 to 1; the paper's (arXiv 2312.06887). Others are normalised by their own training images.
_NORMS = {"cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))}
_TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
DATASETS = ("digits", *_TORCHVISION)
# Names that files in use have for the training and the test split.
_SPLIT_NAMES = (("train", "fit"), ("test", "heldout", "val", "valid"))
_IMAGE_KEYS, _LABEL_KEYS = ("{}_images", "x_{}", "{}_x", "{}_data"), ("{}_labels", "y_{}", "{}_y", "{}_targets")
_CHANNELS = (1, 3, 4)


class Splits(NamedTuple):
    """Fit rows, on which networks are trained and decoders solved, and held-out rows.

    Attributes:
        fit_inputs: [n, c, h, w] float32. fit_labels: [n] int64. heldout_inputs: [m, c, h, w]. heldout_labels: [m].
    """

    fit_inputs: Tensor
    fit_labels: Tensor
    heldout_inputs: Tensor
    heldout_labels: Tensor

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return int(torch.cat([self.fit_labels, self.heldout_labels]).max()) + 1

    @property
    def sample(self) -> tuple[int, ...]:
        """Shape [c, h, w] of one input."""
        return tuple(self.fit_inputs.shape[1:])


def load(name: str, *, file: str | Path | None = None, root: str | Path = "data") -> Splits:
    """A data set by name, ready for training.

    Args:
        name: ``digits``, ``cifar10``, ``cifar100``, ``mnist``, ``fashion-mnist``; any name where ``file`` is given.
        file: an ``.npz`` to read the images from instead, see :func:`read_npz`.
        root: where torchvision looks for its data sets, and downloads those that are missing.

    Raises:
        ArgumentError: no such data set. DataError: a file that does not hold one. DependencyError: a missing package.
    """
    if file is not None:
        return _normalised(read_npz(file), name)
    if name == "digits":
        return digits()
    if name not in _TORCHVISION:
        raise ArgumentError(f"data set {name!r}: expected one of {DATASETS}, or an .npz file of images and labels")
    return _normalised(_from_torchvision(name, root), name)


def digits(seed: int = 0) -> Splits:
    """scikit-learn's 1,797 8x8 digits: 1,200 fit and 597 held-out images.

    The images come ordered by writer, so they are permuted first, always in the same way for one seed. All pixels are
    then normalised by one mean and one standard deviation, those of the pixels of the fit images.

    Raises:
        DependencyError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DependencyError("the digits data set needs scikit-learn: pip install 'phasefast[demo]'") from error
    bundle = load_digits()
    images = torch.as_tensor(bundle.images, dtype=torch.float32).unsqueeze(1)
    labels = torch.as_tensor(bundle.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    fit, heldout = order[:DIGITS_FIT], order[DIGITS_FIT:]
    return _normalised(Splits(images[fit], labels[fit], images[heldout], labels[heldout]), "digits")


def read_npz(path: str | Path) -> Splits:
    """Images and labels of both splits in an ``.npz``, not normalised: float32 [n, c, h, w] as stored, int64 [n].

    Keys: ``train_images`` or ``x_train``, ``train_labels`` or ``y_train``, and the same for ``test``. Images are
    [n, h, w], [n, c, h, w] or [n, h, w, c]; or encoded (JPEG, PNG): ``train_jpeg``, all files end to end as bytes, and
    ``train_offsets`` [n + 1].

    Raises:
        DataError: not such a file; names the file and its keys. DependencyError: Pillow is missing for encoded images.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: found for key in archive.files if (found := archive[key]).dtype.kind in "biuf"}
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected an .npz of arrays of numbers, got {error}") from error
    parts: list[Tensor] = []
    for names in _SPLIT_NAMES:
        images, labels = _split(arrays, names, str(path))
        if len(images) != len(labels) or len(images) == 0:
            raise DataError(f"{path}: expected one label per image, got {len(images)} images and {len(labels)} labels")
        parts += [_as_images(images, f"{path}, split {names[0]!r}"), torch.from_numpy(labels.astype(np.int64).ravel())]
    if parts[0].shape[1:] != parts[2].shape[1:]:
        shapes = [tuple(part.shape[1:]) for part in (parts[0], parts[2])]
        raise DataError(f"{path}: expected images of one shape in both splits, got {shapes[0]} and {shapes[1]}")
    return Splits(*parts)


def adapt(inputs: Tensor, sample: tuple[int, ...]) -> Tensor:
    """Images [n, c, h, w] as a network for images of shape ``sample`` takes them: grey from or to colour, resized.

    Raises:
        ArgumentError: neither shape is of images.
    """
    if inputs.dim() != 4 or len(sample) != 3:
        raise ArgumentError(f"adapt: expected images, got shapes {tuple(inputs.shape[1:])} and {sample}")
    if inputs.shape[1] != sample[0]:
        inputs = inputs.mean(1, keepdim=True).expand(-1, sample[0], -1, -1)
    if inputs.shape[2:] != sample[1:]:
        # Antialiased: shrinking without it would alias edges into patterns that no image of the source has.
        inputs = torch.nn.functional.interpolate(inputs, size=sample[1:], mode="bilinear", antialias=True)
    return inputs.contiguous()


def keep_classes(data: Splits, classes: list[int]) -> Splits:
    """The samples of some classes, relabelled 0, 1, ... in the order of ``classes``."""
    parts: list[Tensor] = []
    for inputs, labels in ((data.fit_inputs, data.fit_labels), (data.heldout_inputs, data.heldout_labels)):
        position = torch.full((data.num_classes,), -1, dtype=torch.int64)
        position[classes] = torch.arange(len(classes))
        relabelled = position[labels]
        parts += [inputs[relabelled >= 0], relabelled[relabelled >= 0]]
    return Splits(*parts)


def _split(arrays: Mapping[str, np.ndarray], names: tuple[str, ...], path: str) -> tuple[np.ndarray, np.ndarray]:
    for name in names:
        labels = next((arrays[k.format(name)] for k in _LABEL_KEYS if k.format(name) in arrays), None)
        images = next((arrays[k.format(name)] for k in _IMAGE_KEYS if k.format(name) in arrays), None)
        if images is None and f"{name}_jpeg" in arrays and f"{name}_offsets" in arrays:
            images = _decode(arrays[f"{name}_jpeg"], arrays[f"{name}_offsets"], f"{path}, {name}_jpeg")
        if labels is not None and images is not None:
            return images, labels
    raise DataError(
        f"{path}: expected arrays such as {names[0]}_images and {names[0]}_labels, or x_{names[0]} and y_{names[0]}; "
        f"its arrays of numbers are {sorted(arrays)}"
    )


def _decode(blob: np.ndarray, offsets: np.ndarray, name: str) -> np.ndarray:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DependencyError("encoded images need Pillow: pip install 'phasefast[vision]'") from error
    images = []
    for start, stop in itertools.pairwise(offsets):
        try:
            with Image.open(io.BytesIO(blob[start:stop].tobytes())) as image:
                images.append(np.asarray(image.convert("RGB")))
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{name}: image {len(images)} cannot be decoded ({error})") from error
        if images[-1].shape != images[0].shape:
            raise DataError(
                f"{name}: expected images of one size, image {len(images) - 1} has {images[-1].shape[:2]}, "
                f"the first {images[0].shape[:2]}"
            )
    return np.stack(images) if images else np.empty((0, 1, 1, 3), np.uint8)


def _as_images(images: np.ndarray, name: str) -> Tensor:
    """[n, c, h, w] float32; bytes are scaled to 0 ... 1."""
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in _CHANNELS and images.shape[3] in _CHANNELS:
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4:
        raise DataError(f"{name}: expected images [n, h, w], [n, c, h, w] or [n, h, w, c], got shape {images.shape}")
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    return tensor.float().div_(255) if tensor.dtype == torch.uint8 else tensor.float()


def _from_torchvision(name: str, root: str | Path) -> Splits:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DependencyError(f"data set {name!r} needs torchvision: pip install 'phasefast[vision]'") from error
    parts: list[Tensor] = []
    for train in (True, False):
        try:
            found: Any = getattr(datasets, _TORCHVISION[name])(str(root), train=train, download=True)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"data set {name!r}: not in {root}, and cannot be downloaded ({error}); give --data FILE or --root"
            ) from error
        images = found.data if isinstance(found.data, np.ndarray) else found.data.numpy()
        parts += [_as_images(images, name), torch.as_tensor(found.targets, dtype=torch.int64)]
    return Splits(*parts)


def _normalised(data: Splits, name: str) -> Splits:
    """Zero mean and unit deviation per channel, in place."""
    if name in _NORMS and data.sample[0] == len(_NORMS[name][0]):
        mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in _NORMS[name])
    else:
        deviation, mean = torch.std_mean(data.fit_inputs, (0, 2, 3), correction=0, keepdim=True)
    if not bool((deviation > 0).all()):
        raise DataError(f"data set {name!r}: a channel of its training images is constant")
    for inputs in (data.fit_inputs, data.heldout_inputs):
        inputs.sub_(mean).div_(deviation)
    return data
