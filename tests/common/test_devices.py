from __future__ import annotations

import pytest
import torch

from phasefast.common.devices import fastest_device, has_float64, resolve_device
from phasefast.errors import ArgumentError


@pytest.mark.parametrize(
    ("count", "rank", "device"),
    [
        (0, "1", "cpu"),
        (1, "3", "cuda:0"),
        (4, "3", "cuda:3"),
        (4, "", "cuda:0"),
        (4, None, "cuda:0"),
        (4, "4", "cuda:4"),
    ],
)
def test_which_gpu_is_a_process_own(count: int, rank: str | None, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert str(fastest_device()) == device


def test_a_device_without_float64_is_measured_on_the_cpu() -> None:
    mps = torch.device("mps")  # on a Mac without float64, elsewhere without anything
    assert not has_float64(mps)
    assert has_float64(torch.device("cpu"))
    assert resolve_device(None, mps) == torch.device("cpu")
    with pytest.raises(ArgumentError, match="device 'mps' cannot be used"):
        resolve_device("mps", torch.device("cpu"))
    with pytest.raises(ArgumentError, match="device 'cuda:99' cannot be used"):
        resolve_device("cuda:99", torch.device("cpu"))
