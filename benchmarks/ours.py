"""Our side of a cell: all that benchmarks know of the package's inner stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from opponents import CLASSES, Data
from torch import Tensor

from phasefast import decoding, ops
from phasefast.algebra.dense import empty
from phasefast.algebra.systems import Penalties
from phasefast.algebra.workspace import Workspace
from phasefast.data.target_types import Input, Label
from phasefast.decoding import Method
from phasefast.scoring import score_cells
from phasefast.stages.plan import Cost, routes
from phasefast.stages.targets import build_targets
from phasefast.types import Activations, Layer, Score

_BATCH = 256


def _captured(rows: Tensor, shift: Tensor, edges: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows less a shift, and their sums over folds, as the engine captures them."""
    out = empty(rows.shape, dtype, rows.device)
    sums = torch.zeros(len(edges) - 1, rows.shape[1], dtype=torch.float64, device=rows.device)
    for total, start, stop in zip(sums, edges, edges[1:], strict=False):
        squares = torch.zeros_like(total)
        ops.capture([rows[start:stop]], [shift], [0], [out[start:stop]], [total], [squares])
    return out, sums


class Cell:
    """Rows and targets as the engine has them; what all cells of a sweep share is made here, before any timing.

    Args:
        inputs, labels: of the n fit and the m held-out rows, one after another; no labels: the input alone.
    """

    def __init__(self, fit: Tensor, heldout: Tensor, inputs: Tensor, labels: Tensor | None, alphas: Sequence[float]):
        n = len(fit)
        self.fit, self.heldout, self.penalties = fit, heldout, Penalties(tuple(alphas))
        wanted = [Input()] if labels is None else [Input(), Label(CLASSES)]
        splits = [(inputs[part], None if labels is None else labels[part]) for part in (slice(n), slice(n, None))]
        self.chosen: dict[str, float] = {}  # the penalty of the last ``error``, by precision
        self.targets = build_targets(wanted, *splits, Method(self.penalties).folds(n), fit.device)
        self._workspace = Workspace()  # as an engine has one

    @classmethod
    def of(cls, data: Data, alphas: Sequence[float]) -> Cell:
        """The cell whose opponents get ``data``."""
        both = torch.cat([data.fit_targets, data.heldout_targets])
        inputs, labels = both.split([data.inputs, both.shape[1] - data.inputs], 1)
        return cls(data.fit, data.heldout, inputs, labels.argmax(1), alphas)

    def costs(self, splits: str = "both") -> list[Cost]:
        """Of all routes that can serve the cell, the planner's choice first."""
        problem = Method(self.penalties, splits=splits).problem(len(self.heldout), self.targets)
        return routes(self.fit.shape[1], problem)

    def routes(self, splits: str) -> dict[str, dict[str, Any]]:
        """Arguments of ``scores`` by route, the planner's choice first."""
        forced: dict[str, dict[str, Any]] = {}
        for cost in self.costs(splits):
            route = "target-free" if cost.target_free else "eigen" if cost.eigen else cost.features
            forced.setdefault(route, {"route": route, "splits": splits})
        return forced

    def scores(self, precision: str = "exact", layers: int = 1, **method: Any) -> list[Score]:
        """Decode and score the cell, as if several layers had its rows."""
        how = Method(self.penalties, precision, **method)
        narrow = precision == "fast" and ops.bfloat16_is_fast(self.fit.device)
        shift, dtype = self.fit[:_BATCH].mean(0), torch.bfloat16 if narrow else torch.float32
        with self._workspace:
            fit, sums = _captured(self.fit, shift, self.targets.folds, dtype)
            heldout, _ = _captured(self.heldout, shift, (0, len(self.heldout)), dtype)
            cells = [
                Activations(Layer(f"layer{i}", "layer", 0, fit.shape[1]), fit, heldout, shift, sums, rounded=narrow)
                for i in range(layers)
            ]
            return list(score_cells(cells, self.targets, how))

    def error(self, precision: str = "exact") -> float:
        """Held-out fraction of variance of the input that stays unexplained."""
        scores = self.scores(precision)
        found = next(score for score in scores if (score.split, score.metric) == ("heldout", "fvu"))
        self.chosen[precision] = found.fit.alpha
        return found.value

    def without_choosing(self) -> Callable[[], float]:
        """``error``, given the penalties that it chooses elsewhere, but no factors of them."""
        work, found = decoding._Work, []
        choose = work._choose
        with patch.object(work, "_choose", lambda own: found.append(choose(own)) or found[-1]):
            self.error()
        given = replace(found[-1], factors={})

        def run() -> float:
            with patch.multiple(work, _choose=lambda _: given, _choose_on_sample=lambda *_: None):
                return self.error()

        return run
