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

from ..common.notices import shown, warn
from ..errors import CheckpointError, DependencyError, PhasefastError, UnreadableError
from .entries import needed
from .index import INDEX, read_index
from .sources import DISTRIBUTED, ENTRIES, may_be_weights
from .steps import has_step, names_step, parse_step

SCHEME = "hf://"
_FORM = re.compile(r"hf://(?P<repo>[^@/]+(?:/[^@/]+)?)/?(?:@(?P<name>[^@]+))?")
_MAIN = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_VERSION = re.compile(r"v?\d+(?:\.\d+)+")  # of a release
_ENTRIES = tuple(name for name in ENTRIES if name != DISTRIBUTED)


@dataclass(frozen=True)
class Revision(os.PathLike[str]):
    """One revision of a repository; its path is ``hf://repository@name``.

    Attributes:
        name: of a branch, a tag or a commit; None where it was not given, which is ``main``.
        known: the commit that it was, where that is known already.
    """

    repo: str
    name: str | None = None
    known: str | None = None

    def __fspath__(self) -> str:
        return f"{SCHEME}{self.repo}" + (f"@{self.name}" if self.name else "")

    __str__ = __fspath__

    @cached_property
    def commit(self) -> str:
        """What tells its weights from others; CheckpointError where there is no such revision."""
        name = self.name or _MAIN
        if self.known is not None or _COMMIT.fullmatch(name):
            return self.known or name
        with _named(self) as hub:
            try:
                return str(hub.HfApi().model_info(self.repo, revision=name).sha)
            except Exception as error:
                if not _offline(error) or name not in (cached := _cached_refs(hub, self.repo)):
                    raise
                return cached[name]

    @property
    def step(self) -> int:
        """That of its name, or of the repository's where only this has one; CheckpointError where there is none."""
        of_repo = names_step(self.repo) and not has_step(self.name or _MAIN)
        try:
            return parse_step(self.repo.rpartition("/")[2] if of_repo else self.name or _MAIN)
        except CheckpointError as error:
            raise CheckpointError(f"{self}: {error}") from error

    @contextlib.contextmanager
    def fetched(self, whole: bool = False) -> Iterator[Path]:
        """The folder, or the only file, of its weights: in the Hub's cache, or else downloaded until the block ends.

        Args:
            whole: the folder of all its files, downloaded.

        Raises:
            CheckpointError: it cannot be downloaded, or has no weights.
        """
        commit = self.commit
        with contextlib.ExitStack() as stack:
            with _named(self) as hub:
                found = None if whole else self._cached(hub, commit)
                if found is None:
                    # A cache of hundreds of checkpoints, each of which is read once, would fill the disk.
                    place = stack.enter_context(tempfile.TemporaryDirectory(prefix="phasefast-"))
                    found = self._downloaded(hub, commit, place, whole)
            yield found

    def _cached(self, hub: Any, commit: str) -> Path | None:
        """The folder of its weights in the Hub's cache, if all of them are there."""
        for entry in _ENTRIES:
            path = hub.try_to_load_from_cache(self.repo, entry, revision=commit)
            if isinstance(path, str):
                folder = Path(path).parent
                shards = read_index(Path(path)) if entry.endswith(INDEX) else ()
                return folder if all((folder / shard).is_file() for shard in shards) else None
        return None

    def _downloaded(self, hub: Any, commit: str, place: str, whole: bool) -> Path:
        api = hub.HfApi()
        if whole:
            try:
                return Path(api.snapshot_download(self.repo, revision=commit, local_dir=place))
            except Exception as error:
                if not _offline(error):
                    raise
                return Path(api.snapshot_download(self.repo, revision=commit, local_files_only=True))
        files = [sibling.rfilename for sibling in api.model_info(self.repo, revision=commit).siblings]
        alone = [name for name in files if "/" not in name and may_be_weights(Path(name))]
        entry = next((name for name in _ENTRIES if name in files), alone[0] if len(alone) == 1 else None)
        if entry is None:
            raise CheckpointError(
                f"expected {needed(_ENTRIES)}, got {shown(alone or files)}; load= (--load) can read other files"
            )

        def download(name: str) -> Path:
            return Path(api.hf_hub_download(self.repo, name, revision=commit, local_dir=place))

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
    text = os.fspath(path)
    text = re.sub(r"^hf:/(?!/)", SCHEME, text) if isinstance(path, Path) else text  # which leaves out a slash
    if not text.startswith(SCHEME):
        return None
    if (form := _FORM.fullmatch(text)) is None:
        raise CheckpointError(f"{text}: expected hf://repository or hf://repository@revision")
    return Revision(form["repo"], form["name"])


def revisions(given: Revision) -> list[Revision]:
    """The branches and tags of a repository that match a name, or all with a step if no name was given.

    If some name a step as such, like ``step1000``, only those; else those with a number that is no release. A warning
    names those that are left out. ``main`` alone if there are none.

    Raises:
        CheckpointError: the repository cannot be read, or nothing matches.
    """
    with _named(given) as hub:
        try:
            refs = hub.HfApi().list_repo_refs(given.repo)
            commits = {ref.name: str(ref.target_commit) for ref in [*refs.tags, *refs.branches]}
        except Exception as error:
            if not _offline(error) or not (commits := _cached_refs(hub, given.repo)):
                raise
            warn(f"{given}: the Hub cannot be reached, so only the {len(commits)} revisions in its cache are used")
    if given.name is not None and not any(letter in given.name for letter in "*?["):
        return [Revision(given.repo, given.name, commits.get(given.name))]
    matching = [name for name in commits if fnmatchcase(name, given.name or "*")]
    numbered = [name for name in matching if has_step(name) and not _VERSION.fullmatch(name)]
    with_step = [name for name in matching if names_step(name)] or numbered
    if left := sorted(name for name in matching if with_step and name not in {*with_step, _MAIN}):
        warn(f"{given}: left out {shown(left)}, which have no step in their names")
    if with_step:
        return [Revision(given.repo, name, commits[name]) for name in with_step]
    if given.name is None:
        return [given]
    raise CheckpointError(f"{given}: expected matching revisions with steps in their names, got {shown(commits)}")


def _offline(error: Exception) -> bool:
    """Whether nobody has answered: of errors of the Hub, of which some were answers."""
    unanswered = getattr(error, "response", None) is None
    return unanswered and (isinstance(error, OSError) or type(error).__module__.startswith("httpx"))


def _cached_refs(hub: Any, repo: str) -> dict[str, str]:
    """The commits of those revisions that the Hub's cache knows, by name: what there is without a network."""
    folder = Path(hub.constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "refs"
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8").strip() for path in files}


@contextlib.contextmanager
def _named(what: Revision) -> Iterator[Any]:
    """The library of the Hub; its errors are the revision's.

    Raises:
        CheckpointError: whatever goes wrong. DependencyError: the library is missing.
    """
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise DependencyError(f"{what}: reading the Hub needs huggingface_hub: pip install 'phasefast[hub]'") from error
    try:
        yield hub
    except PhasefastError as error:
        raise type(error)(f"{what}: {error}") from error
    except Exception as error:  # of the network, the disk, or what the Hub answers
        text = " ".join(str(error).split())
        raise UnreadableError(f"{what}: cannot be read from the Hub ({type(error).__name__}: {text})") from error
