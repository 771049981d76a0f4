"""Files of ``torch.save``."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError
from .inert import Inert, read_inert
from .messages import damage_named, not_plain

# What torch says of classes and functions that it does not unpickle, or not before their modules are imported.
_NOT_PLAIN = re.compile(r"\bGLOBAL \S+ (was not an allowed global|whose module)|must be imported to load")
_PROTOCOL = "Unsupported operand"  # of torch, of what later protocols of pickle have, too
_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # of torch's old format


def _is_torch(path: Path) -> bool:
    """Whether a file begins as those of ``torch.save`` do, whatever the protocol of pickle."""
    with path.open("rb") as file:
        return _MAGIC in file.read(64) or zipfile.is_zipfile(path)


def read_torch_file(path: Path, *, weights_only: bool) -> Any:
    """What a file holds, on the CPU.

    Args:
        weights_only: do not unpickle objects, which can run code: what is no tensor, nor plain, is a placeholder.

    Raises:
        CheckpointError: missing, damaged, or without plain tensors; names the file.
    """
    with damage_named(path):
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=None)
            return loaded if weights_only else _without_modules(loaded)
        except pickle.UnpicklingError as error:
            if _NOT_PLAIN.search(str(error)) or (_PROTOCOL in str(error) and _is_torch(path)):
                try:
                    found = read_inert(path)
                except (AttributeError, TypeError, ValueError, RecursionError, pickle.UnpicklingError) as misfit:
                    raise not_plain(path) from misfit
                except RuntimeError as misfit:
                    if "pickle_module" in str(misfit):
                        raise CheckpointError(
                            f"{path}: holds more than plain tensors as torch.save writes them by default; "
                            "TORCH_FORCE_WEIGHTS_ONLY_LOAD makes torch read nothing else: unset it"
                        ) from misfit
                    raise
                if found is Inert or (isinstance(found, Inert) and not found):
                    raise not_plain(path) from error
                return found
            # Not torch's own words: these advise weights_only=False for whatever is no pickle.
            raise ValueError("not what torch.save writes, such as a web page or a pointer of git-lfs") from error


def _without_modules(loaded: Any) -> Any:
    """Modules as their state dicts, as ``read_inert`` gives them."""
    if isinstance(loaded, nn.Module):
        return loaded.state_dict()
    if isinstance(loaded, dict) and any(isinstance(value, nn.Module) for value in loaded.values()):
        return {key: value.state_dict() if isinstance(value, nn.Module) else value for key, value in loaded.items()}
    return loaded
