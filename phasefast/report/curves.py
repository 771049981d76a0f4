"""What the picture shows: the curves of all layers, their colours, markers and names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from ..metrics import ACCURACIES, FVU
from ..phases.phase_report import PhaseReport
from ..results.failures import lost_name
from ..results.scores import MODEL_LAYER, Scores
from .names import LONGEST, shortened

INK, _MARKERS = "#222222", "osD^vPX<>h"


@dataclass(frozen=True)
class Look:
    """How a layer is named and drawn everywhere in the picture.

    Attributes:
        chosen: whether it is the layer whose phases shade a panel.
    """

    name: str
    colour: str
    marker: str = ""
    width: float = 1.5
    dashes: str = "-"
    chosen: bool = False


@dataclass(frozen=True)
class Curve:
    """Values [K], some of them finite, at steps [K], and which are estimates and which phases leave out, bool [K].

    Attributes:
        band: lowest and highest values [K] of a band around them.
    """

    steps: np.ndarray
    values: np.ndarray
    estimated: np.ndarray
    left_out: np.ndarray
    look: Look
    band: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def finite(self) -> np.ndarray:
        """The finite ones of the values."""
        return np.asarray(self.values[np.isfinite(self.values)])

    @property
    def end(self) -> tuple[int, float]:
        """The last step with a finite value, and that value."""
        last = np.flatnonzero(np.isfinite(self.values))[-1]
        return int(self.steps[last]), float(self.values[last])


Label = tuple[str, Curve | None]  # a text and the curve whose end it names


def looks(layers: Sequence[str], chosen: str | None) -> dict[str, Look]:
    """Dark colours for late layers; the chosen one is the widest. After them, the model's own."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    last, names = len(layers) - 1, shortened(layers)
    found = {}
    for i, layer in enumerate(layers):
        # The light end of the map would be hard to see on white.
        colour = to_hex(colormaps["viridis"](0.82 * (last - i) / max(last, 1)))
        marker, width = _MARKERS[(last - i) % len(_MARKERS)], 2.4 if layer == chosen else 1.5
        found[layer] = Look(names[layer], colour, marker, width, chosen=layer == chosen)
    return {**found, MODEL_LAYER: Look(MODEL_LAYER, INK, width=1.8, dashes="--")}


def drawn_targets(scores: Scores) -> list[str]:
    """Those of the targets that a picture shows: phases of others would take their time for nothing."""
    return [name for name in (fvu_target(scores), accuracy_target(scores)) if name is not None]


def of_targets(scores: Scores, names: Sequence[str]) -> Scores:
    """The rows of those of the targets that there are; all rows where a name would stand for all others."""
    if any(name.startswith("!") for name in names):
        return scores
    return scores.select(targets=[name for name in names if name in scores.values_of("target")])


def fvu_target(scores: Scores) -> str | None:
    """The input, or else another target that is no class, with a finite held-out FVU."""
    classes = {name for metric in ACCURACIES for name in scores.filter(metric=metric, split="heldout").targets}
    found = [name for name in _targets(scores, FVU) if name not in classes]
    return min(found, key=lambda name: name != "input", default=None)


def accuracy_target(scores: Scores) -> str | None:
    """The label, or else another class, with a finite held-out accuracy, balanced or not."""
    found = [name for metric in ACCURACIES for name in _targets(scores, metric)]
    return min(found, key=lambda name: name != "label", default=None)


def accuracy_metric(scores: Scores, target: str) -> str:
    """Which accuracy a target of classes has."""
    return next(metric for metric in ACCURACIES if target in _targets(scores, metric))


def headline(scores: Scores) -> str | None:
    """The target that a run is judged by where one must do: the input, the label, or else another of the picture."""
    numbers, classes = fvu_target(scores), accuracy_target(scores)
    return classes if numbers is None or (numbers != "input" and classes == "label") else numbers


def telling_layers(scores: Scores) -> list[str]:
    """The layers whose phases and stop window a run is judged by, the last one first; all others after them.

    The last layers that are as wide as the model's own output for a label, the last one that is as wide as that for a
    value, and single numbers are its heads, which a transfer replaces: the paper decodes the features before them. An
    autoencoder's reconstruction is none. Where there are no other layers, the last one tells. Layers that were not
    measured at the last step come after those that were.

    Args:
        scores: of all targets.
    """
    rows = scores.without_samples.to_arrow().select(["layer", "dim", "target", "metric", "step"]).to_pylist()
    own = [row for row in rows if row["layer"] == MODEL_LAYER and row["target"] != "input"]
    classes = {row["dim"] for row in own if row["metric"] in ACCURACIES} | ({1} if own else set())
    values = Counter({row["target"]: row["dim"] for row in own if row["metric"] == FVU}.values())
    dims, layers, before = {row["layer"]: row["dim"] for row in rows}, scores.layers[::-1], 0
    while before < len(layers) and (dims[layers[before]] in classes or values[dims[layers[before]]] > 0):
        values[dims[layers[before]]] -= 1  # those before are hidden ones that are as wide
        before += 1
    before %= len(layers) or 1
    last = max(scores.steps, default=0)
    there = {row["layer"] for row in rows if row["step"] == last}
    return sorted(layers[before:] + layers[:before], key=lambda layer: layer not in there)


def curves_of(scores: Scores, target: str, metric: str, styles: Mapping[str, Look], report: PhaseReport) -> list[Curve]:
    """The held-out curves of one target that have a finite value; NaN where a layer could not be measured.

    Args:
        report: what leaves steps out, and what failed.
    """
    left_out = {cell.layer: cell.left_out for cell in report if cell.target == target}
    found = []
    for layer, look in styles.items():
        if scores.has_curve(layer, target, metric):
            steps, values = scores.curve(layer, target, metric)
            estimated = scores.estimated(layer, target, metric)
            name = lost_name(layer, target)
            lost = [step for step, failure in report.failed.items() if failure.layers.get(name) and step not in steps]
            places = np.searchsorted(steps, lost)
            steps, values = np.insert(steps, places, lost), np.insert(values, places, np.nan)
            odd = np.isin(steps, left_out.get(layer, ()))
            found.append(Curve(steps, values, np.insert(estimated, places, False), odd, look))
    return [curve for curve in found if len(curve.finite)]


def values_by_step(scores: Scores, layer: str, target: str, metric: str) -> dict[int, tuple[float, bool]]:
    """The held-out values of one metric, and whether they are estimates; none where there is no such metric."""
    if not scores.has_curve(layer, target, metric):
        return {}
    steps, values = (part.tolist() for part in scores.curve(layer, target, metric))
    guesses = scores.estimated(layer, target, metric).tolist()
    return {step: (value, guess) for step, value, guess in zip(steps, values, guesses, strict=True)}


def end_labels(curves: Sequence[Curve], most: int) -> list[Label]:
    """What is written at the ends, at most so many: curves that coincide share a name.

    Of too many, evenly spaced ones keep theirs, and the first label says how many curves have none.
    """
    groups: list[list[Curve]] = []
    for curve in curves:
        twin = next((g for g in groups if np.array_equal(g[0].values, curve.values, equal_nan=True)), None)
        if twin is None:
            groups.append([curve])
        else:
            twin.append(curve)
    chosen = next((i for i, group in enumerate(groups) if any(curve.look.chosen for curve in group)), 0)
    kept, labels = [groups[i] for i in evenly(len(groups), most, chosen)], list[Label]()
    if len(kept) < len(groups):
        kept = [groups[i] for i in evenly(len(groups), most - 1, chosen)]
        labels = [(f"{len(curves) - sum(map(len, kept))} more", None)]
    return labels + [(_joined([curve.look for curve in group]), group[-1]) for group in kept]


def evenly(count: int, most: int, *chosen: int) -> list[int]:
    """At most so many of ``count`` indices, evenly spaced, with both ends and, as far as they fit, the chosen ones."""
    if count <= most:
        return list(range(count))
    picks = [int(pick) for pick in np.linspace(0, count - 1, most).round()]
    for wanted in chosen:
        free = [i for i in range(1, most - 1) if picks[i] not in chosen]
        if wanted not in picks and free:
            picks[min(free, key=lambda i: abs(picks[i] - wanted))] = wanted
    return sorted(picks)


def _joined(group: Sequence[Look]) -> str:
    """The names of layers that share a label; of too many, the chosen or last one's and their number."""
    text = " = ".join(look.name for look in group)
    if len(group) == 1 or len(text) <= LONGEST:
        return text
    named = next((look for look in group if look.chosen), group[-1])
    return f"{named.name} = {len(group) - 1} more"


def _targets(scores: Scores, metric: str) -> list[str]:
    """The targets of which a layer, or else only the model itself, has a finite held-out value."""
    rows = scores.filter(metric=metric, split="heldout").without_samples.to_arrow()
    finite = Scores(rows.filter(pc.is_finite(pc.field("value"))))
    return finite.targets or finite.values_of("target")
