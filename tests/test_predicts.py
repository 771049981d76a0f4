"""The model's own errors, by ``predicts=``: of reconstructions, of numbers, of classes among the values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.errors import ArgumentError, StoreError
from tests.quiet import no_warnings

FIT, HELD = 90, 40


class Autoencoder(nn.Module):
    """Gives its input back, in ``shape``, beside its code."""

    def __init__(self, shape: tuple[int, ...] = (2, 8, 8)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(128, 8), nn.ReLU())
        self.decoder = nn.Linear(8, 128)
        self.shape = shape

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encoder(x)
        return self.decoder(code).view(-1, *self.shape), code


def images(**values: Any) -> pf.ProbeSet:
    torch.manual_seed(1)
    return pf.ProbeSet.from_tensors(
        torch.rand(FIT, 2, 8, 8) + 3, None, torch.rand(HELD, 2, 8, 8) + 3, None, values=values or None
    )


def fvu(outputs: Tensor, expected: Tensor, fit: Tensor) -> tuple[np.ndarray, float]:
    """Per sample and in all, in float64."""
    wrong = (outputs.double().flatten(1) - expected.double().flatten(1)).square().sum(1)
    around = (expected.double().flatten(1) - fit.double().flatten(1).mean(0)).square().sum()
    return (wrong * len(wrong) / around).numpy(), float(wrong.sum() / around)


@pytest.mark.parametrize("shape", [(2, 8, 8), (128,), (1, 2, 8, 8)])
@pytest.mark.parametrize("options", [{}, {"batch_size": 7}, {"target_components": 3}, {"splits": "heldout"}])
def test_an_autoencoder_has_the_error_of_its_reconstructions(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    model, probe_set = Autoencoder(shape), images()
    with no_warnings():
        scores = pf.probe(model, probe_set, predicts="input", **options)
    for split in ("fit", "heldout"):
        inputs = getattr(probe_set, f"{split}_inputs")
        with torch.no_grad():
            outputs, _ = model(inputs)
        samples, whole = fvu(outputs, inputs, probe_set.fit_inputs)
        own = scores.filter(layer="model", split=split, target="input")
        np.testing.assert_allclose(own.value(metric="fvu"), whole, rtol=1e-5)
        expected = (outputs.flatten(1) - inputs.flatten(1)).double().square().mean()
        np.testing.assert_allclose(own.value(metric="mse"), float(expected), rtol=1e-5)
        if split == "heldout":
            row = own.filter(metric="fvu").to_arrow().to_pylist()[0]
            np.testing.assert_allclose(row["samples"], samples, rtol=1e-4)
            assert (row["dim"], row["n"]) == (128, HELD)
    assert "'model'" not in str(scores)  # among those that do worse than a constant


@pytest.mark.parametrize("shape", [(8, 8, 2), (2, 64), (128, 1, 1)])
def test_images_of_other_axes_are_not_compared(shape: tuple[int, ...]) -> None:
    flat = sum(side > 1 for side in shape) < 2
    pattern = "" if flat else r"the model gives \[.*\] numbers for each sample, but target 'input' has \[2, 8, 8\]"
    if flat:
        scores = pf.probe(Autoencoder(shape), images(), predicts="input", layers="encoder")
    else:
        with pytest.warns(RuntimeWarning, match=pattern):
            scores = pf.probe(Autoencoder(shape), images(), predicts="input", layers="encoder")
    assert bool(len(scores.filter(layer="model"))) == flat


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize("scale", [torch.float64, torch.int64])
def test_a_regression_has_the_error_of_its_predictions(squeezed: bool, scale: torch.dtype) -> None:
    years = tuple((1e6 + 50 * torch.randn(n, dtype=torch.float64)).to(scale) for n in (FIT, HELD))
    probe_set = images(year=years)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 1), nn.Flatten(0) if squeezed else nn.Identity())
    model[1].bias.data.fill_(1e6)
    target = probe_set.target("year", kind="regression")
    scores = pf.probe(model, probe_set, targets=[target, "input"], predicts="year", layers="1")
    with torch.no_grad():
        outputs = model(probe_set.heldout_inputs).reshape(-1, 1)
    of_fit, of_held = (own.double() for own in (probe_set.fit_values["year"], probe_set.heldout_values["year"]))
    samples, whole = fvu(outputs, of_held[:, None], of_fit[:, None])
    own = scores.filter(layer="model", metric="fvu", split="heldout")
    np.testing.assert_allclose(own.value(), whole, rtol=1e-6)
    np.testing.assert_allclose(own.to_arrow().column("samples")[0].as_py(), samples, rtol=1e-5)


def test_classes_among_the_values_can_be_what_is_predicted() -> None:
    kinds = tuple(torch.randint(3, (n,)) for n in (FIT, HELD))
    probe_set = images(kind=kinds)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 3))
    labelled = pf.ProbeSet(
        probe_set.fit_inputs, probe_set.fit_values["kind"], probe_set.heldout_inputs, probe_set.heldout_values["kind"]
    )
    own = pf.probe(model, probe_set, predicts="kind", targets="kind").filter(layer="model")
    usual = pf.probe(model, labelled, targets="label").filter(layer="model")
    assert [row["value"] for row in own.to_arrow().to_pylist()] == [
        row["value"] for row in usual.to_arrow().to_pylist()
    ]
    assert len(own) == 4


def test_tokens_are_predicted_one_by_one() -> None:
    torch.manual_seed(0)
    fit, held = torch.randn(FIT, 5, 3), torch.randn(HELD, 5, 3)
    fit[::3, 3:] = 0
    held[::4, 4:] = 0
    probe_set = pf.ProbeSet.from_tensors(fit, None, held, None)
    model = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 3))
    scores = pf.probe(model, probe_set, predicts="input", tokens="each", padding=0)
    real = (probe_set.heldout_inputs != 0).any(-1)
    with torch.no_grad():
        wrong = (model(probe_set.heldout_inputs) - probe_set.heldout_inputs)[real].double().square()
    mean = probe_set.fit_inputs[(probe_set.fit_inputs != 0).any(-1)].double().mean(0)
    around = (probe_set.heldout_inputs[real].double() - mean).square().sum()
    own = scores.filter(layer="model", metric="fvu", split="heldout")
    np.testing.assert_allclose(own.value(), float(wrong.sum() / around), rtol=1e-5)
    row = own.to_arrow().to_pylist()[0]
    assert len(row["samples"]) == HELD
    np.testing.assert_allclose(np.mean(row["samples"]), row["value"], rtol=1e-5)
    with pytest.warns(RuntimeWarning, match="the model's output is for samples, but target 'input' for their tokens"):
        pf.probe(_Pooled(model), probe_set, predicts="input", tokens="each", padding=0, layers="whole.*")


class _Pooled(nn.Module):
    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.whole(x).mean(1)
        return found


def test_outputs_that_are_no_numbers_are_lost_alone() -> None:
    model = Autoencoder()
    model.decoder.bias.data[0] = torch.inf
    with pytest.warns(RuntimeWarning, match="layer 'model': NaN or Inf in the model's outputs"):
        scores = pf.probe(model, images(), predicts="input", layers="encoder")
    assert set(scores.values_of("layer")) == {"encoder"}


def test_what_is_no_target_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"predicts: expected one of the targets \['input'\], got 'age'"):
        pf.probe(Autoencoder(), images(), predicts="age")
    with pytest.raises(ArgumentError, match="predicts: expected the name of a target, got 3"):
        pf.probe(Autoencoder(), images(), predicts=3)  # type: ignore[arg-type]


def test_a_sweep_keeps_what_is_predicted_and_draws_it(tmp_path: Path) -> None:
    model = Autoencoder()
    states = {step: {name: own * (1 + 0.05 * step) for name, own in model.state_dict().items()} for step in range(4)}
    scores = pf.sweep(model, states, images(), out=tmp_path, predicts="input")
    assert scores.has_curve("model", "input", "fvu")
    figure = pf.plot_phases(scores)
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert "model" in texts
    with pytest.raises(StoreError, match='predicts stored "input", now null'):
        pf.sweep(model, states, images(), out=tmp_path)
