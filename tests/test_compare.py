"""benchmarks/compare.py runs, and what it writes is what docs/performance.md is made of."""

from __future__ import annotations

import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from phasefast import ops

ROOT = Path(__file__).parents[1]
SECTIONS = ("cell", "sweep", "stages", "choosing", "approximations", "inputs", "routes", "growth")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a smoke run left its result; the last section is measured in a run of its own."""
    out = tmp_path_factory.mktemp("results")
    command = [
        sys.executable,
        "benchmarks/compare.py",
        "--size",
        "smoke",
        "--repeats",
        "2",
        "--checkpoints",
        "2",
        "--threads",
        "1",
        "--out",
        out,
        "--picture",
    ]
    for only in (",".join(SECTIONS[:-1]), SECTIONS[-1]):
        done = subprocess.run([*command, out / "growth.png", "--only", only], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def sections(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("cpu-*.json")
    text = path.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    return json.loads(text)["sections"]


def test_every_section_says_where_and_when(sections: dict[str, Any]) -> None:
    assert tuple(sections) == SECTIONS
    rated = {"float32", "float64"} | ({"bfloat16"} if ops.bfloat16_is_fast(torch.device("cpu")) else set())
    for section in sections.values():
        assert {"date", "machine", "products", "took"} <= set(section)
        assert set(section["products"]) == rated


def test_ratios_are_of_the_same_repeat(sections: dict[str, Any]) -> None:
    for case in (*sections["cell"]["cases"], sections["sweep"]):
        assert case["sides"][0]["who"] == "ours"
        for side in case["sides"]:
            assert len(side["seconds"]) == len(side["ours"]) == len(side["ratios"]) == 2
            for theirs, ours, ratio in zip(side["seconds"], side["ours"], side["ratios"], strict=True):
                assert math.isclose(theirs / ours, ratio, rel_tol=1e-4)
        assert len(case["floor"]["over"]) == 2


def test_stages_add_up_to_a_checkpoint(sections: dict[str, Any]) -> None:
    stages = sections["stages"]
    for way, parts in stages["parts"].items():
        assert set(parts) >= {"forward passes", "moments", "solutions", "certificates", "scores"}
        assert parts["certificates"]["calls"] >= len(stages["stages"])
        assert all(own["host"] >= 0 and own["device"] == 0 for own in parts.values())
        assert 0.2 < sum(own["host"] for own in parts.values()) / stages["seconds"][way] < 20


def test_all_sides_solve_the_same_problem(sections: dict[str, Any]) -> None:
    for case in sections["cell"]["cases"]:
        excess = {side["who"]: side["excess"] for side in case["sides"]}
        for who in {"aten", "sklearn Ridge", "lstsq"} & set(excess):
            assert abs(excess[who]) < 1e-4, (case["case"], who)
        rounding = {side["who"]: side["rounding"] for side in case["sides"] if "rounding" in side}
        assert set(rounding) == {"ours", "ours, fast"}
        assert abs(rounding["ours"]) < 1e-4
        assert abs(rounding["ours, fast"]) < 2e-2  # rows may be rounded to bfloat16
    for layer in sections["sweep"]["layers"]:
        assert all(abs(difference) < 1e-4 for difference in layer["difference"].values())


def test_approximations_are_beside_the_exact_errors(sections: dict[str, Any]) -> None:
    for layer in sections["approximations"]["layers"]:
        assert layer["ways"]["exact"]["approximation"] is None
        labels = {way: one["approximation"] for way, one in layer["ways"].items()}
        assert labels["components"] == "8 of 3072 components"
        assert ("sketch" in labels) == (layer["dim"] > 256)
        assert all(one["low"] < one["high"] for one in layer["ways"].values() if one["approximation"])


def test_choosing_is_beside_the_same_penalties_given(sections: dict[str, Any]) -> None:
    for cell in sections["choosing"]["cells"]:
        assert len(cell["seconds"]) == len(cell["choosing"]) == 2
        assert all(share > -1 for share in cell["choosing"])


def test_planner_and_growth_are_recorded(sections: dict[str, Any]) -> None:
    for cell in sections["routes"]["cells"]:
        assert cell["chosen"] in cell["seconds"]
        assert cell["over_best"] >= 1
    for axis in sections["growth"]["axes"].values():
        assert len(axis["values"]) == len(axis["seconds"]) == len(axis["work"]) == len(axis["routes"])
        assert math.isfinite(axis["exponent"] + axis["planned"])


def test_the_document_is_made_of_them(folder: Path, sections: dict[str, Any]) -> None:
    documents = runpy.run_path(str(ROOT / "docs/render.py"))["rendered"](folder)
    (text,) = (text for path, text in documents.items() if path.name == "performance.md")
    for case in sections["cell"]["cases"]:
        assert all(f"| {side['who']} |" in text for side in case["sides"])
    assert (folder / "growth.png").stat().st_size > 10_000
