"""Which steps of a run directory are done already, and by the same configuration."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..common.files import remove_file, writing
from ..common.notices import shown, warn
from ..errors import DamagedError, OtherWeightsError, StoreError
from .failures import FAILED, reasons, stored_failures, write_lost
from .scores import Scores, shard_file, store_folder
from .shards import DAMAGED, list_shards, prepare_store, read_shard, set_aside, writing_alone

# What the settings of a configuration, or their parts, are called where they are given; others have their own names.
_NAMES = {
    "model": ("the model's parameters",),
    "modules": ("the model's modules",),
    "data": ("the probe set's inputs",),
    "penalties": ("alphas", "noise"),
    "choice": ("selection", "penalty_per='column'"),
    "batchnorm": ("batchnorm", "batch_size"),
    "rows": ("tokens", "pool", "type of rows (precision='fast': bfloat16 where the device is fast at it)"),
    "sketch": ("layer_sketch",),
    "token_rows": ("which tokens count (padding=, or labels of -100)",),
}
_ELSEWHERE = "give another out= (--out), or overwrite=True (--overwrite) to start over"
# What reports write beside the scores that they are of: pictures of all, and of some layers or targets.
PHASES = "phases.json"
PICTURES, SELECTED, RECONSTRUCTIONS = ("phases", "maps"), ("phases-selected", "maps-selected"), "reconstructions"
FORMATS = ".png", ".pdf", ".svg"
# Readers of a folder of Parquet files, such as pandas, pass over names that begin so.
_ORIGIN, _TRAINING, _SETTINGS = "_origin.json", "_training.json", "_settings-{}.json"
_CONSTANTS = "_constants.json"
_OTHER_VERSION = "by another version of phasefast"
_WORDS = "stored", "now"  # of the two values of a setting
_LONGEST = 60  # characters of a setting that is shown


def open_store(
    directory: str | Path,
    config_hash: str,
    settings: Mapping[str, Any],
    targets: Mapping[str, str],
    overwrite: bool = False,
) -> dict[int, Scores]:
    """Make a run directory's ``scores/``; the steps that are there, whatever layers and targets they have.

    Damaged shards get another name, with a warning, so that their steps can be measured again.

    Args:
        config_hash: of ``settings``, which are kept beside the shards. targets: their hashes, by name.
        overwrite: start over: remove the shards, and the phases and the pictures that were made of them.

    Raises:
        StoreError: the directory cannot be written, or a shard was measured with other options, data, run or
            architecture, or has other values of one of these targets.
    """
    folder = prepare_store(directory)
    beside = _SETTINGS.format("*"), _ORIGIN, _TRAINING, _CONSTANTS, FAILED.format("*"), DAMAGED.format("*")
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
        if found != [config_hash]:
            raise StoreError(
                f"{path}: measured with another configuration{_difference(folder, found[0], settings)}; "
                f"give the same model, run, options and data, or {_ELSEWHERE}"
            )
        _check_targets(path, scores, targets)
        done[step] = scores
    set_aside(directory, damaged)
    return done


def write_step(
    directory: str | Path,
    scores: Scores,
    config_hash: str,
    settings: Mapping[str, Any],
    lost: Mapping[str, Exception],
) -> Scores:
    """Write the scores of one step, with those of other layers and targets that are there; beside them the settings.

    Args:
        lost: why layers were left out; of those that are not finite it stays known.

    Returns:
        All scores of the step.

    Raises:
        StoreError: it cannot be written; or another job writes into the directory too, of another configuration or, if
            that has stored the step already, of other weights.
    """
    folder = store_folder(directory)
    kept = _settings_file(folder, config_hash)
    others = [path for path in folder.glob(_SETTINGS.format("*")) if path != kept]
    for path in list_shards(directory).values() if others else ():
        (found,) = read_shard(path).values_of("config_hash")
        if found != config_hash:
            raise StoreError(
                f"{directory}: another job stores scores there{_difference(folder, found, settings)}; give each its "
                "own out= (--out)"
            )
    for path in others:  # of jobs that stored nothing
        remove_file(path)
    if not kept.exists():
        with writing(kept, "the settings to", parents=True) as partial:
            partial.write_text(json.dumps(settings), encoding="utf-8")
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


def check_origin(directory: str | Path, origin: str, confirmed: bool, of_all: bool) -> None:
    """Warn where the scores that are there are of checkpoints elsewhere, which may be another training's.

    Args:
        origin: folder or repository that all checkpoints are in; kept beside the scores, each that was warned of too.
        confirmed: whether some of these checkpoints are measured already, so that they are the same training's.
        of_all: whether they are all that are measured.

    Raises:
        StoreError: it cannot be written.
    """
    known = read_origins(directory)
    if confirmed and len(known) > 1 and (of_all or all(Path(each).is_relative_to(origin) for each in known)):
        known = []  # the checkpoints of all of them
    elif any(Path(each).is_relative_to(origin) or Path(origin).is_relative_to(each) for each in known):
        return
    new = confirmed or not list_shards(directory)
    if not new and known:
        warn(
            f"{directory}: holds scores of checkpoints in {known[0]}, these are in {origin}: if that is another "
            "training, give another out= (--out)"
        )
    if new or known:
        with writing(store_folder(directory) / _ORIGIN, "where checkpoints are to", parents=True) as partial:
            # One that is confirmed is another place of one of them.
            partial.write_text(json.dumps([origin] if new and len(known) < 2 else [*known, origin]), encoding="utf-8")


def check_constants(directory: str | Path, constants: Mapping[str, str]) -> None:
    """Warn where a model's tensors that no checkpoint has are others than those that the scores there are of.

    Args:
        constants: their hashes by name, kept beside the scores.

    Raises:
        StoreError: they cannot be written.
    """
    path = store_folder(directory) / _CONSTANTS
    with writing_alone(directory):
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = None
        if not isinstance(known, dict) or not list_shards(directory):
            with writing(path, "the model's constants to", parents=True) as partial:
                partial.write_text(json.dumps(constants), encoding="utf-8")
            return
    if changed := [name for name, own in constants.items() if known.get(name, own) != own]:
        warn(
            f"{directory}: the model's tensors {shown(changed)} are in no checkpoint, and others than those of the "
            "model that the scores there were measured with: if they are drawn at random, neither need be the "
            "training's; make the model with its seed, in all jobs, and start over (overwrite=True, --overwrite)"
        )


def read_origins(directory: str | Path) -> list[str]:
    """The folders or repositories that a run directory has scores of checkpoints from, as far as they are known."""
    try:
        known = json.loads((store_folder(directory) / _ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [str(each) for each in known] if isinstance(known, list) else [str(known)]


class Training:
    """One that stores scores in a run directory, where no other may while it does."""

    def __init__(self, directory: str | Path) -> None:
        self._directory, self._file = directory, store_folder(directory) / _TRAINING
        self._own, self._before = secrets.token_hex(8), self._known()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is another training."""
        Training.__init__(self, state["_directory"])

    def claim(self) -> None:
        """Make the directory this training's.

        Raises:
            StoreError: another one has stored scores there since this one was begun; or it cannot be written.
        """
        known = self._known()
        if known not in (None, self._own, self._before):
            raise StoreError(
                f"{self._directory}: another training stores scores there, or another tracker of this one, begun later "
                "or at once; give each its own out="
            )
        if known != self._own:
            with writing(self._file, "whose scores these are to", parents=True) as partial:
                partial.write_text(json.dumps(self._own), encoding="utf-8")

    def _known(self) -> str | None:
        try:
            return str(json.loads(self._file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None


def differences(first: str | Path, second: str | Path, names: tuple[str, str]) -> str:
    """How the settings of two run directories differ, in words, but in ``run``, layers and targets.

    Empty where that is not known.
    """
    there, here = _kept(first), _kept(second)
    if there and here and there.get("layout") != here.get("layout"):
        return _OTHER_VERSION
    return _listed(there, here, words=names) if there and here else ""


def _kept(directory: str | Path) -> dict[str, Any]:
    """The settings of a run directory that another's may be compared with; empty where it has none, or several."""
    files = list(store_folder(directory).glob(_SETTINGS.format("*")))
    try:
        settings: dict[str, Any] = json.loads(files[0].read_text(encoding="utf-8")) if len(files) == 1 else {}
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in settings.items() if name != "run"}


def _settings_file(folder: Path, config_hash: str) -> Path:
    return folder / _SETTINGS.format(config_hash)


def _difference(folder: Path, config_hash: str, settings: Mapping[str, Any]) -> str:
    """Which settings another configuration has otherwise, or that it left no word, as part of a sentence."""
    try:
        others = json.loads(_settings_file(folder, config_hash).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ", of which no settings are kept"
    if others.get("layout") != settings.get("layout"):
        return f", {_OTHER_VERSION}"
    return ": " + _listed(others, json.loads(json.dumps(settings)))


def _listed(stored: Mapping[str, Any], now: Mapping[str, Any], words: tuple[str, str] = _WORDS) -> str:
    """What differs between settings; ``words`` stand before a value of the ones and the others."""
    keys = [key for key in {**now, **stored} if now.get(key) != stored.get(key)]
    return "; ".join(text for key in keys for text in _changes(key, stored.get(key), now.get(key), words))


def _changes(key: str, stored: Any, now: Any, words: tuple[str, str] = _WORDS) -> Iterator[str]:
    """What differs in a setting: in words what is long or a hash."""
    names = _NAMES.get(key, (key,))
    parts = [(", ".join(names), stored, now)]
    if len(names) > 1 and all(isinstance(each, list) and len(each) == len(names) for each in (stored, now)):
        parts = list(zip(names, stored, now, strict=True))
    for name, *both in parts:
        before, after = map(json.dumps, both)
        if before == after:
            continue
        if key in ("model", "modules", "data") or max(len(before), len(after)) > _LONGEST:
            yield f"{name} differ" if name.endswith("s") else f"{name} differs"
        else:
            yield f"{name} {words[0]} {before}, {words[1]} {after}"


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
            "or function? Of a training that went on from an older checkpoint delete the files of later steps in "
            f"scores/, else {_ELSEWHERE}"
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
