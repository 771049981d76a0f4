"""Which steps of a run directory are done already, and by the same configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.files import remove_file, write_json
from ..errors import DamagedError, OtherWeightsError, StoreError
from .failures import FAILED, reasons, stored_failures, write_lost
from .origins import ORIGIN_FILES
from .paths import shard_file, store_folder
from .scores import Scores
from .settings import SETTINGS, difference, settings_file
from .shards import DAMAGED, list_shards, prepare_store, read_shard, set_aside, writing_alone

_ELSEWHERE = "give another out= (--out), or overwrite=True (--overwrite) to start over"
# What reports write beside the scores that they are of: pictures of all, and of some layers or targets.
PHASES = "phases.json"
PICTURES, SELECTED, RECONSTRUCTIONS = ("phases", "maps"), ("phases-selected", "maps-selected"), "reconstructions"
FORMATS = ".png", ".pdf", ".svg"


@dataclass(frozen=True)
class Store:
    """A run directory, and what all scores in it have in common.

    Attributes:
        config_hash: of ``settings``, which are kept beside the shards. targets: hashes of their values, by name.
    """

    directory: str | Path
    config_hash: str
    settings: Mapping[str, Any]
    targets: Mapping[str, str]

    def difference(self, config_hash: str) -> str:
        """How the settings of other scores in the directory differ, as part of a sentence."""
        return difference(store_folder(self.directory), config_hash, self.settings)


def open_store(store: Store, overwrite: bool = False) -> dict[int, Scores]:
    """Make a run directory's ``scores/``; the steps that are there, whatever layers and targets they have.

    Damaged shards get another name, with a warning, so that their steps can be measured again.

    Args:
        overwrite: start over: remove the shards, and the phases and the pictures that were made of them.

    Raises:
        StoreError: the directory cannot be written, or a shard was measured with other options, data, run or
            architecture, or has other values of one of the targets.
    """
    directory = store.directory
    folder = prepare_store(directory)
    beside = *ORIGIN_FILES, *(name.format("*") for name in (SETTINGS, FAILED, DAMAGED))
    for path in (path for pattern in beside for path in folder.glob(pattern)) if overwrite else ():
        remove_file(path)
    done, damaged = dict[int, Scores](), list[Path]()
    shards = list_shards(directory)
    pictures = (f"{picture}{end}" for picture in (*PICTURES, *SELECTED, RECONSTRUCTIONS) for end in FORMATS)
    for name in (PHASES, *pictures) if overwrite and shards else ():  # a kill leaves none behind
        if (path := Path(directory) / name).is_file():
            remove_file(path)
    for step, path in shards.items():
        if overwrite:
            remove_file(path)
            continue
        try:
            scores = read_shard(path)
        except DamagedError:
            damaged.append(path)
            continue
        found = scores.values_of("config_hash")
        if found != [store.config_hash]:
            raise StoreError(
                f"{path}: measured with another configuration{store.difference(found[0])}; "
                f"give the same model, run, options and data, or {_ELSEWHERE}"
            )
        _check_targets(path, scores, store.targets)
        done[step] = scores
    set_aside(directory, damaged)
    return done


def write_step(store: Store, scores: Scores, lost: Mapping[str, Exception]) -> Scores:
    """Write the scores of one step, with those of other layers and targets that are there; beside them the settings.

    Args:
        lost: why layers were left out; of those that are not finite it stays known.

    Returns:
        All scores of the step.

    Raises:
        StoreError: it cannot be written; or another job writes into the directory too, of another configuration or, if
            that has stored the step already, of other weights.
    """
    directory, folder = store.directory, store_folder(store.directory)
    kept = settings_file(folder, store.config_hash)
    others = [path for path in folder.glob(SETTINGS.format("*")) if path != kept]
    for path in list_shards(directory).values() if others else ():
        (found,) = read_shard(path).values_of("config_hash")
        if found != store.config_hash:
            raise StoreError(
                f"{directory}: another job stores scores there, with another configuration"
                f"{store.difference(found)}; give each its own out= (--out)"
            )
    for path in others:  # of jobs that stored nothing
        remove_file(path)
    if not kept.exists():
        write_json(kept, store.settings, "the settings to")
    (step,) = scores.steps
    with writing_alone(directory):  # another job may add other layers to the same step
        before = None
        if (shard := shard_file(directory, step)).exists():
            before = dict(stored_failures(directory)).get(step)
            stored = read_shard(shard)
            check_weights(stored, scores.values_of("state_hash")[0])
            _check_targets(shard, stored, scores.target_hashes)
            scores = stored.with_scores(scores)
        scores.write_shard(directory)
        known = {} if before is None or not before.partial else before.layers
        # Those that are known keep their places and their reasons.
        write_lost(directory, step, {**known, **reasons(lost), **known})
    return scores


def check_weights(stored: Scores, expected: str) -> None:
    """Compare the weights that a stored step was measured on with those at hand.

    Args:
        expected: their ``state_hash``.

    Raises:
        OtherWeightsError: they differ.
    """
    if stored.values_of("state_hash") != [expected]:
        raise OtherWeightsError(
            f"step {stored.steps[0]} is stored already, but was measured on other weights: another training, rank, key "
            "or function? If this training went on from an older checkpoint, delete the files of later steps in "
            f"scores/; otherwise {_ELSEWHERE}"
        )


def _check_targets(path: Path, stored: Scores, targets: Mapping[str, str]) -> None:
    """Compare the targets that a shard has scores of with those of the same names.

    Raises:
        StoreError: one has other values.
    """
    for name, known in stored.target_hashes.items():
        if targets.get(name, known) != known:
            raise StoreError(
                f"{path}: measured with another configuration: target {name!r} had other values, another kind, or "
                f"another target_components=; give the new one another name, or {_ELSEWHERE}"
            )
