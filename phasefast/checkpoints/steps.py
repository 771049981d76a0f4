"""Which training step the name of a checkpoint gives."""

from __future__ import annotations

import os
import re
from decimal import Decimal
from pathlib import Path

from ..errors import CheckpointError
from .sources import suffix_of

_STEP = r"(?:global_?step|steps?|iter(?:ation)?|(?<![a-z])its?"
_WORDS = _STEP + "|checkpoint|ckpt)[-_=]?"
_NUMBER = r"(\d+(?:\.\d+)?)([km]?)(?![a-z\d]|[.,]\d)"  # 500, 64k, 1.5k, but not 1e3 or 1,000
_NAMED = re.compile(_WORDS + _NUMBER + r"(?!_\d{3}(?!\d))", re.IGNORECASE)  # nor 1_000
# Not of resnet18, rank_0, nor step_-5.
_OTHER = r"(?<![a-z])(?:ep(?:ochs?)?|model|weights|net|state)|(?<![a-z\d])(?<!\d[.,])(?<!rank[-_])(?<![=_]-)"
_ALONE = re.compile(f"(?:{_OTHER}){_NUMBER}", re.IGNORECASE)
# What a number after these words counts is no steps.
_OF_OTHERS = re.compile(r"(?<![a-z\d])(?:seed|k?fold|crossfold|split|trial|version|rank)s?[-_=. ]*$", re.IGNORECASE)
# Of epoch=3-val_loss=0.53.
_EPOCH = re.compile(rf"(?<![a-z])ep(?:och)?[-_=]?{_NUMBER}(?!_\d{{3}}(?!\d))", re.IGNORECASE)
# Of a day, and of a time after it: no steps.
_DATE = re.compile(
    r"(?<!\d)(?:19|20)\d\d(?P<apart>[-_.])(?:0[1-9]|1[0-2])(?P=apart)(?:0[1-9]|[12]\d|3[01])(?!\d)(?:[-_T]\d\d[-_.:h]\d\d(?:[-_.:m]\d\d)?(?!\d))?"
)
_COUNTS = re.compile(rf"(?<![a-z]){_STEP})_$", re.IGNORECASE)  # of step_2000_10_12, which is no date
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000}


def parse_step(name: str | os.PathLike[str]) -> int:
    """The step in the name of a file or folder: ``step_128.pt``, ``checkpoint-128``, ``epoch=3-step=500.ckpt``.

    Raises:
        CheckpointError: no step, or several numbers of which none is named.
    """
    stem = _undated(name)
    named, alone = _NAMED.findall(stem), list(_ALONE.finditer(stem))
    single = [own.groups() for own in alone if len(alone) == 1 and not _OF_OTHERS.search(stem[: own.start(1)])]
    for number, unit in named[-1:] or single or _EPOCH.findall(stem)[-1:]:
        step = Decimal(number) * _UNITS[unit.lower()]
        if step % 1 == 0:
            return int(step)
    raise CheckpointError(
        f"{name}: expected a step in its name, as in step_128.pt, step64k.pt or 128.pt; give {{step: path}} instead"
    )


def has_step(name: str | os.PathLike[str]) -> bool:
    """Whether the name says a step."""
    try:
        parse_step(name)
    except CheckpointError:
        return False
    return True


def names_step(name: str | os.PathLike[str]) -> bool:
    """Whether the name has a word for steps before a number, which then cannot mean anything else."""
    return _NAMED.search(_undated(name)) is not None


def unit_of(name: str | os.PathLike[str]) -> str:
    """What a number in a name counts, as far as it says so: updates, epochs, or the best so far."""
    stem = _undated(name)
    if _NAMED.search(stem):
        return "steps"
    if _EPOCH.search(stem):
        return "epochs"
    return "the best" if re.search("best", stem, re.IGNORECASE) else "numbers"


def epoch_beside_step(name: str | os.PathLike[str]) -> Decimal | None:
    """The epoch in a name that says a step too; None in others."""
    stem = _undated(name)
    found = _EPOCH.findall(stem) if _NAMED.search(stem) else []
    return Decimal(found[-1][0]) if found else None


def named_after_step(path: Path) -> bool:
    """Whether a name has a word for steps or epochs before a number, or is nothing but a number."""
    return has_step(path) and (_has_word(path) or stem_of(path).isdecimal())


def named_by(path: Path) -> Path:
    """Which name says the step of a file that is alone in its folder: its own, or that of the folder.

    The folder's where the file has no number, or one that may mean anything beside a word in the folder's:
    ``step_500/ema.pt`` and ``step_500/model_0.pt``, but not ``step_500/step_50.pt`` or ``step_500/50.pt``.
    """
    if has_step(path) and (named_after_step(path) or not _has_word(path.parent)):
        return path
    return path.parent if named_after_step(path.parent) else path


def _has_word(path: Path) -> bool:
    return names_step(path) or _EPOCH.search(_undated(path)) is not None


def _undated(name: str | os.PathLike[str]) -> str:
    """The stem of a name without dates, of which the year or the hour might pass for a step."""
    stem = stem_of(name)

    def kept(date: re.Match[str]) -> str:
        return date[0] if date["apart"] == "_" and _COUNTS.search(stem[: date.start()]) else ""

    return _DATE.sub(kept, stem)


def stem_of(name: str | os.PathLike[str]) -> str:
    """The name of a file or folder without what says the kind of file."""
    path = Path(name)
    return path.name[: len(path.name) - len(suffix_of(path))]
