"""The paper's theory, made checkable: a single softmax layer on attributes, and its exact reconstruction loss.

arXiv 2312.06887 explains the phases with a model of the data (attributes that most samples of a class share, a few
samples that deviate), gradient descent from small weights, and *noisy* outputs. docs/theory.md derives what
is used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ..common.files import write_json
from ..errors import ArgumentError

CHANGE = 0.02  # a change counts from this fraction of the loss on; less is "nearly constant"
_LEARNING_RATE, _SCALE = 0.05, 0.01
_LAST = 2**17
# Descent is stable far beyond this rate, and the flow slows down after the first steps: then eight are taken at once.
_FINE_STEPS, _COARSE = 1024, 8
GRID = {
    "rho": (0.0, 0.05, 0.1, 0.2, 0.3, 0.5),
    "frequency": (0.8, 0.9, 1.0),
    "noise": (0.01, 0.03, 0.1, 0.3, 1.0),
}  # in all combinations
GRID_SEEDS = (0, 1, 2)
# The statement: from this share of deviating samples on and up to this noise variance the loss rises again; without
# deviating samples, and from this frequency on, it does not; from this noise variance on there is a plateau.
INCREASE_RHO, INCREASE_NOISE, SHARED, PLATEAU_NOISE = 0.05, 0.1, 0.9, 0.1


@dataclass(frozen=True)
class AttributeData:
    """Classes of binary attributes, and a share of samples that look like another class but for one attribute.

    Attributes:
        classes, attributes: how many classes, and attributes of each; an input has their product as features.
        frequency: probability with which an attribute of the class is present.
        rho: share of deviating samples: attributes of another class and one of the own.
        input_noise: standard deviation of Gaussian noise on every feature. samples: their number.
    """

    classes: int = 4
    attributes: int = 3
    frequency: float = 0.9
    rho: float = 0.2
    input_noise: float = 0.1
    samples: int = 400

    def __post_init__(self) -> None:
        if not (0 <= self.frequency <= 1 and 0 <= self.rho <= 1 and self.input_noise >= 0):
            raise ArgumentError(f"AttributeData: expected frequency and rho in 0 ... 1, input_noise >= 0, got {self}")
        if self.classes < 2 or self.attributes < 1 or self.samples < self.classes:
            raise ArgumentError(
                f"AttributeData: expected 2 classes, 1 attribute, 1 sample per class or more, got {self}"
            )

    def draw(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs [n, d], labels [n] and which samples deviate [n]."""
        rng = np.random.default_rng(seed)
        n, a = self.samples, self.attributes
        labels = np.arange(n) % self.classes
        deviating = rng.random(n) < self.rho
        looks = np.where(deviating, (labels + rng.integers(1, self.classes, n)) % self.classes, labels)
        present = rng.random((n, self.classes, a)) < self.frequency
        inputs = present * (np.arange(self.classes) == looks[:, None])[:, :, None]  # [n, classes, a]
        rows = np.flatnonzero(deviating)
        inputs[rows, labels[rows], rng.integers(0, a, n)[rows]] = True
        x = inputs.reshape(n, -1) + self.input_noise * rng.standard_normal((n, self.classes * a))
        return x, labels, deviating


def softmax_gradient(weights: np.ndarray, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Minus the gradient of the mean cross-entropy of softmax(W x), mean of (y - p) x': [c, d]."""
    gradient: np.ndarray = (np.eye(len(weights))[labels] - _softmax(x @ weights.T)).T @ x / len(x)
    return gradient


def gradient_flow(x: np.ndarray, labels: np.ndarray, seed: int = 0, last: int = _LAST) -> dict[int, np.ndarray]:
    """Weights [c, d] of the softmax layer at steps 0, 1, 2, 4, ..., ``last`` of full-batch descent at rate 0.05.

    Args:
        x: [n, d]. labels: [n] in 0 ... c - 1. seed: of the first weights, normal with standard deviation 0.01.

    Raises:
        ArgumentError: shapes that do not fit, or ``last`` < 1.
    """
    if x.ndim != 2 or labels.shape != (len(x),) or last < 1:
        raise ArgumentError(
            f"gradient_flow: expected x [n, d], labels [n], last >= 1, got {x.shape}, {labels.shape}, {last}"
        )
    rng = np.random.default_rng(seed)
    weights = _SCALE * rng.standard_normal((int(labels.max()) + 1, x.shape[1]))
    kept, step, due = {0: weights.copy()}, 0, 1
    while step < last:
        stride = 1 if step < _FINE_STEPS else _COARSE
        weights += _LEARNING_RATE * stride * softmax_gradient(weights, x, labels)
        step += stride
        if step >= due:
            kept[step] = weights.copy()
            due *= 2
    return kept


def reconstruction_loss(covariance: np.ndarray, weights: np.ndarray, noise: float) -> float:
    """Expected squared error of the best linear decoder of x from W x + noise, over tr S: exact, between 0 and 1.

    1 - tr(S W' (W S W' + noise I)^-1 W S) / tr S, by the singular values of W S^(1/2): nothing is inverted, so that
    neither small noise nor a rank-deficient W does harm.

    Args:
        covariance: S [d, d]. weights: W [c, d]. noise: variance of independent noise on each output; 0 is the limit.

    Raises:
        ArgumentError: shapes that do not fit, a negative noise, or a covariance without variance.
    """
    d = len(covariance)
    if covariance.shape != (d, d) or weights.ndim != 2 or weights.shape[1] != d or noise < 0:
        raise ArgumentError(
            f"reconstruction_loss: expected S [d, d], W [c, d], noise >= 0, "
            f"got {covariance.shape}, {weights.shape}, {noise}"
        )
    values, vectors = np.linalg.eigh(covariance)
    total = float(values.sum())
    if total <= 0:
        raise ArgumentError("reconstruction_loss: expected a covariance of positive trace, got one without variance")
    root = vectors * np.sqrt(np.maximum(values, 0))  # [d, d], S = root root'
    _, sizes, right = np.linalg.svd(weights @ root, full_matrices=False)
    kept = sizes > sizes.max(initial=0) * d * np.finfo(float).eps
    sizes, right = sizes[kept], right[kept]
    shares = sizes**2 / (sizes**2 + noise)
    captured = float((shares * ((right @ root.T) ** 2).sum(1)).sum())
    return 1 - captured / total


def plateau_bound(covariance: np.ndarray, x: np.ndarray, weights: np.ndarray, noise: float) -> float:
    """Steps for which the loss provably stays within ``CHANGE`` of 1 (docs/theory.md, proposition 2); may be negative.

    Args:
        covariance: S [d, d]. x: [n, d] inputs. weights: W [c, d] at step 0. noise: variance.
    """
    allowed = np.sqrt(CHANGE * noise * np.trace(covariance)) - np.linalg.norm(weights @ covariance)
    speed = _LEARNING_RATE * np.sqrt(2) * np.linalg.norm(x @ covariance, axis=1).mean()
    return float(allowed / speed)


def curve(data: AttributeData, noise: float, seed: int = 0) -> dict[str, Any]:
    """Loss, accuracy, share of the cross-entropy due to deviating samples, and phases of one setting."""
    return next(_curves(data, [noise], seed))


def phases(steps: Sequence[int], loss: Sequence[float]) -> dict[str, tuple[int, int] | None]:
    """First and last step of each phase of an exact curve; None where it is not there.

    A decrease ends at the minimum, an increase starts there; each is at least ``CHANGE`` of the loss before it. The
    plateau is the longest beginning, of three checkpoints at least, that stays within ``CHANGE`` of the first loss.
    """
    values = np.asarray(loss)
    low = int(values.argmin())
    inside = np.abs(values / values[0] - 1) <= CHANGE
    length = len(values) if inside.all() else int(inside.argmin())
    falls, rises = values[low] < (1 - CHANGE) * values[0], values[-1] > (1 + CHANGE) * values[low]
    start = length - 1 if length >= 3 else 0
    return {
        "constant": (int(steps[0]), int(steps[start])) if length >= 3 else None,
        "decrease": (int(steps[start]), int(steps[low])) if falls else None,
        "increase": (int(steps[low]), int(steps[-1])) if rises else None,
    }


def check_statement(
    grid: dict[str, Sequence[float]] | None = None, seeds: Sequence[int] = GRID_SEEDS
) -> list[dict[str, Any]]:
    """The statement of docs/theory.md on every point of a grid: what it predicts (None: nothing) and what is found."""
    points: dict[str, Sequence[float]] = grid or dict(GRID)
    rows = []
    for frequency, rho, seed in product(points["frequency"], points["rho"], seeds):
        for found in _curves(AttributeData(frequency=frequency, rho=rho), points["noise"], seed):
            noise, shown = found["noise"], found["phases"]
            rises, flat = shown["increase"] is not None, shown["constant"] is not None
            expected = _predicted_increase(frequency, rho, noise)
            rows.append(
                {
                    "frequency": frequency,
                    "rho": rho,
                    "noise": noise,
                    "seed": seed,
                    "increase_predicted": expected,
                    "increase_found": rises,
                    "rise": found["loss"][-1] / min(found["loss"]) - 1,
                    "decrease_found": shown["decrease"] is not None,
                    "plateau_guaranteed": found["plateau_bound"],
                    "bound_holds_until": found["flat_until"],
                    "plateau_steps_found": shown["constant"][1] if shown["constant"] else 0,
                    "row_space_alone": found["residual"][-1] > (1 + CHANGE) * min(found["loss"]),
                    "holds": expected in (None, rises)
                    and shown["decrease"] is not None
                    and (flat or noise < PLATEAU_NOISE)
                    and found["flat_until"] >= int(max(found["plateau_bound"], 0)),
                }
            )
    return rows


def run_theory(
    out: str | Path, grid: dict[str, Sequence[float]] | None = None, seeds: Sequence[int] = GRID_SEEDS
) -> dict[str, Any]:
    """Curves without and with deviating samples and the statement on the grid, written as ``out/theory.json``.

    Raises:
        StoreError: the file cannot be written.
    """
    shown = {f"{rho:g}": curve(AttributeData(rho=rho), noise=0.1) for rho in (0.0, 0.2)}
    rows = check_statement(grid, seeds)
    found = {
        "data": asdict(AttributeData()),
        "change": CHANGE,
        "grid": {key: list(values) for key, values in (grid or GRID).items()},
        "seeds": list(seeds),
        "statement": {
            "increase_rho": INCREASE_RHO,
            "increase_noise": INCREASE_NOISE,
            "shared": SHARED,
            "plateau_noise": PLATEAU_NOISE,
        },
        "curves": shown,
        "rows": rows,
    }
    write_json(Path(out) / "theory.json", _short(found), "results to")
    return found


def _predicted_increase(frequency: float, rho: float, noise: float) -> bool | None:
    if rho == 0 and frequency >= SHARED:
        return False
    return True if rho >= INCREASE_RHO and noise <= INCREASE_NOISE else None


def _curves(data: AttributeData, noises: Sequence[float], seed: int) -> Any:
    """One curve per noise variance; the flow itself does not depend on it."""
    x, labels, deviating = data.draw(seed)
    covariance = np.cov(x.T, bias=True)
    flow = gradient_flow(x, labels, seed)
    steps, first = list(flow), flow[0]
    entropies = [_cross_entropy(weights, x, labels) for weights in flow.values()]
    for noise in noises:
        loss = [reconstruction_loss(covariance, weights, noise) for weights in flow.values()]
        flat = [step for step, value in zip(steps, loss, strict=True) if value >= 1 - CHANGE]
        yield {
            "noise": noise,
            "steps": steps,
            "loss": loss,
            "residual": [reconstruction_loss(covariance, weights, 0.0) for weights in flow.values()],
            "accuracy": [float(((x @ weights.T).argmax(1) == labels).mean()) for weights in flow.values()],
            "deviating_share": [float(entropy[deviating].sum() / entropy.sum()) for entropy in entropies],
            "phases": phases(steps, loss),
            "plateau_bound": plateau_bound(covariance, x, first, noise),
            "flat_until": max(flat, default=0),
        }


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities: np.ndarray = shifted / shifted.sum(1, keepdims=True)
    return probabilities


def _cross_entropy(weights: np.ndarray, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    chosen = _softmax(x @ weights.T)[np.arange(len(x)), labels]
    entropy: np.ndarray = -np.log(np.maximum(chosen, np.finfo(float).tiny))
    return entropy


def _short(value: Any) -> Any:
    """The same with floats cut to five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, (list, tuple)) else value
