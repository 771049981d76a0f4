"""The options of all ways to measure: what they mean, and what they may be."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, get_args

import numpy as np
import torch

from .common.scalars import is_integer
from .data.output_rows import RowOptions
from .data.target_types import Target
from .decoding import Classifier, Method, PenaltyPer, Precision, Splits
from .errors import ArgumentError
from .layers.selection import Layers
from .stages.plan import FORCED_ROUTES, ForcedRoute, Selection
from .types import BatchNormMode, TokenMode

_CHOICES = {
    "batchnorm": get_args(BatchNormMode),
    "precision": get_args(Precision),
    "selection": get_args(Selection),
    "penalty_per": get_args(PenaltyPer),
    "classifier": get_args(Classifier),
    "splits": get_args(Splits),
    "route": (None, *FORCED_ROUTES),
    "tokens": get_args(TokenMode),
}
# Those that depend on nothing else, of options of which it does not matter whether they were given.
DEFAULTS: dict[str, Any] = {
    "batchnorm": "recompute",
    "penalty_per": "target",
    "precision": Method.precision,
    "splits": Method.splits,
    "tokens": RowOptions.tokens,
    "pool": RowOptions.pool,
}
# What else some of the functions take that have these options, by name.
_BESIDE = (
    *("classes", "checkpoints", "every", "fit", "heldout", "key", "load", "on_error", "out", "overwrite", "run"),
    *("samples", "shard", "step", "steps", "weights_only"),
)
_INTEGERS = {"batch_size": 1, "target_components": 1, "layer_sketch": 1, "pool": 0}  # and their least values
_NUMBERS = (int, float, np.integer, np.floating)


class ProbeOptions(TypedDict, total=False):
    """What :func:`phasefast.probe`, :func:`phasefast.sweep` and :class:`phasefast.PhaseTracker` have in common.

    Attributes:
        layers: globs over ``named_modules()``, with ``!`` before what is left out, or modules; by default the model's
            direct children, or blocks (README). Scores have them in the order in which they are computed.
        targets: what is decoded; by default the input, if it is floating-point, the label, if there is one, and
            the probe set's values: ``"input"``, ``"label"`` and their names.
        alphas: ridge penalties relative to the mean diagonal of the Gram matrix; one per target is chosen on
            the fit rows, see ``selection``; ``[a]`` forces one. By default two per decade, from 1e-6 to 100.
        noise: instead of ``alphas``, the standard deviation of noise on the activations (penalty = n noise^2).
        batchnorm: statistics: ``"recompute"`` on the fit rows (default), of each ``"batch"``, or ``"running"``.
        device: where to compute; the model's own device by default, or the CPU if that has no float64, as MPS.
        precision: ``"exact"`` (default): float32, and float64 for layers where it is not enough; ``"fast"``: float32,
            and float64 only where that fails, with rows rounded to bfloat16 where this is faster: on a GPU, or on a CPU
            with Intel AMX, or AVX512_BF16 on other makes; ``"double"``: float64 from the captured rows on.
        route: how layers are solved: ``None`` (default) plans the fastest for each; ``"primal"``, ``"dual"``,
            ``"eigen"`` or ``"target-free"`` forces one. All give the same numbers at the same penalty, except the fit
            errors of ``"dual"`` if it is forced with penalties below 1e-6; see docs/performance.md.
        selection: how penalties are chosen: ``"gcv"`` (default), generalised cross-validation, which never takes a
            penalty of 0 that goes through all rows; ``"folds"``: 5-fold cross-validation, of whole sequences and
            groups, the default for ``tokens="each"`` and for probe sets with groups; ``"loo"``: leave-one-out errors of
            all rows, from one eigendecomposition.
        penalty_per: ``"target"`` (default), or ``"column"``: each column of a regression chooses its own penalty.
        classifier: for classes: ``"ridge"`` (default), the largest of the one-hot predictions, which misses classes
            that lie between others if there are many; ``"lda"``: linear discriminant analysis with the same penalty;
            ``"balanced"``: the same as if all classes were equally frequent, with ``balanced_accuracy`` for accuracy.
        predicts: the name of the target that the model's own output predicts, or several: the label by default,
            ``"input"`` for an autoencoder, one of the values for a regression, ``"none"``. Its errors are rows of layer
            ``model``. Of several outputs that of the target's name counts, or ``logits``, or the first that fits.
        splits: ``"both"`` (default), or ``"heldout"``: no scores of layers on the fit rows, which saves much for wide
            inputs.
        target_components: decode wider regression targets by this many leading principal components, and 64 random
            combinations of the rest: an estimate, with a 95 % interval in the columns ``low`` and ``high``. Narrower
            targets stay exact.
        layer_sketch: decode wider layers from this many random combinations of their features, and estimate the error
            of all features: ``value``, ``low`` to ``high`` (accuracies are the sketch's own). A layer for which this
            fails, or is far off, is decoded exactly, which is what memory and ``phasefast plan`` allow for.
        tokens: for outputs [b, t, f]: ``"flatten"`` (default), ``"mean"`` over t, ``"cls"``, the first, or ``"last"``;
            ``"each"``: every token is decoded by itself. Outputs [b, f, t] of convolutions, and of blocks whose layers'
            widths show this order, are transposed: docs/sequences.md.
        padding: the value in inputs [b, t] or [b, t, c] that marks padding: these tokens are left out.
        pool: average the spatial dimensions of [b, c, h, w] and [b, c, d, h, w] to this size, if they are larger; 0
            (default) keeps all. Likewise [b, h, w, c], if parts of the module, such as a LayerNorm of c, show this, and
            each map of [b, t, c, h, w] where nothing but maps is convolved.
        batch_size: of the forward passes, and of the BatchNorm statistics that need batches; 256, or 128 for
            ``batchnorm="batch"``, by default. If the numbers stay the same, a GPU takes larger batches by default, and
            long sequences of tokens are taken fewer at a time, because of their logits.
        memory: budget, such as ``"8GB"``; most of what is free by default. On a CPU at most two fifths of it are kept
            from one checkpoint to the next, which saves allocating them again.
    """

    layers: Layers | None
    targets: Sequence[Target | str] | Target | str | None
    alphas: Iterable[float] | float | None
    noise: float | None
    batchnorm: BatchNormMode
    device: str | torch.device | None
    precision: Precision
    route: ForcedRoute | None
    selection: Selection
    penalty_per: PenaltyPer
    classifier: Classifier
    predicts: Sequence[str] | str | None
    splits: Splits
    target_components: int | None
    layer_sketch: int | None
    tokens: TokenMode
    padding: float | None
    pool: int
    batch_size: int | None
    memory: str | float | None


def as_tuple(name: str, value: Any, default: Sequence[Any]) -> tuple[Any, ...]:
    """An option of one value or several: a sequence as given, a value alone as one of it, None as the default.

    Raises:
        ArgumentError: a set, whose order is another in every process.
    """
    if isinstance(value, (set, frozenset)):
        raise ArgumentError(f"{name}: expected a list, which keeps its order, got {value!r}")
    if value is None:
        return tuple(default)
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def checked_step(step: Any) -> int:
    """The number of updates done that labels a measurement; ArgumentError where it is none."""
    if not is_integer(step, 0):
        raise ArgumentError(f"step: expected the number of updates done, an integer >= 0, got {step!r}")
    return operator.index(step)


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, NumPy's integers as Python's.

    Raises:
        ArgumentError: options that do not exist, values that cannot be used, and options that exclude each other.
    """
    for name in options:
        if name not in ProbeOptions.__annotations__:
            raise ArgumentError(f"unknown option {name!r}; {_hint(name)}")
    for name, allowed in _CHOICES.items():
        if name in options and options[name] not in allowed:  # type: ignore[literal-required]
            raise ArgumentError(f"{name}: expected one of {allowed}, got {options[name]!r}")
    if options.get("alphas") is not None and options.get("noise") is not None:
        raise ArgumentError(
            "alphas and noise exclude each other: a relative and an absolute penalty cannot share a curve"
        )
    predicts = as_tuple("predicts", options.get("predicts"), ())
    if not all(isinstance(name, str) for name in predicts):
        raise ArgumentError(f"predicts: expected the name of a target, got {options['predicts']!r}")
    whole = {name: options[name] for name in _INTEGERS if options.get(name) is not None}
    for name, given in whole.items():
        if not is_integer(given, _INTEGERS[name]):
            raise ArgumentError(f"{name}: expected an integer >= {_INTEGERS[name]}, got {given!r}")
    approximations = [name for name in ("target_components", "layer_sketch") if options.get(name) is not None]
    if approximations and options.get("penalty_per") == "column":
        raise ArgumentError(f"{approximations[0]}: penalty_per='column' allows no approximation; leave one of them out")
    if (how := options.get("classifier", "ridge")) != "ridge" and options.get("route") == "target-free":
        raise ArgumentError(
            f"classifier={how!r} needs predictions of the fit rows, which route='target-free' does not make"
        )
    if len(approximations) > 1:
        raise ArgumentError("target_components and layer_sketch exclude each other; leave one of them out")
    if (padding := options.get("padding")) is not None:
        if isinstance(padding, bool) or not isinstance(padding, _NUMBERS):
            shape = tuple(getattr(padding, "shape", ()))
            got = f"{type(padding).__name__} {shape}" if shape else repr(padding)
            raise ArgumentError(
                f"padding: expected the number that marks padding in inputs, got {got}; of lengths, make such inputs"
            )
        if options.get("tokens", DEFAULTS["tokens"]) == "flatten":
            raise ArgumentError("padding: needs tokens='mean', 'cls', 'last' or 'each', got tokens='flatten'")
    names = {"predicts": predicts} if options.get("predicts") is not None else {}  # once they are read
    return {**options, **names, **{name: operator.index(number) for name, number in whole.items()}}


def refuse_fixed(options: Mapping[str, Any], fixed: Mapping[str, Any], why: str) -> None:
    """ArgumentError where an option has another value than the one that there is to choose from."""
    if given := [name for name, value in fixed.items() if options.get(name, value) != value]:
        raise ArgumentError(f"{given[0]}: {why}; leave it out")


def _hint(name: str) -> str:
    """What an option that does not exist may stand for."""
    if name in _BESIDE:
        return "it belongs to other functions only"
    near, others = (difflib.get_close_matches(name, known, n=1) for known in (ProbeOptions.__annotations__, _BESIDE))
    guesses = [*map(repr, near), *(f"{other!r}, which only some functions take" for other in others)]
    return f"did you mean {' or '.join(guesses)}?" if guesses else f"there are {sorted(ProbeOptions.__annotations__)}"
