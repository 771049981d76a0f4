"""The metrics in the table of scores: what they are called, and how they are read."""

from __future__ import annotations

MSE = "mse"
FVU = "fvu"
ACCURACY = "accuracy"
BALANCED_ACCURACY = "balanced_accuracy"
LOSS = "loss"  # the model's own cross-entropy

ACCURACIES = (ACCURACY, BALANCED_ACCURACY)  # of classes: shares that are right, whose loss is 1 less them
# What is lost in each, as phases and reports call it; the first that a target has counts.
LOSSES = {ACCURACY: "error", BALANCED_ACCURACY: "balanced_error", FVU: FVU}
METRIC_OF_LOSS = {loss: metric for metric, loss in LOSSES.items()}
LISTED = (FVU, *ACCURACIES, LOSS)  # in a step's listing; not the MSE, which says what the FVU does in other units


def accuracy_by(balanced: bool) -> str:
    """Which accuracy a target of classes is scored by; ``balanced``: all classes count alike."""
    return BALANCED_ACCURACY if balanced else ACCURACY
