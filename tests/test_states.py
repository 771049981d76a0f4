"""What a model keeps from call to call: hidden states, generators and buffers, which are told."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import phasefast as pf
from phasefast.common.random_state import differ
from tests.conftest import SmallNet
from tests.quiet import no_warnings


class Hidden(SmallNet):
    """Keeps a state from call to call."""

    state = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = super().forward(x) + self.state
        self.state = 0.5 * found.mean().item()
        return found


class OwnGenerator(SmallNet):
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = super().forward(x)
        return found + 0.1 * torch.randn(found.shape, generator=self.generator)


@pytest.mark.parametrize("kind", [Hidden, OwnGenerator])
def test_a_state_that_lasts_from_call_to_call_is_told(probe_set: pf.ProbeSet, kind: type[SmallNet]) -> None:
    with pytest.warns(RuntimeWarning, match="the model gives other outputs for the same samples when it is called"):
        pf.probe(kind(), probe_set, layers="hidden", alphas=[0.1])


class Masked(Hidden):
    """The same, with one class masked."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = super().forward(x)
        return torch.cat([found, torch.full_like(found[:, :1], -1e9), torch.full_like(found[:, :1], -torch.inf)], 1)


class Growing(SmallNet):
    """Gives one row more at each call."""

    rows = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows += 1
        return super().forward(x)[:1].expand(self.rows, -1)


@pytest.mark.parametrize("kind", [Masked, Growing])
def test_a_state_is_told_beside_masks_and_by_shapes(probe_set: pf.ProbeSet, kind: type[SmallNet]) -> None:
    with pytest.warns(RuntimeWarning, match="the model gives other outputs for the same samples when it is called"):
        pf.probe(kind(), probe_set, layers="hidden", alphas=[0.1])


@pytest.mark.parametrize(
    "turned",
    [
        lambda x: x > 0,
        lambda x: x.to_sparse(),
        lambda x: x.to_sparse_csr(),
        lambda x: x.to(torch.float8_e4m3fn),
        lambda x: x[:, :0],
        lambda x: x.long(),
        lambda x: [],
        lambda x: (x * (1 + 2**-7)).half(),
    ],
)
def test_outputs_of_any_kind_are_no_state(probe_set: pf.ProbeSet, turned: Callable[[torch.Tensor], Any]) -> None:
    class Any_(SmallNet):
        def forward(self, x: torch.Tensor) -> Any:
            return turned(super().forward(x))

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the model gives other outputs")
        pf.probe(Any_(), probe_set, layers="hidden", alphas=[0.1])


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 1e-5]), False),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.01]), True),
        (torch.tensor([1.0, 2.0]).half(), torch.tensor([1.0, 2.0 + 2**-9]).half(), False),
        (torch.tensor([1.0, -torch.inf]), torch.tensor([1.0, -torch.inf]), False),
        (torch.tensor([1.0, 3.0, -1e9]), torch.tensor([1.1, 3.0, -1e9]), True),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0]), True),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), True),
        (torch.tensor([1.0, torch.inf]), torch.tensor([1.0, -torch.inf]), True),
        (torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([1e-6, 0.0, 1e-6, 1.0]), False),
        (torch.tensor([1e-20, 1e-9, 1.0]), torch.tensor([3e-20, 1.1e-9, 1.0]), False),
        (torch.tensor([1.0, *[-1e9] * 6]), torch.tensor([1.5, *[-1e9] * 6]), True),
        (torch.tensor([1.0, *[-65504.0] * 6]).half(), torch.tensor([1.5, *[-65504.0] * 6]).half(), True),
        (torch.tensor([1 + 1j]), torch.tensor([1 + 1j + 1e-7]), False),
        (torch.tensor([1 + 1j]), torch.tensor([1 + 2j]), True),
        (torch.zeros(2), torch.zeros(2), False),
        (torch.zeros(1 << 20, 4), torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(1 << 20, 1), True),
        (torch.tensor([0.1, *[1e6] * 30]), torch.tensor([0.1, *[1e6 + 0.25] * 30]), False),
        (torch.tensor([1.0]), None, None),
    ],
)
def test_outputs_of_two_calls_may_be_apart_by_rounding(one: Any, other: Any, expected: bool | None) -> None:
    assert differ(one, other, rounding=True) is expected


def test_numbers_that_are_drawn_count_however_small(probe_set: pf.ProbeSet) -> None:
    one = torch.tensor([1.0, torch.nan])
    assert differ(one, one.clone(), rounding=False) is False
    assert differ(one, one + 1e-6, rounding=False) is True
    assert differ(one.to(torch.float8_e5m2), one.to(torch.float8_e5m2), rounding=False) is False
    many = torch.zeros(1 << 20, 4)
    assert differ(many, many + torch.tensor([0.0, 0, 0, 1e-9]), rounding=False) is True


class Normalised(SmallNet):
    """Standardises by running statistics of its own, which it updates in evaluation mode too."""

    def __init__(self, moving: bool = True) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 6, 6))
        self.register_buffer("calls", torch.tensor(0))
        self.moving = moving

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.moving:
            self.mean.lerp_(x.mean(0), 0.1)
        return super().forward(x - self.mean)


def test_buffers_that_forward_updates_are_told_and_put_back(probe_set: pf.ProbeSet) -> None:
    model = Normalised()
    told = r"forward changes the buffers \['mean'\] in evaluation mode too"
    with pytest.warns(RuntimeWarning, match=told), pytest.warns(RuntimeWarning, match="gives other outputs"):
        pf.probe(model, probe_set, layers="hidden")
    assert (float(model.mean.abs().max()), int(model.calls)) == (0, 0)
    with no_warnings():
        pf.probe(Normalised(moving=False), probe_set, layers="hidden")
        pf.probe(Cached(), probe_set, layers="hidden")


class Cached(SmallNet):
    """Keeps tables in buffers, made anew in another type and size."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(3), persistent=False)
        self.register_buffer("longer", torch.ones(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.table, self.longer = self.table.to(torch.float64), torch.ones(len(x))
        return super().forward(x)


class Conjugate(SmallNet):
    """Keeps a view of complex numbers, and changes another."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.randn(3, dtype=torch.complex64).conj())
        self.register_buffer("moved", torch.randn(3, dtype=torch.complex64).conj())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.moved += 1
        return super().forward(x) * self.factor.real[0]


def test_conjugate_buffers_are_put_back(probe_set: pf.ProbeSet) -> None:
    model = Conjugate()
    before = {name: own.clone() for name, own in model.named_buffers()}
    pf.probe(model, probe_set, layers="hidden", alphas=[0.1])
    assert all(torch.equal(own, before[name]) for name, own in model.named_buffers())


@pytest.mark.parametrize("fill", [-1e9, torch.finfo(torch.float32).min, -1e4])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_state_is_told_beside_many_masks(fill: float, share: float) -> None:
    """Such as of illegal actions, of which there may be many."""
    values = torch.randn(7, 40)
    masked = torch.arange(40) < 40 * share
    one, other = ((values + offset).masked_fill(masked, fill) for offset in (0, 0.01))
    assert differ(one, other, rounding=True)
    assert not differ(one, one + 1e-6, rounding=True)


class Sorted(SmallNet):
    """Runs its samples in another order, and puts their outputs back."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        order = x.flatten(1).sum(1).argsort()
        return super().forward(x[order])[order.argsort()]


class Centred(SmallNet):
    """Takes from each sample what is common to its batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x[:1])


class Common(SmallNet):
    """Takes from all samples of a batch what they have in common, whatever their order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x.mean(0))


@pytest.mark.parametrize("kind", [Sorted, Centred, Common])
def test_rows_in_another_order_are_told(probe_set: pf.ProbeSet, kind: type[SmallNet]) -> None:
    words = r"layers \['conv', 'hidden'\]: their rows depend on the order of the samples, or on the others in a batch"
    with no_warnings():
        pf.probe(SmallNet(), probe_set, layers=["conv", "hidden"], alphas=[0.1])
    with pytest.warns(RuntimeWarning, match=words):
        pf.probe(kind(), probe_set, layers=["conv", "hidden"], alphas=[0.1])


class Mixing(nn.Module):
    """Changes each token by itself, or, ``turned``, together with those of another sample."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.body, self.turned = nn.Linear(3, 4), turned

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(x + x.roll(1, 0) if self.turned else x)
        return found


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("tokens", ["each", "mean", "last"])
def test_tokens_in_another_order_are_told(tokens: Any, turned: bool) -> None:
    x = torch.randn(60, 6, 3)
    probe_set = pf.ProbeSet.from_tensors(x[:40], None, x[40:], None)
    told = pytest.warns(RuntimeWarning, match="their rows depend on the order") if turned else no_warnings()
    with told:
        pf.probe(Mixing(turned), probe_set, tokens=tokens, alphas=[0.1])


def test_parametrized_weights_are_those_of_the_step(probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    """Also where a training keeps them until its next update."""
    model = nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(36, 8)), nn.Linear(8, 3))
    states = {step: {k: own * (1 + step) + 0.1 * step for k, own in model.state_dict().items()} for step in range(3)}
    expected = pf.sweep(model, states, probe_set, out=tmp_path / "plain", alphas=[0.1])
    with parametrize.cached():
        kept = model[1].weight
        scores = pf.sweep(model, states, probe_set, out=tmp_path / "cached", alphas=[0.1])
        assert model[1].weight is kept
    values = [each.to_arrow().column("value") for each in (expected, scores)]
    assert values[0].equals(values[1])
    assert len(set(expected.filter(layer="1", metric="fvu", split="fit").to_arrow().column("value").to_pylist())) == 3


def test_a_model_may_change_its_input_in_place() -> None:
    """No other run on the same samples gets what is left of it."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(12, 4), nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x += 4
            found: torch.Tensor = self.head(self.embed(x).mean(1))
            return found.sigmoid()

    x, y = torch.randint(8, (60, 5)), torch.randint(2, (60,))
    with no_warnings():
        scores = pf.probe(Shifted(), pf.ProbeSet.from_tensors(x[:40], y[:40], x[40:], y[40:]), tokens="mean")
    assert len(scores.filter(layer="model"))


def test_rounding_is_no_other_order() -> None:
    """Norms of a batch that follow each other make much of it."""
    parts = [part for _ in range(30) for part in (nn.Linear(16, 16), nn.BatchNorm1d(16, track_running_stats=False))]
    x = torch.randn(60, 16)
    with no_warnings():
        pf.probe(nn.Sequential(*parts), pf.ProbeSet.from_tensors(x[:40], None, x[40:], None), alphas=[0.1])


class Near(nn.Module):
    """Each sample looks for so many others."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.a, self.h, self.count = nn.Linear(8, 6), nn.Linear(6, 3), count

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x)
        near = torch.cdist(z, z).topk(self.count, largest=False).indices
        found: Tensor = self.h(z + 0 * z[near].mean(1))
        return found


def test_a_model_that_takes_no_fewer_samples_is_measured() -> None:
    x = torch.randn(90, 8)
    probe_set = pf.ProbeSet.from_tensors(x[:60], None, x[60:], None)
    with no_warnings():
        assert pf.probe(Near(6), probe_set, alphas=[0.1]).layers == ["a", "h"]


@pytest.mark.parametrize("norm", [nn.Identity, lambda: nn.InstanceNorm2d(2), lambda: nn.BatchNorm2d(2)])
def test_means_of_a_batch_are_told_behind_any_norm(norm: Callable[[], nn.Module]) -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.a = norm(), nn.Linear(18, 6)

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.a(self.norm(x).flatten(1))
            return z - z.mean(0)

    x = torch.randn(90, 2, 3, 3)
    probe_set = pf.ProbeSet.from_tensors(x[:60], None, x[60:], None)
    outer = nn.Sequential(Centred())
    with pytest.warns(RuntimeWarning, match=r"layers \['0'\]: their rows depend on the order"):
        pf.probe(outer, probe_set, layers=["0"], alphas=[0.1], batchnorm="running")
