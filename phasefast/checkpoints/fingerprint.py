"""Cheap fingerprints by which a stored step is known to come from the same weights."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from .entries import weights_files
from .messages import damage_named
from .sources import SAFETENSORS, TORCH_SUFFIXES, suffix_of

_SAMPLE = 4096
_EDGE = 1 << 18
_STRIDE, _MOST, _BLOCK = 1 << 16, 100_000, 256  # of files of which nothing is known
_PIECES, _PIECE = 16, 64  # of a tensor
_LONGEST_HEADER = 100_000_000  # that safetensors reads


def state_hash(state: Mapping[str, Any]) -> str:
    """Hash of names, shapes and some thousand evenly spaced values of every tensor: tells one training from another.

    And of tensors and bytes in what modules keep beside these, such as packed weights; not of numbers, which may count.
    """
    digest = hashlib.blake2b(digest_size=8)
    state = dict(_flat(state, ()))
    samples = {name: _sample(value) for name, value in state.items() if isinstance(value, Tensor)}
    devices = {sample.device for sample in samples.values()}
    if len(devices) == 1 and devices != {torch.device("cpu")}:  # one copy from a GPU, not one for each tensor
        together = torch.cat(list(samples.values())).cpu().split([len(sample) for sample in samples.values()])
        samples = dict(zip(samples, together, strict=True))
    for name, value in state.items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(f"{tuple(value.shape)}{value.dtype}".encode())
            digest.update(samples[name].cpu().numpy().data)
        elif value is not None:
            digest.update(value)
    return digest.hexdigest()


def weights_hash(model: nn.Module) -> str:
    """``state_hash`` of a model; of one that is sharded over ranks without buffers that each rank has for itself."""
    state = model.state_dict()
    if any(hasattr(value, "full_tensor") for value in state.values()):
        of_rank = {id(buffer) for buffer in model.buffers() if not hasattr(buffer, "full_tensor")}
        # The tensors themselves, as wrappers give them other names than the model has.
        state = {name: value for name, value in model.state_dict(keep_vars=True).items() if id(value) not in of_rank}
    return state_hash(state)


def constants_of(model: nn.Module) -> dict[str, str]:
    """Hashes of a model's tensors that are in no state dict: buffers that are not persistent, and plain attributes.

    Except counters of one number, what autograd tracks, such as a loss that a forward in training has kept, and what is
    sharded over ranks.
    """
    found = dict[str, str]()
    for prefix, module in model.named_modules():
        kept = {name: module._buffers.get(name) for name in module._non_persistent_buffers_set}
        for name, value in (kept | vars(module)).items():
            changes = isinstance(value, Tensor) and (value.requires_grad or value.numel() == 1)
            if isinstance(value, Tensor) and not (changes or value.is_meta or hasattr(value, "full_tensor")):
                with contextlib.suppress(RuntimeError):  # of a layout without values to look at, or without storage
                    found[f"{prefix}.{name}".lstrip(".")] = state_hash({name: value})
    return found


def _flat(entries: Mapping[str, Any], around: tuple[int, ...]) -> Iterator[tuple[str, Tensor | bytes | None]]:
    """Tensors, bytes, and None of anything else, by name; what is in containers too.

    Args: around: the containers that the entries are in, as one may hold itself.
    """
    for name, value in entries.items():
        inside: Mapping[str, Any] = {}
        if isinstance(value, Mapping):
            inside = {f"{name}.{key}": each for key, each in value.items()}
        elif isinstance(value, (list, tuple)):
            inside = {f"{name}.{place}": each for place, each in enumerate(value)}
        own = value.getvalue() if isinstance(value, io.BytesIO) else value
        yield name, own if isinstance(own, (Tensor, bytes)) else None
        if id(value) not in around:
            yield from _flat(inside, (*around, id(value)))


def _sample(tensor: Tensor) -> Tensor:
    """Bytes of some of its values; of what is sharded over ranks, of the whole."""
    whole = (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()
    # Copies: NumPy would hold on to the memory of the tensor itself, which could not be resized then.
    flat = (part.resolve_conj().resolve_neg().reshape(-1) for part in _dense_parts(whole))
    return torch.cat([part[:: max(1, len(part) // _SAMPLE)].clone().view(torch.uint8) for part in flat])


def _dense_parts(tensor: Tensor) -> list[Tensor]:
    """Itself, or what a sparse, quantised or jagged tensor is made of."""
    if tensor.layout == torch.strided:
        return [tensor.dequantize() if tensor.is_quantized else tensor]
    if tensor.layout == torch.sparse_coo:
        whole = tensor.coalesce()
        return [whole.indices(), whole.values()]
    places = []
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        places = [tensor.crow_indices(), tensor.col_indices()]
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        places = [tensor.ccol_indices(), tensor.row_indices()]
    return [*places, tensor.values()]


def file_hash(path: str | os.PathLike[str]) -> str:
    """Hash of a checkpoint on disk; of a folder, of the names and hashes of the files that its weights are in.

    Raises:
        CheckpointError: it cannot be read.
    """
    files = weights_files(path)
    if files == [Path(path)]:
        return _of_file(files[0])
    listed = " ".join(f"{file.name}:{_of_file(file)}" for file in files)
    return hashlib.blake2b(listed.encode(), digest_size=8).hexdigest()


def salted(found: str, how: str) -> str:
    """The hash of a file that is read in another way than usual, if it is."""
    return hashlib.blake2b(f"{found}:{how}".encode(), digest_size=8).hexdigest() if how else found


def _of_file(path: Path) -> str:
    """Hash of a file's size, head and tail, and of samples between them."""
    digest = hashlib.blake2b(digest_size=8)
    with damage_named(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(f"{size}".encode())
        digest.update(file.read(_EDGE))
        for start, length in _samples(file, suffix_of(path), size):
            file.seek(start)
            digest.update(file.read(length))
        file.seek(max(0, size - _EDGE))
        digest.update(file.read(_EDGE))
    return digest.hexdigest()


def _samples(file: BinaryIO, suffix: str, size: int) -> Iterator[tuple[int, int]]:
    """Starts and lengths of the samples of a file.

    Of one of ``torch.save`` the checksums of all its tensors, which its tail has, as far as that goes; some of every
    tensor of safetensors, or where there are no checksums, as a small head on a large frozen backbone lies between
    blocks that are evenly spaced; else such blocks.
    """
    tensors = _tensors(file, size) if suffix == SAFETENSORS else []
    if suffix in TORCH_SUFFIXES and (directory := _directory(file)) is not None:
        start, places, checked = directory
        if checked:
            if start < size - _EDGE:
                yield start, size - _EDGE - start
            return
        tensors = list(itertools.pairwise([*places, start]))
    if tensors:
        yield 0, tensors[0][0]
    for start, end in tensors:
        last = max(start, end - _PIECE)
        for place in sorted({start + (last - start) * piece // (_PIECES - 1) for piece in range(_PIECES)}):
            yield place, min(_PIECE, end - place)
    for start in () if tensors else range(0, size, max(_STRIDE, size // _MOST)):
        yield start, _BLOCK


def _directory(file: BinaryIO) -> tuple[int, list[int], bool] | None:
    """Where that of a zip file begins, and what it tells of, and whether with checksums; None of other files."""
    try:
        with zipfile.ZipFile(file) as known:
            places = sorted(each.header_offset for each in known.infolist())
            return known.start_dir, places, all(each.CRC or not each.file_size for each in known.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return None


def _tensors(file: BinaryIO, size: int) -> list[tuple[int, int]]:
    """Where the tensors of a file of safetensors begin and end, in their order there; none if its header is damaged."""
    file.seek(0)
    data = 8 + int.from_bytes(file.read(8), "little")
    if data > min(size, _LONGEST_HEADER):
        return []
    try:
        header = json.loads(file.read(data - 8))
        header.pop("__metadata__", None)
        spans = sorted(
            (data + start, data + end) for start, end in (entry["data_offsets"] for entry in header.values())
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        return []
    return spans if all(data <= start <= end <= size for start, end in spans) else []
