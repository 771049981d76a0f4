"""Published figures that ours are compared with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A table of arXiv 2312.06887: one entry per step in each tuple.

    Attributes:
        mse: reconstruction loss per element on normalised pixels.
        colour: accuracy of the probe for colour dominance. test, train: the network's own accuracy.
    """

    source: str
    steps: tuple[int, ...]
    mse: tuple[float, ...]
    colour: tuple[float, ...]
    test: tuple[float, ...]
    train: tuple[float, ...]


# The printed loss is the sum of the means of the 79 batches of 128 that hold the 10,000 test images.
_BATCHES = 79
_VGG8_PRINTED = (
    (0, 46.707, 0.789, 0.097, 0.098),
    (2, 46.552, 0.788, 0.115, 0.115),
    (4, 46.305, 0.790, 0.138, 0.136),
    (8, 45.622, 0.789, 0.195, 0.195),
    (16, 44.377, 0.796, 0.274, 0.270),
    (32, 43.476, 0.816, 0.340, 0.347),
    (64, 41.920, 0.833, 0.398, 0.408),
    (128, 40.324, 0.832, 0.450, 0.475),
    (256, 40.539, 0.847, 0.498, 0.526),
    (512, 41.717, 0.847, 0.577, 0.630),
    (1024, 41.121, 0.853, 0.614, 0.718),
    (2048, 44.299, 0.834, 0.658, 0.862),
    (4096, 48.690, 0.819, 0.666, 0.989),
    (8192, 54.745, 0.801, 0.676, 1.000),
    (16384, 57.762, 0.787, 0.674, 1.000),
    (32768, 60.003, 0.780, 0.670, 1.000),
    (65536, 62.179, 0.772, 0.669, 1.000),
)


def _vgg8() -> Published:
    steps, printed, colour, test, train = zip(*_VGG8_PRINTED, strict=True)
    return Published("arXiv 2312.06887", steps, tuple(x / _BATCHES for x in printed), colour, test, train)


PUBLISHED = {"vgg8-cifar10": _vgg8()}
