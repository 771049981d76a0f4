"""Checkpoints are read one ahead, in order, and the error of one spares the others."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from phasefast.checkpoints import ahead, read_ahead
from phasefast.errors import CheckpointError

CPU = torch.device("cpu")


def test_the_next_one_is_read_meanwhile_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    second = threading.Event()

    def read(source: int, **_: object) -> dict[str, torch.Tensor]:
        started.append(source)
        if source == 20:
            second.set()
        return {"weight": torch.tensor(source)}

    monkeypatch.setattr(ahead, "read_state_dict", read)
    states = read_ahead({1: 10, 2: 20, 3: 30, 4: 40}, CPU)  # type: ignore[dict-item]
    step, result = next(states)
    assert (step, int(result()["weight"])) == (1, 10)
    assert second.wait(10)
    assert started == [10, 20]
    assert [(step, int(result()["weight"])) for step, result in states] == [(2, 20), (3, 30), (4, 40)]


def test_one_that_cannot_be_read_spares_the_others(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "good.pt")
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    results = dict(read_ahead({0: tmp_path / "bad.pt", 1: tmp_path / "good.pt"}, CPU))
    with pytest.raises(CheckpointError, match=r"bad\.pt"):
        results[0]()
    assert torch.equal(results[1]()["weight"], torch.ones(2))
