"""The targets of a measurement: what is decoded, evaluated once for all checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .common.notices import warn
from .configuration import Configuration
from .data.inputs import Inputs
from .data.probe_set import ProbeSet
from .data.target_cache import TargetCache
from .data.target_matrix import TargetMatrix
from .data.target_types import Split, Target
from .data.token_rows import Units
from .named_targets import by_name, default_targets, warn_of_classes, warn_of_scales
from .options import as_tuple
from .predicted import Predictions
from .stages.preserve import full_float32
from .stages.targets import FunctionValues, build_targets, given_values


@dataclass(frozen=True, eq=False)
class TargetSet:
    """What is decoded of every layer, and what the model itself predicts of it.

    Attributes:
        matrix: all columns. predictions: of the model. functions: what shows whether they change.
    """

    matrix: TargetMatrix
    predictions: Predictions
    functions: FunctionValues
    _chosen: list[Target]
    _splits: Mapping[str, Split]
    _units: Units

    @classmethod
    def of(
        cls, config: Configuration, probe_set: ProbeSet, units: Units, inputs: Inputs, out: str | Path | None
    ) -> TargetSet:
        """As the options say.

        Args:
            inputs: of the probe set, which need not be copied again where they are on the device.
            out: directory whose ``cache/`` keeps what takes long to make; None keeps nothing.

        Raises:
            ArgumentError, DataError: targets that cannot be used.
        """
        options, method = config.options, config.method
        each = config.rows.tokens == "each"
        wanted = default_targets(probe_set, each) if options.get("targets") is None else options["targets"]
        chosen = by_name(as_tuple("targets", wanted, ()), probe_set, each)
        splits = {name: (given, labels) for name, (given, labels, _) in probe_set.splits.items()}
        data = probe_set.inputs_digest + units.token_digest + units.group_digest
        cache = None if out is None or config.per_column else TargetCache(Path(out) / "cache", data)
        copied = inputs.fit, inputs.heldout
        how = config.device, config.per_column, cache, options.get("target_components"), copied, units.tokens
        folds = units.folds(method.folds(probe_set.n_fit))
        with full_float32(config.device):
            matrix = build_targets(chosen, splits["fit"], splits["heldout"], folds, *how)
            own = splits, copied, units, matrix, config.device, method.balanced
            predictions = Predictions.of(chosen, options.get("predicts"), *own)
            made = cls(matrix, predictions, FunctionValues(chosen, probe_set.fit_inputs), chosen, splits, units)
        if config.per_column and not matrix.per_column:
            warn("penalty_per='column' changes nothing: no target of numbers has several columns")
        warn_of_classes(matrix, options)
        warn_of_scales(chosen, probe_set.fit_inputs, matrix)
        return made

    @property
    def hashes(self) -> dict[str, str]:
        """Of the values of each target, by name, and of how many columns stand for them, if these were drawn."""
        random = {block.name: f"-{block.stop - block.start}" for block in self.matrix.blocks if block.random}
        pairs = zip(self.matrix.blocks, self.matrix.digests, strict=True)
        return {block.name: digest + random.get(block.name, "") for block, digest in pairs}

    def given_columns(self, name: str) -> Tensor:
        """Columns [n, p] of a target on the fit rows as they were given, classes not one-hot."""
        (target,) = (target for target in self._chosen if target.name == name)
        with full_float32(self.matrix.fit.device):
            values, _ = given_values(target, self._splits["fit"], self._splits["heldout"], self._units.tokens)
        return values.reshape(len(values), -1)
