"""Ctrl-C at any moment of a measurement leaves the model as it was found."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import phasefast as pf
from phasefast import decoding
from phasefast.common.interrupts import interrupts_free, interrupts_held, let_interrupts_through
from tests.conftest import SmallNet, images

PACKAGE = Path(pf.__file__).parent
TOUCHING = {
    str(PACKAGE / name)
    for name in ("stages/preserve.py", "stages/batchnorm.py", "common/hooks.py", "common/interrupts.py", "in_turn.py")
}


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


def every_few(call: Callable[[], object], model: nn.Module) -> None:
    """Interrupt a call at many of the lines that it takes, and look at the model after each."""
    found = state(model)
    whole = interrupted(call, 1 << 30)
    assert whole > 100
    for at in range(1, whole, 3):
        with pytest.raises(KeyboardInterrupt):
            interrupted(call, at)
        assert state(model) == found, at
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, at
        with interrupts_held():  # as before
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler, at


def test_an_interrupt_at_any_line_leaves_the_model_as_it_was(small: pf.ProbeSet) -> None:
    model = SmallNet()
    model.train()
    every_few(lambda: pf.probe(model, small, layers=["conv", "hidden"], batch_size=8, alphas=[1.0]), model)


def test_an_interrupt_at_any_line_of_a_sweep_leaves_the_model_as_it_was(small: pf.ProbeSet, tmp_path: Path) -> None:
    model, other = SmallNet(), SmallNet()
    places = (tmp_path / f"{count}" for count in range(10_000))
    how: dict[str, Any] = {"layers": "hidden", "batchnorm": "running", "alphas": [1.0], "targets": "label"}
    every_few(lambda: pf.sweep(model, {1: other.state_dict()}, small, out=next(places), **how), model)


def test_a_step_that_was_interrupted_is_measured_when_it_is_called_again(small: pf.ProbeSet, tmp_path: Path) -> None:
    model = SmallNet()
    tracker = pf.PhaseTracker(model, small, out=tmp_path, layers="hidden")
    tracker.step(10)
    with torch.no_grad():
        model.head.weight.add_(1)
    with pytest.raises(KeyboardInterrupt):
        interrupted(lambda: tracker.step(20), 60)
    assert tracker.scores.steps == [10]
    assert tracker.step(20) is not None
    assert tracker.step(25) is None
    assert tracker.scores.steps == pf.read_scores(tmp_path).steps == [10, 20]


def test_what_is_in_memory_is_stored_where_the_storing_was_interrupted(small: pf.ProbeSet, tmp_path: Path) -> None:
    tracker = pf.PhaseTracker(SmallNet(), small, out=tmp_path, layers="hidden")
    for before in (True, False):

        class Interrupting(set[int]):
            def add(self, step: int, before: bool = before) -> None:
                if not before:
                    super().add(step)
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            steps = Interrupting(tracker._steps)
            patch.setattr(tracker, "_steps", steps)
            with pytest.raises(KeyboardInterrupt):
                tracker.step(1)
        tracker._steps |= steps
    tracker.step(1)
    assert pf.read_scores(tmp_path).steps == tracker.scores.steps == [1]


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


def test_interrupts_wait_for_no_other_layer(small: pf.ProbeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    model, begun = nn.Sequential(nn.Flatten(), *(nn.Linear(36, 36) for _ in range(8))), list[object]()

    class Counting(decoding._Work):
        def begin(self) -> None:
            begun.append(self)
            signal.raise_signal(signal.SIGINT)
            super().begin()

    monkeypatch.setattr(decoding, "_Work", Counting)
    with pytest.raises(KeyboardInterrupt):
        pf.probe(model, small, alphas=[1.0])
    assert len(begun) == 1


def test_nothing_waits_while_a_checkpoint_is_read(small: pf.ProbeSet, tmp_path: Path) -> None:
    model, done = SmallNet(), list[str]()
    torch.save(model.state_dict(), tmp_path / "step_1.pt")

    def load(path: Path) -> Any:
        interrupter.start()
        if not ended.wait(20):  # such as a download
            done.append("read to its end")
        return torch.load(path)

    ended = threading.Event()
    interrupter = threading.Timer(0.1, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
    found = state(model)
    try:
        with pytest.raises(KeyboardInterrupt):
            pf.sweep(model, tmp_path, small, out=tmp_path / "out", layers="hidden", load=load)
    finally:
        interrupter.cancel()
        ended.set()
    assert not done
    assert state(model) == found


def test_an_interrupt_is_not_lost_beside_an_error_of_decoders(
    small: pf.ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        raise torch.OutOfMemoryError

    monkeypatch.setattr("phasefast.reconstruction.predict", failing)
    with pytest.raises(KeyboardInterrupt):
        pf.reconstruct(SmallNet(), small, layers="hidden")
    monkeypatch.setattr("phasefast.linear_decoders.classifier", failing)
    with pytest.raises(KeyboardInterrupt):
        pf.fit_decoders(SmallNet(), small, layers="hidden")


@pytest.mark.parametrize("times", [1, 2, 3])
def test_no_interrupt_is_lost_to_handlers_that_count(times: int) -> None:
    called: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda _, frame: called.append(frame))
    with interrupts_held():
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        assert len(called) == times // 2 * 2  # a second one takes the first with it
    assert len(called) == times
    assert None not in called
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_none_waits_where_nothing_is_held_back() -> None:
    called: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: called.append(number))
    with interrupts_held():
        signal.raise_signal(signal.SIGINT)
        with interrupts_free():
            for count in range(1, 5):
                assert len(called) == count
                signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert len(called) == 5
    assert len(called) == 6
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), interrupts_held(), interrupts_free():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)  # waits for what is put back
            called.clear()
    assert not called


def test_a_forked_process_holds_nothing(tmp_path: Path) -> None:
    with interrupts_held():
        if (child := os.fork()) == 0:
            code = 0
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                code = 7
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


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
    assert len(called) == 2
    with contextlib.suppress(ZeroDivisionError), interrupts_held():
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError  # nor is it lost beside another error
    assert len(called) == 3
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
