"""The model's own errors, by ``predicts=``: of reconstructions, of numbers, of classes among the values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent

import phasefast as pf
from phasefast.errors import ArgumentError
from phasefast.report.curves import telling_layers
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
    assert "'model'" not in str(scores)  # among the layers that do worse than a constant
    assert "input fvu of the model itself above 1: it is not trained yet, or predicts other numbers" in str(scores)


@pytest.mark.parametrize("shape", [(8, 8, 2), (2, 64), (128, 1, 1)])
def test_images_of_other_axes_are_not_compared(shape: tuple[int, ...]) -> None:
    flat = sum(side > 1 for side in shape) < 2
    pattern = "" if flat else r"the model gives \[.*\] numbers for each sample, but target 'input' has \[2, 8, 8\]"
    if flat:
        scores = pf.probe(Autoencoder(shape), images(), predicts="input", layers="encoder")
        assert len(scores.filter(layer="model"))
    else:
        with pytest.raises(ArgumentError, match="predicts='input': " + pattern):
            pf.probe(Autoencoder(shape), images(), predicts="input", layers="encoder")


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


@pytest.mark.parametrize("form", ["column", "more classes", "one-hot"])
def test_classes_are_numbered_as_they_are_given(form: str) -> None:
    kinds = tuple(torch.randint(3, (n,)) for n in (FIT, HELD))
    given = tuple(own[:, None] for own in kinds) if form == "column" else kinds
    probe_set, classes = images(kind=given), 5 if form == "more classes" else 3
    target: Any = probe_set.target("kind", kind="classes", num_classes=classes)
    if form == "one-hot":
        target = OneHot()
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, classes))
    labelled = pf.ProbeSet(
        probe_set.fit_inputs,
        probe_set.fit_values["kind"].flatten() if form != "one-hot" else probe_set.fit_inputs[:, 0, 0, :3].argmax(1),
        probe_set.heldout_inputs,
        probe_set.heldout_values["kind"].flatten()
        if form != "one-hot"
        else probe_set.heldout_inputs[:, 0, 0, :3].argmax(1),
    )
    own = pf.probe(model, probe_set, predicts=target.name, targets=[target]).filter(layer="model")
    usual = pf.probe(model, labelled, targets=[pf.Label(classes)]).filter(layer="model")
    assert own.to_arrow().column("value").to_pylist() == usual.to_arrow().column("value").to_pylist()


class OneHot:
    """A target of a user's own."""

    name, kind = "largest", "classes"

    def columns(self, fit: Any, heldout: Any) -> tuple[Tensor, Tensor]:
        fit, heldout = (nn.functional.one_hot(own[0][:, 0, 0, :3].argmax(1), 3) for own in (fit, heldout))
        return fit, heldout


def test_of_several_outputs_the_one_that_fits_is_compared() -> None:
    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.pi, self.value = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 1)

        def forward(self, x: Tensor) -> dict[str, Any]:
            body = self.body(x).tanh()
            return {"pi": Categorical(logits=self.pi(body)), "parts": (body, self.value(body)[:, 0])}

    torch.manual_seed(0)
    x, y = torch.randn(130, 6), torch.randn(130)
    probe_set = pf.ProbeSet.from_tensors(x[:90], None, x[90:], None, values={"return": (y[:90], y[90:])})
    model = Critic()
    own = pf.probe(model, probe_set, predicts="return").filter(layer="model", metric="mse", split="heldout")
    with torch.no_grad():
        expected = (model(probe_set.heldout_inputs)["parts"][1] - probe_set.heldout_values["return"]).square().mean()
    assert own.value() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("form", [Bernoulli, lambda logits: Independent(Bernoulli(logits=logits), 3)])
def test_a_distribution_of_pixels_is_compared_by_its_mean(form: Callable[..., Any]) -> None:
    class Vae(Autoencoder):
        def forward(self, x: Tensor) -> Any:
            logits, _ = super().forward(x)
            return form(logits=logits)

    model, probe_set = Vae(), images()
    own = pf.probe(model, probe_set, predicts="input").filter(layer="model", metric="fvu", split="heldout")
    with torch.no_grad():
        mean = Autoencoder.forward(model, probe_set.heldout_inputs)[0].sigmoid()
    assert own.value() == pytest.approx(fvu(mean, probe_set.heldout_inputs, probe_set.fit_inputs)[1], rel=1e-5)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_outputs_of_equal_size_the_one_of_the_very_shape_is_compared(order: tuple[int, int]) -> None:
    class Beside(Autoencoder):
        def forward(self, x: Tensor) -> Any:
            found, _ = super().forward(x)
            both = torch.zeros(len(x), 128), found
            return both[order[0]], x[:, :0].flatten(1), both[order[1]]

    own = pf.probe(Beside(), images(), predicts="input").filter(layer="model", metric="fvu", split="heldout")
    usual = pf.probe(Autoencoder(), images(), predicts="input").filter(layer="model", metric="fvu", split="heldout")
    assert own.value() == usual.value()


def test_an_output_of_tokens_is_found_behind_one_of_samples() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            found = self.body(x)
            return {"pooled": found.mean(1), "empty": found[:, :, :0], "tokens": found}

    torch.manual_seed(0)
    x, y = torch.randn(130, 6, 4), torch.randn(130, 6, 2)
    probe_set = pf.ProbeSet.from_tensors(x[:90], None, x[90:], None, values={"y": (y[:90], y[90:])})
    model = Both()
    own = pf.probe(model, probe_set, targets="y", predicts="y", tokens="each").filter(layer="model", metric="mse")
    with torch.no_grad():
        expected = (model(probe_set.heldout_inputs)["tokens"] - probe_set.heldout_values["y"]).square().mean()
    assert own.value(split="heldout") == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("tokens", ["last", "cls"])
def test_a_regression_of_sequences_is_compared_at_its_token(tokens: Any) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(130, 6, 4), torch.randn(130, 2)
    probe_set = pf.ProbeSet.from_tensors(x[:90], None, x[90:], None, values={"y": (y[:90], y[90:])})
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    scores = pf.probe(model, probe_set, targets="y", predicts="y", tokens=tokens)
    with torch.no_grad():
        one = model(probe_set.heldout_inputs)[:, -1 if tokens == "last" else 0]
    expected = (one - probe_set.heldout_values["y"]).square().mean()
    own = scores.value(layer="model", metric="mse", split="heldout")
    assert own == pytest.approx(float(expected), rel=1e-5)


def test_tokens_of_wide_numbers_are_compared_as_they_are() -> None:
    """Of as many features as tokens, and with float64 kept."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(5, 5, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.conv(x.mT).mT + 1e9
            return found

    torch.manual_seed(0)
    x = torch.randn(130, 5, 5, dtype=torch.float64)
    y = 1e9 + torch.randn(130, 5, 5, dtype=torch.float64)
    probe_set = pf.ProbeSet.from_tensors(x[:90], None, x[90:], None, values={"y": (y[:90], y[90:])})
    model = Mixed().double()
    scores = pf.probe(model, probe_set, targets="y", predicts="y", tokens="each")
    with torch.no_grad():
        expected = (model(probe_set.heldout_inputs) - probe_set.heldout_values["y"]).square().mean()
    own = scores.value(layer="model", metric="mse", split="heldout")
    assert own == pytest.approx(float(expected), rel=1e-6)


def test_a_run_of_an_autoencoder_is_judged_by_its_last_layer() -> None:
    scores = pf.probe(Autoencoder(), images(), predicts="input")
    assert telling_layers(scores) == ["decoder", "encoder"]


def test_a_run_of_a_regression_is_judged_by_the_layer_before_its_predictions() -> None:
    probe_set = images(place=(torch.rand(FIT, 2), torch.rand(HELD, 2)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 5), nn.Linear(5, 2))
    assert telling_layers(pf.probe(model, probe_set, predicts="place"))[0] == "1"
    assert telling_layers(pf.probe(model, probe_set))[0] == "2"
    wide = nn.Sequential(nn.Flatten(), *(nn.Linear(n, m) for n, m in ((128, 5), (5, 2), (2, 2), (2, 2))))
    assert telling_layers(pf.probe(wide, probe_set, predicts="place"))[0] == "3"


def test_the_first_label_is_what_is_predicted_by_default(tmp_path: Path) -> None:
    net, probe_set = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), images()
    labelled = pf.ProbeSet.from_tensors(
        probe_set.fit_inputs, torch.randint(3, (FIT,)), probe_set.heldout_inputs, torch.randint(3, (HELD,))
    )
    digit = [pf.Label(3, name="digit"), pf.Function(lambda x: x.mean((1, 2, 3)), name="label")]
    one, other = (pf.probe(net, labelled, targets=digit, predicts=name) for name in (None, "digit"))
    assert one.filter(layer="model").values_of("target") == ["digit"]
    loss, same = (each.value(layer="model", metric="loss", split="fit") for each in (one, other))
    assert loss == same


def test_what_is_predicted_can_be_added_to_a_stored_sweep(tmp_path: Path) -> None:
    """In whichever order targets and predictions are asked for."""
    kinds = torch.randint(2, (FIT,)), torch.randint(2, (HELD,))
    probe_set = images(kind=kinds)
    model = Autoencoder()
    states = {step: {name: own * (1 + 0.05 * step) for name, own in model.state_dict().items()} for step in range(2)}
    calls: list[int] = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    how: dict[str, Any] = {"layers": ["encoder"], "out": tmp_path, "alphas": [0.1]}
    for targets, predicts, rows in (
        (["input"], "none", []),
        (["input", "kind"], "none", []),
        (["input"], None, []),
        (["input"], "input", ["input"]),
        (["input"], "none", ["input"]),
    ):
        scores = pf.sweep(model, states, probe_set, targets=targets, predicts=predicts, **how)
        assert scores.filter(layer="model").values_of("target") == rows
        assert len(scores.filter(layer="model")) == 8 * len(rows)  # steps, splits, metrics
    whole = pf.sweep(model, states, probe_set, predicts="input", **how | {"out": tmp_path / "whole"})
    for step in states:
        own = [each.filter(layer="model", step=step).to_arrow().column("value") for each in (scores, whole)]
        assert own[0].equals(own[1])
    del calls[:]
    pf.sweep(model, states, probe_set, targets=["input"], predicts="input", **how)
    assert not calls


def test_an_encoder_is_not_measured_again_for_predictions_that_it_has_not(tmp_path: Path) -> None:
    x, y = torch.randn(130, 6), torch.randint(3, (130,))
    probe_set = pf.ProbeSet.from_tensors(x[:90], y[:90], x[90:], y[90:])
    model, calls = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 7)), []
    with pytest.warns(RuntimeWarning, match="the model has 7 outputs, but target 'label' has 3 classes"):
        pf.sweep(model, {0: model.state_dict()}, probe_set, out=tmp_path)
    model[0].register_forward_hook(lambda *_: calls.append(len(_[1][0])))
    pf.sweep(model, {0: model.state_dict()}, probe_set, out=tmp_path)
    assert not calls or max(calls) < 90  # a look at the first samples


def test_a_resumed_tracker_says_that_steps_lack_what_is_predicted(tmp_path: Path) -> None:
    model, probe_set = Autoencoder(), images()
    pf.PhaseTracker(model, probe_set, out=tmp_path).step(0)
    assert pf.PhaseTracker(model, probe_set, out=tmp_path).step(0) is not None
    assert pf.PhaseTracker(model, probe_set, out=tmp_path, predicts="input").step(0) is None


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
    with pytest.raises(ArgumentError, match="the model's output is for samples, but target 'input' for their tokens"):
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
