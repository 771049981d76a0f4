"""What the scores in run directories show: phases, what is best, what runs have in common."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..common.notices import shown, warn
from ..errors import ArgumentError, DataError, LayerError
from ..phases.best import CommonBest, best_of_runs
from ..phases.comparing import Comparison, compare_phases
from ..phases.detect import detect_phases
from ..phases.phase_report import PhaseReport, failure_notes
from ..phases.rules import DEFAULT_RULES, PhaseRules
from ..results.failures import Failure, lost_layers, lost_name, read_failures
from ..results.origins import read_origins
from ..results.scores import MODEL_LAYER, Scores
from ..results.settings import differences
from ..results.shards import read_scores
from .bests import task_layers, with_best
from .compared import run_names
from .curves import telling_layers


def read_phases(directory: str | Path, rules: PhaseRules = DEFAULT_RULES) -> tuple[Scores, PhaseReport]:
    """A run's scores and its phases, by the thresholds ``rules``.

    Raises:
        StoreError: there are no scores.
        DataError: scores of several runs, of fewer than two steps, or that cannot be analysed.
    """
    scores = _one_run(directory)
    if len(origins := read_origins(directory)) > 1:
        warn(f"{directory}: holds scores of checkpoints in {', '.join(origins)}: do they belong to one training?")
    return scores, with_best(scores, detect_phases(scores, rules=rules, failed=_failed(directory, scores)))


def _failed(directory: str | Path, scores: Scores) -> dict[int, Failure]:
    """Why steps were not measured, or not all of them."""
    failed = read_failures(directory)
    return dict(sorted((failed | _gaps(scores, failed, lost_layers(directory))).items()))


def _gaps(scores: Scores, failed: Mapping[int, Failure], lost: Mapping[int, Collection[str]]) -> dict[int, Failure]:
    """Steps that lack layers or targets without a known reason, together with what had failed there already."""
    known = [*scores.layers, MODEL_LAYER]
    asked = {target: [each for each in known if not scores.lacking([each], [target])] for target in scores.targets}
    found, numbers = {}, scores.without_samples
    for step in scores.steps:
        gone = lost.get(step, ())
        part, before = numbers.filter(step=step), failed.get(step, Failure(f"step {step}", "", partial=True))
        gaps: dict[frozenset[str], list[str]] = {}
        for target, layers in asked.items():
            lacking = {each for each in part.lacking(layers, [target]) if lost_name(each, target) not in gone}
            lacking -= {layer for layer in lacking if f"layer {layer!r}:" in before.error}  # which says why
            gaps.setdefault(frozenset(lacking), []).append(target)
        texts = [
            f"{shown(targets)} of layers {shown(layers)} was not measured" for layers, targets in gaps.items() if layers
        ]
        if texts:
            error = "; ".join([*filter(None, [before.error]), *texts])
            found[step] = replace(before, error=f"{error}; another sweep may add it")
    return found


def restrict(
    scores: Scores, report: PhaseReport, layers: Sequence[str] | None = None, targets: Sequence[str] | None = None
) -> tuple[Scores, PhaseReport]:
    """What is to be shown of a run: the layers and targets whose names match a glob; None for all.

    Raises:
        LayerError, ArgumentError: a pattern matches no layer or no target.
    """
    part = scores.select(layers, targets)
    there = {(layer, target) for layer in part.layers for target in part.targets}
    found = replace(report, cells=tuple(cell for cell in report if (cell.layer, cell.target) in there))
    if layers is None:  # then the best are those of the report
        return part, replace(found, best=tuple(best for best in report.best if best.target in part.targets))
    return part, with_best(part, found)


def read_runs(
    directories: Sequence[str | Path],
    layers: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    rules: PhaseRules = DEFAULT_RULES,
) -> tuple[Comparison, dict[str, Scores], list[str]]:
    """The phases that runs in several directories have in common, and their scores by name: the ends of the paths.

    And the layers that all are judged by, as ``telling_layers`` has them. Warns where they were measured differently.

    Args:
        layers, targets: names or globs; None for all. rules: thresholds of the phases.

    Raises:
        As ``detect_phases``, ``compare_phases`` and ``read_phases`` do.
    """
    if len(directories) < 2:
        raise ArgumentError(f"expected the directories of two runs or more, got {[str(each) for each in directories]}")
    names = run_names(directories)
    scores, telling = {}, list[str]()
    for name, directory in zip(names, directories, strict=True):
        try:
            whole = _one_run(directory)
            telling = telling or telling_layers(whole)
            scores[name] = whole.select(layers, targets)
        except (LayerError, ArgumentError) as error:
            raise type(error)(f"{name}: {error}") from error
        for note in failure_notes(_failed(directory, whole)):
            warn(f"{name}: {note}")
    _tell_differences(directories, scores)
    comparison = compare_phases({name: detect_phases(own, rules=rules) for name, own in scores.items()})
    comparison = replace(comparison, best=tuple(_bests(comparison, scores)))
    _tell_left_out(comparison, scores)
    return comparison, scores, telling


def _tell_differences(directories: Sequence[str | Path], scores: Mapping[str, Scores]) -> None:
    """Warn if runs (in their order) were measured differently from the first one, or have the same weights."""
    names = list(scores)
    alike: dict[str, list[str]] = {}
    for name, directory in zip(names[1:], directories[1:], strict=True):
        found = [differences(directories[0], directory, (names[0], "there"))]
        known = scores[names[0]].target_hashes
        changed = [target for target, own in scores[name].target_hashes.items() if known.get(target, own) != own]
        found += [f"other values of {shown(changed)}"] if changed else []
        alike.setdefault("; ".join(filter(None, found)), []).append(name)
    for others, group in alike.items():
        if others:
            were = "was" if len(group) == 1 else "were"
            warn(f"{', '.join(group)} {were} not measured as {names[0]}: {others}")
    for one, other in itertools.combinations(names, 2):
        if same := _same_weights(scores[one], scores[other]):
            steps = f"{same} step{'s' * (same > 1)} after 0"
            warn(
                f"{one} and {other} have the same weights at {steps}: are they the same training, or parts of one with "
                "the same beginning?"
            )


def _tell_left_out(comparison: Comparison, scores: Mapping[str, Scores]) -> None:
    """Warn of layers whose phases not all runs have."""
    common = {(each.layer, each.target) for each in comparison}
    there = (itertools.product([own], own.layers, own.targets) for own in scores.values())
    cells = itertools.chain.from_iterable(there)
    left = {(layer, target) for own, layer, target in cells if not own.lacking([layer], [target])} - common
    if left:
        warn(f"not compared, as not all runs have their phases: {shown(f'{layer}/{target}' for layer, target in left)}")


def _bests(comparison: Comparison, scores: Mapping[str, Scores]) -> Iterator[CommonBest]:
    """Of each target but the input."""
    for target, layers in task_layers(comparison).items():
        with contextlib.suppress(DataError):  # no step in common, which tables tell
            yield best_of_runs(scores, target, layers=layers)


def _same_weights(one: Scores, other: Scores) -> int:
    """At how many steps after 0, where seeds may agree, two runs have the same weights."""
    tables = [own.without_samples.to_arrow() for own in (one, other)]
    pairs = [
        set(zip(*(table.column(name).to_pylist() for name in ("step", "state_hash")), strict=True)) for table in tables
    ]
    return sum(step > 0 for step, known in pairs[0] & pairs[1] if known is not None)


def _one_run(directory: str | Path) -> Scores:
    """The scores of a directory, which must be of one run, one configuration and several steps."""
    scores = read_scores(directory)
    for column, what in (("run", "runs"), ("config_hash", "configurations")):
        if len(found := scores.values_of(column)) > 1:
            raise DataError(
                f"{directory}: expected the scores of one run, got those of {len(found)} {what} ({column} "
                f"{', '.join(found)}), perhaps from jobs that ran together; measure again, each with its own out="
            )
    if len(scores.steps) < 2:
        raise DataError(
            f"{directory}: expected at least 2 steps, got {scores.steps}: phases need a training; phasefast scores "
            f"{directory} prints a single step"
        )
    return scores
