"""Targets that users write themselves: any numbers, in the right shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.errors import ArgumentError, DataError

Columns = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Own:
    """What a function of the inputs gives, as it is."""

    of: Columns
    kind: Any = "regression"
    name: str = "own"

    def columns(self, fit: Any, heldout: Any) -> Any:
        return self.of(fit[0]), self.of(heldout[0])


class Single(Own):
    """Of the fit samples alone."""

    def columns(self, fit: Any, heldout: Any) -> Any:
        return self.of(fit[0])


def sums(x: Tensor) -> Tensor:
    return x.double().cumsum(1)[:, :3]


@pytest.fixture
def samples() -> pf.ProbeSet:
    inputs = torch.randn(90, 6, generator=torch.Generator().manual_seed(0))
    return pf.ProbeSet.from_tensors(inputs[:60], None, inputs[60:], None)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 4))


@pytest.mark.parametrize(
    "given",
    [
        lambda x: sums(x) + 1e6,
        lambda x: sums(x).float(),
        lambda x: sums(x).bfloat16().float(),
        lambda x: sums(x).numpy(),
        lambda x: sums(x).tolist(),
    ],
    ids=["float64", "float32", "rounded", "array", "lists"],
)
def test_columns_are_any_numbers(model: nn.Module, samples: pf.ProbeSet, given: Columns) -> None:
    options: dict[str, Any] = {"alphas": [1e-3], "layers": "0"}
    plain = pf.Function(lambda x: torch.as_tensor(given(x)).double(), name="own")
    expected = pf.probe(model, samples, targets=plain, **options)
    found = pf.probe(model, samples, targets=Own(given), **options)
    for metric in ("fvu", "mse"):
        wanted = expected.value(layer="0", metric=metric, split="heldout")
        assert found.value(layer="0", metric=metric, split="heldout") == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.int8])
def test_columns_of_few_bits_and_integers_are_decoded(model: nn.Module, samples: pf.ProbeSet, dtype: Any) -> None:
    def rounded(x: Tensor) -> Tensor:
        return (10 * x[:, :2]).to(dtype)

    options: dict[str, Any] = {"alphas": [1e-3], "layers": "0"}
    found = pf.probe(model, samples, targets=Own(rounded), **options)
    floats = pf.probe(model, samples, targets=Own(lambda x: rounded(x).double()), **options)
    equal: dict[str, Any] = {"layer": "0", "metric": "fvu", "split": "heldout"}
    assert found.value(**equal) == pytest.approx(floats.value(**equal), rel=1e-5)


@pytest.mark.parametrize(
    ("target", "error", "match"),
    [
        (Own(lambda x: x[:, 0]), DataError, r"columns \[60, p\] of the fit samples, got \(60,\)"),
        (Own(lambda x: x[:40]), DataError, r"columns \[60, p\] of the fit samples, got \(40, 6\)"),
        (Own(lambda x: x[:, None]), DataError, r"columns \[60, p\] of the fit samples, got \(60, 1, 6\)"),
        (Own(lambda x: x[:60]), None, ""),
        (Own(lambda x: [["a"]] * len(x)), DataError, "target 'own': expected numbers"),
        (Own(lambda x: x.to(torch.complex64)), DataError, "target 'own': expected real numbers"),
        (Own(lambda x: x, "numbers"), ArgumentError, "target 'own': expected kind 'regression' or 'classes'"),
        (
            Single(lambda x: x),
            DataError,
            r"target 'own': expected \(columns of fit samples, of held-out samples\), got Tensor",
        ),
    ],
)
def test_columns_that_cannot_be_are_named(
    model: nn.Module, samples: pf.ProbeSet, target: Own, error: type[Exception] | None, match: str
) -> None:
    if error is None:
        assert len(pf.probe(model, samples, targets=target))
        return
    with pytest.raises(error, match=match):
        pf.probe(model, samples, targets=target)


@pytest.mark.parametrize("count", [1, 4])
def test_columns_of_tokens_are_one_for_each(count: int) -> None:
    x = torch.randn(90, 5, 3, generator=torch.Generator().manual_seed(0))
    probe_set = pf.ProbeSet.from_tensors(x[:60], None, x[60:], None)
    wrong: Any = Own(lambda x: x[:, :count])
    with pytest.raises(
        DataError, match=rf"columns \[60, p\] or \[60, 5, p\] of the fit samples, got \(60, {count}, 3\)"
    ):
        pf.probe(nn.Sequential(nn.Linear(3, 4)), probe_set, targets=wrong, tokens="each")


def test_a_function_that_fails_is_named(probe_set: pf.ProbeSet) -> None:
    task = pf.Function(lambda x: x[:, 99], kind="classes", name="corner")
    with pytest.raises(IndexError) as failed:
        pf.probe(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), probe_set, targets=[task])
    assert failed.value.__notes__ == ["raised by the function of target 'corner', for inputs (150, 1, 6, 6)"]
