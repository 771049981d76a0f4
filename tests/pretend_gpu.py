"""A GPU that is none: tensors that say they are on ``cuda:0`` and are computed on the CPU.

What would fail on a GPU, such as tensors of two devices in one operation, fails here too, and what would make the host
wait for it is written down.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from phasefast.checkpoints import ahead

DEVICE = torch.device("cuda:0")
ROOT = Path(__file__).parents[1]
MEMORY = 80 << 30
# Operators that the host waits for: their results are numbers, or of a size that depends on numbers, or the library
# behind them asks whether it has succeeded.
WAITING = (
    *("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_dim", "bincount"),
    *("linalg_eigh", "_linalg_eigh", "_linalg_svd", "linalg_qr"),
)
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
STRICT = ("cat", "stack", "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "gather", "scatter", "embedding")


class OnGpu(Tensor):
    """A tensor that says it is on the GPU; ``own`` has its numbers."""

    own: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, own: Tensor) -> OnGpu:
        made = torch.Tensor._make_wrapper_subclass(
            cls, own.size(), own.stride(), own.storage_offset(), dtype=own.dtype, device=DEVICE
        )
        made.own = own
        return made

    def __repr__(self) -> str:
        return f"OnGpu({self.own})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func}: outside of PretendGpu")


class PretendGpu(TorchDispatchMode):
    """Runs what is asked of ``cuda:0``; ``waits`` says for what the host would have waited, and where.

    ``events``: a letter for each that was recorded, and for each that was waited for.
    """

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits
        self.copies: list[tuple[Tensor, Tensor]] = []
        self.events = ""

    def wait(self, why: str) -> None:
        """Write down that the host waits."""
        inside = [frame for frame in traceback.extract_stack() if f"{ROOT}/phasefast/" in frame.filename]
        place = f"{Path(inside[-1].filename).name}:{inside[-1].lineno}" if inside else "test"
        self.waits.append(f"{place} {why}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, spec = tree_flatten((args, kwargs or {}))
        there = [each for each in flat if isinstance(each, OnGpu)]
        name = func._schema.name.removeprefix("aten::")
        asked = (kwargs or {}).get("device")
        on_gpu = bool(there) if asked is None else torch.device(asked).type == "cuda"
        if name == "is_pinned":
            return False
        if name in ("_to_copy", "copy_"):
            on_gpu = isinstance(args[0], OnGpu) if name == "copy_" else on_gpu
            self._copy(name, args, kwargs or {}, on_gpu)
        elif name in INDEXING:
            on_gpu = isinstance(args[0], OnGpu)
            self._index(name, args)
        else:
            self._check(name, func, flat, bool(there), on_gpu, (kwargs or {}).get("generator"))
        plain = [self._plain(each) for each in flat]
        own_args, own_kwargs = tree_unflatten(plain, spec)
        out = func(*own_args, **{key: value for key, value in own_kwargs.items() if key != "pin_memory"})
        if name == "_to_copy" and out is own_args[0]:
            out = out.clone()
        if name == "_to_copy" and there and not on_gpu and (kwargs or {}).get("non_blocking"):
            self.copies.append((out, out.clone()))
            out.fill_(torch.nan)  # until an event tells that it is there
        known = {id(each.own): each for each in there}
        return tree_map(lambda each: self._wrapped(each, known), out) if on_gpu else out

    @staticmethod
    def _plain(given: Any) -> Any:
        if isinstance(given, OnGpu):
            return given.own
        return torch.device("cpu") if isinstance(given, torch.device) else given

    @staticmethod
    def _wrapped(made: Any, known: dict[int, OnGpu]) -> Any:
        if not isinstance(made, Tensor) or isinstance(made, OnGpu):
            return made
        return known[id(made)] if id(made) in known else OnGpu(made)

    def _copy(self, name: str, args: Any, kwargs: dict[str, Any], on_gpu: bool) -> None:
        """Of copies between devices only those that ask for it are not waited for: from pinned memory, to new one."""
        source = args[1] if name == "copy_" else args[0]
        if isinstance(source, OnGpu) == on_gpu:
            return
        asked = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        if not (asked and (getattr(source, "pinned", False) if on_gpu else name == "_to_copy")):
            self.wait(f"copy {'to' if on_gpu else 'from'} the GPU")

    def _index(self, name: str, args: Any) -> None:
        """Masks are counted first, and indices copied; a GPU's indices are none of a tensor of the CPU."""
        on_gpu, indices = isinstance(args[0], OnGpu), [each for each in args[1] if each is not None]
        if not on_gpu and any(isinstance(each, OnGpu) for each in indices):
            raise RuntimeError(f"{name}: indices on cuda:0 of a tensor on cpu")
        if len(args) > 2 and isinstance(args[2], OnGpu) != on_gpu and args[2].dim() > 0:
            raise RuntimeError(f"{name}: expected values on the device of the tensor")
        for each in indices if on_gpu else ():
            if each.dtype in (torch.bool, torch.uint8):
                self.wait(f"{name} by a mask")
            if not isinstance(each, OnGpu):
                self.wait(f"{name}: indices to the GPU")

    def _check(self, name: str, func: Any, flat: list[Any], mixed: bool, on_gpu: bool, generator: Any) -> None:
        """All tensors on one device, but single numbers in what goes element by element."""
        here = [each for each in flat if isinstance(each, Tensor) and not isinstance(each, OnGpu)]
        strict = name in STRICT or func.namespace != "aten" or "linalg" in name or "cholesky" in name
        if mixed and (bad := [tuple(each.shape) for each in here if strict or each.dim()]):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, got {bad} on cpu and cuda:0")
        if generator is not None and on_gpu and generator.device.type != "cuda":
            raise RuntimeError(f"{name}: expected a 'cuda' device type for generator")
        if mixed and name in WAITING:
            self.wait(name)


class _Stream:
    """Where everything is done at once nothing has to wait."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class _Event:
    """What was copied before it was recorded is there once it has been waited for."""

    def __init__(self, gpu: PretendGpu) -> None:
        self.gpu = gpu

    def record(self, _: object) -> None:
        self.before, self.gpu.events = list(self.gpu.copies), self.gpu.events + "r"

    def synchronize(self) -> None:
        self.gpu.events += "w"
        for copy, numbers in self.before:
            copy.copy_(numbers)
        self.gpu.copies = [pair for pair in self.gpu.copies if not any(pair is own for own in self.before)]


def _patches() -> Iterator[tuple[Any, str, Any]]:
    """What PyTorch asks a driver, and what does not reach the dispatcher."""
    cuda, stream = torch.cuda, _Stream()
    for name, value in {
        "_lazy_init": None,
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": (8, 0),
        "get_device_name": "none",
        "mem_get_info": (MEMORY, MEMORY),
        "memory_reserved": 0,
        "memory_allocated": 0,
        "synchronize": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "Stream": stream,
        "current_stream": stream,
        "stream": contextlib.nullcontext(),
    }.items():
        yield cuda, name, lambda *_, value=value, **__: value
    yield cuda, "default_generators", (torch.default_generator,)
    yield torch.backends.cudnn, "enabled", False
    to_list, to_numpy, make, product = Tensor.tolist, Tensor.numpy, torch.tensor, Tensor.__matmul__

    def numpy(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if isinstance(tensor, OnGpu):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return to_numpy(tensor, *args, **kwargs)

    def pin_memory(tensor: Tensor, *_: Any) -> Tensor:
        pinned = tensor.clone()
        pinned.pinned = True  # type: ignore[attr-defined]
        return pinned

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        made = make(data, *args, **kwargs)
        return made if device is None else made.to(device)

    def matmul(a: Tensor, b: Tensor) -> Tensor:
        """Of a vector it would drop a dimension in place, which does not reach a tensor that wraps another."""
        return torch.mv(b.mT, a) if isinstance(a, OnGpu) and (a.dim(), b.dim()) == (1, 2) else product(a, b)

    yield Tensor, "__matmul__", matmul
    yield Tensor, "tolist", lambda own: to_list(own.cpu() if isinstance(own, OnGpu) else own)
    yield Tensor, "numpy", numpy
    yield Tensor, "pin_memory", pin_memory
    yield Tensor, "record_stream", lambda *_: None
    yield torch, "tensor", tensor


@contextlib.contextmanager
def pretended() -> Iterator[PretendGpu]:
    """A pretended GPU, while it lasts."""
    torch._C._ensureCUDADeviceGuardSet()  # without a driver, one that does nothing
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for place, name, value in _patches():
                patch.setattr(place, name, value)
            waits: list[str] = []
            read = ahead._read

            def read_there(*args: Any) -> Any:
                with PretendGpu(waits):  # threads have modes of their own
                    return read(*args)

            patch.setattr(ahead, "_read", read_there)
            with PretendGpu(waits) as gpu:
                patch.setattr(torch.cuda, "Event", lambda: _Event(gpu))
                yield gpu
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
