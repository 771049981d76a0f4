"""The table of results: one row per number, Parquet shards on disk, one atomic shard per (run, step)."""

from __future__ import annotations

import functools
import itertools
import operator
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .errors import ArgumentError, DataError, DependencyError, LayerError, PhasefastError, StoreError
from .files import remove_partial, writing
from .globs import chosen, idle
from .listing import listing

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
        ("samples", pa.list_(pa.float32())),
        ("approximation", pa.string()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("dropped", pa.float64()),
        ("baseline", pa.float64()),
        ("baseline_samples", pa.list_(pa.float32())),
        ("target_hash", pa.string()),
        ("place", pa.int64()),
    ]
)
_KEY = ["run", "step", "layer", "target", "split", "metric", "batchnorm", "config_hash"]  # what a row is known by
PER_SAMPLE = ["samples", "baseline_samples"]
# Null in tables of versions that did not have them.
_LATER = ("approximation", "low", "high", "dropped", "baseline", "baseline_samples", "target_hash", "place")
MODEL_LAYER = "model"
_SHARD = re.compile(r"step-(\d+)\.parquet$")


class Scores:
    """A long, tidy table of metrics; columns are ``phasefast.scores.SCHEMA``.

    ``samples`` of held-out ``fvu`` and ``accuracy`` rows holds one number per held-out sample; their mean is ``value``.
    Where ``approximation`` says what was left out, ``low`` to ``high`` is an interval for the exact value, of 95 % or
    more by estimate, and ``dropped`` the share of the target's squared deviation that components leave out.
    ``baseline`` is what the best constant would score: the mean, or the most frequent class, of the fit rows;
    ``baseline_samples`` holds its held-out ``fvu`` for each sample.
    """

    def __init__(self, table: pa.Table) -> None:
        missing = [name for name in SCHEMA.names if name not in table.column_names]
        if not set(missing) <= set(_LATER):
            raise StoreError(f"table of scores lacks the columns {missing}; it has {table.column_names}")
        for name in missing:
            table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type))
        table = table.select(SCHEMA.names).cast(SCHEMA) if len(table) else SCHEMA.empty_table()
        steps = table.column("step")  # no NumPy: torch.compile looks into what a compiled function does with scores
        in_order = pc.all(pc.less_equal(steps.slice(0, max(len(steps) - 1, 0)), steps.slice(1))).as_py() is not False
        table = table if in_order else table.sort_by([("step", "ascending")])
        # Shards leave a chunk each, by which every later look at them takes so many times as long.
        self._table = table if table.column("step").num_chunks == 1 else table.combine_chunks()

    @cached_property
    def without_samples(self) -> Scores:
        """The same rows without what they have of each sample, which takes longest to copy."""
        table = self._table.drop_columns(PER_SAMPLE)
        for name in PER_SAMPLE:
            table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type))
        found = Scores(table)
        found.__dict__["without_samples"] = found
        return found

    @classmethod
    def from_rows(cls, rows: Iterable[dict[str, Any]]) -> Scores:
        """Scores from dictionaries with the schema's columns; absent ones are null."""
        return cls(pa.Table.from_pylist(list(rows), schema=SCHEMA))

    @classmethod
    def concat(cls, parts: Sequence[Scores]) -> Scores:
        """All rows of ``parts``, in the order of their steps, those that several have once.

        Raises:
            DataError: a run's step has different weights, or a target of a configuration different values.
        """
        table = pa.concat_tables([SCHEMA.empty_table(), *(part.to_arrow() for part in parts)])
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
        firsts = table.append_column("row", places).group_by(_KEY).aggregate([("row", "min")]).column("row_min")
        return cls(table if len(firsts) == len(table) else table.take(firsts.sort()))

    def to_arrow(self) -> pa.Table:
        """The table, as an Arrow table with all columns."""
        return self._table

    def to_pandas(self, samples: bool = False) -> pandas.DataFrame:
        """The table as a pandas DataFrame, without the per-sample columns unless ``samples``."""
        try:
            return (self._table if samples else self._table.drop_columns(PER_SAMPLE)).to_pandas()
        except ImportError as error:
            raise DependencyError("to_pandas needs pandas: pip install 'phasefast[report]'") from error

    def __len__(self) -> int:
        return len(self._table)

    def __repr__(self) -> str:
        return f"Scores({len(self)} rows, layers {self.layers}, targets {self.targets}, steps {self.steps})"

    def __str__(self) -> str:
        return listing(self._table.drop_columns(PER_SAMPLE).to_pylist()) or repr(self)

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
        probed = self._table.filter(pc.field("layer") != MODEL_LAYER)
        steps, layers, places = (probed.column(name).to_pylist() for name in ("step", "layer", "place"))
        found = in_order(zip(steps, layers, strict=True))
        if None in places:
            return found
        return sorted(found, key=dict(zip(layers, places, strict=True)).__getitem__)

    @property
    def targets(self) -> list[str]:
        """Names of the targets; the model's own metrics are not among them."""
        probed = self._table.filter(pc.field("layer") != MODEL_LAYER)
        return list(probed.column("target").unique().to_pylist())

    @property
    def target_hashes(self) -> dict[str, str]:
        """Hashes of the values of targets by name, of those where one is known."""
        pairs = zip(*(self._table.column(name).to_pylist() for name in ("target", "target_hash")), strict=True)
        return {target: known for target, known in pairs if known is not None}

    def values_of(self, column: str) -> list[str]:
        """The different values of a text column; ``"none"`` stands for null."""
        return ["none" if value is None else value for value in self._table.column(column).unique().to_pylist()]

    def approximations(self, target: str, metric: str) -> list[str]:
        """What held-out values of a target were estimated from, such as ``"sketch of 64 of 512 features"``."""
        found = self.without_samples.filter(target=target, metric=metric, split="heldout").values_of("approximation")
        return [each for each in found if each != "none"]

    def filter(self, **equal: str | int | float) -> Scores:
        """Rows whose columns equal the given values: ``scores.filter(layer="fc", metric="fvu", split="heldout")``."""
        if unknown := [column for column in equal if column not in SCHEMA.names]:
            raise ArgumentError(f"scores have no column {unknown[0]!r}; they have {SCHEMA.names}")
        wanted = [pc.field(column) == value for column, value in equal.items()]
        return Scores(self._table.filter(functools.reduce(operator.and_, wanted))) if wanted else self

    def select(self, layers: Sequence[str] | None = None, targets: Sequence[str] | None = None) -> Scores:
        """Rows of the layers and targets whose names match a glob, with the model's own of those targets; None for all.

        The pattern ``"model"`` alone gives no rows but these. What matches a glob that begins with ``!`` is left out,
        these by ``"!model"``.

        Raises:
            LayerError, ArgumentError: a pattern matches no layer or no target, or no layer has such a target.
        """
        own = [] if f"!{MODEL_LAYER}" in (layers or ()) else [MODEL_LAYER]
        wanted = [*own, *_matching(self.values_of("layer"), layers, "layer", LayerError)]
        rows = pc.field("layer").isin(pa.array(wanted, pa.string()))
        if targets is not None:
            rows &= pc.field("target").isin(_matching(self.values_of("target"), targets, "target", ArgumentError))
        found = self._table.filter(rows)
        if len(self) and not len(found):  # the model itself knows but one target
            of_targets = "" if targets is None else f" have targets that match {targets}"
            raise ArgumentError(f"no scores of layers {layers}{of_targets}")
        return Scores(found)

    def value(self, **equal: str | int | float) -> float:
        """The one value that the given columns select; LookupError where there is none or more than one."""
        values = self.without_samples.filter(**equal).to_arrow().column("value").to_pylist()
        if len(values) != 1:
            raise LookupError(f"{equal} selects {len(values)} rows of the scores, expected one")
        return float(values[0])

    def curve(self, layer: str, target: str, metric: str, split: str = "heldout") -> tuple[np.ndarray, np.ndarray]:
        """Steps [K] int64 and values [K] float64 of one metric; LookupError names what there is instead."""
        rows = self.without_samples._of(layer, target, metric, split)
        steps = rows.column("step").to_numpy()
        if len(runs := self.values_of("run")) > 1 and len(np.unique(steps)) < len(steps):
            raise LookupError(f"expected the scores of one run, got those of {runs}: choose with filter(run=...)")
        return steps, rows.column("value").to_numpy()

    def has_curve(self, layer: str, target: str, metric: str, split: str = "heldout") -> bool:
        """Whether there is such a metric at any step."""
        return len(self.without_samples.filter(layer=layer, target=target, metric=metric, split=split)) > 0

    def estimated(self, layer: str, target: str, metric: str) -> np.ndarray:
        """Whether each value [K] of the held-out curve is an estimate, bool."""
        return np.asarray(self.without_samples._of(layer, target, metric).column("approximation").is_valid())

    def baseline(self, target: str, metric: str) -> float | None:
        """What the best constant prediction scores on the held-out rows; None where that is not known."""
        rows = self.without_samples.filter(target=target, metric=metric, split="heldout").to_arrow()
        known = rows.column("baseline").unique()
        return known[0].as_py() if len(known) == 1 else None

    def _of(self, layer: str, target: str, metric: str, split: str = "heldout") -> pa.Table:
        """Rows of one metric, by step; LookupError names what there is instead."""
        wanted, found = {"layer": layer, "target": target, "metric": metric, "split": split}, self.without_samples
        for column, value in wanted.items():
            there = found.values_of(column)
            if value not in there:
                raise LookupError(f"no scores of {column} {value!r}: expected one of {there}")
            found = found.filter(**{column: value})
        return (found if self is self.without_samples else self.filter(**wanted)).to_arrow()

    def samples(self, layer: str, target: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps [K] int64 and per-sample held-out values [K, m] float32 of one metric."""
        rows = self._of(layer, target, metric)
        lists = rows.column("samples")
        if lists.null_count:
            raise LookupError(f"no per-sample {metric!r} is stored for layer {layer!r}, target {target!r}")
        flat = pc.list_flatten(lists).to_numpy()
        if len(flat) % len(rows) or len(set(pc.list_value_length(lists).to_pylist())) != 1:
            raise StoreError(
                f"layer {layer!r}, target {target!r}: steps were measured on held-out sets of different sizes"
            )
        return rows.column("step").to_numpy(), flat.reshape(len(rows), -1)

    def baseline_samples(self, layer: str, target: str, metric: str) -> np.ndarray | None:
        """What the best constant scores for each held-out sample, [m] float32; None where that is not known."""
        known = self._of(layer, target, metric).column("baseline_samples").drop_null()
        return None if len(known) == 0 else known[0].values.to_numpy()

    def with_column(self, column: str, value: str) -> Scores:
        """The same rows with one text column set."""
        filled = pa.array([value] * len(self), pa.string())
        return Scores(self._table.set_column(SCHEMA.get_field_index(column), column, filled))

    def lacking(self, layers: Iterable[str], targets: Iterable[str]) -> list[str]:
        """Those of ``layers`` that have no scores of one of ``targets``."""
        there, targets = self._pairs, list(targets)
        return [layer for layer in layers if any((layer, target) not in there for target in targets)]

    def with_scores(self, others: Scores) -> Scores:
        """These rows, and others of layers and targets that have none here."""
        new = [cell not in self._pairs for cell in others._cells()]
        both = Scores.concat([self, Scores(others._table.filter(pa.array(new, pa.bool_())))])
        order = {name: index for index, name in enumerate([MODEL_LAYER, *both.layers])}
        places = [order[layer] for layer, _ in both._cells()]
        return Scores(both._table.take(pa.array(sorted(range(len(places)), key=places.__getitem__), pa.int64())))

    def _cells(self) -> Iterator[tuple[str, str]]:
        """Layer and target of each row."""
        return zip(*(self._table.column(name).to_pylist() for name in ("layer", "target")), strict=True)

    @cached_property
    def _pairs(self) -> set[tuple[str, str]]:
        return set(self._cells())

    def write_shard(self, directory: str | Path) -> Path:
        """Write these rows (of one step) as ``directory/scores/step-*.parquet``, atomically: whole or not at all."""
        if len(self.steps) != 1:
            raise ArgumentError(f"a shard holds one step, these scores hold {self.steps}")
        path = store_folder(directory) / f"step-{self.steps[0]:012d}.parquet"
        what = f"the scores of step {self.steps[0]} to"
        with writing(path, what, parents=True) as partial, pa.OSFile(os.fsencode(partial), "wb") as file:
            pq.write_table(self._table, file, compression="zstd", write_page_checksum=True)
        return path


def in_order(pairs: Iterable[tuple[int, str]]) -> list[str]:
    """Layers of (step, layer) in the order of the step that has most of them, as one that lost none; then others."""
    by_step: dict[int, dict[str, None]] = {}
    for step, layer in pairs:
        by_step.setdefault(step, {})[layer] = None
    fullest = max(by_step.values(), key=len, default={})
    return list(dict.fromkeys(itertools.chain(fullest, *by_step.values())))


def _matching(names: list[str], patterns: Sequence[str] | None, what: str, error: type[PhasefastError]) -> list[str]:
    """Those of ``names`` that match a pattern; ``error`` names a pattern that matches none."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if (pattern := idle(names, patterns or ())) is not None:
        raise error(f"{what} pattern {pattern!r} matches nothing in the scores; they have {names}")
    return names if patterns is None else chosen(names, patterns)


def store_folder(directory: str | Path) -> Path:
    """Where the shards of a run directory lie: its ``scores/``."""
    return Path(directory) / "scores"


def prepare_store(directory: str | Path) -> Path:
    """Make a run directory's ``scores/`` and check that it can be written to; StoreError names the directory."""
    folder = store_folder(directory)
    probe = folder / f".writable-{secrets.token_hex(4)}"  # jobs of other machines may share the disk
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
        remove_partial(folder)
    except OSError as error:
        raise StoreError(f"cannot write to the output directory {directory}: {error}; choose another one") from error
    return folder


def list_shards(directory: str | Path) -> dict[int, Path]:
    """Finished shards of a run directory by step; partial files are not among them."""
    found = (
        (match, path) for path in store_folder(directory).glob("step-*.parquet") if (match := _SHARD.search(path.name))
    )
    return dict(sorted((int(match[1]), path) for match, path in found))


def read_shard(path: Path) -> Scores:
    """One shard; StoreError names a file that is not one."""
    try:
        # A file of pyarrow's, as it takes some names for URIs; a file of Python's is let go of by another thread, which
        # ends the process where the interpreter has ended before (1 in 20 times, at once after it was read).
        with pa.OSFile(os.fsencode(path)) as file:
            options = {"pre_buffer": False, "use_threads": False}
            scores = Scores(pq.read_table(file, page_checksum_verification=True, **options))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"cannot read the shard {path}: {error}; delete it and sweep again") from error
    match = _SHARD.search(path.name)
    if match is None or scores.steps != [int(match[1])]:
        raise StoreError(f"{path}: expected the step in the file's name, it holds {scores.steps}; was it renamed?")
    return scores


def read_scores(directory: str | Path) -> Scores:
    """All scores of a run directory, merged over its shards.

    Raises:
        StoreError: there are none. DataError: they are not of one training and the same targets.
    """
    shards = list_shards(directory)
    if not shards and Path(directory).name == "scores":
        raise StoreError(f"no scores in {directory}; give the run directory {Path(directory).parent}")
    if others := [path.name for path in store_folder(directory).glob("*.parquet")] if not shards else []:
        raise StoreError(f"no scores in {directory}: expected files named step-*.parquet, got {sorted(others)[:3]}")
    if not shards and store_folder(directory).is_dir():
        raise StoreError(
            f"no scores in {directory}: measuring was begun there, but nothing stored: every checkpoint failed, or it "
            "was stopped before the first was measured; sweep again to see what fails"
        )
    if runs := [] if shards else sorted(path.parent.name for path in Path(directory).glob("*/scores")):
        raise StoreError(f"no scores in {directory}, but in its folders {', '.join(runs)}; give one, or compare them")
    if not shards:
        raise StoreError(
            f"no scores in {directory}: expected {store_folder(directory)}/step-*.parquet; sweep or run the demo first"
        )
    try:
        return Scores.concat([read_shard(path) for path in shards.values()])
    except DataError as error:
        raise DataError(f"{directory}: {error}, or measure again, each job with its own out=") from error
