"""The data sets of the experiments, as normalised tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import DependencyError

DIGITS_FIT = 1200


class Splits(NamedTuple):
    """Fit rows, on which networks are trained and decoders solved, and held-out rows.

    Attributes:
        fit_inputs: [n, c, h, w] float32. fit_labels: [n] int64. heldout_inputs: [m, c, h, w]. heldout_labels: [m].
    """

    fit_inputs: Tensor
    fit_labels: Tensor
    heldout_inputs: Tensor
    heldout_labels: Tensor


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
    deviation, mean = torch.std_mean(images[fit], correction=0)
    images = (images - mean) / deviation
    return Splits(images[fit], labels[fit], images[heldout], labels[heldout])
