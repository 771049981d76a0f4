"""By which target a run is judged, and what of it is shaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from phasefast import ProbeSet, probe
from phasefast.phases.detect import detect_phases
from phasefast.report import plot_comparison, plot_phases
from phasefast.report.curves import drawn_targets, headline, telling_layers
from phasefast.report.panel import draw_panel
from phasefast.results.scores import Scores

from .synthetic import log2_steps, make_scores

WHOLE = {"input": "input", "length": "input", "label": "label"}


def of(*targets: str) -> Scores:
    rows = make_scores(["a", "b"], log2_steps(9), network=False).to_arrow().to_pylist()
    return Scores.from_rows({**each, "target": n} for n in targets for each in rows if each["target"] == WHOLE[n])


@pytest.mark.parametrize(
    ("targets", "judged", "panels"),
    [
        (("length", "label", "input"), "input", ["input", "label"]),
        (("length", "label"), "label", ["label", "length"]),
        (("length",), "length", ["length"]),
        (("label",), "label", ["label"]),
    ],
)
def test_a_run_is_judged_by_its_input_or_its_label(
    targets: tuple[str, ...], judged: str, panels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, bool]] = []

    def seen(page: Any, panel: Any, cell: Any, shaded: bool, **more: Any) -> None:
        drawn.append((panel.target, shaded))
        assert cell is None or cell.target == judged
        draw_panel(page, panel, cell, shaded, **more)

    monkeypatch.setattr(sys.modules["phasefast.report.plot"], "draw_panel", seen)
    scores = of(*targets)
    assert headline(scores) == judged
    plot_phases(scores, detect_phases(scores), tmp_path / "phases.png")
    assert drawn == [(panel, panel == judged) for panel in panels]


def test_all_heads_of_values_come_after_what_is_before_them() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.v, self.w = (nn.Linear(*each) for each in ((4, 2), (2, 3), (3, 2), (3, 2)))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            x = self.b(self.a(x))
            return {"v": self.v(x), "w": self.w(x)}

    x, values = torch.randn(60, 4), {name: (torch.randn(40, 2), torch.randn(20, 2)) for name in "vw"}
    probe_set = ProbeSet.from_tensors(x[:40], None, x[40:], None, values=values)
    scores = probe(Heads(), probe_set, predicts=["v", "w"], alphas=[0.1])
    assert telling_layers(scores) == ["b", "a", "w", "v"]


def test_a_layer_that_ends_early_is_judged_by_last() -> None:
    """Such as a head that is replaced during the training."""
    rows = make_scores(["a", "b"], log2_steps(9), network=False).to_arrow().to_pylist()
    early = Scores.from_rows(each for each in rows if each["layer"] == "a" or each["step"] < 64)
    assert telling_layers(Scores.from_rows(rows)) == ["b", "a"]
    assert telling_layers(early) == ["a", "b"]


def test_phases_are_looked_for_of_the_targets_that_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = of("input", "length", "label")
    rows = scores.filter(target="length").to_arrow().to_pylist()
    scores = Scores.concat([scores, Scores.from_rows({**row, "target": "length[2]"} for row in rows)])
    looked: list[list[str]] = []
    for name in ("plot", "compared"):
        module = sys.modules[f"phasefast.report.{name}"]
        monkeypatch.setattr(module, "detect_phases", lambda own: looked.append(own.targets) or detect_phases(own))
    plot_phases(scores)
    plot_comparison({"one": scores, "two": scores.with_column("run", "two")})
    assert looked == [["input", "label"]] * 3
    odd = scores.filter(target="length[2]").with_column("target", "!odd")
    plot_phases(odd)
    assert looked[-1] == drawn_targets(odd) == ["!odd"]
    assert drawn_targets(Scores.from_rows([])) == []


def test_runs_of_other_targets_are_drawn_by_what_they_share() -> None:
    plot_comparison({"one": of("input", "length"), "two": of("length").with_column("run", "two")})
    other = Scores.from_rows(each | {"target": "z"} for each in of("length").to_arrow().to_pylist())
    one, two = Scores.concat([of("length"), other]), Scores.concat([other, of("length")]).with_column("run", "two")
    plot_comparison({"one": one, "two": two})
