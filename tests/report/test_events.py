"""What happened at a step, in the picture of a run."""

from __future__ import annotations

import numpy as np
import pytest

from phasefast.errors import ArgumentError
from phasefast.phases.phase_report import PhaseReport
from phasefast.report import plot_phases
from phasefast.report.scales import StepAxis

from .synthetic import make_scores

NOTHING = PhaseReport(())


@pytest.mark.parametrize("steps", [[0, *range(64, 64 * 12, 64)], [0, 64, 128, 256, 512, 1024]])
def test_what_happened_is_a_line_through_the_panels(steps: list[int]) -> None:
    scores, long = make_scores(["stage1", "features"], steps), "an_end_that_is_long " * 9
    events = {"warm": 32, "$lower$": 200, "lower, too": np.int64(200), long: steps[-1]}
    figure = plot_phases(scores, NOTHING, events=events)
    axis, (upper, lower) = StepAxis(np.array(steps)), figure.axes[-2:]
    assert axis.at(0) < axis.at(32) < axis.at(64)
    wanted = [axis.at(step) for step in (32, 200, steps[-1])]
    for axes in (upper, lower):
        upright = [set(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) > 1]
        assert [place for each in upright if len(each) == 1 for place in each if place in wanted] == wanted
    named = {text.get_text(): text.get_position()[0] for text in upper.texts if text.get_rotation() == 90}
    assert [*named][:2] == ["warm", "$lower$, lower, too"]
    assert list(named.values()) == wanted
    assert len([*named][2]) < len(long)
    assert not [text for text in lower.texts if text.get_rotation() == 90 and text.get_text()]


def test_what_happened_several_times_is_drawn_each_time() -> None:
    scores = make_scores(["stage1"], [8, 16, 32, 64])
    upper = plot_phases(scores, NOTHING, events={"lower rate": [16, 32], "thaw": 64}).axes[-2]
    named = [text for text in upper.texts if text.get_rotation() == 90]
    assert [text.get_text() for text in named] == ["lower rate", "lower rate", "thaw"]
    assert min(text.get_zorder() for text in named) > max(line.get_zorder() for line in upper.lines)
    with pytest.raises(ArgumentError, match="events: expected a mapping from names to steps, got list"):
        plot_phases(scores, NOTHING, events=[("thaw", 64)])  # type: ignore[arg-type]


def test_events_that_are_not_on_the_axis_are_told() -> None:
    scores = make_scores(["stage1"], [8, 16, 32])
    with pytest.warns(RuntimeWarning, match=r"events: \{4: 'early', 64: 'late'\} are not drawn, as steps 8 to 32"):
        plot_phases(scores, NOTHING, events={"early": 4, "late": 64, "there": 16})
    with pytest.raises(ArgumentError, match=r"expected the number of updates done, an integer >= 0, got 1\.5"):
        plot_phases(scores, NOTHING, events={"half": 1.5})  # type: ignore[dict-item]
