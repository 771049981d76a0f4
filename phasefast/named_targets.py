"""Targets by name and by default, and warnings about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .common.notices import shown, warn
from .data.probe_set import ProbeSet
from .data.target_matrix import TargetMatrix
from .data.target_types import Input, Label, Target
from .errors import ArgumentError
from .metrics import ACCURACY

_MANY, _MOSTLY = 20, 0.9  # classes, and share of samples of one
_WIDER = 100  # times the median deviation of columns


def named_target(
    name: str, probe_set: ProbeSet, each: bool = False, others: str = "a target such as phasefast.Function(fn)"
) -> Target:
    """The target that has a name of its own: ``input``, ``label`` or one of the probe set's values; ArgumentError.

    Args:
        each: tokens are decoded one by one, so that integers [n, t] are classes of tokens.
    """
    if name in probe_set.fit_values:
        return probe_set.target(name, each=each)
    known: dict[str, Target] = {"input": Input(), "label": Label(max(1, probe_set.classes))}
    if name not in known:
        raise ArgumentError(f"target {name!r}: expected one of {[*known, *probe_set.fit_values]}, or {others}")
    return known[name]


def by_name(given: Sequence[Target | str], probe_set: ProbeSet, each: bool = False) -> list[Target]:
    """Targets as they are given, or those that names stand for; ArgumentError if a name stands for none."""
    return [named_target(own, probe_set, each) if isinstance(own, str) else own for own in given]


def default_targets(probe_set: ProbeSet, each: bool = False) -> list[Target]:
    """All that a probe set has to decode; ArgumentError where it has nothing. Args: each: as for ``named_target``."""
    targets: list[Target] = [Input()] if probe_set.fit_inputs.is_floating_point() else []
    if probe_set.fit_labels is not None:
        targets.append(named_target("label", probe_set))
    targets += [named_target(name, probe_set, each) for name in probe_set.fit_values]
    if not targets:
        raise ArgumentError(
            f"targets: nothing to decode by default: the samples are {probe_set.fit_inputs.dtype}, so they are not "
            "decoded themselves (give images as the floats that the model takes, such as x.float() / 255), and there "
            "are no labels or values; "
            "give a target such as phasefast.Function(fn)"
        )
    if probe_set.fit_inputs.dtype == torch.uint8:  # images, unlike the integers that stand for tokens
        warn(
            "the samples are torch.uint8, so they are not decoded themselves: give images as the floats that the model "
            "takes, such as x.float() / 255, or, if it takes integers, pf.Function(lambda x: x.float(), name='input')"
        )
    if probe_set.fit_inputs.is_complex():
        warn(
            f"the samples are {probe_set.fit_inputs.dtype}, so they are not decoded themselves: pf.Function(lambda x: "
            "torch.view_as_real(x).flatten(1)) decodes both parts"
        )
    return targets


def warn_of_classes(targets: TargetMatrix, options: Mapping[str, Any]) -> None:
    """Warn of targets of many classes, or of one that nearly all samples have, unless a classifier was chosen."""
    classes = [block for block in targets.blocks if block.kind == "classes"] if "classifier" not in options else []
    if one := [block.name for block in classes if targets.baselines[block.name, "fit", ACCURACY] >= _MOSTLY]:
        warn(
            f"targets {one}: {_MOSTLY:.0%} of fit samples or more are of one class, so accuracy says little about "
            "the others; classifier='balanced' counts all classes alike, 'ridge' silences this warning"
        )
    if many := [block.name for block in classes if block.width > _MANY]:
        warn(
            f"targets {many}: with more than {_MANY} classes the largest one-hot prediction misses classes that lie "
            "between others, the more so the fewer features there are; classifier='lda' does not, 'ridge' silences "
            "this warning"
        )


def warn_of_scales(chosen: Sequence[Target], inputs: Tensor, targets: TargetMatrix) -> None:
    """Warn if some columns of a regression vary so much more than most that they alone determine its fvu.

    Args:
        inputs: [n, f], or series [n, t, c]: where they are decoded, of all times or all channels together.
    """
    decoded = next((target.name for target in chosen if isinstance(target, Input)), None)
    if decoded is not None and inputs.is_floating_point() and inputs.dim() == 2:
        _warn_of_wide(f"target {decoded!r}: columns {{}} of the samples", inputs.float().std(0, correction=0))
    if decoded is not None and inputs.is_floating_point() and inputs.dim() == 3 and min(inputs.shape[1:]) > 1:
        for axis, others in ((1, (0, 2)), (2, (0, 1))):
            deviations = inputs.float().std(others, correction=0)
            _warn_of_wide(f"target {decoded!r}: places {{}} of axis {axis} of the samples", deviations)
    for block in targets.blocks:
        if block.kind == "regression" and block.name != decoded and 1 < block.width == block.stop - block.start:
            both = (own[:, block.start : block.stop] for own in (targets.fit, targets.heldout))
            deviations = torch.stack([torch.linalg.vector_norm(own, dim=0) / len(own) ** 0.5 for own in both]).amax(0)
            _warn_of_wide(f"target {block.name!r}: columns {{}}", deviations)


def _warn_of_wide(what: str, deviations: Tensor) -> None:
    """Warn where some of many numbers [q] scatter much more than most. Args: what: with ``{}`` for their places."""
    usual = deviations[deviations > 0].median() if bool((deviations > 0).any()) else deviations.new_tensor(0.0)
    if wide := (deviations > _WIDER * usual).nonzero().flatten().tolist():
        warn(
            f"{what.format(shown(wide))} scatter more than {_WIDER} times as much as most, so they alone determine its "
            "fvu and its phases: standardise them, or decode a function that does"
        )
