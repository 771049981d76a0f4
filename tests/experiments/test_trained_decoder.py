"""The opponents: they learn, they are repeatable, and they never beat the optimum on its own rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import phasefast as pf
from phasefast.engine import Engine
from phasefast.errors import ArgumentError
from phasefast.experiments.trained_decoder import conv_decoder, exact_decoder, linear_decoder, train_decoder


@pytest.fixture(scope="module")
def engine() -> Engine:
    g = torch.Generator().manual_seed(0)
    latent = torch.randn(500, 6, generator=g)
    images = (latent @ torch.randn(6, 16, generator=g) + 0.3 * torch.randn(500, 16, generator=g)).view(-1, 1, 4, 4)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8))
    data = pf.ProbeSet.from_tensors(images[:400], None, images[400:], None)
    return Engine(model, data, layers=["2"], targets=[pf.Input()])


def test_a_long_training_comes_near_the_exact_decoder(engine: Engine) -> None:
    (cell,) = engine.activations()
    exact = exact_decoder(cell, engine)
    trained = train_decoder(linear_decoder, cell, engine.probe_set, epochs=150, lr=3e-2, weight_decay=0)
    assert exact.heldout_mse < 1.01 * trained.heldout_mse
    assert trained.heldout_mse < 1.1 * exact.heldout_mse
    assert trained.fit_mse > 0.999 * exact.fit_mse
    assert exact.fit_mse == pytest.approx(
        pf.probe(engine.model, engine.probe_set, layers=["2"]).value(split="fit", metric="mse")
    )


def test_training_is_repeatable_and_leaves_the_random_state(engine: Engine) -> None:
    (cell,) = engine.activations()
    state = torch.random.get_rng_state()
    one, two, other = (train_decoder(conv_decoder, cell, engine.probe_set, epochs=1, seed=s) for s in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert one.heldout_mse == two.heldout_mse != other.heldout_mse


@pytest.mark.parametrize("sample", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 5, 9), (1, 1, 1)])
def test_shapes(sample: tuple[int, ...]) -> None:
    for make in (linear_decoder, conv_decoder):
        assert make(12, sample)(torch.randn(3, 12)).shape == (3, *sample)


def test_activations_are_the_rows_that_are_probed(engine: Engine) -> None:
    (cell,) = engine.activations()
    engine.model.eval()
    assert cell.fit.shape == (400, 8)
    rows = cell.fit + cell.shift
    torch.testing.assert_close(rows.mean(0), torch.zeros(8), atol=1e-4, rtol=0)  # BatchNorm's statistics, recomputed
    torch.testing.assert_close(rows.std(0, correction=0), torch.ones(8), atol=1e-2, rtol=0)


def test_rows_and_images_must_belong_together(engine: Engine) -> None:
    (cell,) = engine.activations()
    fewer = pf.ProbeSet.from_tensors(torch.randn(10, 1, 4, 4), None, torch.randn(5, 1, 4, 4), None)
    with pytest.raises(ArgumentError, match=r"'2': expected images \[400"):
        train_decoder(linear_decoder, cell, fewer)
