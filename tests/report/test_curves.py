"""Which curves are drawn, how, and which of them have a name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from phasefast.phases.phase_report import PhaseReport
from phasefast.report.curves import Curve, Look, accuracy_target, curves_of, end_labels, evenly, fvu_target, looks
from phasefast.results.failures import Failure
from phasefast.results.scores import Scores

from .synthetic import log2_steps, make_scores, targets_apart

NONE = PhaseReport(())


def test_late_layers_are_dark_and_the_chosen_one_is_wide() -> None:
    styles = looks(["a", "b", "c", "d"], "b")
    light = [sum(to_rgb(look.colour)) for look in list(styles.values())[:4]]
    assert light == sorted(light, reverse=True)
    assert light[0] > light[3] + 0.5
    assert [name for name, look in styles.items() if look.chosen] == ["b"]
    assert max(styles.values(), key=lambda look: look.width) is styles["b"]
    assert list(styles)[-1] == "model"


def test_the_models_own_curve_is_drawn_only_beside_those_of_its_target() -> None:
    scores, styles = targets_apart(), looks(["a", "b"], None)
    assert (fvu_target(scores), accuracy_target(scores)) == ("input", "colour")
    assert [curve.look.name for curve in curves_of(scores, "colour", "accuracy", styles, NONE)] == ["a", "b"]
    both = make_scores(["a", "b"], log2_steps(8))
    assert accuracy_target(both) == "label"
    assert [curve.look.name for curve in curves_of(both, "label", "accuracy", styles, NONE)] == ["a", "b", "model"]
    alone = make_scores([], log2_steps(8))
    assert (fvu_target(alone), accuracy_target(alone)) == (None, "label")


def test_lines_are_broken_where_a_layer_could_not_be_measured() -> None:
    rows = make_scores(["a", "b"], [0, 1, 2, 4]).to_arrow().to_pylist()
    scores = Scores.from_rows([each for each in rows if (each["layer"], each["step"]) != ("b", 2)])
    lost = {2: Failure("step 2", "layer 'b': NaN", partial=True, layers={"b": "layer 'b': NaN"})}
    a, b = curves_of(scores, "input", "fvu", looks(["a", "b"], None), PhaseReport((), failed=lost))
    assert a.steps.tolist() == b.steps.tolist() == [0, 1, 2, 4]
    assert np.isnan(b.values).tolist() == [False, False, True, False]
    assert np.isfinite(a.values).all()
    (_, b) = curves_of(scores, "input", "fvu", looks(["a", "b"], None), NONE)  # not asked for there
    assert b.steps.tolist() == [0, 1, 4]


@pytest.mark.parametrize("chosen", [0, 1, 30, 58, 59])
def test_some_of_many_are_evenly_spaced_with_the_ends_and_the_chosen_one(chosen: int) -> None:
    picks = evenly(60, 11, chosen)
    assert picks == sorted(set(picks))
    assert len(picks) == 11
    assert {0, chosen, 59} <= set(picks)
    assert max(np.diff(picks)) <= 12
    assert evenly(11, 11, 3) == list(range(11))


def curves(values: Sequence[float], chosen: int) -> list[Curve]:
    return [
        Curve(
            np.array([0]),
            np.array([value]),
            np.array([False]),
            np.array([False]),
            Look(f"layer{i}", "black", chosen=i == chosen),
        )
        for i, value in enumerate(values)
    ]


def test_the_chosen_curve_always_has_a_name() -> None:
    for chosen in range(40):
        names = [text for text, _ in end_labels(curves(range(40), chosen), 10)]
        assert names[0] == "31 more"
        assert {"layer0", f"layer{chosen}", "layer39"} <= set(names)
        assert len(names) == 10


def test_curves_that_coincide_share_a_name() -> None:
    texts = [text for text, _ in end_labels(curves([1, 1, 2], 0), 10)]
    assert texts == ["layer0 = layer1", "layer2"]
    assert [text for text, _ in end_labels(curves([1] * 6, 2), 10)] == ["layer2 = 5 more"]
    assert [text for text, _ in end_labels([*curves([1] * 6, 9)], 10)] == ["layer5 = 5 more"]
