"""Statistics, penalty and solution of a cell against scikit-learn in float64."""

from __future__ import annotations

import pytest
import torch

from phasefast.engine import decode
from phasefast.stages.evaluate import evaluate
from phasefast.stages.solve import Penalties
from phasefast.stages.targets import Input, build_targets
from tests.oracle import captured, ridge_heldout_error

KINDS = (
    "plain", "wide", "one feature", "dead columns", "duplicated columns", "tiny scale", "huge scale", "mixed scales",
    "offset", "bfloat16", "float16", "strided", "channels last", "one-row batches", "relu",
)  # fmt: skip


def make_cell(kind: str, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Activations and targets of fit and held-out rows, and the batch size they are captured with."""
    g = torch.Generator().manual_seed(seed)
    n, m, p = (int(torch.randint(low, high, (1,), generator=g)) for low, high in ((60, 400), (1, 120), (1, 24)))
    d = {"wide": n + 37, "one feature": 1}.get(kind, int(torch.randint(2, 60, (1,), generator=g)))
    latent = torch.randn(n + m, max(d, p), generator=g)
    a = latent[:, :d] @ (torch.randn(d, d, generator=g) / d**0.5)
    t = latent[:, :p] + 0.3 * torch.randn(n + m, p, generator=g)
    if kind == "dead columns":
        a[:, ::3] = 0.7
    elif kind == "duplicated columns":
        a = torch.cat([a, a, a[:, :1] * 2], 1)
    elif kind in ("tiny scale", "huge scale"):
        a *= 1e-12 if kind == "tiny scale" else 1e12
    elif kind == "mixed scales":
        a[:, 0] *= 1e-12
        a[:, 1] *= 1e12
    elif kind == "offset":
        a += 1e4
    elif kind in ("bfloat16", "float16"):
        a = a.to(getattr(torch, kind))
    elif kind == "strided":
        a = torch.stack([a, a + 1], 2)[:, :, 0]
    elif kind == "channels last":
        a = a.repeat(1, 4).reshape(n + m, d, 2, 2) + 0.1 * torch.randn(n + m, d, 2, 2, generator=g)
        a = a.contiguous(memory_format=torch.channels_last)
    elif kind == "relu":
        a = (a - 0.5).relu()
    batch = 1 if kind == "one-row batches" else 64
    return a[:n], a[n:], t[:n], t[n:], batch


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_heldout_error_matches_scikit_learn(kind: str, seed: int) -> None:
    fit, heldout, t_fit, t_heldout, batch = make_cell(kind, 100 * seed + KINDS.index(kind))
    cell = captured(fit, heldout, batch=batch)
    targets = build_targets([Input()], (t_fit, None), (t_heldout, None), torch.device("cpu"))
    for alpha in (1e-6, 1e-3, 0.1, 3.0):
        (decoder,) = decode([cell], targets, Penalties((alpha,)))
        got = next(s for s in evaluate(cell, decoder, targets) if (s.split, s.metric) == ("heldout", "mse"))
        expected = ridge_heldout_error(fit, heldout, t_fit, t_heldout, alpha) / t_heldout.numel()
        assert got.value == pytest.approx(expected, rel=1e-5), (alpha, decoder.fits[0])
