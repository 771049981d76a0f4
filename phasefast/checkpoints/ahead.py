"""Checkpoints read while the one before is being measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ..common.notices import held
from ..errors import UnreadableError
from .reading import Reader
from .sources import Source

State = dict[str, Any]
Read = tuple[State, str | None]


def read_ahead(
    sources: Mapping[int, Source], device: torch.device, reader: Reader
) -> Generator[tuple[int, Callable[[], Read]]]:
    """Each step with a function that gives its state dict, on ``device``; one more is read and copied meanwhile.

    The function also gives the reader's fingerprint of the checkpoint as it was read, None for a mapping. It raises the
    CheckpointError of a checkpoint that cannot be read, or that was written again meanwhile.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="phasefast-read")
    pending: list[tuple[int, Future[tuple[Read, list[str]]]]] = []
    steps = iter(sources.items())
    try:
        while True:
            for step, source in itertools.islice(steps, 2 - len(pending)):
                pending.append((step, pool.submit(_read, source, device, reader)))
            if not pending:
                return
            step, future = pending.pop(0)
            yield step, lambda future=future: _taken(future, device, reader)  # type: ignore[misc]
    finally:  # where it is broken off, only the interpreter's end waits for a download
        pool.shutdown(wait=False, cancel_futures=bool(pending))


def _read(source: Source, device: torch.device, reader: Reader) -> tuple[Read, list[str]]:
    """What was read, and the warnings about it."""
    before = reader.fingerprint(source)
    with held() as texts:
        state = reader.read(source)
    if reader.fingerprint(source) != before:
        raise UnreadableError(f"{source}: changed while it was read; sweep again once it has been written")
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            for name, value in state.items():  # one of the reader's own, with the versions of modules
                state[name] = _moved(value, device)
        stream.synchronize()
    return (state, before), texts


def _is_plain(value: object) -> bool:
    """Whether it is a tensor of whose use the allocator can be told; not of sparse and quantized ones."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def _moved(value: Any, device: torch.device) -> Any:
    """On the device, if it is a plain tensor; others as they are."""
    if not _is_plain(value):
        return value
    return (value.pin_memory() if value.device.type == "cpu" else value).to(device, non_blocking=True)


def _taken(future: Future[tuple[Read, list[str]]], device: torch.device, reader: Reader) -> Read:
    """Warns of what was not told of an earlier checkpoint.

    Tells the allocator that the caller's stream still reads what the reader's stream has made.
    """
    read, texts = future.result()
    for text in texts:
        reader.once.warn(text)
    for value in read[0].values() if device.type == "cuda" else ():
        if _is_plain(value):
            value.record_stream(torch.cuda.current_stream(device))
    return read
