"""Ctrl-C at any moment of a measurement leaves the model as it was found."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import phasefast as pf
from phasefast.common.interrupts import interrupts_held, let_interrupts_through
from tests.conftest import SmallNet, images

PACKAGE = Path(pf.__file__).parent
TOUCHING = {str(PACKAGE / name) for name in ("stages/preserve.py", "stages/batchnorm.py", "common/hooks.py")}


@pytest.fixture
def small() -> pf.ProbeSet:
    return pf.ProbeSet.from_tensors(*images(20, 1), *images(10, 2))


@pytest.fixture(autouse=True)
def pythons_own() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def state(model: nn.Module) -> list[Any]:
    """All that a measurement touches, as plain numbers."""
    tensors = [(name, id(own), own.tolist()) for name, own in [*model.named_parameters(), *model.named_buffers()]]
    modules = [
        (name, own.training, len(own._forward_hooks), getattr(own, "momentum", None))
        for name, own in model.named_modules()
    ]
    grad = [own.requires_grad for own in model.parameters()]
    return [tensors, modules, grad, torch.is_grad_enabled(), torch.get_rng_state().tolist(), nn.SyncBatchNorm.forward]


def interrupted(call: Callable[[], object], at: int, repeated: int = 1) -> int:
    """Interrupt at so many lines of the modules that touch a model; how many lines there were up to then."""
    import sys

    lines = 0

    def traced(frame: Any, event: str, _: object) -> Any:
        nonlocal lines
        if frame.f_code.co_filename not in TOUCHING:
            return traced if event == "call" else None
        if event == "line":
            lines += 1
            if at <= lines < at + repeated:
                signal.raise_signal(signal.SIGINT)
        return traced

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


def test_an_interrupt_at_any_line_leaves_the_model_as_it_was(small: pf.ProbeSet) -> None:
    model = SmallNet()
    model.train()
    tracker = pf.PhaseTracker(model, small, out=None, layers=["conv", "hidden"], batch_size=8)
    tracker.step(0)
    found = state(model)
    whole = interrupted(lambda: tracker.step(1), 1 << 30)
    assert whole > 100
    for at in range(1, whole, 3):
        with pytest.raises(KeyboardInterrupt):
            interrupted(lambda: tracker.step(2), at)
        assert state(model) == found, at
    assert tracker.scores.steps == [0, 1]
    assert tracker.step(2) is not None  # not taken for measured
    assert tracker.scores.steps == [0, 1, 2]


def test_interrupts_wait_for_the_next_batch_and_the_second_for_nothing(small: pf.ProbeSet) -> None:
    done = []

    class Interrupting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.times = nn.Flatten(), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
            done.append(len(x))
            return self.layer(x)

    model = Interrupting()
    for times, expected in ((1, 1), (2, 0)):
        model.times = times
        done.clear()
        with pytest.raises(KeyboardInterrupt):
            pf.probe(model, small, batch_size=5, alphas=[1.0])
        assert len(done) == expected


def test_a_sweep_that_is_interrupted_puts_the_weights_back(small: pf.ProbeSet, tmp_path: Path) -> None:
    model, other = SmallNet(), SmallNet()
    found, states = state(model), {step: other.state_dict() for step in (0, 1)}
    seen = []

    def interrupt(*_: object) -> None:
        seen.append(None)
        if len(seen) > 6:
            signal.raise_signal(signal.SIGINT)

    handle = model.conv.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        pf.sweep(model, states, small, out=tmp_path, layers="hidden", batch_size=10)
    handle.remove()
    assert state(model) == found


def test_handlers_of_the_user_are_called_and_others_are_left_alone() -> None:
    called: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: called.append(number))
    with interrupts_held(), interrupts_held():
        signal.raise_signal(signal.SIGINT)
        assert not called
        let_interrupts_through()
        assert called == [signal.SIGINT]
        let_interrupts_through()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert len(called) == 2
        signal.raise_signal(signal.SIGINT)
    assert len(called) == 3
    with contextlib.suppress(ZeroDivisionError), interrupts_held():
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError  # nor is it lost beside another error
    assert len(called) == 4
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts_held():
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_threads_hold_nothing() -> None:
    def run() -> None:
        with interrupts_held():
            held.append(signal.getsignal(signal.SIGINT))
            let_interrupts_through()

    held: list[object] = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert held == [signal.default_int_handler]
