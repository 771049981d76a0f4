"""The decoders themselves: what gives a target from a layer's activations, to be used elsewhere."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Unpack

import torch
from torch import Tensor, nn

from .algebra.dense import left_product, product
from .data.probe_set import ProbeSet
from .engine import Engine
from .errors import ArgumentError
from .metrics import LOSSES
from .options import ProbeOptions, refuse_fixed
from .scoring import classifier
from .stages.evaluate import evaluate
from .stages.predict import in_given_columns
from .types import Activations, BlockFit, Decoder

_FIXED = {"splits": "both", "target_components": None, "layer_sketch": None}


@dataclass(frozen=True, eq=False)
class LinearDecoder:
    """Predicts a target from a layer's activations [..., d]: ``activations @ weight.T + bias``.

    Attributes:
        layer, target: their names. metric, value: the held-out score, as ``probe`` gives it. alpha: the penalty.
        weight: [p, d] float64, on the CPU. bias: [p].
        classes: [p] int64, the class that each row of ``weight`` predicts, -1 if no fit row has that class; None for
            a regression. With ``classifier="lda"`` predictions are logits.
        predictions: [m, p] of the held-out rows in the probe set's order: float32, or float64 of such targets.
        dtype: of the layer's activations, float32 or float64.
    """

    layer: str
    target: str
    metric: str
    value: float
    alpha: float
    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    classes: Tensor | None = field(repr=False)
    predictions: Tensor = field(repr=False)
    dtype: torch.dtype = field(default=torch.float32, repr=False)

    def __call__(self, activations: Tensor) -> Tensor:
        """Predictions [..., p] float64 of activations [..., d], on their device; ArgumentError for other shapes."""
        if activations.shape[-1:] != self.weight.shape[1:]:
            raise ArgumentError(
                f"decoder of {self.target!r} from layer {self.layer!r}: expected activations [..., "
                f"{self.weight.shape[1]}], got {tuple(activations.shape)}; outputs of more dimensions are flattened, "
                "samples first, after pool= and tokens= if these were given"
            )
        weight, bias = self.weight.to(activations.device), self.bias.to(activations.device)
        return activations.double() @ weight.mT + bias

    def linear(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """The same as a module, its weights in ``dtype``, by default that of the activations."""
        dtype = dtype or self.dtype
        made = nn.Linear(self.weight.shape[1], len(self.weight), dtype=dtype, device="meta").to_empty(device="cpu")
        made.load_state_dict({"weight": self.weight, "bias": self.bias})
        return made


def fit_decoders(
    model: nn.Module, probe_set: ProbeSet, **options: Unpack[ProbeOptions]
) -> dict[tuple[str, str], LinearDecoder]:
    """The decoders whose held-out scores :func:`phasefast.probe` gives, by layer and target.

    Each holds ``p (d + m)`` numbers for ``p`` columns, ``d`` features and ``m`` held-out rows: if these are many,
    choose some of the layers and targets.

    Args:
        model: as it is; left exactly as it was found. probe_set: decoders are solved on its fit rows.
        **options: see :class:`phasefast.ProbeOptions`, except ``splits`` and approximations. Give
            ``batchnorm="running"`` for activations of the model as it is used elsewhere.

    Raises:
        PhasefastError: one of its subclasses, naming the option, layer or data that cannot be used.
    """
    refuse_fixed(options, _FIXED, "decoders give whole targets, from all features")
    engine = Engine(model, probe_set, **options)
    given_as = {block.name: _Given.of(engine, block.name) for block in engine.targets.blocks}
    found = {}
    with contextlib.closing(engine.decoders(whole=True)) as decoders:
        for cell, plain, whole in decoders:
            decoder = classifier(cell, plain, engine.targets, engine.method)
            scores = evaluate(cell, decoder, engine.targets, fit_scores=False, balanced=engine.method.balanced)()
            values = {score.target: (score.metric, score.value) for score in scores if score.metric in LOSSES}
            assert whole is not None
            for fit in decoder.fits:
                name = fit.block.name
                weight, offset = _of_features(cell, decoder, whole, fit, engine, given_as[name])
                predictions = (product(whole.heldout, weight) + offset).to(given_as[name].dtype).cpu()
                bias = offset - whole.shift.double() @ weight
                how = cell.layer.name, name, *values[name], fit.alpha
                parts = weight.mT.contiguous().cpu(), bias.cpu(), given_as[name].classes, predictions
                dtype = torch.promote_types(whole.fit.dtype, torch.float32)
                own = LinearDecoder(*how, *parts, dtype)
                found[cell.layer.name, name] = own
    return found


@dataclass(frozen=True)
class _Given:
    """A target as it was given.

    Attributes:
        columns: [n, p] of a regression on the fit rows. mean: [p] theirs. classes: of the columns of classes.
        dtype: of predictions that keep the digits of what they predict.
    """

    columns: Tensor | None = None
    mean: Tensor | None = None
    classes: Tensor | None = None
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, engine: Engine, name: str) -> _Given:
        (block,) = (block for block in engine.targets.blocks if block.name == name)
        columns = engine.target_set.given_columns(name)
        if block.kind == "classes":  # of labels [n, 1], or of one-hot columns that are given as such
            labels = columns[:, 0].long() if columns.shape[1] == 1 else columns.argmax(1)
            classes = torch.full((block.width,), -1, device="cpu")
            classes[engine.targets.fit_classes[name].cpu()] = labels.cpu()
            return cls(classes=classes)
        dtype = torch.float64 if columns.dtype == torch.float64 else torch.float32
        columns = (columns if columns.is_floating_point() else columns.double()).to(engine.device)
        return cls(columns, columns.mean(0, dtype=torch.float64), dtype=dtype)


def _of_features(
    cell: Activations, decoder: Decoder, whole: Activations, fit: BlockFit, engine: Engine, given: _Given
) -> tuple[Tensor, Tensor]:
    """Weights [d, p] of a layer's features, less their shift, and offset [p], float64, in the columns as given.

    Args:
        cell: whose rows the decoder applies to. whole: as it was captured.
    """
    columns = slice(fit.block.start, fit.block.stop)
    both = torch.cat([decoder.weights[:, columns], decoder.offset[None, columns]]).double()
    if given.columns is not None and given.mean is not None:
        both = in_given_columns(both, fit.block, engine.targets, given.columns, given.mean)
        both[-1] += given.mean
    weight, offset = both[:-1], both[-1]
    if cell.route == "dual" and not bool(cell.fit.any()):  # of a layer that is the same for all samples
        return weight.new_zeros(whole.fit.shape[1], weight.shape[1]), offset
    if cell.route == "dual":  # of coordinates L, with A = L Q for the rows A [n, d]: Q' = A' L'^-1
        weight = torch.linalg.solve_triangular(cell.fit.double().mT, weight, upper=True)
        weight = left_product(weight.mT.contiguous(), whole.fit).mT
    return weight, offset
