"""What a probe set holds beside input and label, and data sets of other forms than pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.errors import ArgumentError, DataError
from tests.conftest import SmallNet, images
from tests.quiet import no_warnings

X = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
AGE, KIND = X @ torch.arange(5.0), (X[:, 0] > 0).long()


def made(**values: tuple[Any, Any]) -> pf.ProbeSet:
    return pf.ProbeSet.from_tensors(X[:60], None, X[60:], None, values=values)


def everything() -> pf.ProbeSet:
    both = torch.stack([AGE, -AGE], 1)
    return made(age=(AGE[:60], AGE[60:]), kind=(KIND[:60], KIND[60:]), both=(both[:60], both[60:]))


def test_values_stay_with_their_samples_and_are_decoded_by_default() -> None:
    probe_set = everything()
    torch.testing.assert_close(probe_set.fit_values["age"], probe_set.fit_inputs @ torch.arange(5.0))
    scores = pf.probe(nn.Sequential(nn.Linear(5, 5)), probe_set, alphas=[1e-6])
    assert scores.targets == ["input", "age", "kind", "both"]
    for name in ("age", "both"):
        assert scores.value(layer="0", target=name, metric="fvu", split="heldout") < 1e-6
    assert scores.value(layer="0", target="kind", metric="accuracy", split="heldout") > 0.8
    assert "values ['age', 'both', 'kind']" in repr(probe_set)


def test_kinds_may_be_given() -> None:
    probe_set = everything()
    assert [probe_set.target(name).kind for name in ("age", "kind", "both")] == ["regression", "classes", "regression"]
    target = probe_set.target("kind", kind="regression")
    scores = pf.probe(nn.Sequential(nn.Linear(5, 5)), probe_set, targets=[target])
    assert scores.values_of("metric") == ["mse", "fvu"]
    (fit, _) = probe_set.target("kind", num_classes=4).columns((probe_set.fit_inputs, None), (X[60:], None))
    assert fit.shape == (60, 4)
    with pytest.raises(DataError, match=r"target 'age': expected .b. integers for classes"):
        pf.probe(nn.Sequential(nn.Linear(5, 5)), probe_set, targets=probe_set.target("age", kind="classes"))
    both = pf.Function(lambda x: (x[:, :2] > 0).long(), kind="classes", name="signs")
    with pytest.raises(DataError, match=r"'signs': .* torch.int64 \(60, 2\); for several labels give a target of each"):
        pf.probe(nn.Sequential(nn.Linear(5, 5)), probe_set, targets=both)
    with pytest.raises(ArgumentError, match=r"target 'label': .*; labels are classes: give numbers as values="):
        probe_set.target("label", kind="regression")
    with pytest.raises(ArgumentError, match=r"target 'weight': expected one of the probe set's values, \['age', "):
        probe_set.target("weight")


def test_values_of_another_probe_set_are_refused() -> None:
    other = pf.ProbeSet.from_tensors(X[:60], None, X[60:], None, values={"age": (AGE[:60], AGE[60:])}, seed=1)
    with pytest.raises(DataError, match="target 'age': it belongs to another probe set; call target"):
        pf.probe(nn.Sequential(nn.Linear(5, 5)), everything(), targets=other.target("age"))


def test_values_of_other_held_out_samples_are_refused() -> None:
    other = pf.ProbeSet.from_tensors(X[:60], None, X[60:].flip(0), None, values={"age": (AGE[:60], AGE[60:].flip(0))})
    assert torch.equal(other.fit_inputs, everything().fit_inputs)
    with pytest.raises(DataError, match="target 'age': it belongs to another probe set; call target"):
        pf.probe(nn.Sequential(nn.Linear(5, 5)), everything(), targets=other.target("age"))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8, torch.bool, torch.float8_e4m3fn]
)
def test_numbers_of_any_type_are_taken(dtype: torch.dtype, tmp_path: Path) -> None:
    values = KIND.to(dtype).requires_grad_(dtype.is_floating_point)
    probe_set = made(kind=(values[:60], values[60:]))
    assert probe_set.fit_values["kind"].dtype in (torch.float32, torch.float64, torch.int64)
    assert probe_set.target("kind").kind == ("regression" if dtype.is_floating_point else "classes")
    probe_set.save(tmp_path / "p.pt")
    assert pf.ProbeSet.load(tmp_path / "p.pt").digest == probe_set.digest
    assert hash(probe_set)


@pytest.mark.parametrize("form", [lambda age: age, list, lambda age: age.tolist(), lambda age: (age * 1000).long()])
@pytest.mark.parametrize("offset", [0.0, 1e6, 1e9])
def test_variation_beside_a_large_mean_is_kept(offset: float, form: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    noisy = AGE.double() + torch.randn(90, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(5, 5))
    found = []
    for age in (noisy, noisy + offset):
        probe_set = made(age=(form(age[:60]), form(age[60:])))
        target = probe_set.target("age", kind="regression")
        found.append(pf.probe(model, probe_set, targets=target, alphas=[0.1]).value(metric="fvu", split="heldout"))
    assert found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("form", [lambda x: x[::-1], lambda x: x.astype(">f4"), lambda x: x.astype("<f8")])
def test_arrays_of_any_layout_are_taken(form: Callable[[Any], Any]) -> None:
    kind = form(KIND.numpy())
    labelled = pf.ProbeSet.from_tensors(
        X[:60], kind[:60].astype(kind.dtype.str.replace("f", "i")), X[60:], kind[60:].astype(int)
    )
    assert labelled.fit_labels is not None
    assert labelled.fit_labels.sum() == int(kind[:60].sum())
    age = form(AGE.numpy())
    probe_set = pf.ProbeSet.from_tensors(
        form(X.numpy())[:60], None, form(X.numpy())[60:], None, values={"age": (age[:60], age[60:])}
    )
    found, expected = probe_set.fit_values["age"].double(), probe_set.fit_inputs.double() @ torch.arange(5.0).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [Tensor.numpy, Tensor.tolist, list])
def test_functions_may_give_anything_of_numbers(form: Callable[[Tensor], Any]) -> None:
    torch.manual_seed(0)
    model, probe_set = nn.Sequential(nn.Linear(5, 5)), made()
    target = pf.Function(lambda x: form(x.double() @ torch.arange(5.0).double() + 1e8), name="age")
    (fit, _) = target.columns((probe_set.fit_inputs, None), (probe_set.heldout_inputs, None))
    plain = probe_set.fit_inputs.double() @ torch.arange(5.0).double()
    torch.testing.assert_close(fit[:, 0].double(), plain - plain.mean(), rtol=1e-5, atol=1e-5)
    assert pf.probe(model, probe_set, targets=target, alphas=[1e-6]).value(metric="fvu", split="heldout") < 1e-4


def test_tensors_in_lists_are_taken_as_they_are() -> None:
    own = (AGE.bfloat16().requires_grad_()).unbind()
    probe_set = made(age=(own[:60], own[60:]))
    torch.testing.assert_close(
        probe_set.fit_values["age"], (probe_set.fit_inputs @ torch.arange(5.0)).bfloat16().float()
    )


def test_a_probe_set_is_its_own(tmp_path: Path) -> None:
    age, kind = AGE.clone().numpy(), KIND.clone()
    probe_set = pf.ProbeSet.from_tensors(X[:60], kind[:60], X[60:], kind[60:], values={"age": (age[:60], age[60:])})
    before = probe_set.digest
    age[:], kind[:] = 0, 0
    probe_set.save(tmp_path / "p.pt")
    assert pf.ProbeSet.load(tmp_path / "p.pt").digest == before
    assert int(probe_set.heldout_labels.max()) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "regresion"}, "target 'kind': expected kind 'regression' or 'classes', got 'regresion'"),
        ({"num_classes": 2.5}, "num_classes to be a positive integer, got 2.5"),
        ({"num_classes": 0}, "num_classes to be a positive integer, got 0"),
    ],
)
def test_targets_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        everything().target("kind", **options)
    if "num_classes" in options:
        with pytest.raises(ArgumentError, match=words):
            pf.Function(lambda x: x[:, 0] > 0, kind="classes", **options)


def test_labels_that_are_numbers_of_something_are_refused() -> None:
    probe_set = pf.ProbeSet.from_tensors(X[:60], KIND[:60] * 2_000_000_000, X[60:], KIND[60:])
    with pytest.raises(DataError, match="'label': expected 1000000 classes at most, numbered from 0, got 2000000001"):
        pf.probe(nn.Sequential(nn.Linear(5, 5)), probe_set)
    from_one = pf.ProbeSet.from_tensors(X[:60], KIND[:60] + 1, X[60:], KIND[60:] + 1)
    count = int(KIND.max()) + 1
    with pytest.raises(DataError, match=f"got 1 to {count}; give {count + 1} classes, or labels that begin with 0"):
        pf.probe(nn.Sequential(nn.Linear(5, 5)), from_one, targets=[pf.Label(count)])


def test_numbers_of_a_data_set_keep_their_digits() -> None:
    samples = [(X[i], None, {"t": 1.7e9 + float(AGE[i])}) for i in range(90)]
    probe_set = pf.ProbeSet.from_dataset(samples[:60], samples[60:])
    assert len(probe_set.fit_values["t"].unique()) == 60


def test_only_what_is_decoded_is_warned_of() -> None:
    pairs = torch.arange(180).reshape(90, 2)
    probe_set = made(n=(torch.arange(60), torch.arange(30)), pairs=(pairs[:60], pairs[60:]))
    model = nn.Sequential(nn.Linear(5, 5))
    with no_warnings():
        pf.probe(model, probe_set, targets=["input", probe_set.target("pairs", kind="regression")])
    with pytest.warns(RuntimeWarning, match=r"integers \[n, 2\] are decoded as numbers; for classes") as caught:
        scores = pf.probe(model, probe_set, targets=["input", "pairs"])
    assert len(caught) == 1
    assert scores.targets == ["input", "pairs"]


def test_integers_that_are_hardly_classes_are_told() -> None:
    several = torch.arange(90)
    with pytest.warns(
        RuntimeWarning, match="target 'n': 60 different integers in 60 fit samples are decoded as classes"
    ):
        made(n=(several[:60], several[60:])).target("n")
    model = nn.Sequential(nn.Linear(5, 5))
    for wrong in (several + 1_700_000_000, -several):
        with (
            pytest.warns(RuntimeWarning, match="decoded as classes"),
            pytest.raises(DataError, match=r"target 'n': expected classes from 0 to 999999 .* or kind='regression'"),
        ):
            pf.probe(model, made(n=(wrong[:60], wrong[60:])), targets="n")
    with pytest.raises(
        DataError, match=r"values 'n': expected the same columns and type .* got torch.int64 \(60,\) and"
    ):
        made(n=(several[:60], AGE[60:]))


def test_text_is_left_out_with_a_warning() -> None:
    samples = [(X[i], 0, {"file": f"{i}.png", "age": float(AGE[i])}) for i in range(90)]
    with pytest.warns(RuntimeWarning, match="fit: values 'file' are left out, since they are text"):
        probe_set = pf.ProbeSet.from_dataset(samples[:60], samples[60:])
    assert list(probe_set.fit_values) == ["age"]


def test_saved_and_loaded_and_told_apart(tmp_path: Path) -> None:
    probe_set = everything()
    probe_set.save(tmp_path / "p.pt")
    loaded = pf.ProbeSet.load(tmp_path / "p.pt")
    assert loaded.digest == probe_set.digest
    assert loaded.fit_values.keys() == probe_set.fit_values.keys()
    scores = pf.probe(nn.Sequential(nn.Linear(5, 5)), loaded, targets=loaded.target("age"), alphas=[1e-6])
    assert scores.targets == ["age"]
    assert made(age=(AGE[:60], AGE[60:])).digest != made(age=(AGE[:60] + 1, AGE[60:])).digest
    assert made(age=(AGE[:60], AGE[60:])).digest != made(years=(AGE[:60], AGE[60:])).digest


@pytest.mark.parametrize(
    ("both", "words"),
    [
        ((AGE[:59], AGE[60:]), r"values 'age': expected numbers \[60\] or \[60, q\] like fit_inputs, got .*\(59,\)"),
        ((AGE[:60] / 0, AGE[60:]), "values 'age': expected finite"),
        ((torch.zeros(60, 2, 2), AGE[60:]), r"got torch.float32 \(60, 2, 2\)"),
        ((AGE[:60],), r"values: expected {name: \(of fit, of held-out samples\)}, got 1 parts for 'age'"),
        ((AGE[:60], AGE[60:], AGE), "got 3 parts for 'age'"),
        ({"fit": AGE[:60], "heldout": AGE[60:]}, "got dict for 'age'"),
        (5, "got int for 'age'"),
        (
            (AGE[:60].to_sparse(), AGE[60:]),
            "values 'age': expected real numbers in a dense tensor, got torch.float32",
        ),
        ((AGE[:60].cfloat(), AGE[60:]), "values 'age': expected real numbers .*, got torch.complex64"),
        ((np.full(60, 2**63 + 5, np.uint64), KIND[60:]), "values 'age': expected integers below 2.63, got larger ones"),
        ((["3", "4"] * 30, AGE[60:]), "values 'age': expected numbers, got text"),
        (([AGE[0]] * 5 + [None] * 55, AGE[60:]), r"got Tensor torch.Size\(\[\]\) and, at 5, NoneType"),
    ],
)
def test_values_that_cannot_be_are_named(both: tuple[Any, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        made(age=both)
    for wrong in ([("age", both)], {5: both}):
        with pytest.raises(DataError, match=r"values: expected {name: "):
            pf.ProbeSet.from_tensors(X[:60], None, X[60:], None, values=wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"values \['label'\]: expected other names, since these mean the inputs and"):
        made(label=(AGE[:60], AGE[60:]))


@pytest.mark.parametrize(
    ("sample", "labels", "names"),
    [
        (lambda i: X[i], False, []),
        (lambda i: (X[i], None), False, []),
        (lambda i: [X[i], np.int64(i % 3)], True, []),
        (lambda i: (X[i], torch.tensor(i % 3)), True, []),
        (lambda i: (X[i], np.bool_(i % 2)), True, []),
        (lambda i: (X[i], None, {"age": float(AGE[i]), "kind": int(KIND[i])}), False, ["age", "kind"]),
        (lambda i: (X[i], i % 2, {"age": AGE[i]}), True, ["age"]),
    ],
)
def test_data_sets_of_several_forms(sample: Callable[[int], Any], labels: bool, names: list[str]) -> None:
    samples = [sample(i) for i in range(90)]
    probe_set = pf.ProbeSet.from_dataset(samples[:60], samples[60:])
    assert (probe_set.fit_labels is not None) == labels
    assert sorted(probe_set.fit_values) == names
    if "age" in names:
        torch.testing.assert_close(
            probe_set.heldout_values["age"].float(), probe_set.heldout_inputs @ torch.arange(5.0)
        )


@pytest.mark.parametrize(
    ("fit", "heldout", "words"),
    [
        ([(X[0], 1), (X[1], None)], [(X[2], 1)], "expected labels and values for all samples or none: some have what"),
        (
            [(X[0], 1), (X[1, :3], 1)],
            [(X[2], 1)],
            r"inputs of one shape, got \(([53]),\), and \((?!\1)[53],\) of sample [01]; crop",
        ),
        ([(X[0], 1, {"a": 1}), (X[1], 1, {"a": 1})], [(X[2], 1)], r"the same names for both splits, got \['a'\] and"),
    ],
)
def test_samples_that_differ_in_form_are_told(fit: list[Any], heldout: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        pf.ProbeSet.from_dataset(fit, heldout)


def test_samples_of_both_splits_are_warned_of() -> None:
    with pytest.warns(RuntimeWarning, match="30 of 30 held-out samples are fit samples too") as caught:
        pf.ProbeSet.from_tensors(X[:60], None, X[30:60], None)
    assert caught[0].filename == __file__


def test_a_listing_has_the_columns_of_each_target_together(net: SmallNet) -> None:
    (x, y), (held, held_y) = images(150, 1), images(60, 2)
    age = x.mean((1, 2, 3)), held.mean((1, 2, 3))
    probe_set = pf.ProbeSet.from_tensors(x, y, held, held_y, values={"age": age})
    lines = str(pf.probe(net, probe_set, layers=["conv", "hidden"])).splitlines()
    titles = [title.strip() for title in lines[1].split("  ") if title.strip()]
    label = ["label loss", "label accuracy", "label penalty"]
    assert titles == ["layer", "features", *label, "input fvu", "input penalty", "age fvu", "age penalty", "route"]
    routes = lines[3].rpartition("  ")[2].split(", ")
    assert len(set(routes)) == len(routes)


@pytest.mark.parametrize("seed", range(3))
def test_decoders_of_samples_that_are_known_by_heart_mislead_about_others(seed: int) -> None:
    """docs/numbers.md, "Samples of the training": what nothing can tell is decoded worse than by its mean."""
    torch.manual_seed(seed)
    x, drawn = torch.randn(300, 10), torch.randn(300)
    net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(300):
        optimizer.zero_grad()
        (net(x[:100])[:, 0] - drawn[:100]).square().mean().backward()
        optimizer.step()

    def decoded(some: slice) -> tuple[float, float]:
        probe_set = pf.ProbeSet.from_tensors(x[some], None, x[200:], None, values={"own": (drawn[some], drawn[200:])})
        scores = pf.probe(net, probe_set, layers=["3"], targets=["own", "input"], predicts="none")
        own, given = (scores.value(target=name, metric="fvu", split="heldout") for name in ("own", "input"))
        return own, given

    known, others = decoded(slice(0, 100)), decoded(slice(100, 200))
    assert known[0] > 1.5 > 1.1 > others[0]
    assert known[1] == pytest.approx(others[1], rel=0.25)


def test_a_listing_names_layers_that_do_worse_than_a_constant() -> None:
    x = torch.randn(90, 8, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(90, generator=torch.Generator().manual_seed(4))
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    few = pf.ProbeSet.from_tensors(x[:10], None, x[10:], None, values={"age": (noise[:10], noise[10:])})
    told = str(pf.probe(net, few, layers=["0", "2"], targets="age", alphas=[1e-6])).splitlines()[-1]
    assert told.startswith("age fvu above 1, worse than a constant, in ['0', '2']: typical of too few fit rows")
    assert "worse" not in str(pf.probe(net, few, layers="0"))
