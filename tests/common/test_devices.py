from __future__ import annotations

import pytest
import torch

from phasefast.common.devices import fastest_device


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
