from __future__ import annotations

import io
import itertools
import time
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from phasefast.errors import ArgumentError, NonFiniteError
from phasefast.experiments.training import _batches, cpu_threads, train


def task() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear network and two classes that it can tell apart."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 5, generator=generator)
    net = nn.Linear(5, 2)
    with torch.no_grad():
        net.weight.zero_()
        net.bias.zero_()
    return net, inputs, (inputs[:, 0] > 0).long()


def run(net: nn.Module, inputs: Tensor, labels: Tensor, **options: Any) -> float:
    settings = {"steps": 10, "lr": 0.1, "batch_size": 16, "console": Console(file=io.StringIO()), **options}
    return train(net, inputs, labels, **settings)


def test_learns_the_task() -> None:
    net, inputs, labels = task()
    run(net, inputs, labels, steps=100)
    assert (net(inputs).argmax(1) == labels).float().mean() > 0.9


def test_on_step_sees_the_network_after_exactly_that_many_updates() -> None:
    net, inputs, labels = task()
    seen: dict[int, Tensor] = {}
    run(net, inputs, labels, steps=4, on_step=lambda step: seen.update({step: net.weight.detach().clone()}))
    assert list(seen) == [0, 1, 2, 3, 4]
    assert (seen[0] == 0).all()
    for step in (1, 3):
        other, _, _ = task()
        run(other, inputs, labels, steps=step)
        assert torch.equal(other.weight, seen[step])


def test_one_update_is_sgd_with_momentum() -> None:
    net, inputs, labels = task()
    reference, _, _ = task()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, foreach=False)
    batches = _batches(inputs, labels, 16, torch.Generator().manual_seed(5))
    for rows, classes in itertools.islice(batches, 7):
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(rows), classes).backward()
        optimizer.step()
    run(net, inputs, labels, steps=7, seed=5)
    torch.testing.assert_close(net.weight, reference.weight)


def test_the_seed_decides_the_order_and_nothing_else_does() -> None:
    weights = []
    for state, seed in ((0, 0), (1, 0), (0, 1)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        net, inputs, labels = task()
        with torch.no_grad():
            net.weight.zero_()
        torch.set_rng_state(before)
        run(net, inputs, labels, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(net.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_epoch_has_no_row_twice_and_the_next_one_another_order() -> None:
    inputs = torch.arange(50.0)[:, None]
    batches = _batches(inputs, torch.zeros(50), 16, torch.Generator().manual_seed(0))
    first, second = (torch.cat([next(batches)[0] for _ in range(3)]).flatten().tolist() for _ in range(2))
    assert len(set(first)) == 48
    assert len(set(second)) == 48
    assert first != second


def test_image_batches_train_in_training_mode() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).eval()
    before = net[1].running_mean.clone()
    run(net, torch.randn(40, 1, 4, 4), torch.zeros(40, dtype=torch.int64), steps=2, on_step=lambda _: net.eval())
    assert not torch.equal(net[1].running_mean, before)


def test_time_of_on_step_is_not_counted() -> None:
    assert run(*task(), steps=2, on_step=lambda _: time.sleep(0.3)) < 0.6


def test_plain_lines_where_there_is_no_terminal() -> None:
    console = Console(file=io.StringIO(), width=80)
    run(*task(), steps=37, console=console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 10
    assert lines[-1].startswith("training 37/37 steps, loss 0.")
    assert "ETA" in lines[0]


@pytest.mark.parametrize(
    "wrong", [{"steps": -1}, {"lr": -0.1}, {"lr": float("nan")}, {"batch_size": 0}, {"batch_size": 41}]
)
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match=rf"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        run(*task(), **wrong)


def test_divergence_is_a_typed_error() -> None:
    net, inputs, labels = task()
    with pytest.raises(NonFiniteError, match="lower the learning rate"):
        run(net, inputs * 1e20, labels, lr=1e30)


def fail() -> None:
    raise RuntimeError("inside")


def test_threads_are_limited_inside_and_as_before_outside() -> None:
    before = torch.get_num_threads()
    with cpu_threads(1):
        assert torch.get_num_threads() == 1
    with pytest.raises(RuntimeError, match="inside"), cpu_threads(1):
        fail()
    assert torch.get_num_threads() == before
    with cpu_threads(10_000):
        assert torch.get_num_threads() == before
