"""Where in its output a model's own predictions are found, and what one number for two classes is."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.errors import ArgumentError
from phasefast.report.reading import read_phases
from tests.quiet import no_warnings

FIT, HELD = 90, 40


class Heads(nn.Module):
    """Gives what ``form`` makes of its input [b, 5] and of a linear layer's output."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any], width: int = 5) -> None:
        super().__init__()
        self.body, self.form = nn.Linear(5, width), form

    def forward(self, x: Tensor) -> Any:
        return self.form(x, self.body(x))


def samples(labels: Callable[[Tensor], Tensor] | None = None, **values: Callable[[Tensor], Tensor]) -> pf.ProbeSet:
    x = torch.randn(FIT + HELD, 5)
    both = {name: (of(x)[:FIT], of(x)[FIT:]) for name, of in values.items()}
    y = None if labels is None else labels(x)
    own = (None, None) if y is None else (y[:FIT], y[FIT:])
    return pf.ProbeSet.from_tensors(x[:FIT], own[0], x[FIT:], own[1], values=both or None)


def of_model(
    form: Callable[[Tensor, Tensor], Any], probe_set: pf.ProbeSet, predicts: str | None, width: int = 5
) -> Any:
    model = Heads(form, width)
    scores = pf.probe(model, probe_set, layers="body", predicts=predicts, alphas=[0.1])
    return scores.filter(layer="model"), model


@pytest.mark.parametrize(
    "form",
    [
        lambda x, z: (torch.ones(16, 5), x),  # a table as large as some batch
        lambda x, z: {"logits": z[:, :4], "value": x},
        lambda x, z: {"loss": x.mean(), "other": [z, {"value": x}]},
        lambda x, z: (z[:, None, :, None, None].expand(-1, 2, -1, 1, 1), x),
        lambda x, z: (z.new_empty(len(z), 0, 5), x),
        lambda x, z: (z[:, None], x),  # with another axis, after which comes the very shape
        lambda x, z: (
            z.to_sparse(),
            z.long(),
            torch.nested.nested_tensor([z[:2], z[:3]], layout=torch.jagged),
            z.double().cfloat(),
            x,
        ),
    ],
)
@pytest.mark.parametrize("batch_size", [None, 16])
def test_a_perfect_prediction_is_found(form: Callable[[Tensor, Tensor], Any], batch_size: int | None) -> None:
    probe_set = samples(value=lambda x: 2 * x - 1)
    model = Heads(lambda x, z: form(2 * x - 1, z))
    with no_warnings():
        scores = pf.probe(model, probe_set, layers="body", predicts="value", batch_size=batch_size)
    found = scores.filter(layer="model").to_arrow().column("value").to_pylist()
    assert len(found) == 4
    assert max(found) < 1e-12


@pytest.mark.parametrize(
    "form",
    [
        lambda x, z: {"logits": x[:, :3], "label": x[:, :3].argmax(1)},
        lambda x, z: {"logits": x[:, :3], "label": x[0, 0]},
        lambda x, z: {"logits": x[:, :3], "label": x[:, 0]},
        lambda x, z: {"label": x[:, :3], "logits": z},
        lambda x, z: {"first": {"label": x[:, :3].argmax(1)}, "second": {"label": x[:, :3]}},
        lambda x, z: (x, {"logits": x[:, :3]}, z[:, :3]),
    ],
)
def test_a_name_counts_where_there_are_numbers_of_classes(form: Callable[[Tensor, Tensor], Any]) -> None:
    with no_warnings():
        rows, _ = of_model(form, samples(lambda x: x[:, :3].argmax(1)), None)
    assert rows.value(metric="accuracy", split="heldout") == 1


@pytest.mark.parametrize("form", [lambda x, z: (x, z), lambda x, z: {"input": x, "out": z}])
def test_inputs_that_are_given_back_are_no_reconstruction(form: Callable[[Tensor, Tensor], Any]) -> None:
    with no_warnings():
        rows, model = of_model(form, probe_set := samples(), "input")
    x = probe_set.heldout_inputs
    with torch.no_grad():
        expected = (model.body(x) - x).square().mean()
    assert rows.value(metric="mse", split="heldout") == pytest.approx(float(expected), rel=1e-5)
    rows, _ = of_model(lambda x, z: x, probe_set, "input")
    assert rows.value(metric="mse", split="heldout") == 0


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_head_of_the_targets_name_is_the_one(name: str) -> None:
    probe_set = samples(a=lambda x: x[:, :2], b=lambda x: x[:, 2:4])
    with no_warnings():
        rows, _ = of_model(lambda x, z: {"a": x[:, :2], "b": x[:, 2:4]}, probe_set, name)
    assert rows.value(metric="fvu", split="heldout") < 1e-12


def test_the_head_of_another_target_is_none() -> None:
    probe_set = samples(a=lambda x: x[:, :2], b=lambda x: x[:, 2:4])
    for form in (lambda x, z: {"a": x[:, :2]}, lambda x, z: {"a": x[:, :2], "c": z}):
        with pytest.raises(ArgumentError, match="predicts='b': the model"):
            of_model(form, probe_set, ["a", "b"])
    labelled = samples(lambda x: (x[:, 0] > 0).long(), sign=lambda x: (x[:, 1] > 0).long())
    with pytest.warns(RuntimeWarning, match="output has no 'label': 'sign' is taken for its prediction, although"):
        rows, _ = of_model(lambda x, z: {"sign": z[:, 0]}, labelled, None)
    assert len(rows)


def test_targets_may_share_a_head() -> None:
    """Such as labels with noise and without, or what a denoising autoencoder gives back."""
    probe_set = samples(a=lambda x: 2 * x[:, :2], b=lambda x: 2 * x[:, :2] + 1)
    with pytest.warns(RuntimeWarning, match=r"predicts: \['a', 'b'\] are all compared with the same tensor"):
        rows, _ = of_model(lambda x, z: 2 * x[:, :2], probe_set, ["a", "b"])
    assert rows.value(target="a", metric="mse", split="heldout") == 0
    assert rows.value(target="b", metric="mse", split="heldout") == pytest.approx(1)

    def twice(x: Tensor, _: Tensor) -> dict[str, Tensor]:
        return dict.fromkeys("ab", 2 * x[:, :2])

    with no_warnings():
        rows, _ = of_model(twice, probe_set, ["a", "b"])
    assert rows.value(target="b", metric="mse", split="heldout") == pytest.approx(1)
    labelled = samples(lambda x: x[:, :3].argmax(1), logits=lambda x: x[:, :3] + 1)
    with pytest.warns(RuntimeWarning, match="although that is the name of another target"):
        rows, _ = of_model(lambda x, z: {"logits": x[:, :3]}, labelled, None)
    assert rows.value(metric="accuracy", split="heldout") == 1


def test_what_begins_as_the_identity_gives_nothing_back() -> None:
    """Only the very inputs are what is given back."""
    forms: list[Callable[[Tensor, Tensor], Any]] = [
        lambda x, z: {"out": x + 0 * z, "hidden": z},
        lambda x, z: {"input": x.flatten(), "out": x + 0 * z, "hidden": z.double()},
        lambda x, z: {"input": x + 0 * z, "out": z},
        lambda x, z: (x.view(-1, 5, 1), x + 0 * z),
    ]
    for form in forms:
        rows, _ = of_model(form, samples(), "input")
        assert rows.value(metric="mse", split="heldout") == 0


def test_several_heads_of_a_shape_are_told() -> None:
    probe_set = samples(a=lambda x: x[:, :2], b=lambda x: x[:, 2:4])
    with pytest.warns(RuntimeWarning, match="output has 2 tensors that may be what it predicts for 'b': the first is"):
        rows, _ = of_model(lambda x, z: (x[:, :2], x[:, 2:4]), probe_set, "b")
    assert rows.value(metric="fvu", split="heldout") > 1
    classes = samples(lambda x: x[:, :3].argmax(1))
    with pytest.warns(RuntimeWarning, match="output has 2 tensors that may be what it predicts for 'label'"):
        of_model(lambda x, z: (z[:, :3], x[:, :3]), classes, None)
    with no_warnings():
        rows, _ = of_model(lambda x, z: (z[:, :4], x[:, :3]), classes, None)
    assert rows.value(metric="accuracy", split="heldout") == 1


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize(
    ("form", "share"),
    [
        (lambda z: z, False),
        (torch.sigmoid, True),
        (lambda z: z.sigmoid().clamp(1e-6, 1 - 1e-6), True),
        (lambda z: nn.functional.sigmoid(z).double(), True),
        (nn.Sigmoid(), True),
        (nn.Hardsigmoid(), True),
        (lambda z: torch.cat([z, -z], 1).softmax(1)[:, 1:], True),
        (lambda z: z.sigmoid().type(torch.float64), True),
        (lambda z: z * torch.sigmoid(z), False),
        (lambda z: z.sigmoid().bfloat16().double(), True),
        (lambda z: torch.stack([z.sigmoid(), (2 * z).sigmoid()]).mean(0), True),
        (lambda z: _beside(z.sigmoid(), lambda p: (p * (1 - p) / 2 - p**2 + p.sub(1)).mean()), True),
        (lambda z: _beside(z.sigmoid(), lambda p: p.clone().mul_(9)), True),
        (lambda z: z.sigmoid().flatten().flatten().cpu().requires_grad_(False).contiguous()[:, None], True),
        (lambda z: z.sigmoid().squeeze_(1).unsqueeze_(1).detach_().relu_().real, True),
        (lambda z: _beside(z.sigmoid(), lambda p: torch._foreach_mul_([p.clone()], 0.9)[0]), True),
        (lambda z: z.sigmoid().sub_(0.5).mul_(8), False),
        (lambda z: z if z.sigmoid().type() == "torch.FloatTensor" else -z, False),
        (lambda z: operator.imul(operator.isub(z.sigmoid(), 0.5), 8), False),
        (lambda z: z.sigmoid().logit_(), False),
        (lambda z: _changed(z.sigmoid(), z), False),
        (lambda z: (torch.sigmoid(z) @ torch.eye(1).to_sparse().float()) * 4 - 2, False),
        (lambda z: torch.func.vmap(torch.sigmoid)(z) * 4 - 2, False),
    ],
)
def test_one_number_for_two_classes(form: Callable[[Tensor], Tensor], share: bool, squeezed: bool) -> None:
    probe_set = samples(lambda x: (x[:, 0] + 0.5 * x[:, 1] > 0).long())
    with no_warnings():
        rows, model = of_model(lambda _, z: form(z).squeeze(1) if squeezed else form(z), probe_set, None, width=1)
    for split in ("fit", "heldout"):
        with torch.no_grad():
            single = model(getattr(probe_set, f"{split}_inputs")).double().flatten()
        labels = getattr(probe_set, f"{split}_labels")
        loss = nn.BCELoss() if share else nn.BCEWithLogitsLoss()
        expected = float(loss(single, labels.double()))
        assert rows.value(metric="loss", split=split) == pytest.approx(expected, rel=1e-5)
        right = ((single > (0.5 if share else 0)) == labels).double().mean()
        assert rows.value(metric="accuracy", split=split) == pytest.approx(float(right))
    assert rows.to_arrow().column("dim").to_pylist() == [1] * 4


def _beside(share: Tensor, other: Callable[[Tensor], Tensor]) -> Tensor:
    """A share, of which something else is computed too."""
    other(share)
    return share


def _changed(share: Tensor, logits: Tensor) -> Tensor:
    """Logits in the memory of a share."""
    share[:] = logits
    return share


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_numbers_that_look_like_probabilities_are_told(share: float) -> None:
    """Unless they come from a sigmoid they are logits."""
    probe_set = samples(lambda x: (x[:, 0] > x[:, 0].quantile(1 - share)).long())

    def form(x: Tensor, _: Tensor) -> Tensor:
        return 1 / (1 + (2 * (2 * share**0.1 - 1 - x[:, :1])).exp())

    with pytest.warns(RuntimeWarning, match="output for 'label' is one number, here between 0 and 1, which is taken"):
        rows, model = of_model(form, probe_set, None, width=1)
    with torch.no_grad():
        single = model(probe_set.heldout_inputs)[:, 0]
    expected = nn.functional.binary_cross_entropy_with_logits(single, probe_set.heldout_labels.float())
    assert rows.value(metric="loss", split="heldout") == pytest.approx(float(expected), rel=1e-5)


def test_one_number_is_none_of_three_classes() -> None:
    probe_set = samples(lambda x: x[:, :3].argmax(1))
    with pytest.warns(RuntimeWarning, match="the model has 1 output, but target 'label' has 3 classes"):
        rows, _ = of_model(lambda _, z: z, probe_set, None, width=1)
    assert not len(rows)


def test_what_is_asked_for_but_not_predicted_is_refused() -> None:
    probe_set = samples(a=lambda x: x[:, :2], kind=lambda x: x[:, :3].argmax(1))
    with pytest.raises(ArgumentError, match=r"predicts='a': the model gives \[5\] numbers for each sample, but target"):
        of_model(lambda x, z: z, probe_set, "a")
    with pytest.raises(
        ArgumentError, match="predicts='kind': the model has 5 outputs, but target 'kind' has 3 classes"
    ):
        of_model(lambda x, z: z, probe_set, "kind")


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e8, 1e300])
def test_float64_logits_keep_their_digits(offset: float) -> None:
    """Such as joint log-likelihoods, which have much in common."""
    probe_set = samples(lambda x: x[:, :3].argmax(1))
    rows, model = of_model(lambda _, z: 3 * z.double() + offset, probe_set, None, width=3)
    with torch.no_grad():
        logits = 3 * model.body(probe_set.heldout_inputs).double() + offset
    expected = nn.functional.cross_entropy(logits, probe_set.heldout_labels)
    np.testing.assert_allclose(rows.value(metric="loss", split="heldout"), float(expected), rtol=1e-6)
    right = (logits.argmax(1) == probe_set.heldout_labels).double().mean()
    assert rows.value(metric="accuracy", split="heldout") == pytest.approx(float(right))


def test_predictions_that_some_batches_lack_are_lost_alone() -> None:
    probe_set = samples(value=lambda x: x)
    model = Heads(lambda x, z: z if len(x) < 20 else z[:, :4])
    with pytest.warns(RuntimeWarning, match="layer 'model': its output has predictions of 'value' for 0 of 90"):
        scores = pf.probe(model, probe_set, layers="body", predicts="value")
    assert scores.values_of("layer") == ["body"]


class Tasks(nn.Module):
    """Three heads: classes, one logit, and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.body(x)
        return {"kind": z[:, :3], "sign": z[:, 3], "size": z[:, 4:]}


def of_tasks() -> pf.ProbeSet:
    return samples(
        kind=lambda x: x[:, :3].argmax(1), sign=lambda x: (x[:, 3] > 0).long(), size=lambda x: x.square().sum(1)
    )


def test_all_heads_are_scored_at_once(tmp_path: Path) -> None:
    """As they are one by one, whichever are there already."""
    model, probe_set = Tasks(), of_tasks()
    names = ["kind", "sign", "size"]
    how: dict[str, Any] = {"layers": "body", "alphas": [0.1]}
    with no_warnings():
        scores = pf.probe(model, probe_set, predicts=names, **how)
        alone = {name: pf.probe(model, probe_set, predicts=name, **how).filter(layer="model") for name in names}
    rows = scores.filter(layer="model")
    assert rows.values_of("target") == names
    for name in names:
        for column in ("metric", "value", "dim", "samples"):
            own, other = (each.to_arrow().column(column) for each in (rows.filter(target=name), alone[name]))
            assert own.equals(other), (name, column)
    with torch.no_grad():
        sign = model(probe_set.heldout_inputs)["sign"]
    expected = nn.functional.binary_cross_entropy_with_logits(sign, probe_set.heldout_values["sign"].float())
    assert rows.value(target="sign", metric="loss", split="heldout") == pytest.approx(float(expected), rel=1e-5)
    sweep = {"out": tmp_path, **how}
    pf.sweep(model, {0: model.state_dict()}, probe_set, predicts="sign", **sweep)
    added = pf.sweep(model, {0: model.state_dict()}, probe_set, predicts=names, **sweep).filter(layer="model")
    assert sorted(added.to_arrow().column("value").to_pylist()) == sorted(rows.to_arrow().column("value").to_pylist())


@pytest.mark.parametrize(
    ("predicts", "words"),
    [
        (["kind", "none"], "predicts: 'none' stands alone, got"),
        (iter(["kind", "nothing"]), "predicts: expected one of the targets .*, got 'nothing'"),
        (["kind", 3], r"predicts: expected the name of a target, got \['kind', 3\]"),
        ({"kind"}, "predicts: expected a list"),
        (
            ["kind", "input"],
            "predicts='input': the model gives .* numbers for each sample, but target 'input' has",
        ),
    ],
)
def test_names_of_heads_that_cannot_be_are_refused(predicts: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        pf.probe(Tasks(), of_tasks(), predicts=predicts, layers="body")


def test_a_target_is_added_where_another_ones_predictions_are_lost(tmp_path: Path) -> None:
    probe_set = of_tasks()
    how: dict[str, Any] = {"layers": "body", "alphas": [0.1], "out": tmp_path}
    calls: list[int] = []

    class Half(nn.Module):
        """With a head that is not finite."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(5, 5), nn.Linear(5, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            calls.append(len(x))
            return {"size": self.body(x)[:, 4:], "sign": self.head(x)}

    half = Half()
    half.head.bias.data[:] = torch.inf
    states = {0: half.state_dict()}
    with pytest.warns(RuntimeWarning, match="left out 1 at step 0: layer 'model': NaN or Inf in the model's outputs"):
        scores = pf.sweep(half, states, probe_set, predicts="sign", **how)
    assert not len(scores.filter(layer="model"))
    for predicts in ("size", ["sign", "size"], "sign"):
        del calls[:]
        scores = pf.sweep(half, states, probe_set, predicts=predicts, **how)
        assert scores.filter(layer="model").values_of("target") == ["size"]
        assert (max(calls, default=0) > 20) == (predicts == "size")
    assert pf.read_failures(tmp_path)[0].layers.keys() == {"model (sign)"}
    assert pf.PhaseTracker(half, probe_set, predicts="sign", **how).step(0) is not None


@pytest.mark.parametrize("logits", [lambda z: 0 * z, lambda z: z * torch.nan, lambda z: z.clamp(0.1, 0.4)])
def test_numbers_that_need_not_be_probabilities_are_not_told(logits: Callable[[Tensor], Tensor]) -> None:
    """Such as those of a network that is not trained yet, or has diverged."""
    probe_set = samples(lambda x: (x[:, 0] > 0).long())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*one number")
        warnings.filterwarnings("ignore", message=".*NaN or Inf")
        of_model(lambda _, z: logits(z), probe_set, None, width=1)


def test_predictions_that_some_steps_lack_are_told(tmp_path: Path) -> None:
    model, probe_set = Tasks(), of_tasks()
    states = {step: {name: own + 0.1 * step for name, own in model.state_dict().items()} for step in range(3)}
    how: dict[str, Any] = {"layers": "body", "alphas": [0.1], "out": tmp_path}
    pf.sweep(model, states, probe_set, predicts="none", **how)
    pf.sweep(model, {0: states[0]}, probe_set, predicts=["kind", "sign"], **how)
    _, report = read_phases(tmp_path)
    for step in (1, 2):
        words = "['kind', 'sign'] of layers ['model'] was not measured; another sweep may add it"
        assert (report.failed[step].error, report.failed[step].partial) == (words, True)
    pf.sweep(model, states, probe_set, predicts=["kind", "sign"], **how)
    _, report = read_phases(tmp_path)
    assert not report.failed
