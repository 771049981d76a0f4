"""The one composer that knows all stages: measure a model's layers on a probe set. Everything else calls it."""

from __future__ import annotations

import difflib
import hashlib
import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from .checkpoints import state_hash
from .components import RANDOM_COLUMNS
from .decoding import Method, PenaltyPer, Precision, Splits, check_choices
from .errors import ArgumentError
from .notices import warn
from .ops import bfloat16_is_fast
from .scores import MODEL_LAYER, Scores
from .scoring import score_cells
from .stages.capture import RowOptions, capture, chunk_bounds, discover_layers, model_inputs, rows_dtype
from .stages.evaluate import evaluate_model
from .stages.layers import Layers, given_names, select_layers, unwrap
from .stages.plan import ForcedRoute, Selection, group_layers, memory_budget
from .stages.preserve import (
    BATCHNORM_MODES,
    batchnorm_mode,
    fix_random_state,
    full_float32,
    preserved,
    several_rows,
)
from .stages.probe_set import ProbeSet
from .stages.targets import build_targets
from .systems import DEFAULT_ALPHAS, Penalties
from .target_cache import TargetCache
from .target_types import Input, Label, Target
from .types import Activations, BatchNormMode, Layer, Score, TokenMode
from .workspace import Workspace

FOLDS = 5
_AUTHORS_BATCH = 128  # arXiv 2312.06887 measures with the batch statistics of 128 images
_BATCH = 256
_GPU_BATCH = 2048  # launches of small networks take as long as their work below it
_KEPT_SHARE = 0.1  # of the budget, that inputs kept on a GPU may take
_MEASURING = threading.RLock()  # modes, hooks, random states and settings of PyTorch are the same for all threads
_FREE_SHARE = 0.4  # of the budget, in use or free: beyond, what is free is not kept for the next checkpoints
try:
    VERSION = version("phasefast")
except PackageNotFoundError:  # run from a source tree that was never installed
    VERSION = "0+unknown"


class ProbeOptions(TypedDict, total=False):
    """What :func:`phasefast.probe`, :func:`phasefast.sweep` and :class:`phasefast.PhaseTracker` have in common.

    Attributes:
        layers: globs over ``named_modules()``, after ``!`` of those left out, or modules; by default the model's direct
            children. Scores have them in the order in which they are computed.
        targets: what is decoded; by default the input, where it is floating-point, the label, where there is one, and
            the probe set's values.
        alphas: ridge penalties relative to the mean diagonal of the Gram matrix; one per target is chosen on
            the fit rows, see ``selection``; ``[a]`` forces one. The decades from 1e-6 to 100 by default.
        noise: instead of ``alphas``, the standard deviation of noise on the activations (penalty = n noise^2).
        batchnorm: ``"recompute"`` statistics on the fit rows (default), of each ``"batch"``, or ``"running"``.
        device: where to compute; the model's own device by default.
        precision: ``"exact"`` (default): float32, and float64 for cells where it is not enough; ``"fast"``: float32,
            and float64 only where it fails, of rows rounded to bfloat16 where that is faster: on a GPU, or on a CPU
            with Intel AMX, or AVX512_BF16 on other makes; ``"double"``: float64 from the captured rows on.
        route: how cells are solved: ``None`` (default) plans the fastest for each; ``"primal"``, ``"dual"``,
            ``"eigen"`` or ``"target-free"`` forces one. All give the same numbers at the same penalty; see
            docs/performance.md.
        selection: how penalties are chosen: ``"gcv"`` (default), generalised cross-validation, which never takes a
            penalty of 0 that goes through all rows; ``"folds"``: 5-fold cross-validation; ``"loo"``: leave-one-out
            errors of all rows, from one eigendecomposition.
        penalty_per: ``"target"`` (default), or ``"column"``: each column of a regression chooses its own penalty.
        splits: ``"both"`` (default), or ``"heldout"``: no scores on the fit rows, which wide inputs save much by.
        target_components: decode regression targets of more columns by so many leading principal components, and 64
            random combinations of the rest: an estimate, with a 95 % interval in the columns ``low`` and ``high``.
            Targets of no more columns than that stay exact.
        layer_sketch: decode wider layers from so many random combinations of their features, and estimate the error of
            all features: ``value``, from ``low`` to ``high`` (accuracies are the sketch's own). A layer for which it
            fails, or is far off, is decoded exactly, which is what memory and ``phasefast plan`` allow for.
        tokens: for outputs [b, t, f], as which [b, c, l] are taken too: ``"flatten"`` (default), ``"mean"`` over t,
            ``"cls"``, the first, or ``"last"``.
        pool: average the spatial dimensions of [b, c, h, w] and [b, c, d, h, w] to this size; 0 (default) keeps all.
        batch_size: of the forward passes, and of the BatchNorm statistics that need batches; 256, or 128 for
            ``batchnorm="batch"``, by default. By default a GPU takes larger ones wherever the numbers stay the same.
        memory: budget, such as ``"8GB"``; most of what is free by default. On a CPU two fifths of it at most are kept
            from one checkpoint to the next, which saves finding them again.
    """

    layers: Layers | None
    targets: Sequence[Target] | Target | None
    alphas: Sequence[float] | float | None
    noise: float | None
    batchnorm: BatchNormMode
    device: str | torch.device | None
    precision: Precision
    route: ForcedRoute | None
    selection: Selection
    penalty_per: PenaltyPer
    splits: Splits
    target_components: int | None
    layer_sketch: int | None
    tokens: TokenMode
    pool: int
    batch_size: int | None
    memory: str | float | None


class Engine:
    """Measures one model on one probe set, again and again; targets, layers and plan are made once.

    Args:
        out: directory whose ``cache/`` keeps what takes long to make of the targets; None keeps nothing.

    Raises:
        ArgumentError, DataError, LayerError: options, targets or layers that cannot be used, before any work is done.
    """

    def __init__(
        self, model: nn.Module, probe_set: ProbeSet, run: str = "run", out: str | Path | None = None, **options: Any
    ) -> None:
        check_options(options)
        for name, value, kind in (("model", model, nn.Module), ("probe_set", probe_set, ProbeSet)):
            if not isinstance(value, kind):
                raise ArgumentError(f"{name}: expected a {kind.__name__}, got {type(value).__name__}")
        self.model, self.probe_set, self.run = unwrap(model), probe_set, run
        if scripted := [name for name, each in self.model.named_modules() if isinstance(each, torch.jit.ScriptModule)]:
            raise ArgumentError(
                f"model: {f'its module {scripted[0]!r}' if scripted[0] else 'it'} is TorchScript, which runs no hooks; "
                "give the module that it was made of"
            )
        tensors = [*self.model.parameters(), *self.model.buffers()]
        home = next((tensor.device for tensor in tensors), torch.device("cpu"))
        self.device = resolve_device(options.get("device"), home)
        self.batchnorm: BatchNormMode = options.get("batchnorm", "recompute")
        given = ("precision", "route", "selection", "splits", "layer_sketch")
        how = {name: options[name] for name in given if name in options}
        penalties = Penalties(as_tuple(options.get("alphas"), DEFAULT_ALPHAS), options.get("noise"))
        budget = memory_budget(options.get("memory"), self.device)
        inputs = probe_set.fit_inputs, probe_set.heldout_inputs
        taken = sum(split.nbytes for split in inputs if split.device.type == "cpu")
        # Every checkpoint reads them again; a budget that was given is for the cells alone, as `phasefast plan` counts.
        keeps = self.device.type == "cuda" and options.get("memory") is None and taken <= _KEPT_SHARE * budget
        self._fit_inputs, self._heldout_inputs = (split.to(self.device) if keeps else split for split in inputs)
        self.method = Method(penalties, budget=budget - taken if keeps else budget, **how)
        narrow = self.method.precision == "fast" and bfloat16_is_fast(self.device)
        self.rows = RowOptions(options.get("tokens", "flatten"), options.get("pool", 0), rows_dtype(self.model, narrow))
        self.batch_size = options.get("batch_size") or (_AUTHORS_BATCH if self.batchnorm == "batch" else _BATCH)
        large = self.device.type == "cuda" and self.batchnorm != "batch" and options.get("batch_size") is None
        self._forward_batch = _GPU_BATCH if large else self.batch_size
        self.names, self._given = (
            select_layers(self.model, options.get("layers")),
            given_names(self.model, options.get("layers")),
        )
        given_targets = options.get("targets")
        chosen = as_tuple(_default_targets(probe_set) if given_targets is None else given_targets, ())
        self.label = next((target.name for target in chosen if isinstance(target, Label)), None)
        fit = (probe_set.fit_inputs, probe_set.fit_labels)
        heldout = (probe_set.heldout_inputs, probe_set.heldout_labels)
        count = min(FOLDS, probe_set.n_fit) if penalties.selects else 1
        folds = [probe_set.n_fit * i // count for i in range(count + 1)]
        per_column = options.get("penalty_per") == "column"
        cache = None if out is None or per_column else TargetCache(Path(out) / "cache", probe_set.digest)
        self._components = options.get("target_components")
        kept = (self._fit_inputs, self._heldout_inputs) if keeps else None
        with full_float32(self.device):
            self.targets = build_targets(
                chosen, fit, heldout, folds, self.device, per_column, cache, self._components, kept
            )
        self.settings = self._settings()
        self.config_hash = hashlib.blake2b(json.dumps(self.settings).encode(), digest_size=8).hexdigest()
        self._layers: list[Layer] | None = None
        self._workspace = Workspace(_FREE_SHARE * budget)
        self._warned = self._measured = False

    def measure(self, step: int) -> Scores:
        """Scores of the model as it is now, labelled ``step``. The model is left exactly as it was found."""
        scores: list[Score] = []
        with _MEASURING:
            start, weights = time.perf_counter(), state_hash(self.model.state_dict())
            with self._workspace, self._prepared() as groups:
                for index, group in enumerate(groups):
                    cells, outputs = self._capture(group)
                    if index == 0 and self.label is not None:
                        scores += self._model_scores(outputs, self.label)
                    scores += score_cells(cells, self.targets, self.method)
        if not self._measured and all(score.bounds is None for score in scores):
            self._say_that_all_is_exact(step)
        self._measured = True
        same = {"step": step, "seconds": time.perf_counter() - start, "state_hash": weights}
        return Scores.from_rows({**self._row(score), **same} for score in scores)

    def activations(self) -> list[Activations]:
        """The rows that ``measure`` decodes, of all layers at once; for other decoders than the package's."""
        with self._prepared() as groups:
            return [cell for group in groups for cell in self._capture(group)[0]]

    @contextmanager
    def _prepared(self) -> Iterator[list[list[Layer]]]:
        """The model ready to be run, and restored after; yields the layers in groups that are captured together."""
        with _MEASURING, preserved(self.model, self.device):
            if self._layers is None:
                first = next(model_inputs(self._fit_inputs, [(0, 2)], self.model, self.device))
                try:
                    self._layers = discover_layers(self.model, self.names, first, self.rows, self._given)
                except RuntimeError as error:  # the model's own
                    if "does not require grad" in str(error):
                        error.add_note("Models are run under torch.no_grad(): use torch.enable_grad() in the forward.")
                        raise
                    error.add_note(
                        f"The model was given samples of shape {tuple(first.shape[1:])}, {first.dtype}: does the probe "
                        "set hold what it takes? Images are numbers such as x.float() / 255. A model of several inputs "
                        "is wrapped in a module that makes them from one tensor."
                    )
                    raise
            fix_random_state(self.device)
            fit_bounds = chunk_bounds(0, self.probe_set.n_fit, self.batch_size)
            batches = model_inputs(self._fit_inputs, fit_bounds, self.model, self.device)
            with batchnorm_mode(self.model, self.batchnorm, batches):
                problem = self.method.problem(self.probe_set.n_heldout, self.targets, self.rows.dtype)
                yield group_layers(self._layers, problem, int(self.method.budget), self.method.route)

    def _capture(self, group: Sequence[Layer]) -> tuple[list[Activations], dict[str, Tensor | None]]:
        """Activations of a group of layers, and the model's own outputs per split where they are rows of numbers."""
        arguments = (self._fit_inputs, self._heldout_inputs, self.targets.folds, self._forward_batch)
        fix_random_state(self.device)
        with several_rows(self.batchnorm):
            cells, fit_outputs, heldout_outputs = capture(self.model, group, *arguments, self.rows, self.device)
        return cells, {"fit": fit_outputs, "heldout": heldout_outputs}

    def _model_scores(self, outputs: dict[str, Tensor | None], label: str) -> list[Score]:
        width = next(block.stop - block.start for block in self.targets.blocks if block.name == label)
        usable = {split: out if out is not None and out.shape[1] == width else None for split, out in outputs.items()}
        others = {out.shape[1] for out in outputs.values() if out is not None and out.shape[1] != width}
        if others and not self._warned:
            self._warned = True
            warn(
                f"no rows of layer {MODEL_LAYER!r}: the model has {others.pop()} outputs, target {label!r} {width} "
                "classes; if it was trained on such labels, give them as they were, from 0, or Label(classes)",
            )
        labels = {"fit": self.probe_set.fit_labels, "heldout": self.probe_set.heldout_labels}
        return evaluate_model(usable, labels, label)

    def _say_that_all_is_exact(self, step: int) -> None:
        """Warn where an approximation was asked for that was not needed, or of no use."""
        count, size, n = self._components, self.method.layer_sketch, self.probe_set.n_fit
        widest = max((layer.dim for layer in self._layers or ()), default=0)
        if count is not None:
            limit = count + RANDOM_COLUMNS
            narrow = all(block.width <= limit for block in self.targets.blocks if block.kind == "regression")
            why = (
                f"no regression target has more than {limit} columns"
                if narrow
                else f"{n} fit rows need only {n + 1} columns"
            )
            text = f"target_components={count} was not needed: {why}; all scores are exact"
        elif size is not None and widest <= size:
            text = f"layer_sketch={size} was not needed: no layer has more features; all scores are exact"
        elif size is not None:
            text = f"layer_sketch={size} was too small for every layer at step {step}: all were decoded exactly"
        else:
            return
        warn(text)

    def _row(self, score: Score) -> dict[str, Any]:
        row: dict[str, Any] = {
            "run": self.run,
            "layer": score.layer,
            "dim": score.dim,
            "target": score.target,
            "split": score.split,
            "metric": score.metric,
            "value": score.value,
            "n": score.n,
            "batchnorm": self.batchnorm,
            "config_hash": self.config_hash,
            "version": VERSION,
        }
        if score.fit is not None:
            for name in ("alpha", "route", "jitter", "rank", "dof", "condition", "error_estimate"):
                row[name] = getattr(score.fit, name)
            row["dtype"] = str(score.dtype).removeprefix("torch.")
        if score.samples is not None:
            row["samples"] = score.samples.numpy()
        if score.bounds is not None:
            row |= {name: value for name, value in asdict(score.bounds).items() if value == value}  # NaN is not
        return row

    def _settings(self) -> dict[str, Any]:
        """What scores of one table have in common, as JSON has it: none of these may differ."""
        settings: dict[str, Any] = {
            "names": self.names,
            "run": self.run,
            "model": [(name, list(t.shape)) for name, t in self.model.named_parameters()],
            "modules": [f"{name}: {type(m).__name__}({m.extra_repr()})" for name, m in self.model.named_modules()],
            "targets": self.targets.digest,
            "data": self.probe_set.digest,
            "penalties": [self.method.penalties.alphas, self.method.penalties.noise],
            "choice": [self.method.selection, self.targets.per_column],
            "batchnorm": [self.batchnorm, self.batch_size],
            "precision": self.method.precision,
            "splits": self.method.splits,
            "rows": [self.rows.tokens, self.rows.pool, str(self.rows.dtype)],
            "folds": self.targets.folds,
        }
        if projected := [(block.name, block.stop - block.start) for block in self.targets.blocks if block.random]:
            settings["components"] = projected
        if self.method.layer_sketch is not None:
            settings["sketch"] = self.method.layer_sketch
        return settings


def as_tuple(value: Any, default: Sequence[Any]) -> tuple[Any, ...]:
    """An option of one value or several: a sequence as given, a value alone as one of it, None as the default."""
    if value is None:
        return tuple(default)
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def resolve_device(given: str | torch.device | None, home: torch.device) -> torch.device:
    """The device asked for, or ``home`` for None; ArgumentError where it cannot be used."""
    try:
        device = home if given is None else torch.device(given)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ArgumentError(f"device {str(given)!r} cannot be used: {error}; give such as 'cpu' or 'cuda'") from error
    return device


def _default_targets(probe_set: ProbeSet) -> list[Target]:
    targets: list[Target] = [Input()] if probe_set.fit_inputs.is_floating_point() else []
    if probe_set.fit_labels is not None:
        targets.append(Label(probe_set.classes))
    targets += [probe_set.target(name) for name in probe_set.fit_values]
    if not targets:
        raise ArgumentError(
            f"targets: nothing to decode by default: the samples are {probe_set.fit_inputs.dtype}, so they are not "
            "decoded themselves (images are given as numbers such as x.float() / 255), and there are no labels, nor "
            "values; give such as phasefast.Function(fn)"
        )
    if probe_set.fit_inputs.dtype == torch.uint8:  # images, unlike the integers that stand for tokens
        warn(
            "the samples are torch.uint8, so only the label is decoded; give images as numbers such as x.float() / 255",
        )
    return targets


def check_options(options: dict[str, Any]) -> None:
    """Refuse options that do not exist, values that cannot be, and what excludes each other: ArgumentError."""
    for name in options:
        if name not in ProbeOptions.__annotations__:
            near = difflib.get_close_matches(name, ProbeOptions.__annotations__, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {sorted(ProbeOptions.__annotations__)}"
            raise ArgumentError(f"unknown option {name!r}{hint}")
    check_choices(options)
    if options.get("batchnorm", BATCHNORM_MODES[0]) not in BATCHNORM_MODES:
        raise ArgumentError(f"batchnorm: expected one of {BATCHNORM_MODES}, got {options['batchnorm']!r}")
    if options.get("alphas") is not None and options.get("noise") is not None:
        raise ArgumentError(
            "alphas and noise exclude each other: a relative and an absolute penalty cannot share a curve"
        )
    for name in ("batch_size", "target_components", "layer_sketch"):
        given = options.get(name)
        if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
            raise ArgumentError(f"{name}: expected a positive integer, got {given!r}")
    approximations = [name for name in ("target_components", "layer_sketch") if options.get(name) is not None]
    if approximations and options.get("penalty_per") == "column":
        raise ArgumentError(f"{approximations[0]}: penalty_per='column' has no approximation; leave one of them out")
    if len(approximations) > 1:
        raise ArgumentError("target_components and layer_sketch: each has an interval of its own; leave one out")
