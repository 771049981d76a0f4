"""Pooled maps: averages of PyTorch's adaptive windows, none of them larger than the map."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import phasefast as pf
from phasefast.engine import Engine


@pytest.mark.parametrize(
    ("shape", "pool", "sizes"),
    [
        ((8, 6), 7, (7, 6)),
        ((1, 6), 4, (1, 4)),
        ((6, 8), 6, (6, 6)),
        ((1, 1, 5), 4, (1, 1, 4)),
        ((3, 4, 5), 2, (2, 2, 2)),
    ],
)
def test_pooling_makes_no_side_larger(shape: tuple[int, ...], pool: int, sizes: tuple[int, ...]) -> None:
    x = torch.randn(60, 3, *shape)
    given = pf.ProbeSet(x[:40], None, x[40:], None)
    engine = Engine(nn.Sequential(nn.Identity()), given, layers="0", pool=pool)
    (cell,) = engine.activations()
    pooled = (nn.functional.adaptive_avg_pool2d if len(shape) == 2 else nn.functional.adaptive_avg_pool3d)(x, sizes)
    torch.testing.assert_close(cell.heldout + cell.shift, pooled[40:].flatten(1))
    assert (
        Engine(engine.model, given, layers="0", pool=None).config_hash
        == Engine(engine.model, given, layers="0").config_hash
    )
    with pytest.warns(RuntimeWarning, match="pool=9 changes nothing"):
        pf.probe(engine.model, given, layers="0", pool=9)
