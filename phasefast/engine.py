"""The composer of a whole measurement: a model's layers on a probe set. Everything else calls it."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .algebra.components import RANDOM_COLUMNS
from .algebra.workspace import Workspace
from .checkpoints import weights_hash
from .common.notices import Once, listed_reasons, shown, warn
from .common.random_state import fix_random_state, repeats
from .configuration import Configuration
from .data.batches import fast_size, given_dtype, warn_of_rounding
from .data.inputs import Inputs
from .data.outputs import rows_in
from .data.probe_set import ProbeSet
from .data.sequences import check_padding
from .data.token_rows import Units
from .decoding import decode
from .errors import ArgumentError, GoneError, LayerError, PhasefastError
from .results.scores import MODEL_LAYER, Scores
from .results.store import Store
from .scoring import row_of, score_cells
from .stages.batchnorm import batchnorm_mode, fresh_statistics, frozen_norms, several_rows
from .stages.capture import capture
from .stages.discover import discover_layers, warn_of_order
from .stages.plan import Problem, group_layers
from .stages.preserve import preserved
from .target_set import TargetSet
from .types import Activations, Decoder, Layer, Score, TakesOutputs

_KEPT_SHARE = 0.1  # of the budget, that inputs kept on a GPU may take
_MEASURING = threading.RLock()  # modes, hooks, random states and settings of PyTorch are the same for all threads
_FREE_SHARE = 0.4  # of the budget, in use or free: beyond, what is free is not kept for the next checkpoints
try:
    VERSION = version("phasefast")
except PackageNotFoundError:  # run from a source tree that was never installed
    VERSION = "0+unknown"


class Engine:
    """Measures one model on one probe set, again and again; targets, layers and plan are made once.

    Args:
        out: directory whose ``cache/`` keeps what takes long to make of the targets; None keeps nothing.

    Attributes:
        lost: layers that the last measurement left out, and why. known: those that stored steps have, to which more
            are to be added: one of them may be gone.
        names: of the modules that are probed. named: those of them that the user named. units: what rows are.
        target_set: what is decoded. targets: all columns of it.
        settings: what scores of one directory have in common; config_hash: of these. target_hashes: by target.

    Raises:
        ArgumentError, DataError, LayerError: options, targets or layers that cannot be used, before any work is done.
    """

    def __init__(
        self, model: nn.Module, probe_set: ProbeSet, run: str = "run", out: str | Path | None = None, **options: Any
    ) -> None:
        for name, value, kind, mend in (
            ("probe_set", probe_set, ProbeSet, "; ProbeSet.from_dataset and from_tensors make one"),
            ("run", run, str, ""),
        ):
            if not isinstance(value, kind):
                raise ArgumentError(f"{name}: expected a {kind.__name__}, got {type(value).__name__}{mend}")
        config = Configuration.of(model, options, grouped=probe_set.groups is not None)
        options = dict(config.options)
        self.model, self.device, self.rows, self.batchnorm = config.model, config.device, config.rows, config.batchnorm
        self.names, self.named, self.probe_set, self.run = config.names, config.named, probe_set, run
        self.batch_size, budget = config.batch_size, config.method.budget
        # Every checkpoint reads them again; a budget that was given is for the cells alone, as `phasefast plan` counts.
        room = _KEPT_SHARE * budget if options.get("memory") is None else 0
        self._inputs = Inputs.of(probe_set, self.device, room)
        self.method = replace(config.method, budget=budget - self._inputs.nbytes)
        check_padding(self.rows.padding, probe_set)
        free = self.batchnorm != "batch" and options.get("batch_size") is None
        given = probe_set.fit_inputs
        total = torch.cuda.mem_get_info(self.device)[1] if self.device.type == "cuda" else math.inf
        self._forward_batch = fast_size(given, self.batch_size, self.device, total) if free else self.batch_size
        self.units = Units.made(probe_set, self.rows.tokens == "each", self.rows.padding)
        if probe_set.groups is not None and self.batchnorm == "batch":
            alone = int(probe_set.groups["fit"].counts.max()) == 1
            if not alone and fresh_statistics(self.model):
                warn("batchnorm='batch' takes the statistics of few groups at a time: give batchnorm='recompute'")
        self.target_set = TargetSet.of(config, probe_set, self.units, self._inputs, out)
        self.targets, self.target_hashes = self.target_set.matrix, self.target_set.hashes
        self._components = options.get("target_components")
        warn_of_rounding(given, self.model)
        self.settings = config.settings(run, probe_set.inputs_digest, self.units)
        self.config_hash = hashlib.blake2b(json.dumps(self.settings).encode(), digest_size=8).hexdigest()
        self._layers: list[Layer] | None = None
        tensors = [*self.model.parameters(), *self.model.buffers()]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)  # of sparse ones too
        self._keep = self.device if size <= _KEPT_SHARE * budget else torch.device("cpu")
        self._once = Once()
        self.lost: dict[str, PhasefastError] = {}
        self.known: frozenset[str] = frozenset()
        self._workspace = Workspace(_FREE_SHARE * budget)
        self._measured = False

    @property
    def recomputed(self) -> dict[str, Tensor]:
        """What a checkpoint may lack, since it is recomputed: BatchNorm statistics by name, as before any batch."""
        return {} if self.batchnorm == "running" else fresh_statistics(self.model)

    @property
    def modules(self) -> list[str]:
        """Those of ``names``, and ``"model"``, whose layers can be measured, as the model's first samples show."""
        if self._layers is None:
            with _MEASURING, preserved(self.model, self.device, self._keep):
                self._known_layers()
        found = dict.fromkeys(layer.module for layer in self._layers or ())
        return [*found] + [MODEL_LAYER] * self.target_set.predictions.there

    def lacking(self, stored: Scores, names: Iterable[str], lost: Collection[str], asked: bool = False) -> list[str]:
        """Those of the layers of these ``names``, and ``"model"``, of which scores lack a target.

        Args:
            lost: what is known to have none. asked: of what the model predicts, only what the user named.
        """
        own = self.target_set.predictions.missing(lost, asked)
        return stored.lacking(names, self.target_hashes) + stored.lacking([MODEL_LAYER], own)

    def planned(self) -> tuple[list[list[Layer]], Problem]:
        """The layers in groups that are captured together, and what their costs depend on beside their widths."""
        with _MEASURING, preserved(self.model, self.device, self._keep):
            return self._groups(self._known_layers())

    def store(self, directory: str | Path) -> Store:
        """A run directory for the scores of ``measure``."""
        return Store(directory, self.config_hash, self.settings, self.target_hashes)

    def measure(self, step: int, keep: bool = True, only: Collection[str] | None = None) -> Scores:
        """Scores of the model as it is now, labelled ``step``. The model is left exactly as it was found.

        Args:
            keep: False leaves parameters that its forward changes as they are then, if other weights come next.
            only: those of ``modules`` whose layers to measure, if others are measured already; None for all.
        """
        scores: list[Score] = []
        with _MEASURING:
            start, weights = time.perf_counter(), weights_hash(self.model)
            before, now = dict(self.settings["model"]), dict(self.model.named_parameters())
            if other := before.keys() ^ now.keys():
                self._once.warn(
                    f"the model has other parameters than at first, such as {shown(other)}: scores stored with out= "
                    "cannot be added to later, as after an interruption; measure the part that stays"
                )
            with self._workspace, self._prepared(keep, only) as groups:
                if changed := self.target_set.functions.changed():
                    self._once.warn(
                        f"targets {shown(changed)}: their functions give other values than before, although they are "
                        "evaluated once for all steps: do they read the model's weights?"
                    )
                all_of_it = only is None or MODEL_LAYER in only
                own = self.target_set.predictions.outputs(self._once.warn) if all_of_it else []
                for group in groups or [[]] * bool(own):
                    cells = self._capture(group, own)
                    for each in own:
                        scores += each.scores()
                        self.lost |= each.lost
                        if each.doubt:
                            self._once.warn(each.doubt)
                    own = []
                    scores += score_cells(cells, self.targets, self.method)
                found = only is not None or any(score.fit is not None for score in scores)
                self._settle(found, f" at step {step}")
        if dead := {score.layer for score in scores if score.fit is not None and score.fit.rank == 0}:
            self._once.warn(
                f"layers {shown(dead)}: nothing is decoded at step {step}, since their activations are the same for "
                "all samples",
                about=f"dead {sorted(dead)}",
            )
        if not self._measured and all(score.bounds is None for score in scores):
            self._say_that_all_is_exact(step, max((score.dim for score in scores if score.fit is not None), default=0))
        self._measured = True
        same = {
            "run": self.run,
            "step": step,
            "batchnorm": self.batchnorm,
            "config_hash": self.config_hash,
            "version": VERSION,
            "seconds": time.perf_counter() - start,
            "state_hash": weights,
        }
        places, hashes = {layer.name: layer.place for layer in self._layers or ()}, self.target_hashes
        return Scores.from_rows(
            row_of(score, self.targets, self.units)
            | {"place": places.get(score.layer), "target_hash": hashes[score.target], **same}
            for score in scores
        )

    def activations(self) -> list[Activations]:
        """The rows that ``measure`` decodes, of all layers at once; for other decoders than the package's."""
        with self._prepared() as groups:
            found = [cell for group in groups for cell in self._capture(group)]
            self._settle(bool(found))
        return found

    def decoders(
        self, keep: bool = True, whole: bool = False
    ) -> Generator[tuple[Activations, Decoder, Activations | None]]:
        """For each layer, the rows that its decoder of ``measure`` applies to, and the decoder.

        Args:
            keep: as for ``measure``. whole: also give the rows as they were captured, if others take their place.
        """
        found = False
        with _MEASURING, self._workspace, self._prepared(keep) as groups:
            for group in groups:
                cells = self._capture(group)
                captured = {cell.layer.name: cell for cell in cells} if whole else {}
                for cell, decoder in decode(cells, self.targets, self.method):
                    found = True
                    yield cell, decoder, captured.pop(cell.layer.name, None)
            self._settle(found)

    def _settle(self, found: bool, when: str = "") -> None:
        """Raise the reason why layers were lost if nothing else was ``found``; otherwise warn, once for each set."""
        if self.lost and not found:
            raise next(iter(self.lost.values()))
        if self.lost:
            text = f"layers: left out {len(self.lost)}{when}: {listed_reasons(self.lost)}"
            self._once.warn(text, about=f"lost {sorted(self.lost)}")

    @contextmanager
    def _prepared(self, keep: bool = True, only: Collection[str] | None = None) -> Iterator[list[list[Layer]]]:
        """The model ready to be run, and restored after; yields the layers in groups that are captured together."""
        with _MEASURING:
            if self.batchnorm != "running" and (frozen := frozen_norms(self.model)):
                self._once.warn(
                    f"batchnorm={self.batchnorm!r} does not use the running statistics of {shown(frozen)}, which are "
                    "in evaluation mode in a model in training: if they are frozen, give batchnorm='running'"
                )
            with preserved(self.model, self.device, self._keep if keep else None) as changed:
                layers = self._known_layers()
                there = {layer.module for layer in layers}
                gone = {name: f"layer {name!r}: it has no rows any more" for name in (self.named & self.known) - there}
                self.lost = {name: GoneError(text) for name, text in gone.items() if only is None or name in only}
                layers = layers if only is None else [layer for layer in layers if layer.module in only]
                fix_random_state(self.device)
                batches = self._inputs.mixed_batches(self.model, self.batch_size)
                with batchnorm_mode(self.model, self.batchnorm, batches, self._once.warn):
                    yield self._groups(layers)[0]
            for kind, names in changed.items():
                if names:
                    self._once.warn(
                        f"forward changes the {kind} {shown(names)} in evaluation mode too: they are put back after "
                        "each measurement, but change during it, so scores may depend on the batches; to avoid that, "
                        "update them only if self.training"
                    )

    def _groups(self, layers: Sequence[Layer]) -> tuple[list[list[Layer]], Problem]:
        problem = self.method.problem(len(self.targets.heldout), self.targets, self.rows.dtype)
        return group_layers(layers, problem, int(self.method.budget), self.method.route), problem

    def _known_layers(self) -> list[Layer]:
        self._layers = self._layers or self._discovered()
        return self._layers

    def _discovered(self) -> list[Layer]:
        """The layers, as the first few samples show them."""
        batches = self._inputs.first(self.model)
        try:
            how = self.rows, self.named - self.known, self.target_set.predictions
            layers, places, some, first = discover_layers(self.model, self.names, batches, *how)
            if repeats(self.device, lambda: rows_in(self.model(first.clone())), self._once.warn):
                warn_of_order(self.model, layers, first, some, self.rows)
        except PhasefastError:
            raise
        except Exception as error:  # the model's own
            if "does not require grad" in str(error):
                error.add_note("Models are run under torch.no_grad(): use torch.enable_grad() in the forward.")
                raise
            given, dtype = self._inputs.fit, given_dtype(self._inputs.fit, self.model)
            error.add_note(
                f"The model was given samples of shape {tuple(given.shape[1:])}, {dtype}: does the probe "
                "set hold what it takes? Give images as floats, such as x.float() / 255. Wrap a model of several "
                'inputs in a module that makes them from one tensor: docs/sequences.md, "Several inputs".'
            )
            raise
        self.target_set.predictions.found(places)
        return layers

    def _capture(self, group: Sequence[Layer], own: Sequence[TakesOutputs] = ()) -> list[Activations]:
        """Activations of a group of layers; ``own`` get the model's outputs."""
        arguments = (self._inputs.fit, self._inputs.heldout, self.targets.folds, self._forward_batch)
        fix_random_state(self.device)
        with several_rows(self.batchnorm):
            how = self.rows, self.device, self.units.tokens, own
            found = capture(self.model, group, *arguments, *how)
        self._tell_more_calls({cell.layer.module: found.calls[cell.layer.module] for cell in found.cells})
        named = {layer.name for layer in group if layer.module in self.named}
        for name, error in found.problems.items():
            gone = name in named and isinstance(error, LayerError)
            if gone and not self._measured and name not in self.known:
                raise error
            # Others are measured without it once it was there.
            self.lost[name] = GoneError(str(error)) if gone else error
        return found.cells

    def _tell_more_calls(self, calls: Mapping[str, int]) -> None:
        """Warn, once for each set, of modules that were called more often than by the first samples, as by solvers."""
        known = Counter(layer.module for layer in self._layers or ())
        if more := [name for name, count in calls.items() if count > known[name]]:
            count, first = calls[more[0]], known[more[0]]
            self._once.warn(
                f"{shown(more)}: called {count} times for a batch, of which the first {first} are layers, as many as "
                "with the first samples; to probe the last call, pass its output through an nn.Identity() of its own",
                about=f"calls {sorted(more)}",
            )

    def _say_that_all_is_exact(self, step: int, widest: int) -> None:
        """Warn where an approximation was asked for that was not needed, or of no use, in layers so wide at most."""
        count, size, n = self._components, self.method.layer_sketch, len(self.targets.fit)
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
