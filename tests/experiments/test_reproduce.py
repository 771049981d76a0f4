"""The small reproduction, whole, and the claims on made-up results."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from torch import Tensor
from typer.testing import CliRunner

import phasefast as pf
from phasefast.cli import app
from phasefast.errors import ArgumentError
from phasefast.experiments import reproduce as module
from phasefast.experiments.claims import check_claims
from phasefast.experiments.figures import plot_published
from phasefast.experiments.published import PUBLISHED
from phasefast.experiments.reproduce import reproduce


def brightest_half(images: Tensor) -> Tensor:
    """Whether the upper or the lower half is brighter: a user's task."""
    top, bottom = images.flatten(1).chunk(2, 1)
    return (bottom.sum(1) > top.sum(1)).long()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``phasefast reproduce digits-vgg`` has run, with every claim checked as in the full runs."""
    out = tmp_path_factory.mktemp("reproduce")
    command = ["reproduce", "digits-vgg", "--out", str(out), "--decoders", "--check"]
    command += ["--function", "tests.experiments.test_reproduce:brightest_half"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "does not hold" not in result.output
    assert "\nholds: three phases in the last features" in result.output
    assert "three phases in the last features (1 of 1 seeds)" in result.output
    return out / "digits-vgg"


def test_what_it_writes(place: Path) -> None:
    results = json.loads((place / "results.json").read_text())
    (seed,) = results["seeds"]
    assert [phase["kind"] for phase in seed["phases"]] == ["constant", "decrease", "increase"]
    assert {"quadrant", "brightest_half"} == set(seed["transfer"])
    assert list(seed["layer_phases"]) == ["stage1", "stage2", "stage3", "features"]  # stage4 is features
    assert len(seed["batch"]["steps"]) == len(seed["batch"]["mse"]) == 14
    assert {row["step"] for row in results["decoders"]} == {0, 128, 4096}
    assert all(claim["holds"] for claim in results["claims"])
    table = pq.read_table(place / "scores.parquet")
    assert set(table.column("batchnorm").to_pylist()) == {"batch", "recompute"}
    assert (place / "phases.png").stat().st_size > 10_000
    assert (place / "decoders.png").stat().st_size > 5_000


def test_numbers_are_those_of_the_scores(place: Path) -> None:
    (seed,) = json.loads((place / "results.json").read_text())["seeds"]
    scores = pf.read_scores(place / "seed-0" / "recompute")
    cell = pf.detect_phases(scores).cell("features")
    assert tuple(seed["stop_window"]) == cell.stop_window
    steps, accuracy = scores.curve("features", "quadrant", "accuracy")
    inside = accuracy[(steps >= cell.stop_window[0]) & (steps <= cell.stop_window[1])]
    assert seed["transfer"]["quadrant"]["in_window"] == pytest.approx(inside.mean())
    assert seed["transfer"]["quadrant"]["regret"] == pytest.approx(100 * (accuracy.max() - inside.mean()))


def test_a_second_run_does_nothing_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "train_decoder", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr("phasefast.experiments.checkpointing.train", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr("phasefast.engine.Engine.measure", lambda *a, **k: pytest.fail("measured again"))
    before = json.loads((place / "results.json").read_text())
    function = pf.Function(brightest_half, kind="classes")
    after = reproduce("digits-vgg", place.parent, decoders=True, functions=[function])
    assert json.loads(json.dumps(after)) == before


def test_other_classes_and_fine_tuning(tmp_path: Path) -> None:
    results = reproduce("digits-half", tmp_path, steps=256, tasks=["rest"])
    (seed,) = results["seeds"]
    assert seed["fine_tuning"]["task"] == "rest"
    assert all(0.3 < value <= 1 for values in seed["fine_tuning"]["accuracy"].values() for value in values)
    assert "rest" in seed["transfer"]


def test_arguments() -> None:
    with pytest.raises(ArgumentError, match="seed"):
        reproduce("digits-vgg", seeds=())
    with pytest.raises(ArgumentError, match="MODEL-DATA"):
        reproduce("digits")
    result = CliRunner().invoke(app, ["reproduce", "digits-vgg", "--function", "tests.conftest:nothing"])
    assert result.exit_code == 1


def made_up() -> dict[str, Any]:
    """Results that equal the published figures."""
    table = PUBLISHED["vgg8-cifar10"]
    curve = {"steps": list(table.steps), "mse": list(table.mse), "colour": list(table.colour), "test": list(table.test)}
    seed = {
        "seed": 0,
        "batch": curve,
        "phases": [{"kind": kind} for kind in ("constant", "decrease", "increase")],
        "transfer": {"colour": {"regret": 1.0, "regret_of_last": 6.0}},
    }
    decoder = {"exact": {"heldout_mse": 0.5, "seconds": 1.0}, "linear": {"heldout_mse": 0.51, "seconds": 50.0}}
    published = {key: list(getattr(table, key)) for key in ("steps", "mse", "colour", "test", "train")}
    return {"published": published, "seeds": [seed], "decoders": [{"step": 0, **decoder}]}


def test_the_published_curves_pass_every_claim() -> None:
    claims = check_claims(made_up())
    assert len(claims) == 10
    assert [claim.name for claim in claims if not claim.holds] == []


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        (lambda r: r["seeds"][0]["phases"].pop(), "three phases"),
        (lambda r: r["seeds"][0]["batch"]["mse"].__setitem__(5, 0.7), "loss as published"),
        (lambda r: r["seeds"][0]["batch"]["mse"].__setitem__(0, 0.4), "least loss"),
        (lambda r: r["seeds"][0]["batch"]["mse"].__setitem__(-1, 0.55), "ends above"),
        (lambda r: r["seeds"][0]["batch"]["colour"].__setitem__(3, 0.74), "colour dominance"),
        (lambda r: r["seeds"][0]["batch"]["colour"].__setitem__(0, 0.9), "best colour"),
        (lambda r: r["seeds"][0]["batch"]["test"].__setitem__(8, 0.46), "test accuracy"),
        (lambda r: r["seeds"][0]["transfer"]["colour"].update(regret=7.0), "stop window"),
        (lambda r: r["decoders"][0]["exact"].update(heldout_mse=0.52), "as good"),
        (lambda r: r["decoders"][0]["exact"].update(seconds=2.0), "faster"),
    ],
)
def test_each_claim_can_fail(change: Any, fails: str) -> None:
    results = copy.deepcopy(made_up())
    change(results)
    assert any(fails in claim.name for claim in check_claims(results) if not claim.holds)


def test_published_table() -> None:
    table = PUBLISHED["vgg8-cifar10"]
    assert table.mse[table.steps.index(0)] == pytest.approx(0.591, abs=5e-4)
    assert table.mse[table.steps.index(128)] == pytest.approx(0.510, abs=5e-4)
    assert table.mse[table.steps.index(65536)] == pytest.approx(0.787, abs=5e-4)


def test_published_figure(tmp_path: Path) -> None:
    assert plot_published(made_up(), tmp_path / "a.png").stat().st_size > 10_000
