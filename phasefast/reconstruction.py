"""What layers still know of some inputs: the inputs as their decoders give them back."""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from .checkpoints import Reader, check_copies, order_checkpoints
from .checkpoints.sources import Source
from .common.notices import few, warn
from .data.probe_set import ProbeSet
from .data.target_types import Input
from .engine import Engine
from .errors import ArgumentError, with_notes
from .in_turn import measure_each, restored
from .metrics import FVU
from .options import ProbeOptions, checked_step, refuse_fixed
from .results.selecting import in_order
from .stages.evaluate import evaluate
from .stages.predict import predict

_Decoded = dict[str, tuple[Tensor, float]]  # by layer
_SAMPLES = 4
_FIXED: Mapping[str, Any] = {"targets": None, "target_components": None, "layer_sketch": None, "splits": "heldout"}


@dataclass(frozen=True, eq=False)
class Reconstructions:
    """Held-out inputs, and what is decoded of them from each layer at each step.

    Attributes:
        samples: [s] which held-out samples. inputs: [s, ...] as the probe set has them.
        decoded: [s, ...] by step and layer; ``found[step, layer]`` for short. fvu: of all held-out samples, likewise.
        limits: [2, c] the least and the largest value of each channel of the fit inputs [n, c, h, w]; [2, 1] of others.
    """

    samples: tuple[int, ...]
    inputs: Tensor
    decoded: Mapping[tuple[int, str], Tensor]
    fvu: Mapping[tuple[int, str], float]
    limits: Tensor

    @classmethod
    def concat(cls, parts: Iterable[Reconstructions]) -> Reconstructions:
        """Join several results into one, such as those for different steps of a training.

        Raises:
            ArgumentError: there are none, or they are not of the same samples.
        """
        parts = list(parts)
        if not parts or any(not torch.equal(part.inputs, parts[0].inputs) for part in parts):
            raise ArgumentError(f"concat: expected reconstructions of the same held-out samples, got {parts}")
        decoded = {place: found for part in parts for place, found in part.decoded.items()}
        fvu = {place: found for part in parts for place, found in part.fvu.items()}
        return replace(parts[0], decoded=decoded, fvu=fvu)

    @property
    def steps(self) -> list[int]:
        """In ascending order."""
        return sorted({step for step, _ in self.decoded})

    @property
    def layers(self) -> list[str]:
        """In the order in which they are computed."""
        return in_order(self.decoded)

    def __getitem__(self, place: tuple[int, str]) -> Tensor:
        """The inputs [s, ...] as decoded from a layer at a step; ArgumentError if there is no such step or layer."""
        if place not in self.decoded:
            raise ArgumentError(
                f"reconstructions: expected one of the steps {self.steps} and of the layers {self.layers}, got {place}"
            )
        return self.decoded[place]

    def __repr__(self) -> str:
        what = f"{len(self.samples)} inputs of shape {tuple(self.inputs.shape[1:])}"
        first, last = self.steps[0], self.steps[-1]
        when = f"step {first}" if first == last else f"{len(self.steps)} steps from {first} to {last}"
        return f"Reconstructions({what}, {when}, layers {few(self.layers)})"


def reconstruct(
    model: nn.Module,
    probe_set: ProbeSet,
    checkpoints: Mapping[int, Source] | Sequence[Source] | str | os.PathLike[str] | None = None,
    *,
    samples: int | Sequence[int] | None = None,
    step: int = 0,
    steps: Sequence[int] | None = None,
    weights_only: bool = True,
    key: str | None = None,
    load: Callable[[Path], Mapping[str, Any]] | None = None,
    **options: Unpack[ProbeOptions],
) -> Reconstructions:
    """Held-out inputs as each layer's linear decoder gives them back: the decoders that ``probe`` and ``sweep`` score.

    Args:
        model: left exactly as it was found. probe_set: decoders are solved on its fit rows.
        checkpoints: as for :func:`phasefast.sweep`; by default the model is taken as it is, and labelled ``step``.
        samples: a number of held-out samples, from the first on, or which ones; the first 4 by default.
        steps: which of the checkpoints to take; all by default.
        weights_only, key, load: of checkpoints, as for :func:`phasefast.sweep`.
        **options: see :class:`phasefast.ProbeOptions`, except ``targets``, ``splits`` and approximations.

    Raises:
        ArgumentError: samples or options that cannot be used.
        PhasefastError: one of its subclasses, naming the layer, data or checkpoint that cannot be used.
    """
    if (checkpoints is None and steps is not None) or (checkpoints is not None and step != 0):
        raise ArgumentError("steps= chooses among checkpoints=, step= labels the model as it is: leave one of them out")
    refuse_fixed(options, _FIXED, "inputs are decoded whole, from all features")
    options |= {"targets": [Input()], "splits": "heldout", "predicts": None}
    engine = Engine(model, probe_set, **options)
    rows = _rows(samples, probe_set.n_heldout)
    inputs, fit = probe_set.heldout_inputs[rows].float().cpu(), probe_set.fit_inputs
    channels = fit.movedim(1, 0).flatten(1) if fit.ndim == 4 else fit.flatten()[None]
    limits = torch.stack([channels.amin(1), channels.amax(1)]).float().cpu()
    of_fit = engine.target_set.given_columns("input")
    decoded_by = partial(_decoded, engine, rows, of_fit, of_fit.mean(0, dtype=torch.float64))
    if checkpoints is None:
        by_step = {checked_step(step): decoded_by(keep=True)}
    else:
        every = order_checkpoints(checkpoints)
        check_copies(engine.model, every)
        ordered = _chosen(every, steps)
        by_step = _of_each(engine, ordered, Reader(weights_only, key, load), decoded_by)
    found = [((at, layer), *each) for at, layers in by_step.items() for layer, each in layers.items()]
    decoded, fvu = {place: images for place, images, _ in found}, {place: share for place, _, share in found}
    return Reconstructions(tuple(rows), inputs, decoded, fvu, limits)


def _decoded(engine: Engine, samples: Sequence[int], fit: Tensor, mean: Tensor, keep: bool) -> _Decoded:
    """Some held-out inputs [s, ...] as the decoders of each layer give them back, on the CPU, and the FVU of all.

    Args:
        samples: which. fit: [n, p] the inputs of the fit rows. mean: [p] theirs. keep: as for ``Engine.measure``.
    """
    found, rows = _Decoded(), engine.units.heldout(samples)
    with contextlib.closing(engine.decoders(keep)) as decoders:
        for cell, decoder, _ in decoders:
            flat = predict(cell, decoder, engine.targets, rows, fit, mean).float().cpu()
            scores = evaluate(cell, decoder, engine.targets, fit_scores=False)()
            fvu = next(score.value for score in scores if score.metric == FVU)
            found[cell.layer.name] = engine.units.whole(flat, samples, engine.probe_set.heldout_inputs), fvu
    return found


def _of_each(
    engine: Engine, ordered: Mapping[int, Source], reader: Reader, decoded: Callable[..., _Decoded]
) -> dict[int, _Decoded]:
    """``_decoded`` of checkpoints; of one that fails as ``measure_each`` allows, a warning."""
    by_step: dict[int, _Decoded] = {}

    def measure(step: int, _: str | None) -> None:
        by_step[step] = decoded(keep=not by_step)

    failures: dict[int, Exception] = {}
    with restored(engine):
        measure_each(engine, ordered, reader, "reconstructing", measure, failures)
    for step, failure in sorted(failures.items()):
        if not by_step:  # all have the same reason, such as another model
            raise failure
        warn(f"step {step} is left out: {with_notes(failure)}")
    return dict(sorted(by_step.items()))


def _chosen(ordered: Mapping[int, Source], steps: Sequence[int] | None) -> Mapping[int, Source]:
    """The checkpoints of these steps; ArgumentError where there is none of one."""
    if steps is None:
        return ordered
    try:
        wanted = {operator.index(step) for step in steps}
    except TypeError:
        wanted = set()
    if not wanted or not ordered.keys() >= wanted:
        raise ArgumentError(f"steps: expected some of {list(ordered)}, got {steps!r}")
    return {step: source for step, source in ordered.items() if step in wanted}


def _rows(samples: int | Sequence[int] | None, count: int) -> list[int]:
    """Which held-out samples are meant; ArgumentError where there are no such ones."""
    samples = min(_SAMPLES, count) if samples is None else samples
    try:
        if isinstance(samples, Iterable):
            rows = [operator.index(row) for row in samples]
        else:  # one too many are as wrong as a million
            rows = list(range(min(operator.index(samples), count + 1)))
    except TypeError as error:
        raise ArgumentError(f"samples: expected how many held-out samples, or which ones, got {samples!r}") from error
    if not rows or not all(0 <= row < count for row in rows):
        raise ArgumentError(f"samples: expected some of the {count} held-out samples, from 0 on, got {samples!r}")
    return rows
