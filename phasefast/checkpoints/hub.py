"""Checkpoints on the Hugging Face Hub: revisions of a repository, such as the steps of a published training."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, DependencyError, PhasefastError, UnreadableError
from ..notices import shown, warn
from .index import INDEX, read_index
from .sources import DISTRIBUTED, ENTRIES, SUFFIXES, may_be_weights
from .steps import has_step, names_step, parse_step

SCHEME = "hf://"
_FORM = re.compile(r"hf://(?P<repo>[^@/]+(?:/[^@/]+)?)/?(?:@(?P<revision>[^@]+))?")
_MAIN = "main"
_ENTRIES = tuple(name for name in ENTRIES if name != DISTRIBUTED)


@dataclass(frozen=True)
class Revision(os.PathLike[str]):
    """One revision of a repository; its path is ``hf://repository@revision``.

    Attributes:
        revision: a branch, a tag or a commit. known: the commit that it was, where that is known already.
    """

    repo: str
    revision: str = _MAIN
    known: str | None = None

    def __fspath__(self) -> str:
        return f"{SCHEME}{self.repo}@{self.revision}"

    __str__ = __fspath__

    @cached_property
    def commit(self) -> str:
        """What tells its weights from others; CheckpointError where there is no such revision."""
        if self.known is not None:
            return self.known
        with _named(self) as hub:
            return str(hub.HfApi().model_info(self.repo, revision=self.revision).sha)

    @property
    def step(self) -> int:
        """That of its name, or of the repository's where it is the only one; CheckpointError where there is none."""
        own = has_step(self.revision) or not names_step(self.repo)
        return parse_step(self.revision if own else self.repo.rpartition("/")[2])

    @contextlib.contextmanager
    def fetched(self) -> Iterator[Path]:
        """The folder, or the only file, of its weights: in the Hub's cache, or else downloaded until the block ends.

        Raises:
            CheckpointError: it cannot be downloaded, or has no weights.
        """
        with contextlib.ExitStack() as stack:
            with _named(self) as hub:
                found = self._cached(hub)
                if found is None:
                    # A cache of hundreds of checkpoints, each of which is read once, would fill the disk.
                    place = stack.enter_context(tempfile.TemporaryDirectory(prefix="phasefast-"))
                    found = self._downloaded(hub, place)
            yield found

    def _cached(self, hub: Any) -> Path | None:
        """The folder of its weights in the Hub's cache, if all of them are there."""
        for entry in _ENTRIES:
            path = hub.try_to_load_from_cache(self.repo, entry, revision=self.commit)
            if isinstance(path, str):
                folder = Path(path).parent
                shards = read_index(Path(path)) if entry.endswith(INDEX) else ()
                return folder if all((folder / shard).is_file() for shard in shards) else None
        return None

    def _downloaded(self, hub: Any, place: str) -> Path:
        api = hub.HfApi()
        info = api.model_info(self.repo, revision=self.commit)
        files = [sibling.rfilename for sibling in info.siblings]
        alone = [name for name in files if "/" not in name and may_be_weights(Path(name))]
        entry = next((name for name in _ENTRIES if name in files), alone[0] if len(alone) == 1 else None)
        if entry is None:
            raise CheckpointError(
                f"expected one of {', '.join(_ENTRIES)}, or a single file ending in {', '.join(SUFFIXES)}, got "
                f"{shown(alone or files)}"
            )

        def download(name: str) -> Path:
            return Path(api.hf_hub_download(self.repo, name, revision=self.commit, local_dir=place))

        path = download(entry)
        for shard in read_index(path) if entry.endswith(INDEX) else ():
            download(shard)
        return path.parent if entry in _ENTRIES else path


def as_revision(path: str | os.PathLike[str]) -> Revision | None:
    """The revision that a path such as ``hf://EleutherAI/pythia-70m@step1000`` means; None of other paths.

    Raises:
        CheckpointError: it begins like one, but is none.
    """
    if isinstance(path, Revision):
        return path
    if not isinstance(path, str) or not path.startswith(SCHEME):
        return None
    if (form := _FORM.fullmatch(path)) is None:
        raise CheckpointError(f"{path}: expected hf://repository or hf://repository@revision")
    return Revision(form["repo"], form["revision"] or _MAIN)


def revisions(given: Revision) -> list[Revision]:
    """Those branches and tags of a repository that match a revision's name, or, of ``main``, all with a step.

    A warning tells which are left out. ``main`` alone where no name has a step.

    Raises:
        CheckpointError: the repository cannot be read, or nothing matches.
    """
    with _named(given) as hub:
        refs = hub.HfApi().list_repo_refs(given.repo)
    there = {ref.name: Revision(given.repo, ref.name, ref.target_commit) for ref in [*refs.tags, *refs.branches]}
    pattern = "*" if given.revision == _MAIN else given.revision
    matching = {name: each for name, each in there.items() if fnmatchcase(name, pattern)}
    with_step = [each for name, each in matching.items() if has_step(name)]
    if left := sorted(name for name in matching if with_step and not has_step(name) and name != _MAIN):
        warn(f"{given}: left out {shown(left)}, with no step in their names")
    if with_step:
        return with_step
    if given.revision in there or not any(letter in given.revision for letter in "*?["):
        return [there.get(given.revision, given)]
    raise CheckpointError(f"{given}: expected revisions that match and have steps in their names, got {shown(there)}")


@contextlib.contextmanager
def _named(what: Revision) -> Iterator[Any]:
    """The library of the Hub; its errors are the revision's.

    Raises:
        CheckpointError: whatever goes wrong. DependencyError: the library is missing.
    """
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise DependencyError(f"{what}: the Hub needs huggingface_hub: pip install 'phasefast[hub]'") from error
    try:
        yield hub
    except PhasefastError as error:
        raise type(error)(f"{what}: {error}") from error
    except Exception as error:  # of the network, the disk, or what the Hub answers
        text = " ".join(str(error).split())
        raise UnreadableError(f"{what}: cannot be read from the Hub ({type(error).__name__}: {text})") from error
