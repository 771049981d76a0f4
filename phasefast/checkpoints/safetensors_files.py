"""Files of safetensors."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..errors import DependencyError
from .messages import damage_named


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a file, on the CPU.

    Raises:
        CheckpointError: missing or damaged; names the file.
        DependencyError: safetensors is missing.
    """
    try:
        from safetensors.torch import load, load_file
    except ImportError as error:
        raise DependencyError(f"{path}: reading it needs safetensors: pip install safetensors") from error
    with damage_named(path):
        # load_file would map the file, and a mapped file that is cut short, as where it is written again, ends the
        # process.
        try:
            return load(path.read_bytes())
        except KeyError:  # the types that it does not know, such as float4, of which load_file knows more
            return {name: tensor.clone() for name, tensor in load_file(path).items()}
