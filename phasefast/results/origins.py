"""Which training the scores in a run directory belong to: where its checkpoints lie, what they lack, who stores."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..common.files import read_json, write_json
from ..common.notices import shown, warn
from ..errors import StoreError
from .paths import store_folder
from .shards import list_shards, writing_alone

# Readers of a folder of Parquet files, such as pandas, pass over names that begin so.
ORIGIN_FILES = _ORIGIN, _TRAINING, _CONSTANTS = "_origin.json", "_training.json", "_constants.json"


def check_origin(directory: str | Path, origin: str, confirmed: bool, of_all: bool) -> None:
    """Warn if the stored scores are of checkpoints elsewhere, or of none, which may belong to another training.

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
    if not new:
        of = f"of checkpoints in {known[0]}" if known else "that a training has measured, or of weights given as such"
        warn(
            f"{directory}: holds scores {of}, but these are in {origin}: if they belong to another "
            "training, or their names count other than its steps do, such as epochs, give another out= (--out)"
        )
    # One that is confirmed is another place of one of them.
    kept = [origin] if new and len(known) < 2 else [*known, origin]
    write_json(store_folder(directory) / _ORIGIN, kept, "where checkpoints are to")


def read_origins(directory: str | Path) -> list[str]:
    """The folders or repositories that a run directory has scores of checkpoints from, as far as they are known."""
    known = read_json(store_folder(directory) / _ORIGIN)
    return [str(each) for each in known] if isinstance(known, list) else []


def keep_constants(directory: str | Path, constants: Mapping[str, str], changing: Collection[str]) -> None:
    """Keep the hashes, by name, of a model's tensors that no checkpoint has beside the scores, unless some are known.

    Args:
        changing: which of the known ones are none, as they change by themselves.

    Raises:
        StoreError: they cannot be written.
    """
    path = store_folder(directory) / _CONSTANTS
    with writing_alone(directory):
        known = read_json(path)
        if not isinstance(known, dict) or not list_shards(directory):
            write_json(path, dict(constants), "the model's constants to")
        elif not known.keys().isdisjoint(changing):
            left = {name: own for name, own in known.items() if name not in changing}
            write_json(path, left, "the model's constants to")


def check_constants(directory: str | Path, constants: Mapping[str, str]) -> bool:
    """Warn if such tensors differ from those that the stored scores were measured with, and whether they do."""
    known = read_json(store_folder(directory) / _CONSTANTS)
    known = known if isinstance(known, dict) else {}
    if changed := [name for name, own in constants.items() if known.get(name, own) != own]:
        warn(
            f"{directory}: the model's tensors {shown(changed)} are in no checkpoint, and differ from those that the "
            "stored scores were measured with. If they are drawn at random, neither may be the training's: make the "
            "model with the training's seed, in all jobs, and start over (overwrite=True, --overwrite)"
        )
    return bool(changed)


class Training:
    """A training that stores scores in a run directory, where no other may do so at the same time."""

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
                f"{self._directory}: another training, or another tracker of this one, has stored scores there since "
                "this tracker was created; give each its own out="
            )
        if known != self._own:
            write_json(self._file, self._own, "whose scores these are to")

    def _known(self) -> str | None:
        known = read_json(self._file)
        return None if known is None else str(known)
