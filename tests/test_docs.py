"""The documents are what their templates and the committed results give."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phasefast.cli import app
from phasefast.experiments.claims import check_claims

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(ROOT.glob("docs/*.md.jinja"))
RESULTS = sorted(path for path in ROOT.glob("docs/results/*.json") if "claims" in json.loads(path.read_text()))


def test_documents_are_rendered_from_the_results() -> None:
    done = subprocess.run([sys.executable, "docs/render.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_no_measured_number_is_typed_in(path: Path) -> None:
    prose = re.sub(
        r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}|```.*?```|\$[^$]*\$|\]\([^)]*\)", "", path.read_text(), flags=re.DOTALL
    )
    assert not re.findall(r"(?<![\w.])0?\.\d{2,}", prose), "decimal fractions belong in docs/results"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_of_documents_lead_somewhere(path: Path) -> None:
    text = path.with_suffix("").read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / "docs" / link).exists(), link


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_committed_claims_are_those_of_the_code(path: Path) -> None:
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results["claims"] == [asdict(claim) for claim in check_claims(results)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_commands_of_documents_exist(path: Path) -> None:
    text = path.with_suffix("").read_text(encoding="utf-8")
    commands = re.findall(r"^phasefast .+$|(?<=`)phasefast [^`]+", text, re.MULTILINE)
    assert commands
    for command in commands:  # their options are parsed; the runs take hours
        result = CliRunner().invoke(app, [*shlex.split(command)[1:], "--help"])
        assert result.exit_code == 0, (command, result.output)


def test_results_are_small() -> None:
    assert sum(path.stat().st_size for path in ROOT.glob("docs/**/*") if path.is_file()) < 2_000_000
