"""What cannot be used is refused before any work, by name, whoever asks."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.cli.names import load_model, load_probe_set, load_targets
from phasefast.engine import Engine
from phasefast.errors import ArgumentError, DataError, StoreError, SweepError
from phasefast.options import _BESIDE
from phasefast.stages.plan import memory_budget
from tests.conftest import SmallNet
from tests.quiet import no_warnings


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"run": 3}, "run: expected a str, got int"),
        ({"step": "last"}, "step: expected the number of updates done, an integer >= 0, got 'last'"),
        ({"step": 1.5}, "got 1.5"),
        ({"step": -3}, ">= 0, got -3"),
        ({"memory": -1}, "memory: expected a number of bytes"),
        ({"memory": float("nan")}, "memory: expected a number of bytes"),
        ({"alphas": {1e-3, 1.0}}, "alphas: expected a list, which keeps its"),
        ({"targets": {"input"}}, "targets: expected a list"),
        ({"batchnorm": "none"}, "batchnorm: expected one of"),
        ({"alphas": [True]}, r"alphas: expected one or more finite numbers >= 0, got \(True,\)"),
        ({"alphas": [0.1, -1]}, "alphas: expected one or more finite numbers >= 0"),
        ({"noise": float("inf")}, "noise: expected one or more finite numbers >= 0"),
        ({"route": "fast"}, "route: expected one of"),
        ({"keys": "ema"}, r"unknown option 'keys'; did you mean 'tokens' or 'key', which only some functions take\?$"),
        ({"every": 5}, "unknown option 'every'; it belongs to other functions only$"),
        ({"layer": "conv"}, r"unknown option 'layer'; did you mean 'layers'\?$"),
        ({"colour": 5}, r"unknown option 'colour'; there are \['alphas', "),
    ],
    ids=str,
)
def test_options_of_a_probe(net: SmallNet, probe_set: pf.ProbeSet, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        pf.probe(net, probe_set, layers="conv", **options)


def test_options_of_single_functions_are_known_by_name() -> None:
    functions = pf.probe, pf.sweep, pf.watch, pf.PhaseTracker, pf.reconstruct, pf.plan, pf.fit_decoders
    taken = [each for function in functions for each in inspect.signature(function).parameters.values()]
    assert {each.name for each in taken if each.default is not each.empty} == set(_BESIDE)


@pytest.mark.parametrize("shard", [3, "0/4", (1,), (0, 1.5)])
def test_shards(net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path, shard: Any) -> None:
    with pytest.raises(ArgumentError, match="shard: expected integers"):
        pf.sweep(net, {0: net.state_dict()}, probe_set, out=tmp_path, shard=shard)


@pytest.mark.parametrize("classes", ["3", 3.0, 0, -1, None, True])
def test_classes_of_a_label(classes: Any) -> None:
    with pytest.raises(ArgumentError, match="Label"):
        pf.Label(classes)


@pytest.mark.parametrize(("text", "size"), [("8GB", 8e9), ("8GiB", 2**33), ("1.5 kb", 1500), ("2M", 2e6), ("7", 7)])
def test_sizes_of_memory(text: str, size: float) -> None:
    assert memory_budget(text, torch.device("cpu")) == size


@pytest.mark.parametrize("memory", ["0GB", "", "8 apples", 0, 0.5, -1, float("inf"), float("nan"), True, [8]], ids=str)
def test_sizes_that_are_none(memory: Any) -> None:
    with pytest.raises(ArgumentError, match="memory: expected a number of bytes, or a text such as '8GB'"):
        memory_budget(memory, torch.device("cpu"))
    assert memory_budget(np.int64(8), torch.device("cpu")) == 8


def broken() -> nn.Module:
    return nn.Linear("a", 3)  # type: ignore[arg-type]


def test_errors_of_a_factory_are_its_own() -> None:
    with pytest.raises(TypeError, match="empty"):
        load_model(f"{__name__}:broken")
    with pytest.raises(ArgumentError, match="expected a callable without required arguments"):
        load_model("torch.nn:Linear")


def made_with(width: int, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width, bias))


THING = nn.Sequential(nn.Linear(3, 3))


def test_names_may_be_given_arguments() -> None:
    found = load_model(f"{__name__}:made_with(width=4, bias=False)")
    assert [tuple(own.shape) for own in found.parameters()] == [(4, 3)]
    assert load_model(f"{__name__}:THING") is THING
    for name, words in {
        "made_with": r"or \S+:made_with\(name=value\); missing a required argument: 'width'",
        "made_with(size=4)": "expected arguments that it takes; missing a required argument: 'width'",
        "made_with(4)": "expected plain values by name",
        "made_with(width=open)": "expected plain values by name",
        "made_with(width=4": "expected plain values by name",
        "made_with (1).pt": "expected package.module:callable; module",
        "made_with(width=2.5": "expected plain values by name",
        "made_with(**{'width': 4})": "expected plain values by name",
        "made_with(width=4).half()": "expected plain values by name",
        "THING(width=4)": "expected something that takes arguments, got Sequential",
    }.items():
        with pytest.raises(ArgumentError, match=words):
            load_model(f"{__name__}:{name}")


def test_torchvision_names_may_be_given_arguments() -> None:
    pytest.importorskip("torchvision")
    assert load_model("resnet18(num_classes=7)").fc.out_features == 7  # type: ignore[union-attr]
    with pytest.raises(ArgumentError, match=r"model 'resnet18\(num_clases=7\)': expected arguments that it takes; "):
        load_model("resnet18(num_clases=7)")
    with pytest.raises(ArgumentError, match=r"model 'resnet18\(num_classes=-1\)': expected arguments that it takes; "):
        load_model("resnet18(num_classes=-1)")
    with pytest.raises(
        ArgumentError, match=r"^model 'resnet19': expected package.module:callable or a torchvision name"
    ):
        load_model("resnet19")
    assert load_model(" resnet18 (num_classes=7)").fc.out_features == 7  # type: ignore[union-attr]


def test_files_with_brackets_in_their_names_are_no_calls() -> None:
    with pytest.raises(ArgumentError, match=r"'C:/data .1..pt': expected package.module:callable; No module named 'C'"):
        load_probe_set("C:/data (1).pt")


@pytest.mark.parametrize("window", [1, 1.5])
def test_windows_are_fractions(window: float) -> None:
    with pytest.raises(ArgumentError, match="window: expected a fraction below 1, got"):
        pf.PhaseRules(window=window)


def test_labels_of_regressions_are_given_as_values() -> None:
    inputs = torch.randn(8, 3)
    for labels, classes in (
        (torch.randn(8, 1), ""),
        (torch.arange(8.0) % 2, r"; if they are classes, give labels\.long"),
        (torch.randn(8, 3), "; the order is fit_inputs, fit_labels, heldout_inputs, heldout_labels$"),
    ):
        match = rf"fit_labels: expected integers, got torch.float32; .* values=\{{name: .*samples\)\}}{classes}"
        with pytest.raises(DataError, match=match):
            pf.ProbeSet.from_tensors(inputs, labels, inputs, labels)


def test_a_held_out_class_that_fit_samples_lack_is_told(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    assert probe_set.heldout_labels is not None
    odd = probe_set.heldout_labels.clone()
    odd[3] = 7
    given = pf.ProbeSet.from_tensors(probe_set.fit_inputs, probe_set.fit_labels, probe_set.heldout_inputs, odd)
    with pytest.warns(
        RuntimeWarning, match=r"target 'label' has 8 classes \(up to 2 in fit and 7 in heldout samples\)"
    ):
        pf.probe(net, given, layers="hidden", targets="label")


def test_a_class_of_targets_is_made_one(probe_set: pf.ProbeSet) -> None:
    assert load_targets(["phasefast:Input"], probe_set) == [pf.Input()]
    with pytest.raises(ArgumentError, match="without required arguments"):
        load_targets(["phasefast:Label"], probe_set)
    assert load_targets(["phasefast:Label(num_classes=10)"], probe_set) == [pf.Label(10)]


def test_probe_sets_are_themselves_alone(probe_set: pf.ProbeSet) -> None:
    other = pf.ProbeSet.from_tensors(torch.randn(9, 2), None, torch.randn(9, 2), None)
    assert probe_set == probe_set
    assert probe_set != other
    assert len({probe_set, other}) == 2


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda x: {"pixel_values": x, "label": 1}, DataError, r"sample \d+: expected \(input, label\), got a dict of"),
        (lambda x: (x.tolist(), 1), DataError, r"sample \d+: expected inputs that are tensors, got list"),
        (lambda x: (x, 0.5), DataError, r"sample \d+: expected labels that are integers"),
        (lambda x: (x / 0, 1), DataError, r"fit: expected finite values, got NaN or Inf in sample \d+"),
    ],
)
def test_samples_of_a_data_set_are_named(change: Callable[[Tensor], Any], error: type[Exception], match: str) -> None:
    good = [(torch.ones(3), 0)] * 8
    with pytest.raises(error, match=match):
        pf.ProbeSet.from_dataset([change(torch.ones(3)) for _ in range(8)], good)


@pytest.mark.parametrize("count", ["5", 0.5, 0, 9])
def test_numbers_of_samples(count: Any) -> None:
    with pytest.raises(DataError, match="n_fit: expected between 1 and the 8 samples"):
        pf.ProbeSet.from_dataset([(torch.ones(3), 0)] * 8, [(torch.ones(3), 0)] * 8, n_fit=count)


def test_arrays_and_boolean_labels_are_taken_from_data_sets_and_tensors() -> None:
    numbers = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    of_set = pf.ProbeSet.from_dataset([(row, bool(i % 2)) for i, row in enumerate(numbers)], [(numbers[0] + 1, True)])
    labels = torch.arange(8) % 2 == 1
    given = pf.ProbeSet.from_tensors(torch.from_numpy(numbers), labels, torch.from_numpy(numbers[:1] + 1), labels[1:2])
    for found in (of_set, given):
        assert found.fit_labels is not None
        assert found.fit_labels.dtype == torch.int64
        assert sorted(found.fit_labels.tolist()) == [0] * 4 + [1] * 4
    assert torch.equal(of_set.fit_inputs.sort(0)[0], given.fit_inputs.sort(0)[0])


class Fragile(SmallNet):
    """Its forward breaks for some weights."""

    def forward(self, x: Tensor) -> Tensor:
        if float(self.head.bias.sum()) > 100:
            raise RuntimeError("no convergence")
        return super().forward(x)


def test_an_error_of_the_model_at_one_checkpoint_spares_the_others(probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    states = {step: Fragile().state_dict() for step in range(3)}
    states[1]["head.bias"] += 1000
    with pytest.raises(SweepError, match="1 of 3 checkpoints failed, the other 2 are stored") as caught:
        pf.sweep(Fragile(), states, probe_set, out=tmp_path / "out", layers="conv")
    assert "step 1: RuntimeError: no convergence" in str(caught.value)
    assert pf.read_scores(tmp_path / "out").steps == [0, 2]
    with pytest.raises(SweepError, match="1 of 4 checkpoints failed"):  # nor later ones, in another call
        pf.sweep(Fragile(), {**states, 3: Fragile().state_dict()}, probe_set, out=tmp_path / "out", layers="conv")
    with pytest.raises(RuntimeError, match="no convergence"):  # at the first one it may be the same for all
        pf.sweep(Fragile(), {5: states[1], 6: states[0]}, probe_set, out=tmp_path / "other", layers="conv")


@pytest.mark.parametrize("given", [[1], [1.0], [np.float32(1)], [np.int64(1)], 1, np.array([1.0])], ids=repr)
def test_penalties_are_the_same_of_any_kind_of_number(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path, given: Any
) -> None:
    scores = pf.sweep(net, [net.state_dict()], probe_set, out=tmp_path, layers="conv", alphas=1.0)
    again = pf.sweep(net, [net.state_dict()], probe_set, out=tmp_path, layers="conv", alphas=given)
    assert again.to_arrow().equals(scores.to_arrow())
    with pytest.raises(
        StoreError, match=r"configuration: alphas stored \[1\.0\], now .*; noise stored null, now 1\.0;"
    ):
        pf.sweep(net, [net.state_dict()], probe_set, out=tmp_path, layers="conv", noise=np.float32(1))


def test_a_single_name_is_a_pattern_too(net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    states = {step: SmallNet().state_dict() for step in range(3)}
    scores = pf.sweep(net, states, probe_set, out=tmp_path, layers=["conv", "hidden"], alphas=[0.1])
    (cell,) = pf.detect_phases(scores, layers="hidden", targets="input")
    assert (cell.layer, cell.target) == ("hidden", "input")
    assert scores.select("conv", "label").layers[:1] == ["conv"]
    assert scores.select("!conv").to_arrow().equals(scores.select(["!conv"]).to_arrow())
    assert len(scores.select("!conv").filter(layer="model"))


def test_arguments_of_single_functions(net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    scores = pf.sweep(net, [SmallNet().state_dict()] * 2, probe_set, out=tmp_path, layers="conv", alphas=0.1)
    rows: Any = (probe_set.fit_inputs, None, probe_set.heldout_inputs, None)
    wrong: Any = "60"
    for call, match in (
        (lambda: pf.plan(net, (3, 8, 8), 10.5, 10), "fit: expected a positive number of rows, got 10.5"),  # type: ignore[call-overload]
        (lambda: pf.plan(net, (3, 8, 8), 10, 10, classes=-1), "classes: expected an integer >= 0, got -1"),
        (lambda: pf.plan(net, (3, 0, 8), 10, 10), r"sample: expected positive sizes, got \(3, 0, 8\)"),
        (lambda: pf.watch(net, tmp_path, probe_set, out=tmp_path, every=wrong), "every: .* seconds >= 0, got '60'"),
        (lambda: pf.watch(net, tmp_path, probe_set, out=tmp_path, every=float("nan")), "every: .* got nan"),
        (lambda: pf.detect_phases(scores, confidence=wrong), "confidence='60'"),
        (lambda: pf.detect_phases(scores, replicates=wrong), "replicates='60': expected"),
        (lambda: pf.best_checkpoint(scores, confidence=wrong), "confidence: .* got '60'"),
        (lambda: pf.ProbeSet.from_tensors(*rows, seed=wrong), "seed: expected an integer, got '60'"),
        (lambda: pf.ProbeSet.from_tensors(*rows, seed=2**70), "seed: expected an integer, got 1180"),
        (lambda: pf.plot_phases(scores, wrong), "report: expected PhaseReport, got str; path= names a file"),
        (lambda: pf.plot_phases(pf.PhaseReport(())), "scores: expected Scores, got PhaseReport"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ArgumentError, match=match):
            call()
    assert pf.ProbeSet.from_tensors(*rows, seed=np.int64(3)).digest == pf.ProbeSet.from_tensors(*rows, seed=3).digest
    with pytest.raises(DataError, match="n_fit: expected between 1 and the 2 samples of the dataset, got True"):
        pf.ProbeSet.from_dataset([(torch.ones(2), 0)] * 2, [(torch.ones(2), 0)], n_fit=True)


def test_columns_of_other_units_are_told() -> None:
    torch.manual_seed(0)
    inputs, model = torch.randn(90, 6), nn.Sequential(nn.Linear(6, 4))
    inputs[:, 1], inputs[:, 4] = 3.0, 500 * inputs[:, 4]
    labelled = pf.ProbeSet.from_tensors(inputs[:60], torch.arange(60) % 3, inputs[60:], torch.arange(30) % 3)
    with no_warnings():
        Engine(model, labelled, targets="label")
    for given in (inputs, inputs.clamp(-3, 3), inputs[:, [1, 4]], inputs[:, None]):
        probe_set = pf.ProbeSet.from_tensors(given[:60], None, given[60:], None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Engine(model, probe_set)
        told = ["columns [4] of the samples scatter more than 100 times" in str(each.message) for each in caught]
        assert told == [True] * (given is inputs)


def told_of_scales(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(each.message).partition(" scatter ")[0] for each in caught if " scatter more than 100" in str(each)]


def test_channels_and_values_of_other_units_are_told() -> None:
    torch.manual_seed(0)
    x, noise = torch.randn(90, 7, 3), torch.randn(90, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(21, 4))
    scaled = noise * torch.tensor([1.0, 1e5, 0.5, 2.0])
    jumps = torch.cat([noise[:60] * torch.tensor([1.0, 1.0, 1.0, 0.0]), noise[60:] + torch.tensor([0.0, 0, 0, 900.0])])
    for series, values, expected in (
        (x, noise, []),
        (x * torch.tensor([1e6, 1.0, 1e-3]), noise, ["target 'input': places [0] of axis 2 of the samples"]),
        (
            x * torch.tensor([1.0] * 6 + [300.0])[:, None],
            noise,
            ["target 'input': places [6] of axis 1 of the samples"],
        ),
        (x, scaled, ["target 'values': columns [1]"]),
        (x, jumps, ["target 'values': columns [3]"]),
    ):
        given = {"values": (values[:60], values[60:])}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Engine(model, pf.ProbeSet.from_tensors(series[:60], None, series[60:], None, values=given))
        assert told_of_scales(caught) == expected


def test_inputs_that_lose_digits_in_the_models_type_are_told() -> None:
    torch.manual_seed(0)
    x, model = torch.randn(90, 3, dtype=torch.float64), nn.Sequential(nn.Linear(3, 2))
    x[:, 1] += 1.7e9
    wide, two = nn.Sequential(nn.Linear(3, 2)).double(), nn.Sequential(nn.Linear(2, 2))
    same = x.clone()
    same[:, 1] = 0.1307  # which float32 rounds, but does not vary
    half = nn.Sequential(nn.Linear(2, 2)).bfloat16()
    cases = (
        (x, model, True),
        (x, wide, False),
        (x[:, ::2], two, False),
        (same, model, False),
        (x[:, ::2], half, False),
    )
    for inputs, own, told in cases:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Engine(own, pf.ProbeSet.from_tensors(inputs[:60], None, inputs[60:], None))
        texts = [str(each.message) for each in caught if "lose digits" in str(each.message)]
        assert [text[:55] for text in texts] == ["inputs: 1 of the 3 numbers of a sample vary little besi"] * told


def test_complex_samples_are_not_decoded_in_silence(recwarn: pytest.WarningsRecorder) -> None:
    x = torch.randn(90, 3, dtype=torch.complex64)
    probe_set = pf.ProbeSet.from_tensors(x[:60], torch.arange(60) % 3, x[60:], torch.arange(30) % 3)

    class Parts(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.view_as_real(x).flatten(1))

    scores = pf.probe(nn.Sequential(Parts(6, 3)), probe_set)
    assert scores.targets == ["label"]
    assert [str(each.message)[:48] for each in recwarn] == ["the samples are torch.complex64, so they are not"]


@pytest.mark.parametrize("slow", [True, False])
def test_models_of_16_bits_are_slow_where_the_processor_is(
    net: SmallNet, probe_set: pf.ProbeSet, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["phasefast.configuration"], "halves_are_slow", lambda _: slow)
    for model, told in ((net, False), (SmallNet().to(torch.bfloat16), slow)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Engine(model, probe_set, layers="hidden")
        assert sum("a float32 copy of the model" in str(each.message) for each in caught) == told
