"""Folders of ``torch.distributed.checkpoint``."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .messages import damage_named, not_plain
from .sources import DISTRIBUTED, weights_files
from .torch_files import read_torch_file

# What describes tensors and where they are. BytesStorageMetadata is not among it: torch unpickles such entries.
_PLAIN = {
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "torch": {"Size"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "_MEM_FORMAT_ENCODING",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    },
    "torch.serialization": {"_get_layout"},
}


def read_distributed(folder: Path, *, weights_only: bool) -> Any:
    """What a folder holds, on the CPU, by way of a temporary file as large as it.

    Raises:
        CheckpointError: damaged, incomplete, untrusted, or too large for the temporary file; names the folder.
    """
    # Half a second, for these folders only.
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with damage_named(folder), tempfile.TemporaryDirectory(prefix="phasefast-") as place:
        if weights_only:
            _check_plain(folder / DISTRIBUTED)
        _check_space(folder, Path(place))
        path = Path(place) / "state.pt"
        try:
            dcp_to_torch_save(folder, path)
        except CheckpointException as error:  # no Exception, and around what really happened
            raise next(iter(error.failures.values()))[0] from error
        return read_torch_file(path, weights_only=weights_only)


def _check_plain(metadata: Path) -> None:
    """Refuse a folder of which torch would unpickle more than tensors, which it does without asking."""
    with metadata.open("rb") as file:
        _Plain(file, metadata).load()


def _check_space(folder: Path, place: Path) -> None:
    """Refuse what would fill the disk of temporary files: torch's own message of that tells nothing."""
    needed, free = sum(file.stat().st_size for file in weights_files(folder)), shutil.disk_usage(place).free
    if needed > free:
        raise CheckpointError(
            f"{folder}: is read by way of a temporary file of {needed / 1e9:.1f} GB, but {place.parent} has "
            f"{free / 1e9:.1f} GB left; set TMPDIR to a folder with more"
        )


class _Plain(pickle.Unpickler):
    """Unpickles what describes tensors, and raises CheckpointError at anything else."""

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of that name."""
        known = name in _PLAIN.get("pathlib" if module.startswith("pathlib.") else module, ())
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise not_plain(self._path.parent)
