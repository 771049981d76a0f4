"""The documents are what their templates and the committed results give."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import phasefast as pf
from phasefast.checkpoints.sources import SUFFIXES
from phasefast.cli import app
from phasefast.experiments.claims import check_claims
from tests.quiet import no_warnings

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


def test_the_document_on_checkpoints_has_all_suffixes() -> None:
    text = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    assert [suffix for suffix in SUFFIXES if f"`{suffix}`" not in text] == []


def test_results_are_small() -> None:
    assert sum(path.stat().st_size for path in ROOT.glob("docs/**/*") if path.is_file()) < 2_000_000


def test_the_training_document_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a network whose layer loses the input from step 100 on."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/training.md").read_text(encoding="utf-8"), re.DOTALL)
    torch.manual_seed(0)
    fit, heldout, start = torch.randn(200, 12), torch.randn(100, 12), torch.randn(12, 12)
    model = torch.nn.Sequential()
    model.layer1, model.layer2 = torch.nn.Linear(12, 12), torch.nn.Linear(12, 12)
    updates = 0

    def train_one_step(*_: object) -> None:
        nonlocal updates
        updates += 1
        rank = round(2 + 8 * min(updates, 100) / 100 - 6 * max(updates - 100, 0) / 100)
        left, values, right = torch.linalg.svd(start)
        with torch.no_grad():
            model.layer2.weight.copy_(left[:, :rank] @ torch.diag(values[:rank]) @ right[:rank])

    train_one_step()
    updates = 0
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {
        "Path": Path,
        "pf": pf,
        "torch": torch,
        "model": model,
        "train_one_step": train_one_step,
        "loader": [(None, None)] * 400,
        "probe_set": pf.ProbeSet.from_tensors(fit, None, heldout, None),
    }
    exec(example, names)
    assert 100 < names["step"] < 200
    first, last = names["cell"].stop_window
    assert first <= 100 <= last < names["step"]
    assert Path(f"checkpoints/step_{last}.pt").is_file()


def test_the_document_on_notebooks_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    pandas = pytest.importorskip("pandas")
    example, recipes = re.findall(r"```python\n(.*?)```", (ROOT / "docs/notebooks.md").read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.layer1, model.layer2 = torch.nn.Linear(12, 12), torch.nn.Linear(12, 3)
    fit, heldout = torch.randn(200, 12), torch.randn(100, 12)
    logged, shown = dict[int, dict[str, float]](), list[Any]()
    names: dict[str, Any] = {
        "pf": pf,
        "model": model,
        "log": lambda values, step: logged.update({step: values}),
        "display": lambda *each: shown.extend(each),
        "train_one_step": lambda *_: torch.nn.init.xavier_uniform_(model.layer1.weight),
        "loader": [(None, None)] * 17,
        "probe_set": pf.ProbeSet.from_tensors(fit, fit.sum(1).gt(0).long(), heldout, heldout.sum(1).gt(0).long()),
    }
    exec(example, names)
    assert list(logged) == [0, 1, 2, 4, 8, 16]
    assert logged[4]["layer1/input/fvu"] == names["fvu"][3]
    assert {"layer2/label/accuracy", "layer2/input/mse"} < logged[0].keys()
    assert [isinstance(each, figures.Figure) for each in shown] == [False, True, True]
    assert type(shown[0]) is pf.PhaseReport
    assert set(names["last"]["metric"]) == {"mse", "fvu", "accuracy"}
    assert pf.read_scores("runs/mine").to_arrow().equals(names["scores"].to_arrow())
    for name, seed in itertools.product(("wide", "deep"), range(3)):
        names["scores"].save(f"runs/{name}-{seed}")
    exec(recipes, names := names | {"pd": pandas, "recipes": ["wide", "deep"]})
    table = names["table"]
    assert len(table) == 8
    found = table[(table["layer"] == "layer1") & (table["target"] == "input")].set_index("recipe")
    assert list(found.index) == ["wide", "deep"]
    assert found["last"].tolist() == pytest.approx([names["fvu"][-1]] * 2)
    assert found.loc["deep", "best_difference"] == found.loc["deep", "last_deviation"] == 0
    assert isinstance(shown[-1], figures.Figure)


def test_the_document_on_transfer_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With averaged weights of an encoder inside a wrapped model, in which a rectifier tells the classes."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/transfer.md").read_text(encoding="utf-8"), re.DOTALL)

    def make_encoder() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 12), torch.nn.ReLU(), torch.nn.Linear(12, 6))

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    images = torch.randn(400, 3, 4, 4)
    labels = (images[:, 0].mean((1, 2)).abs() > 0.17).long()
    for seed in range(2):
        torch.manual_seed(seed)
        whole = torch.nn.ModuleDict({"encoder": make_encoder(), "head": torch.nn.Linear(6, 4)})
        folder = tmp_path / "pretraining" / f"seed{seed}"
        folder.mkdir(parents=True)
        for step in range(4):
            with torch.no_grad():
                linear = whole["encoder"][1]  # type: ignore[index]
                linear.weight[:2] = torch.tensor([[1.0], [-1.0]]) * step * (torch.arange(48) < 16)
            average = {f"module.{name}": value.clone() for name, value in whole.state_dict().items()}
            state = {name: torch.randn_like(value) for name, value in average.items()}
            torch.save({"model": state, "ema": average, "optimizer": {"lr": 0.1}}, folder / f"step_{step}.pt")
    names = {
        "pf": pf,
        "make_encoder": make_encoder,
        **dict(zip(("fit_images", "heldout_images"), images.split([300, 100]), strict=True)),
        **dict(zip(("fit_labels", "heldout_labels"), labels.split([300, 100]), strict=True)),
    }
    with pytest.warns(RuntimeWarning, match="no rows of layer 'model'"):
        exec(example, names)
    assert names["best"].layer in ("2", "3")  # after the rectifier
    assert names["best"].step > 0
    assert names["best"].mean > 0.8
    common, *_, alone = capsys.readouterr().out.splitlines()
    assert common.startswith(f"label: {names['best'].layer} at step {names['best'].step}, accuracy ")
    assert alone == str(names["best"].own["seed0"])
    compared = CliRunner().invoke(app, ["compare", "runs/seed0", "runs/seed1"])
    assert f"All runs, target label: best is {names['best'].layer} at step {names['best'].step}, " in compared.output


def test_the_document_on_sequences_runs_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    tokens, patches, wrapper, both = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/sequences.md").read_text("utf-8"), re.DOTALL
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(12, 8))
    model.blocks = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh())
    model.head = torch.nn.Linear(8, 12)
    ids = torch.randint(12, (400, 7)).numpy()
    names: dict[str, Any] = {"pf": pf, "torch": torch, "model": model, "ids": ids}
    names |= {"words": 12, "kind_of_word": torch.arange(12) % 3}
    exec(tokens, names)
    scores = names["scores"]
    assert scores.layers == ["blocks.0", "blocks.1"]
    assert scores.targets == ["label", "kind", "token", "before", "position"]
    assert scores.value(layer="blocks.0", target="token", metric="accuracy", split="heldout") == 1
    assert set(scores.filter(layer="blocks.0").values_of("n")) == {300 * 6, 100 * 6}
    assert scores.has_curve("model", "label", "accuracy")
    assert "kind accuracy" in capsys.readouterr().out

    class Vit(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.own = torch.nn.Conv2d(3, 8, 4, 4), torch.nn.Parameter(torch.randn(1, 1, 8))
            self.blocks = torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.Tanh()])

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = torch.cat([self.own.expand(len(images), 1, 8), self.embed(images).flatten(2).mT], 1)
            for block in self.blocks:
                x = block(x)
            return x

    images = torch.randn(400, 3, 8, 8)
    names |= {"vit": Vit(), "images": images, "part_of_pixel": (images[:, 0] > 0).long()}
    with pytest.warns(
        RuntimeWarning, match=r"more tokens than the 4 of the input, 'model.blocks.0' 1 more: the first ones are"
    ):
        exec(patches, names)
    printed = capsys.readouterr().out
    assert "model.blocks.0         8" in printed
    assert "model.blocks.1         8" in printed

    class Masked(torch.nn.Module):
        def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return ids * attention_mask

    exec(wrapper, names)
    assert names["OfIds"](Masked())(torch.tensor([[3, 0]])).tolist() == [[3, 0]]

    class Towers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.of_image, self.of_text = torch.nn.Linear(192, 6), torch.nn.Embedding(12, 6)

        def forward(self, images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return self.of_image(images.flatten(1)) + self.of_text(ids).mean(1)

    names |= {"two_towers": Towers(), "captions": torch.as_tensor(ids), "labels": torch.arange(400) % 3}
    exec(both, names)
    printed = capsys.readouterr().out
    assert "model.of_image" in printed
    assert "input fvu" in printed


class _Vae(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8))
        self.latent, self.decoder = torch.nn.Identity(), torch.nn.Linear(4, 64)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean, spread = self.encoder(x).chunk(2, 1)
        mean = self.latent(mean)
        return self.decoder(mean).view_as(x), mean, spread


class _Unet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.up(self.down(x) + time[:, None, None, None] / 100)
        return found


class _Policy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.pi, self.value = (torch.nn.Linear(i, o) for i, o in ((6, 5), (5, 3), (5, 1)))

    def forward(self, x: torch.Tensor) -> tuple[Any, torch.Tensor]:
        hidden = self.trunk(x).tanh()
        return torch.distributions.Categorical(logits=self.pi(hidden)), self.value(hidden)[:, 0]


def test_the_recipes_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    recipes = re.findall(r"```python\n(.*?)```", (ROOT / "docs/recipes.md").read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    state = torch.randn(400, 6)
    names: dict[str, Any] = {
        "pf": pf,
        "torch": torch,
        "images": (images := torch.rand(400, 1, 8, 8)),
        "labels": torch.randint(3, (400,)),
        "bright": (images.mean((1, 2, 3)) > 0.5).long(),
        "is_round": (images[:, 0, 0, 0] > 0.5).long(),
        "tagger": (tagger := torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.Linear(8, 2))),
        "checkpoints": {step: {name: w * 0.5**step for name, w in tagger.state_dict().items()} for step in range(9)},
        "vae": _Vae(),
        "unet": _Unet(),
        "policy": _Policy(),
        "observations": state + 0.1 * torch.randn(400, 6),
        "state": state[:, :2],
        "actions": torch.randint(3, (400,)),
        "episode": torch.arange(400) // 10,
    }
    shown = list[Any]()
    with no_warnings():
        for recipe in recipes:
            exec(recipe, names | {"print": shown.append})
    autoencoder, tags, diffusion, agent, selectivity, *tasks = shown
    assert [cell.evidence["steps"] for report in tasks for cell in report.cells[:1]] == [
        [0, 1, 2, 3, 4],
        [4, 5, 6, 7, 8],
    ]
    assert selectivity.metric == "error"
    assert len(pf.read_scores("runs/tagger").steps) == 9
    assert all(tags.has_curve("model", name, "accuracy") for name in ("bright", "round"))
    assert tags.has_curve("tagger.1", "round", "accuracy")
    assert Path("vae.png").is_file()
    assert autoencoder.has_curve("model", "input", "fvu")
    assert autoencoder.layers == ["encoder", "latent", "decoder"]
    assert diffusion.has_curve("model", "noise", "fvu")
    assert diffusion.targets == ["input", "clean", "noise"]
    assert agent.has_curve("model", "label", "accuracy")
    assert (
        len(agent.filter(layer="trunk", target="state", metric="fvu", split="heldout").to_arrow()["samples"][0]) == 10
    )
