"""Transfer tasks: what else the frozen activations of a network are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ..data.probe_set import ProbeSet
from ..data.target_types import Function, Input, Label, Target
from ..errors import ArgumentError
from .datasets import Splits, adapt, keep_classes, load
from .settings import Setting


def colour_dominance(images: Tensor) -> Tensor:
    """Which channel has the largest sum over the image, the paper's task: [b, c, h, w] -> [b] in 0 ... c - 1.

    The images are normalised per channel, so each channel is compared with its own mean over the data set.
    """
    return images.sum((2, 3)).argmax(1)


def quadrant_dominance(images: Tensor) -> Tensor:
    """Which quarter of the image has the largest sum, row by row: [b, c, h, w] -> [b] in 0 ... 3."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 2).sum(1).flatten(1).argmax(1)


def input_tasks(sample: tuple[int, ...]) -> list[Target]:
    """Tasks whose classes are functions of the input: targets of the same solve as the reconstruction."""
    tasks: list[Target] = [Function(quadrant_dominance, kind="classes", name="quadrant", num_classes=4)]
    if sample[0] > 1:
        tasks.insert(0, Function(colour_dominance, kind="classes", name="colour", num_classes=sample[0]))
    return tasks


def draw(data: Splits, n_fit: int | None, n_heldout: int | None, seed: int = 0) -> ProbeSet:
    """A probe set of at most ``n_fit`` and ``n_heldout`` random samples of a data set; all of them for None."""
    sizes = [len(data.fit_inputs), len(data.heldout_inputs)]
    n_fit, n_heldout = (min(size, wanted or size) for size, wanted in zip(sizes, (n_fit, n_heldout), strict=True))
    fit, heldout = TensorDataset(*data[:2]), TensorDataset(*data[2:])
    return ProbeSet.from_dataset(fit, heldout, n_fit=n_fit, n_heldout=n_heldout, seed=seed)


@dataclass(frozen=True)
class OtherTask:
    """Another data set's images and labels, as the network takes them.

    Attributes:
        name: ``"rest"`` for the classes that the network was not trained on, else the data set's.
    """

    name: str
    data: Splits

    @property
    def target(self) -> Target:
        """The target of a sweep over the task's images."""
        return Label(self.data.num_classes, name=self.name)


def other_task(name: str, setting: Setting, data: Splits, root: str | Path = "data") -> OtherTask:
    """A transfer task on images of its own.

    Args:
        name: ``"rest"``, a data set such as ``"digits"``, or the path of an ``.npz``.
        data: all classes of the setting's data, see :meth:`Setting.load`.

    Raises:
        ArgumentError: ``"rest"`` where nothing is left over. DataError: a data set that cannot be read.
    """
    if name == "rest":
        if setting.classes is None:
            raise ArgumentError(f"task 'rest': setting {setting.name!r} is trained on all classes of {setting.data}")
        left = [label for label in range(data.num_classes) if label not in setting.classes]
        return OtherTask(name, keep_classes(data, left))
    file = Path(name) if name.endswith(".npz") else None
    other = load(name if file is None else file.stem, file=file, root=root)
    fit, heldout = adapt(other.fit_inputs, data.sample), adapt(other.heldout_inputs, data.sample)
    label = name if file is None else file.stem
    return OtherTask(label, other._replace(fit_inputs=fit, heldout_inputs=heldout))


def own_targets(data: Splits, extra: list[Target] | None = None) -> list[Target]:
    """Everything asked of the setting's own images: the input, the label, tasks of the input, and the caller's."""
    return [Input(), Label(data.num_classes), *input_tasks(data.sample), *(extra or [])]
