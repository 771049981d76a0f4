"""Held-out losses of single samples, lower is better, from which phases and the best checkpoint are found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import DataError
from ..metrics import ACCURACIES
from .scores import Scores

LEAST_CHANGE = 1e-4  # of a loss that counts at all


@dataclass(frozen=True)
class Losses:
    """Held-out losses of single samples, of one layer and target.

    Attributes:
        steps: [K] int64. samples: [K, m]. baseline: [m] of the best constant or, where all classes count alike, what
            each sample counts, if either is known: its mean is the unit of the losses.
    """

    steps: np.ndarray
    samples: np.ndarray
    baseline: np.ndarray | None


def losses_of(scores: Scores, layer: str, target: str, metric: str) -> Losses:
    """Those of a held-out metric in ``LOSSES``: of a classifier 1 where it errs, or the sample's weight, else 0.

    Raises:
        DataError: no per-sample scores are stored.
    """
    try:
        steps, samples = scores.samples(layer, target, metric)
    except LookupError as error:
        raise DataError(f"{error}; probe these checkpoints again") from error
    baseline = scores.baseline_samples(layer, target, metric)
    if metric in ACCURACIES:
        samples = (1 if baseline is None else baseline) - samples
    return Losses(steps, samples, baseline)
