from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

import phasefast as pf
from phasefast.errors import ArgumentError, NonFiniteError, StoreError
from phasefast.experiments.demo import LAYERS, run_demo

REFERENCE = (0.359, 0.360, 0.360, 0.359, 0.344, 0.307, 0.291, 0.297, 0.318, 0.345, 0.370, 0.394, 0.415, 0.431)


def demo(out: Path, **options: object) -> tuple[pf.Scores, str]:
    console = Console(width=100, file=io.StringIO())
    run_demo(out, console=console, device="cpu", **options)  # type: ignore[arg-type]
    return pf.read_scores(out), console.file.getvalue()  # type: ignore[attr-defined]


def test_files_scores_and_an_earlier_run(tmp_path: Path) -> None:
    """One run over the remains of another: its shards go, other files stay."""
    shards = tmp_path / "scores"
    shards.mkdir()
    (shards / "step-000000000064.parquet").write_bytes(b"an earlier run")
    (shards / "notes.txt").write_text("mine")
    (tmp_path / "step-1.parquet").write_text("mine")
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    scores, text = demo(tmp_path, steps=3)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads
    assert scores.steps == [0, 1, 2, 3]
    assert sorted(scores.layers) == sorted(LAYERS)
    assert scores.targets == ["input", "label"]
    assert (shards / "notes.txt").read_text() == "mine"
    assert (tmp_path / "step-1.parquet").read_text() == "mine"
    cells = json.loads((tmp_path / "phases.json").read_text())["cells"]
    assert {(cell["layer"], cell["target"]) for cell in cells} == {(a, b) for a in LAYERS for b in ("input", "label")}
    assert (tmp_path / "phases.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "reconstructions.png").read_bytes().startswith(b"\x89PNG")
    assert scores.value(layer="features", target="input", metric="fvu", split="heldout", step=0) == pytest.approx(
        0.359, abs=0.04
    )
    assert "Phases of target input" in text
    assert "training " in text.splitlines()[-1]
    assert "probing " in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": 0}, "steps: expected at least 1, got 0"), ({"steps": 2, "lr": -1.0}, "lr=-1.0")],
)
def test_settings_out_of_range(options: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        demo(tmp_path, **options)


def test_unknown_device(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="device 'abacus' cannot be used"):
        run_demo(tmp_path, device="abacus")


def test_unwritable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write to the output directory"):
        run_demo(tmp_path / "file", steps=1)


def test_divergence_keeps_what_was_measured(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        demo(tmp_path, steps=2, lr=1e38)
    assert 0 in pf.read_scores(tmp_path).steps


@pytest.mark.slow
def test_the_reference_curve_and_its_three_phases(tmp_path: Path) -> None:
    scores, _ = demo(tmp_path)
    steps, fvu = scores.curve("features", "input", "fvu")
    assert steps.tolist() == [0, *(2**k for k in range(13))]
    assert fvu == pytest.approx(REFERENCE, abs=0.03)
    cell = pf.detect_phases(scores).cell("features")
    assert [phase.kind for phase in cell.phases] == ["constant", "decrease", "increase"]
    assert 16 <= cell.minimum_step <= 128
    assert cell.stop_window is not None
    assert scores.value(layer="model", metric="accuracy", split="heldout", step=4096) > 0.96
