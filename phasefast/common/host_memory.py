"""How much memory there is to take: of the machine, and of the group of processes that a container or a job is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import ArgumentError

_GROUPS = "/proc/self/cgroup"
# Of control groups (docs.kernel.org, admin-guide/cgroup-v2 and cgroup-v1/memory), by their controller: where they are,
# the files of the limit and of what is used, and what of that is of files and can be given back.
_VERSIONS = {
    "": ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_memory() -> int:
    """Bytes that this process may still take, by what the machine and its control groups have.

    Raises:
        ArgumentError: the system says neither.
    """
    known = [*_of_machine(), *_of_groups()]
    if not known:
        raise ArgumentError("memory: this system does not report how much is free; give it, such as memory='8GB'")
    return max(min(known), 0)


def _of_machine() -> Iterator[int]:
    available = [line.split()[1] for line in _text("/proc/meminfo").splitlines() if line.startswith("MemAvailable")]
    if available:
        yield int(available[0]) * 1024
    elif hasattr(os, "sysconf"):  # not on Windows
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _of_groups() -> Iterator[int]:
    """What each limit leaves: of the process's own groups, and of those that these are in."""
    for line in _text(_GROUPS).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in _VERSIONS.keys() & set(controllers.split(",")) if rest else ():
            mount, limit, usage, inactive = _VERSIONS[controller]
            own = Path(mount, path.lstrip("/"))
            # A container may see its own group where others see all of them.
            for folder in (own, *(each for each in own.parents if each.is_relative_to(mount))):
                most, used = _text(folder / limit).strip(), _text(folder / usage).strip()
                if most.isdecimal() and used.isdecimal():  # "max" is none
                    pairs = (line.partition(" ") for line in _text(folder / "memory.stat").splitlines())
                    counts = {name: count for name, _, count in pairs if count.isdecimal()}
                    yield int(most) - int(used) + int(counts.get(inactive, 0))


def _text(path: str | Path) -> str:
    """What is in a file; nothing where it cannot be read."""
    try:
        return os.fsdecode(Path(path).read_bytes())  # names of groups are names of folders
    except OSError:
        return ""
