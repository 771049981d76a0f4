"""State dicts from anything that is a checkpoint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..common.notices import Once, shown, warn
from ..errors import ArgumentError, CheckpointError, PhasefastError, UnreadableError
from .entries import entry_of, is_there
from .fingerprint import file_hash, salted
from .hub import Revision
from .index import INDEX, read_index
from .keys import weights_in
from .safetensors_files import read_safetensors
from .sources import DISTRIBUTED, NESTED, SAFETENSORS, Source, suffix_of
from .torch_files import read_torch_file


@dataclass(frozen=True)
class Reader:
    """How the checkpoints of a sweep are read; see :func:`read_state_dict`.

    Attributes:
        load: gives the state dict of a path instead.
        once: what was warned of. ways: the keys under which weights were, with the first checkpoint of each.
    """

    weights_only: bool = True
    key: str | None = None
    load: Callable[[Path], Mapping[str, Any]] | None = None
    once: Once = field(default_factory=Once, compare=False, repr=False)
    ways: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.key is not None and not isinstance(self.key, str):
            raise ArgumentError(f"key: expected a string, got {self.key!r}")

    def read(self, source: Source) -> dict[str, Any]:
        """The state dict in ``source``; CheckpointError as of :func:`read_state_dict`, or of what ``load`` raises.

        A warning, once, where it is under another key than that of another checkpoint.
        """
        state, way = self._read(source)
        kind = ".".join(part for part in way.split(".") if part not in NESTED)  # which all stand for the weights alone
        name = "a given mapping" if isinstance(source, Mapping) else os.fspath(source)
        if kind not in self.ways:
            self.ways[kind] = f"{way!r} in {name}" if way else f"{name} itself"
            if len(self.ways) == 2 and self.key is None:
                first, second = self.ways.values()
                warn(
                    f"checkpoints: weights are read from {first}, but from {second}: if some are averages of weights, "
                    "they do not form one curve; key= (--key) takes those under one key, load= (--load) any others"
                )
        return state

    def _read(self, source: Source) -> tuple[dict[str, Any], str]:
        """The state dict, and the keys that it was under."""
        if isinstance(source, Revision):
            with source.fetched(whole=self.load is not None) as path, _named_as(source, path):
                return self._read(path)
        if self.load is None or isinstance(source, Mapping):
            return _read_state(source, self.weights_only, self.key)
        try:
            loaded = self.load(Path(source))
        except (PhasefastError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # the caller's own, or of what it reads: torch.distributed's is no Exception
            kind = type(error).__name__
            raise CheckpointError(f"{os.fspath(source)}: load= raised {kind}: {error}") from error
        if not isinstance(loaded, Mapping):
            raise CheckpointError(f"{os.fspath(source)}: expected a state dict from load=, got {type(loaded).__name__}")
        try:
            return _read_state(loaded, key=self.key)
        except CheckpointError as error:
            raise CheckpointError(f"{os.fspath(source)}, as load= reads it: {error}") from error

    def fingerprint(self, source: Source) -> str | None:
        """Hash of the file or folder, with the key and whether a function reads it: other weights of a file are others.

        None for a mapping, and for a folder that ``load`` reads.
        """
        if isinstance(source, Mapping) or (self.load is not None and Path(source).is_dir()):
            return None
        known = source.commit if isinstance(source, Revision) else file_hash(source)
        return salted(known, (self.key or "").rstrip(".") + " load" * (self.load is not None))

    def is_there(self, source: Source) -> bool:
        """Whether there is anything to read."""
        return isinstance(source, (Mapping, Revision)) or (
            Path(source).exists() if self.load is not None else is_there(source)
        )

    def lacks_part(self, source: Source, error: CheckpointError) -> bool:
        """Whether ``load`` raised ``error`` because something in a folder is not there.

        An OSError without a number is what Hugging Face's ``from_pretrained`` raises then.
        """
        cause = error.__cause__
        if self.load is None or isinstance(source, Mapping) or not isinstance(cause, OSError):
            return False
        inside = isinstance(cause, FileNotFoundError) and Path(source) in Path(str(cause.filename)).parents
        return Path(source).is_dir() and (inside or cause.errno is None)


@contextlib.contextmanager
def _named_as(source: Revision, path: Path) -> Iterator[None]:
    """Errors name the revision, not where its files are for a while."""
    try:
        yield
    except CheckpointError as error:
        raise type(error)(str(error).replace(os.fspath(path), f"{source}")) from error.__cause__ or error


def read_state_dict(source: Source, *, weights_only: bool = True, key: str | None = None) -> dict[str, Any]:
    """The state dict in a file, a folder or a mapping: tensors, and what modules keep of their own.

    Args:
        source: a state dict, or the path of a file or folder of one, alone, under ``state_dict``, ``model_state_dict``
            or ``model``, or as the only mapping from names to tensors beside other things, or else within these.
        weights_only: False also unpickles arbitrary objects, which can run code: only for files you trust.
        key: under which of several the weights are, such as ``"ema"`` or ``"ema.module"``; a prefix of names too.

    Raises:
        CheckpointError: missing, incomplete, untrusted, or not a state dict; names the file.
        DependencyError: the package that reads such files is missing.
    """
    return _read_state(source, weights_only, key)[0]


def _read_state(source: Source, weights_only: bool = True, key: str | None = None) -> tuple[dict[str, Any], str]:
    """The state dict, and the keys that it was under, with dots between them."""
    if isinstance(source, Mapping):
        return weights_in(source, "the given mapping", key)
    return weights_in(_loaded(entry_of(source), weights_only), os.fspath(source), key)


def _loaded(entry: Path, weights_only: bool) -> Any:
    if entry.name == DISTRIBUTED:
        from .distributed import read_distributed

        return read_distributed(entry.parent, weights_only=weights_only)
    if entry.name.endswith(INDEX):
        return _merged(entry, weights_only)
    if suffix_of(entry) == SAFETENSORS:
        return read_safetensors(entry)
    return read_torch_file(entry, weights_only=weights_only)


def _merged(index: Path, weights_only: bool) -> dict[str, Tensor]:
    """The tensors of all shards that an index lists: each from the shard that it says, and what it does not list too.

    What is not listed is not dropped silently: the model either has it, or its keys are named as unexpected.
    """
    shards = read_index(index)
    if absent := [shard for shard in shards if not (index.parent / shard).is_file()]:
        raise UnreadableError(
            f"{index}: lists {len(shards)} shards, but {shown(absent)} are missing; "
            "save or download the checkpoint again, unless it is still being written"
        )
    listed, found = dict[str, Tensor](), dict[str, Tensor]()
    for shard, names in shards.items():
        state = read_state_dict(index.parent / shard, weights_only=weights_only)
        if lost := names - state.keys():
            raise UnreadableError(
                f"{index.parent / shard}: lacks {shown(lost)}, which {index.name} lists; "
                "save or download the checkpoint again"
            )
        listed |= {name: state[name] for name in names}
        found |= state
    return found | listed
