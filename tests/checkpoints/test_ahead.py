"""Checkpoints are read one ahead, in order, and the error of one spares the others."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import phasefast as pf
from phasefast.checkpoints import Reader, file_hash, read_ahead
from phasefast.checkpoints.sources import Source
from phasefast.errors import CheckpointError

CPU = torch.device("cpu")


def test_the_next_one_is_read_meanwhile_and_no_more() -> None:
    started: list[int] = []
    second = threading.Event()

    class Numbers(Reader):
        def read(self, source: Source) -> dict[str, torch.Tensor]:
            started.append(int(str(source)))
            if source == "20":
                second.set()
            return {"weight": torch.tensor(started[-1])}

        def fingerprint(self, source: Source) -> str:
            return str(source)

    states = read_ahead({1: "10", 2: "20", 3: "30", 4: "40"}, CPU, Numbers())
    step, result = next(states)
    assert (step, result()) == (1, ({"weight": torch.tensor(10)}, "10"))
    assert second.wait(10)
    assert started == [10, 20]
    assert [(step, result()[1]) for step, result in states] == [(2, "20"), (3, "30"), (4, "40")]


def test_one_that_cannot_be_read_spares_the_others(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "good.pt")
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    results = dict(read_ahead({0: tmp_path / "bad.pt", 1: tmp_path / "good.pt"}, CPU, Reader()))
    with pytest.raises(CheckpointError, match=r"bad\.pt"):
        results[0]()
    assert torch.equal(results[1]()[0]["weight"], torch.ones(2))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_models_with_sparse_buffers_are_swept(tmp_path: Path, layout: torch.layout) -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 6)
            self.register_buffer("adjacency", torch.eye(6).to_sparse(layout=layout))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sparse.mm(self.adjacency, self.linear(x).mT).mT

    x, models = torch.randn(60, 4), [Graph() for _ in range(2)]
    probe_set = pf.ProbeSet.from_tensors(x[:40], None, x[40:], None)
    for step, model in enumerate(models):
        torch.save(model.state_dict(), tmp_path / f"step_{step}.pt")
    found = pf.sweep(Graph(), tmp_path, probe_set, out=tmp_path / "out", layers="linear")
    for step, model in enumerate(models):
        expected = pf.probe(model, probe_set, layers="linear").to_arrow().column("value")
        assert found.filter(step=step).to_arrow().column("value").to_pylist() == pytest.approx(expected.to_pylist())


def test_what_is_to_be_warned_of_is_told_once_at_the_callers_line(recwarn: pytest.WarningsRecorder) -> None:
    state = {"weight": torch.ones(2), "bias": torch.ones(1)}
    sources: dict[int, Source] = {step: {"model": state, "ema": dict(state)} for step in range(4)}
    reader = Reader()
    for _ in range(2):  # as after checkpoints that do not fit
        for _, result in read_ahead(sources, CPU, reader):
            result()
    (told,) = [each for each in recwarn if "['ema'] has tensors of the same names too" in str(each.message)]
    assert told.filename == __file__


def test_the_fingerprint_is_that_of_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "step_1.pt"
    torch.save({"weight": torch.ones(2)}, path)
    before = file_hash(path)
    sources = {0: {"weight": torch.ones(2)}, 1: path}
    results = {step: result() for step, result in read_ahead(sources, CPU, Reader())}
    torch.save({"weight": torch.zeros(2)}, path)
    assert [source_hash for _, source_hash in results.values()] == [None, before]


def test_what_is_written_again_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "step_1.pt"
    torch.save({"weight": torch.ones(2)}, path)

    class Late(Reader):
        def read(self, source: Source) -> dict[str, torch.Tensor]:
            state = super().read(source)
            torch.save({"weight": torch.zeros(2)}, path)
            return state

    ((_, result),) = read_ahead({1: path}, CPU, Late())
    with pytest.raises(CheckpointError, match=r"step_1.pt: changed while it was read"):
        result()
