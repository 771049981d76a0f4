"""What the picture shows: the curves of all layers, their colours, markers and names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..scores import MODEL_LAYER, Scores

_LONGEST = 28  # letters of a name
_INK, _MARKERS = "#222222", "osD^vPX<>h"


@dataclass(frozen=True)
class Look:
    """How a layer is drawn everywhere in the picture."""

    colour: str
    marker: str
    width: float = 1.5
    dashes: str = "-"


@dataclass(frozen=True)
class Curve:
    """Values [K], some of them finite, at steps [K], and which of them are estimates [K]."""

    name: str
    steps: np.ndarray
    values: np.ndarray
    estimated: np.ndarray
    look: Look

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


def looks(layers: Sequence[str]) -> dict[str, Look]:
    """Dark colours for late layers; the last one is the widest."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    last = len(layers) - 1
    # The light end of the map would be hard to see on white.
    colours = [to_hex(colormaps["viridis"](0.82 * (last - i) / max(last, 1))) for i in range(len(layers))]
    return {
        layer: Look(colours[i], _MARKERS[(last - i) % len(_MARKERS)], 2.4 if i == last else 1.5)
        for i, layer in enumerate(layers)
    }


def fvu_curves(scores: Scores, styles: dict[str, Look]) -> tuple[str, list[Curve]]:
    """Held-out FVU of the input, or else of another target that is no class: (target, curves with a finite value)."""
    classes = set(scores.filter(metric="accuracy", split="heldout").targets)
    return _curves(scores, "fvu", "input", [name for name in scores.targets if name not in classes], styles)


def accuracy_curves(scores: Scores, styles: dict[str, Look]) -> tuple[str, list[Curve]]:
    """Held-out accuracy of the label, or else of another class, and the model's own."""
    target, found = _curves(scores, "accuracy", "label", scores.targets, styles)
    return target, found + own_accuracy(scores)


def own_accuracy(scores: Scores) -> list[Curve]:
    """The accuracy of the model's own output, if there is any."""
    rows = scores.filter(layer=MODEL_LAYER, metric="accuracy", split="heldout").to_arrow()
    steps, values = rows.column("step").to_numpy(), rows.column("value").to_numpy()
    look = Look(_INK, "x" if len(steps) == 1 else "", 1.8, "--")
    curve = Curve("model", steps, values, np.zeros(len(steps), dtype=bool), look)
    return [curve] if len(curve.finite) else []


def end_labels(curves: Sequence[Curve], most: int) -> list[Label]:
    """What is written at the ends, at most so many: curves that coincide share a name.

    Of too many, the last two and evenly spaced others keep theirs, and the first label says how many layers have none.
    """
    groups: list[list[Curve]] = []
    for curve in curves:
        twin = next((g for g in groups if np.array_equal(g[0].values, curve.values, equal_nan=True)), None)
        if twin is None:
            groups.append([curve])
        else:
            twin.append(curve)
    if len(groups) <= most:
        kept, labels = groups, list[Label]()
    else:
        # The last two of accuracies are the network's own and the last layer's, whose phases are shown.
        kept = [*(groups[i] for i in np.linspace(0, len(groups) - 2, most - 2).round().astype(int)), groups[-1]]
        labels = [(f"{len(curves) - sum(map(len, kept))} more layers", None)]
    return labels + [(short(" = ".join(curve.name for curve in group)), group[-1]) for group in kept]


def short(name: str) -> str:
    """A long name's end, which tells modules apart."""
    return name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :]


def _curves(
    scores: Scores, metric: str, preferred: str, targets: Sequence[str], styles: dict[str, Look]
) -> tuple[str, list[Curve]]:
    """The held-out curves of one target, ``preferred`` if it has the metric: (target, curves with a finite value)."""
    for target in sorted(targets, key=lambda name: name != preferred):
        found = []
        for layer, look in styles.items():
            estimated = scores.estimated(layer, target, metric)
            curve = Curve(layer, *scores.curve(layer, target, metric), estimated, look)
            if len(curve.finite):
                found.append(curve)
        if found:
            return target, found
    return preferred, []
