"""The settings that scores were measured with, kept beside them, and how other settings differ, in words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..common.files import read_json
from .paths import store_folder

SETTINGS = "_settings-{}.json"
_OTHER_VERSION = "by another version of phasefast"
_WORDS = "stored", "now"  # of the two values of a setting
_LONGEST = 60  # characters of a setting that is shown
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
    "groups": ("which samples belong together (groups=)",),
    "token_rows": ("which tokens count (padding=, or labels of -100)",),
}


def differences(first: str | Path, second: str | Path, names: tuple[str, str]) -> str:
    """How the settings of two run directories differ, in words, except for ``run``, layers and targets.

    Empty if that is not known.
    """
    there, here = _kept(first), _kept(second)
    if there and here and there.get("layout") != here.get("layout"):
        return _OTHER_VERSION
    return _listed(there, here, words=names) if there and here else ""


def difference(folder: Path, config_hash: str, settings: Mapping[str, Any]) -> str:
    """Which settings differ in another configuration, or that it kept none, as part of a sentence."""
    if (others := read_json(settings_file(folder, config_hash))) is None:
        return ", whose settings were not kept"
    if others.get("layout") != settings.get("layout"):
        return f", {_OTHER_VERSION}"
    return ": " + _listed(others, json.loads(json.dumps(settings)))


def _kept(directory: str | Path) -> dict[str, Any]:
    """The settings of a run directory that another's may be compared with; empty where it has none, or several."""
    files = list(store_folder(directory).glob(SETTINGS.format("*")))
    settings = (read_json(files[0]) if len(files) == 1 else None) or {}
    return {name: value for name, value in settings.items() if name != "run"}


def settings_file(folder: Path, config_hash: str) -> Path:
    """Where the settings of a configuration are kept."""
    return folder / SETTINGS.format(config_hash)


def _listed(stored: Mapping[str, Any], now: Mapping[str, Any], words: tuple[str, str] = _WORDS) -> str:
    """What differs between settings; ``words`` stand before a value of the ones and the others."""
    keys = [key for key in {**now, **stored} if json.dumps(now.get(key)) != json.dumps(stored.get(key))]
    return "; ".join(text for key in keys for text in _changes(key, stored.get(key), now.get(key), words))


def _brief(value: Any) -> str:
    """A setting's value; of many numbers how many, and their range."""
    text = json.dumps(value)
    numbers = isinstance(value, list) and all(type(each) in (int, float) and math.isfinite(each) for each in value)
    return f"{len(value)} from {min(value):g} to {max(value):g}" if numbers and len(text) > _LONGEST else text


def _changes(key: str, stored: Any, now: Any, words: tuple[str, str] = _WORDS) -> Iterator[str]:
    """What differs in a setting; of long values and hashes only that they differ."""
    names = _NAMES.get(key, (key,))
    parts = [(", ".join(names), stored, now)]
    if len(names) > 1 and all(isinstance(each, list) and len(each) == len(names) for each in (stored, now)):
        parts = list(zip(names, stored, now, strict=True))
    for name, *both in parts:
        if json.dumps(both[0]) == json.dumps(both[1]):
            continue
        before, after = map(_brief, both)
        if key in ("model", "modules", "data") or max(len(before), len(after)) > _LONGEST or before == after:
            yield f"{name} differ" if name.endswith("s") else f"{name} differs"
        else:
            yield f"{name} {words[0]} {before}, {words[1]} {after}"
