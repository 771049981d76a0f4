"""Run the model over the probe set and keep the activations of the chosen layers as rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import ops
from ..algebra.dense import empty
from ..common.hooks import hooked
from ..common.timeline import stage
from ..data.batches import chunk_bounds, model_inputs
from ..data.output_rows import Batch, RowOptions, as_cell, own_rows, width_of
from ..data.token_rows import TokenRows
from ..errors import LayerError, NonFiniteError, PhasefastError
from ..types import Activations, Layer, TakesOutputs

_DIVERGED = "the weights have diverged or overflow in their dtype"
_SHIFT_ROWS = 256  # of the first batch, whose mean is the shift


class Captured(NamedTuple):
    """What the passes over all samples give.

    Attributes:
        cells: of each layer but those that have none, as they hold NaN or Inf, or as the model does not call them on
            every batch. problems: why, by name of these. calls: how often modules were called at most, by name.
    """

    cells: list[Activations]
    problems: dict[str, PhasefastError]
    calls: dict[str, int]


@stage("forward passes")
def capture(
    model: nn.Module,
    layers: Sequence[Layer],
    fit_inputs: Tensor,
    heldout_inputs: Tensor,
    folds: Sequence[int],
    batch_size: int,
    options: RowOptions,
    device: torch.device,
    tokens: Mapping[str, TokenRows] | None = None,
    own: Sequence[TakesOutputs] = (),
) -> Captured:
    """Activations of layers in one pass over the fit and one over the held-out inputs.

    Args:
        fit_inputs: [n, ...]. heldout_inputs: [m, ...]. folds: k + 1 row offsets, whose sums are kept apart.
        tokens: by split, which tokens are rows, where each is one. own: get the model's own predictions.
    """
    samples = {"fit": fit_inputs, "heldout": heldout_inputs}
    n, m = (len(inputs if tokens is None else tokens[split]) for split, inputs in samples.items())
    spools = {(layer.module, layer.call): _Spool(layer, n, m, folds, device, options.dtype) for layer in layers}
    current: dict[str, Any] = {}
    found = Captured([], {}, {})
    of = Batch(0, None, None, options.axes(model, fit_inputs), device, fit_inputs.shape)

    def record(name: str, call: int, module: nn.Module, output: Any) -> None:
        found.calls[name] = max(found.calls.get(name, 0), call + 1)
        if (spool := spools.get((name, call))) is None or spool.refused is not None:
            return
        try:
            spool.write(*as_cell(name, module, output, of, options, spool.layer.second), **current)
        except LayerError as error:  # such as of an expert, which gets some of the samples
            spool.refused = error

    with hooked(model, sorted({layer.module for layer in layers}), record) as reset:
        for split, inputs in samples.items():
            bounds, split_rows = chunk_bounds(0, len(inputs), batch_size), None if tokens is None else tokens[split]
            for (start, stop), batch in zip(bounds, model_inputs(inputs, bounds, model, device), strict=True):
                of, first, last = replace(of, size=stop - start, real=options.real(batch)), start, stop
                if split_rows is not None:
                    of = replace(of, tokens=split_rows.tokens(start, stop, device))
                    first, last = split_rows.edges[start], split_rows.edges[stop]
                current.update(split=split, start=first, stop=last)
                reset()
                output = model(batch)
                for each in own:
                    if (rows := own_rows(model, output, of, options, each.place)) is not None:
                        each.add(split, first if each.place.of_tokens else start, rows)
                    del rows
                del output
    totals = torch.stack([spool.totals for spool in spools.values()]).tolist() if spools else []
    for spool, (*sums, squares) in zip(spools.values(), totals, strict=True):
        if (problem := spool.problem(dict(zip(samples, map(math.isfinite, sums), strict=True)))) is None:
            found.cells.append(spool.finish(squares))
        else:
            found.problems[spool.layer.name] = problem
    return found


class _Spool:
    """The rows of one layer while they arrive."""

    def __init__(
        self, layer: Layer, n: int, m: int, folds: Sequence[int], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.layer, self.folds = layer, tuple(folds)
        self.refused: LayerError | None = None
        self.rows = {split: empty((count, layer.dim), dtype, device) for split, count in (("fit", n), ("heldout", m))}
        self.written = {"fit": 0, "heldout": 0}
        self.shift: Tensor | None = None
        self.sums = torch.zeros(len(folds) - 1, layer.dim, dtype=torch.float64, device=device)
        self.heldout_sum, self._squares = torch.zeros(2, layer.dim, dtype=torch.float64, device=device)

    def write(self, x: Tensor, pool: int, split: str, start: int, stop: int) -> None:
        """Append one batch; the first one's mean becomes the shift, so that sums of squares do not cancel.

        Where it is within one standard deviation of zero little cancels, and the activations are kept unrounded.
        """
        rows = self.rows[split][start:stop]
        if (width := width_of(x, pool)) != self.layer.dim:
            raise LayerError(
                f"layer {self.layer.name!r}: expected {self.layer.dim} features of each sample, as at first, got "
                f"{width}; if the network has changed, probe the part that stays; if it cuts sequences to the longest "
                "of a batch, turn that off"
            )
        if self.shift is None:
            zero = torch.zeros(self.layer.dim, dtype=torch.float32, device=rows.device)
            first, square = torch.zeros_like(self.heldout_sum), torch.zeros_like(self.heldout_sum)
            # bfloat16 would round what is far from zero before its mean is known.
            some = rows[:_SHIFT_ROWS]
            some = some if some.dtype != torch.bfloat16 else torch.empty_like(some, dtype=torch.float32)
            ops.capture([x[:_SHIFT_ROWS]], [zero], [pool], [some], [first], [square])
            mean = torch.nan_to_num(first / len(some), 0, 0, 0)
            close = mean.square() <= square / len(some) - mean.square()
            self.shift = torch.where(close, 0, mean).float()
        inner = [edge for edge in self.folds if start < edge < stop] if split == "fit" else []
        for begin, end in itertools.pairwise([start, *inner, stop]):
            fold = sum(edge <= begin for edge in self.folds[1:-1])
            total = self.sums[fold] if split == "fit" else self.heldout_sum
            part = slice(begin - start, end - start)
            ops.capture([x[part]], [self.shift], [pool], [rows[part]], [total], [self._squares])
        self.written[split] += stop - start

    @property
    def totals(self) -> Tensor:
        """[3]: NaN or Inf where one of the fit rows, and where one of the held-out rows, holds such; sum of squares."""
        return torch.stack([self.sums.sum(), self.heldout_sum.sum(), self._squares.sum()])

    def problem(self, finite: Mapping[str, bool]) -> PhasefastError | None:
        """Why the rows cannot be used; None where they can. Args: finite: by split, whether its rows are."""
        if self.refused is not None:
            return self.refused
        for split, rows in self.rows.items():
            if self.written[split] != len(rows):
                return LayerError(
                    f"layer {self.layer.name!r}: its hook fired for {self.written[split]} of {len(rows)} {split} rows; "
                    "the model does not call it on every batch"
                )
            if not finite[split]:
                bad, only = (~torch.isfinite(rows)).any(0), bool((torch.isfinite(rows) | torch.isneginf(rows)).all())
                what, why = ("-Inf", "as masks have") if only else ("NaN or Inf", _DIVERGED)
                return NonFiniteError(
                    f"layer {self.layer.name!r}: {what} in {int(bad.sum())} of {self.layer.dim} features on the "
                    f"{split} rows; {why}"
                )
        return None

    def finish(self, squares: float) -> Activations:
        assert self.shift is not None
        fit, heldout = self.rows["fit"], self.rows["heldout"]
        of_one = squares / (fit.numel() + heldout.numel())
        rounded = fit.dtype == torch.bfloat16
        return Activations(self.layer, fit, heldout, self.shift, self.sums, rounded=rounded, mean_square=of_one)
