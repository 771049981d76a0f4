"""Which files may be checkpoints, judging by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .index import INDEX

Source = str | os.PathLike[str] | Mapping[str, Any]
TORCH_SUFFIXES = (".pt", ".pth", ".pth.tar", ".ckpt", ".bin")
SAFETENSORS = ".safetensors"
SUFFIXES = (*TORCH_SUFFIXES, SAFETENSORS)
DISTRIBUTED = ".metadata"
# The keys of weights beside other things, and the names of such things, also one for each rank or group.
NESTED = ("state_dict", "model_state_dict", "model", "app")
BESIDE = (
    r"(?:optim(?:izer)?s?|\w+_optim_states|(?:lr_)?schedulers?|(?:grad_)?scalers?|data_?loaders?|rng(?:_states?)?"
    r"|training_args)(?:[-_]?\d+)?"
)
_BESIDE = re.compile(rf"{BESIDE}(?:\.\w+)+", re.IGNORECASE)
TEMPORARY = re.compile(r"(tmp|\.).*|.*\.(tmp|part|partial|incomplete)", re.IGNORECASE)
# Of several in a folder the first counts, in the order of transformers.
ENTRIES = (
    f"model{SAFETENSORS}",
    f"model{SAFETENSORS}{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
    DISTRIBUTED,
)


def suffix_of(path: Path) -> str:
    """The suffix by which a file may be weights, in small letters; empty where it may not."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


def may_be_weights(file: Path) -> bool:
    """Whether a file may be weights by its name: not what trainers write beside them, nothing temporary."""
    return bool(suffix_of(file)) and not _BESIDE.fullmatch(file.name) and not TEMPORARY.fullmatch(file.name)
