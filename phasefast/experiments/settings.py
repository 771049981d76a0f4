"""Named settings of the paper's experiments, and the training run behind each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import nn

from ..checkpoints import state_hash
from ..errors import ArgumentError
from .checkpointing import log2_steps, train_checkpoints
from .datasets import DATASETS, Splits, adapt, keep_classes, load
from .models import MODELS, make_model

_COLOUR_32 = (3, 32, 32)
_PAPER_MODELS = ("vgg8", "vgg11", "vgg13", "vgg16", "resnet10", "dense")


@dataclass(frozen=True)
class Setting:
    """One experiment: a network, its data and how it is trained; the defaults are the paper's (arXiv 2312.06887).

    Attributes:
        model: a name for :func:`phasefast.experiments.models.make_model`. data: one for ``datasets.load``.
        steps: of training. first: the first probed step after 0; it is doubled from there.
        classes: those it is trained on; the others are a transfer task. None for all.
        sample: shape [c, h, w] that images are brought to; None keeps the data's own.
    """

    name: str
    model: str
    data: str
    steps: int = 16_384
    first: int = 2
    lr: float = 0.002
    momentum: float = 0.9
    batch_size: int = 128
    classes: tuple[int, ...] | None = None
    sample: tuple[int, ...] | None = None

    @property
    def probed_steps(self) -> list[int]:
        """Steps of the checkpoints: 0, ``first``, 2 ``first``, ... and the last."""
        return log2_steps(self.steps, self.first)

    def load(self, file: str | Path | None = None, root: str | Path = "data") -> Splits:
        """The data, all classes, in the shape that the network takes."""
        data = load(self.data, file=file, root=root)
        if self.sample is None or self.sample == data.sample:
            return data
        fit, heldout = adapt(data.fit_inputs, self.sample), adapt(data.heldout_inputs, self.sample)
        return data._replace(fit_inputs=fit, heldout_inputs=heldout)

    def training_part(self, data: Splits) -> Splits:
        """The part of ``load()`` that the network is trained on."""
        return data if self.classes is None else keep_classes(data, list(self.classes))

    def network(self, data: Splits, seed: int) -> nn.Module:
        """The untrained network for ``training_part()``, its weights drawn by ``seed``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make_model(self.model, data.sample, data.num_classes)

    def train(self, model: nn.Module, data: Splits, folder: str | Path, seed: int) -> dict[int, Path]:
        """Train ``model`` on ``training_part()``; files of its checkpoints by step. Goes on where it was stopped."""
        place = next(model.parameters()).device
        recipe = {"model": self.model, "data": state_hash({"inputs": data.fit_inputs, "labels": data.fit_labels})}
        return train_checkpoints(
            model,
            data.fit_inputs.to(place),
            data.fit_labels.to(place),
            folder,
            steps=self.probed_steps,
            lr=self.lr,
            momentum=self.momentum,
            batch_size=self.batch_size,
            seed=seed,
            recipe=recipe,
        )


def _named() -> dict[str, Setting]:
    images = [data for data in DATASETS if data != "digits"]
    found = [Setting(f"{model}-{data}", model, data) for data in images for model in _PAPER_MODELS]
    small = Setting("digits-vgg", "digits_net", "digits", steps=4096, first=1, batch_size=64)
    found += [small, *(replace(small, name=f"digits-{model}", model=model) for model in _PAPER_MODELS)]
    half = tuple(range(5))
    found += [
        replace(small, name="digits-half", classes=half),
        Setting("vgg8-cifar10-half", "vgg8", "cifar10", steps=8192, classes=half),
    ]
    return {setting.name: setting for setting in found}


SETTINGS = _named()


def find_setting(name: str) -> Setting:
    """A setting by name; beside those of ``SETTINGS``, ``MODEL-DATA`` with the name of any torchvision model.

    Raises:
        ArgumentError: there is none; names what is near.
    """
    if name in SETTINGS:
        return SETTINGS[name]
    for data in DATASETS:
        model = name.removesuffix(f"-{data}")
        if model != name and model:
            own = model in MODELS
            return Setting(name, model, data, sample=None if own else _COLOUR_32)
    near = get_close_matches(name, SETTINGS, n=3) or sorted(SETTINGS)
    raise ArgumentError(f"setting {name!r}: expected MODEL-DATA such as vgg8-cifar10; closest: {', '.join(near)}")
