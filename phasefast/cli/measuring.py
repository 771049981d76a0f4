"""The options of all commands that measure: :class:`phasefast.ProbeOptions` by name, except the targets."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ..common.devices import fastest_device
from ..options import DEFAULTS
from .app import Device


def _option(name: str, kind: Any, about: str, *flags: str, **how: Any) -> inspect.Parameter:
    """Args: name: of ProbeOptions; it is None if it was not given and has no default. flags, how: as for Typer."""
    annotation, default = Annotated[kind, typer.Option(*flags, help=about, **how)], DEFAULTS.get(name)
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)


OPTIONS = (
    _option(
        "layers",
        list[str] | None,
        "Glob of layers, or, after !, of layers to leave out; may be repeated.",
        "--layer",
    ),
    _option(
        "alphas",
        list[float] | None,
        "Relative ridge penalty; may be repeated to let the best be chosen.",
        "--alpha",
    ),
    _option("noise", float | None, "Instead of --alpha: standard deviation of noise on the activations."),
    _option("batchnorm", str, "Statistics of BatchNorm layers: recompute, batch or running."),
    _option("tokens", str, "How to take the tokens of sequences: flatten, mean, cls, last or each."),
    _option("padding", float | None, "Value that marks padding in the inputs, such as 0."),
    _option("pool", int, "Average images to this size; 0 keeps every position."),
    _option("precision", str, "Precision: exact, fast or double."),
    _option(
        "predicts",
        list[str] | None,
        "Target that the model's own output predicts, or none; by default the label. May be repeated.",
    ),
    _option("splits", str, "Scores on both splits, or heldout: none on the fit rows."),
    _option(
        "selection",
        str | None,
        "How penalties are chosen: gcv (default), folds (default with --tokens each or groups) or loo.",
    ),
    _option("penalty_per", str, "One penalty per target, or per column of a regression: target or column."),
    _option(
        "classifier",
        str | None,
        "Classifier for classes: ridge, the largest one-hot prediction (default), lda or balanced.",
    ),
    _option("route", str | None, "Force one route: primal, dual, eigen or target-free."),
    _option("target_components", int | None, "Decode this many leading components of wide regression targets.", min=1),
    _option("layer_sketch", int | None, "Decode wider layers from this many combinations of features.", min=1),
    _option("batch_size", int | None, "Number of samples per forward pass.", min=1),
    _option("memory", str | None, "Memory budget, such as 8GB; by default most of what is free."),
    inspect.Parameter("device", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=Device),
)


def measuring(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command all of ``OPTIONS`` but some, in the place of its parameter ``options``.

    That gets those that were given, or have a default, and the device. Typer reads a command's signature.
    """
    added = [each for each in OPTIONS if each.name not in without]

    def give(command: Callable[..., None]) -> Callable[..., None]:
        parameters = list(inspect.signature(command, eval_str=True).parameters.values())
        place = [each.name for each in parameters].index("options")
        parameters[place : place + 1] = added

        @functools.wraps(command)
        def run(**given: Any) -> None:
            options = {each.name: given.pop(each.name) for each in added}
            options = {name: value for name, value in options.items() if value is not None}
            command(**given, options={**options, "device": options.get("device") or fastest_device()})

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return give
