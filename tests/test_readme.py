"""What the README and the guides tell people to type works as written."""

from __future__ import annotations

import glob
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import phasefast as pf
from phasefast.cli import app
from phasefast.results.scores import SCHEMA
from tests.conftest import images

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = [ROOT / f"docs/{name}.md" for name in ("training", "checkpoints", "numbers", "sequences")]
ALL_TEXT = "\n".join([TEXT, *(guide.read_text(encoding="utf-8") for guide in GUIDES)])
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)


class Data:
    """A map-style data set of (image, label)."""

    def __init__(self, seed: int) -> None:
        self.inputs, self.labels = images(12_000, seed)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.inputs[i], int(self.labels[i])


class Model(nn.Sequential):
    """Layers named as in the README."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.BatchNorm1d(24), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Linear(24, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.fc = nn.Linear(16, 3)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the README's Python has been run, with what it assumes to be there."""
    torch.manual_seed(0)
    model, data = Model(), Data(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def train_one_step(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    (example,) = (code for language, code in BLOCKS if language == "python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    names = {
        "train_data": data,
        "test_data": Data(2),
        "model": model,
        "loader": [(data.inputs[i : i + 32], data.labels[i : i + 32]) for i in range(0, 320, 32)],
        "train_one_step": train_one_step,
    }
    place = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        exec(example, names)
    (place / "checkpoints").mkdir()
    torch.save(model.state_dict(), place / "checkpoints/step_10.pt")
    for seed in range(2):
        shutil.copytree(place / "runs/mine", place / f"runs/seed{seed}")
    pf.ProbeSet.from_tensors(*images(150, 1), *images(60, 2)).save(place / "probe_set.pt")
    return place


def test_python_example(workplace: Path) -> None:
    scores = pf.read_scores(workplace / "runs/mine")
    assert scores.steps == [0, *(2**power for power in range(8))]
    assert scores.layers == ["layer1", "layer2", "fc"]


COMMANDS = sorted(set(re.findall(r"(?<=`)phasefast\s[^`]+|^phasefast .+$", ALL_TEXT, re.MULTILINE)))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(workplace: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(workplace)
    (workplace / "package.py").write_text("from tests.test_readme import Model as make_model\n")
    words = shlex.split(command.replace("package.module:", "package:"))[1:]
    arguments = [each for word in words for each in (sorted(glob.glob(word)) if "*" in word else [word])]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.output.strip()


def test_inline_python_names_exist() -> None:
    for name in set(re.findall(r"\bpf\.(\w+)", ALL_TEXT)):
        assert hasattr(pf, name), name


def test_make_targets_exist() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.fail("make is not installed")
    others = {"bench", "lint", "gpu", "test-versions"}
    for target in set(re.findall(r"\bmake (\w[\w-]*)$", TEXT, re.MULTILINE)) | others:
        subprocess.run([make, "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_files_that_the_documents_name_exist() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *GUIDES):
        text = document.read_text(encoding="utf-8")
        links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
        for link in links:
            assert (document.parent / link).exists(), f"{document}: {link}"
        for file in re.findall(r"`((?:phasefast|tests|csrc|benchmarks)/[\w/]+\.\w+)`", text):
            assert (ROOT / file).exists(), f"{document}: {file}"


def test_every_column_is_explained() -> None:
    text = (ROOT / "docs/numbers.md").read_text(encoding="utf-8")
    assert [name for name in SCHEMA.names if f"`{name}`" not in text] == []


def test_reconstructions_and_decoders_in_python(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    text = (ROOT / "docs/numbers.md").read_text(encoding="utf-8")
    reconstructions, decoders = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {"pf": pf, "model": Model(), "probe_set": pf.ProbeSet.load("probe_set.pt")}
    exec(reconstructions, names)
    assert names["found"].steps == [10]
    assert Path("known.png").is_file()
    exec(decoders, names)
    assert names["likely"].sum(1) == pytest.approx(torch.ones(len(names["likely"])))
    assert names["module"].weight.shape == (3, 16)


def test_sweeps_in_python(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(workplace / "checkpoints", "checkpoints")
    text = (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8")
    sweep, watch = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {"pf": pf, "model": Model(), "probe_set": pf.ProbeSet.load(workplace / "probe_set.pt")}
    exec(sweep, names)
    assert names["scores"].steps == [10]
    torch.save(Model().state_dict(), "checkpoints/step_20.pt")
    exec(f"{watch}    break\n", names)
    assert names["scores"].steps == [10, 20]


def test_python_module_is_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "phasefast", "info"], capture_output=True, text=True, check=True)
    assert "phasefast" in result.stdout
