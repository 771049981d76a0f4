"""The table of results: one row per number; on disk a Parquet file for each step."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..common.files import writing
from ..common.tables import Printed
from ..errors import ArgumentError, DataError, DependencyError, LayerError, StoreError
from .listing import COLUMNS, listing
from .paths import shard_file, store_folder
from .per_sample import LISTS, apart, joined, pooled
from .selecting import in_order, listed_patterns, listed_steps, matching

if TYPE_CHECKING:
    import pandas

SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("step", pa.int64()),
        ("layer", pa.string()),
        ("dim", pa.int64()),
        ("target", pa.string()),
        ("split", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("alpha", pa.float64()),
        ("n", pa.int64()),
        ("route", pa.string()),
        ("dtype", pa.string()),
        ("batchnorm", pa.string()),
        ("jitter", pa.float64()),
        ("rank", pa.int64()),
        ("dof", pa.float64()),
        ("condition", pa.float64()),
        ("error_estimate", pa.float64()),
        ("seconds", pa.float64()),
        ("config_hash", pa.string()),
        ("state_hash", pa.string()),
        ("source_hash", pa.string()),
        ("version", pa.string()),
        ("samples", LISTS),
        ("approximation", pa.string()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("dropped", pa.float64()),
        ("baseline", pa.float64()),
        ("baseline_samples", LISTS),
        ("target_hash", pa.string()),
        ("place", pa.int64()),
    ]
)
_KEY = ["run", "step", "layer", "target", "split", "metric", "batchnorm", "config_hash"]  # what a row is known by
_CURVE = ["layer", "target", "metric", "split"]  # what rows of several steps are known by
_ROUNDING = 1e-6  # of a baseline, by which its rows may differ
PER_SAMPLE = ["samples", "baseline_samples"]
MODEL_LAYER = "model"


class Scores(Printed):
    """A long, tidy table of metrics; columns are ``phasefast.results.scores.SCHEMA``.

    ``samples`` of held-out ``fvu`` and ``accuracy`` rows holds one number per held-out sample, or group of samples;
    their mean is ``value``.
    Where ``approximation`` says what was left out, ``low`` to ``high`` is an interval for the exact value, of 95 % or
    more by estimate, and ``dropped`` the share of the target's squared deviation that components leave out.
    ``baseline`` is what the best constant would score: the mean, or the most frequent class, of the fit rows;
    ``baseline_samples`` holds its held-out ``fvu`` for each sample; for accuracies the samples' weights, if unequal.
    """

    def __init__(self, table: pa.Table) -> None:
        there = set(table.column_names)  # made anew each time
        if missing := [name for name in SCHEMA.names if name not in there]:
            raise StoreError(f"table of scores lacks the columns {missing}; it has {table.column_names}")
        if not table.schema.equals(SCHEMA) or not len(table):
            table = table.select(SCHEMA.names).cast(SCHEMA) if len(table) else SCHEMA.empty_table()
        self._keep(table, {name: [apart(table.column(name))] for name in PER_SAMPLE})

    def _keep(self, table: pa.Table, lists: Mapping[str, Iterable[tuple[pa.ChunkedArray, list[pa.ListArray]]]]) -> None:
        """Take a table's rows in the order of their steps, and what they have of each sample: ``lists`` by column."""
        self._lists = dict[str, list[pa.ListArray]]()
        for name, parts in lists.items():  # the table itself has but their places, so that to cut it takes little
            places, self._lists[name] = pooled(parts, once=name == "baseline_samples")
            table = table.set_column(SCHEMA.get_field_index(name), name, places)
        steps = table.column("step")  # no NumPy: torch.compile looks into what a compiled function does with scores
        in_order = pc.all(pc.less_equal(steps.slice(0, max(len(steps) - 1, 0)), steps.slice(1))).as_py() is not False
        table = table if in_order else table.sort_by([("step", "ascending")])
        # Shards leave a chunk each, by which every later look at them takes so many times as long.
        self._table = table if table.column("step").num_chunks == 1 else table.combine_chunks()

    def _cut(self, table: pa.Table) -> Scores:
        """Scores of a table of these rows, in the order of their steps."""
        found = Scores.__new__(type(self))
        found._table, found._lists = table, self._lists
        return found

    def _lists_of(self, name: str) -> list[pa.ListArray | None]:
        """What each row has of each sample, by the column's name."""
        lists = self._lists[name]
        return [None if place is None else lists[place] for place in self._table.column(name).to_pylist()]

    @cached_property
    def without_samples(self) -> Scores:
        """The same rows without what they have of each sample, which takes longest to copy."""
        table, nothing = self._table, pa.nulls(len(self), pa.int64())
        for name in PER_SAMPLE:
            table = table.set_column(SCHEMA.get_field_index(name), name, nothing)
        return self._cut(table)

    @classmethod
    def from_rows(cls, rows: Iterable[dict[str, Any]]) -> Scores:
        """Scores from dictionaries with the schema's columns; missing columns are null."""
        return cls(pa.Table.from_pylist(list(rows), schema=SCHEMA))

    @classmethod
    def concat(cls, parts: Sequence[Scores]) -> Scores:
        """All rows of ``parts`` by step; those that several have are kept once, with samples if one has them.

        Raises:
            DataError: a run's step has different weights, or a target of a configuration different values.
        """
        parts = [cls(SCHEMA.empty_table()), *parts]
        both = cls.__new__(cls)
        lists = {name: [(part._table.column(name), part._lists[name]) for part in parts] for name in PER_SAMPLE}
        both._keep(pa.concat_tables([part._table for part in parts]), lists)
        table = both._table
        for column, of, known, what in (
            ("step", ["run"], "state_hash", "weights"),
            ("target", ["run", "config_hash"], "target_hash", "values"),
        ):
            counts = table.group_by([*of, column]).aggregate([(known, "count_distinct")])
            if several := counts.filter(pc.field(f"{known}_count_distinct") > 1).to_pylist():
                raise DataError(
                    f"scores of run {several[0]['run']!r}, {column} {several[0][column]!r}: expected those of one "
                    f'training, got those of different {what}; tell runs apart with with_column("run", ...)'
                )
        places = pa.array(range(len(table)), pa.int64())
        bare = pc.multiply(pc.is_null(table.column("samples")).cast(pa.int64()), len(table))
        orders = table.append_column("first", places).append_column("best", pc.add(places, bare))
        kept = orders.group_by(_KEY).aggregate([("first", "min"), ("best", "min")]).sort_by("first_min")
        if len(kept) == len(table):
            return both
        return both._cut(table.take(pa.array([row % len(table) for row in kept.column("best_min").to_pylist()])))

    def to_arrow(self) -> pa.Table:
        """The table, as an Arrow table with all columns."""
        lists = {name: joined(self._lists_of(name)) for name in PER_SAMPLE}
        return pa.Table.from_arrays([lists.get(name, self._table.column(name)) for name in SCHEMA.names], schema=SCHEMA)

    def to_pandas(self, samples: bool = False) -> pandas.DataFrame:
        """The table as a pandas DataFrame, without the per-sample columns unless ``samples``."""
        try:
            return (self.to_arrow() if samples else self._table.drop_columns(PER_SAMPLE)).to_pandas()
        except ImportError as error:
            raise DependencyError("to_pandas needs pandas: pip install 'phasefast[report]'") from error

    def to_dict(self, split: str = "heldout") -> dict[str, float]:
        """Values of one measurement by ``"layer/target/metric"``, for loggers; ArgumentError if there are several."""
        rows = self.filter(split=split)._table.select([*_CURVE[:3], "value"]).to_pylist()
        found = {"/".join(row[name] for name in _CURVE[:3]): row["value"] for row in rows}
        if len(found) < len(rows) or len(self.steps) > 1:
            raise ArgumentError(
                f"to_dict: expected one step, measured in one way, got {self!r}: choose with select(steps=[...])"
            )
        return found

    def __len__(self) -> int:
        return len(self._table)

    def __repr__(self) -> str:
        return f"Scores({len(self)} rows, layers {self.layers}, targets {self.targets}, steps {self.steps})"

    def __str__(self) -> str:
        return listing(self.filter(split="heldout")._table.select(COLUMNS).to_pylist()) or repr(self)

    @property
    def steps(self) -> list[int]:
        """Steps in ascending order."""
        return sorted(self._table.column("step").unique().to_pylist())

    @property
    def layers(self) -> list[str]:
        """Probed layers, in the order in which the model computes them."""
        return list(self._layers)

    @cached_property
    def _layers(self) -> list[str]:
        probed = self._probed
        steps, layers, places = (probed.column(name).to_pylist() for name in ("step", "layer", "place"))
        found = in_order(zip(steps, layers, strict=True))
        if None in places:
            return found
        return sorted(found, key=dict(zip(layers, places, strict=True)).__getitem__)

    @property
    def targets(self) -> list[str]:
        """Names of the targets; the model's own metrics are not among them."""
        return list(self._targets)

    @cached_property
    def _targets(self) -> list[str]:
        return list(self._probed.column("target").unique().to_pylist())

    @property
    def _probed(self) -> pa.Table:
        """Which layers and targets rows are of that are not the model's own."""
        table = self._table.select(["step", "layer", "place", "target"])
        return table.filter(pc.field("layer") != MODEL_LAYER)

    @property
    def target_hashes(self) -> dict[str, str]:
        """Hashes of the values of targets by name, of those where one is known."""
        pairs = zip(*(self._table.column(name).to_pylist() for name in ("target", "target_hash")), strict=True)
        return {target: known for target, known in pairs if known is not None}

    def values_of(self, column: str) -> list[str]:
        """The different values of a text column; ``"none"`` stands for null."""
        return ["none" if value is None else value for value in self._table.column(column).unique().to_pylist()]

    def approximations(self, target: str, metric: str) -> list[str]:
        """What a target's held-out values were estimated from, such as ``"sketch of 64 of 512 features"``."""
        found = self.filter(target=target, metric=metric, split="heldout").values_of("approximation")
        return [each for each in found if each != "none"]

    def filter(self, **equal: str | int | float) -> Scores:
        """Rows whose columns equal the given values: ``scores.filter(layer="fc", metric="fvu", split="heldout")``."""
        known = [column for column in SCHEMA.names if column not in PER_SAMPLE]
        if unknown := [column for column in equal if column not in known]:
            raise ArgumentError(f"scores have no column {unknown[0]!r} to filter by; they have {known}")
        wanted = [pc.equal(self._table.column(column), pa.scalar(value)) for column, value in equal.items()]
        return self._cut(self._table.filter(functools.reduce(pc.and_, wanted))) if wanted else self

    def select(
        self,
        layers: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        steps: Iterable[int] | None = None,
    ) -> Scores:
        """Rows of layers and targets that match a glob, and the model's own rows of these targets; None for all.

        Of ``steps``, such as ``range(1000)``, those that exist. The pattern ``"model"`` alone gives the model's rows
        only. What matches a glob that begins with ``!`` is left out, the model's own rows by ``"!model"``.

        Raises:
            LayerError, ArgumentError: a pattern matches no layer or no target, or no layer has such a target, or step.
        """
        layers, targets = listed_patterns(layers), listed_patterns(targets)
        own = [] if f"!{MODEL_LAYER}" in (layers or ()) else [MODEL_LAYER]
        wanted = [*own, *matching(self.values_of("layer"), layers, "layer", LayerError)]
        rows = pc.is_in(self._table.column("layer"), pa.array(wanted, pa.string()))
        if targets is not None:
            names = matching(self.values_of("target"), targets, "target", ArgumentError)
            rows = pc.and_(rows, pc.is_in(self._table.column("target"), pa.array(names, pa.string())))
        if steps is not None:
            wanted_steps = pa.array(steps := listed_steps(steps), pa.int64())
            rows = pc.and_(rows, pc.is_in(self._table.column("step"), wanted_steps))
        found = self._table.filter(rows)
        if len(self) and not len(found):  # the model itself knows but one target
            given = {"layers": layers, "targets": targets, "steps": steps}
            asked = ", ".join(f"{name} {each}" for name, each in given.items() if each is not None)
            raise ArgumentError(f"no scores of {asked}; they have steps {self.steps[0]} to {self.steps[-1]}")
        return self if len(found) == len(self) else self._cut(found)

    def value(self, **equal: str | int | float) -> float:
        """The one value that the given columns select; LookupError if there is none or more than one."""
        values = self.filter(**equal)._table.column("value").to_pylist()
        if len(values) != 1:
            raise LookupError(f"{equal} selects {len(values)} rows of the scores, expected one")
        return float(values[0])

    def curve(self, layer: str, target: str, metric: str, split: str = "heldout") -> tuple[np.ndarray, np.ndarray]:
        """Steps [K] int64 and values [K] float64 of one metric; if there is none, LookupError names what there is."""
        rows = self._of(layer, target, metric, split)._table
        steps = rows.column("step").to_numpy()
        if len(np.unique(steps)) < len(steps) and len(runs := self.values_of("run")) > 1:
            raise LookupError(f"expected the scores of one run, got those of {runs}: choose with filter(run=...)")
        return steps, rows.column("value").to_numpy()

    def has_curve(self, layer: str, target: str, metric: str, split: str = "heldout") -> bool:
        """Whether there is such a metric at any step."""
        return (layer, target, metric, split) in self._rows

    def estimated(self, layer: str, target: str, metric: str) -> np.ndarray:
        """Whether each value [K] of the held-out curve is an estimate, bool."""
        return np.asarray(self._of(layer, target, metric)._table.column("approximation").is_valid())

    def baseline(self, target: str, metric: str) -> float | None:
        """The held-out score of the best constant prediction; None if that is not known, or there are several."""
        rows = self.filter(target=target, metric=metric, split="heldout")._table
        known = rows.column("baseline").drop_null().to_pylist()
        return known[0] if known and max(known) - min(known) <= _ROUNDING * max(map(abs, known)) else None

    def check_one_run(self) -> None:
        """DataError if these are of several runs, whose curves would be mixed."""
        if len(runs := self.values_of("run")) > 1:
            raise DataError(f"expected the scores of one run, got those of {runs}: choose with filter(run=...)")

    def _of(self, layer: str, target: str, metric: str, split: str = "heldout") -> Scores:
        """Rows of one metric, by step; LookupError names what there is instead."""
        wanted = dict(zip(_CURVE, (layer, target, metric, split), strict=True))
        if (rows := self._rows.get(tuple(wanted.values()))) is not None:
            return self._cut(self._table.take(rows))
        found = self
        for column, value in wanted.items():
            there = found.values_of(column)
            if value not in there:
                raise LookupError(f"no scores of {column} {value!r}: expected one of {there}")
            found = found.filter(**{column: value})
        return found

    @cached_property
    def _rows(self) -> dict[tuple[str, ...], pa.Array]:
        """Places of the rows of each curve, in their order, by layer, target, metric and split: scans take longer."""
        table = self._table.select(_CURVE).append_column("row", pa.array(range(len(self)), pa.int64()))
        curves = table.group_by(_CURVE, use_threads=False).aggregate([("row", "list")])
        keys = zip(*(curves.column(name).to_pylist() for name in _CURVE), strict=True)
        return {key: rows.values for key, rows in zip(keys, curves.column("row_list"), strict=True)}

    def samples(self, layer: str, target: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps [K] int64 and per-sample held-out values [K, m] float32 of one metric."""
        rows = self._of(layer, target, metric)
        lists = joined(rows._lists_of("samples"))
        if lists.null_count:
            raise LookupError(f"no per-sample {metric!r} is stored for layer {layer!r}, target {target!r}")
        flat = lists.flatten().to_numpy(zero_copy_only=False)
        if len(flat) % len(rows) or len(pc.list_value_length(lists).unique()) != 1:
            raise StoreError(f"{layer}/{target}: steps were measured on held-out sets of different sizes")
        return rows._table.column("step").to_numpy(), flat.reshape(len(rows), -1)

    def baseline_samples(self, layer: str, target: str, metric: str) -> np.ndarray | None:
        """The best constant's ``fvu`` of each held-out sample, or of accuracies the samples' weights, [m] float32.

        None if that is not known, or all weigh the same.
        """
        lists = self._of(layer, target, metric)._lists_of("baseline_samples")
        return next((own.flatten().to_numpy(zero_copy_only=False) for own in lists if own is not None), None)

    def with_column(self, column: str, value: str) -> Scores:
        """The same rows with one text column set."""
        filled = pa.array([value] * len(self), pa.string()).cast(SCHEMA.field(column).type)
        return self._cut(self._table.set_column(SCHEMA.get_field_index(column), SCHEMA.field(column), filled))

    def lacking(self, layers: Iterable[str], targets: Iterable[str]) -> list[str]:
        """Those of ``layers`` that have no scores of one of ``targets``."""
        there, targets = self._pairs, list(targets)
        return [layer for layer in layers if any((layer, target) not in there for target in targets)]

    def with_scores(self, others: Scores) -> Scores:
        """These rows, and others of layers and targets that have none here."""
        new = [cell not in self._pairs for cell in others._cells()]
        both = Scores.concat([self, others._cut(others._table.filter(pa.array(new, pa.bool_())))])
        order = {name: index for index, name in enumerate([MODEL_LAYER, *both.layers])}
        places = [order[layer] for layer, _ in both._cells()]
        return both._cut(both._table.take(pa.array(sorted(range(len(places)), key=places.__getitem__), pa.int64())))

    def _cells(self) -> Iterator[tuple[str, str]]:
        """Layer and target of each row."""
        return zip(*(self._table.column(name).to_pylist() for name in ("layer", "target")), strict=True)

    @cached_property
    def _pairs(self) -> set[tuple[str, str]]:
        return set(self._cells())

    def save(self, directory: str | Path) -> None:
        """Write a run that was kept in memory only into an empty directory, which ``phasefast report`` reads.

        Raises:
            DataError: no scores, or those of several runs. StoreError: the directory holds some, or cannot be written.
        """
        self.check_one_run()
        if not len(self):
            raise DataError("save: there are no scores yet")
        if any(store_folder(directory).glob("step-*")):
            raise StoreError(f"{directory}: holds scores already; give an empty directory")
        start = 0
        for each in self._table.column("step").value_counts().to_pylist():  # rows are in the order of their steps
            self._cut(self._table.slice(start, each["counts"])).write_shard(directory)
            start += each["counts"]

    def write_shard(self, directory: str | Path) -> Path:
        """Write these rows (of one step) as ``directory/scores/step-*.parquet``, atomically: whole or not at all."""
        if len(self.steps) != 1:
            raise ArgumentError(f"a shard holds one step, these scores hold {self.steps}")
        path = shard_file(directory, self.steps[0])
        what = f"the scores of step {self.steps[0]} to"
        with writing(path, what, parents=True) as partial, pa.OSFile(os.fsencode(partial), "wb") as file:
            pq.write_table(self.to_arrow(), file, compression="zstd", write_page_checksum=True)
        return path
