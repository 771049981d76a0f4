"""Networks that call a module as often as it takes, such as those of an equilibrium."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from tests.quiet import no_warnings


class Solver(nn.Module):
    """Calls its cell once more for each 20 samples, at most ``most`` times."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.cell, self.last, self.most = nn.Linear(4, 4), nn.Identity(), most

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(min(1 + len(x) // 20, self.most)):
            x = self.cell(x).tanh()
        found: Tensor = self.last(x)
        return found


def test_calls_that_the_first_samples_did_not_make_are_told() -> None:
    x = torch.randn(100, 4)
    probe_set = pf.ProbeSet.from_tensors(x[:60], None, x[60:], None)
    words = r"\['cell'\]: called 4 times for a batch, of which the first 1 are layers, .* through an nn.Identity"
    tracker = pf.PhaseTracker(Solver(9), probe_set, out=None, steps=[0, 1])
    with pytest.warns(RuntimeWarning, match=words) as told:
        scores = [tracker.step(step) for step in range(2)][-1]
    assert [str(each.message)[:6] for each in told] == ["['cell"]
    assert scores is not None
    assert scores.layers == ["cell", "last"]
    with no_warnings():
        pf.probe(Solver(1), probe_set)


def test_calls_of_a_module_without_rows_of_all_samples_are_not_told() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(torch.cat([self.part(each) for each in x.split(16)]))
            return found

    x = torch.randn(100, 4)
    probe_set = pf.ProbeSet.from_tensors(x[:60], None, x[60:], None)
    with pytest.warns(RuntimeWarning, match="left out 1 at step 0: layer 'part'") as told:
        assert pf.probe(Parts(), probe_set).layers == ["head"]
    assert not [each for each in told if "called" in str(each.message) and "times" in str(each.message)]
