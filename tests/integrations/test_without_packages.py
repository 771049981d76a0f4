"""What the callbacks do, on stand-ins for the trainers' packages; and what they say where those are missing."""

from __future__ import annotations

import copy
import importlib
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.errors import ArgumentError, DependencyError
from phasefast.integrations._common import LiveProbe
from tests.conftest import SmallNet

PACKAGES = {"lightning": ("lightning.pytorch", "pytorch_lightning"), "transformers": ("transformers",)}
OPTIONS: dict[str, Any] = {"layers": "*hidden", "out": None, "on_error": "raise"}


def fresh(patch: pytest.MonkeyPatch, name: str, **packages: Any) -> ModuleType:
    """The module of ``phasefast.integrations``, imported anew with ``packages`` in place of its own ones."""
    module = f"phasefast.integrations.{name}"
    patch.setitem(sys.modules, module, None)  # so that what was there, or nothing, is there again after the test
    del sys.modules[module]
    for package in PACKAGES[name]:
        patch.setitem(sys.modules, package, packages.get(package))
    return importlib.import_module(module)


def batch(net: SmallNet, probe_set: pf.ProbeSet, update: bool = True) -> None:
    """A batch of training, which changes BatchNorm's buffers in any case."""
    net.train()
    nn.functional.cross_entropy(net(probe_set.fit_inputs[:32]), probe_set.fit_labels[:32]).backward()
    if update:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter -= 0 if parameter.grad is None else 0.01 * parameter.grad


@pytest.mark.parametrize(("name", "extra"), [("lightning", "lightning"), ("transformers", "hf")])
def test_a_missing_package_is_named_with_its_extra(name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DependencyError, match=rf"integrations\.{name} needs .*pip install 'phasefast\[{extra}\]'"):
        fresh(monkeypatch, name)


def test_lightning_on_a_stand_in(net: SmallNet, probe_set: pf.ProbeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(Callback=type("Callback", (), {}))
    module = fresh(monkeypatch, "lightning", pytorch_lightning=package)
    callback = module.PhaseCallback(probe_set, **OPTIONS, module="net")
    trainer, lit = SimpleNamespace(is_global_zero=True, global_step=0), nn.Module()
    lit.net = net
    callback.on_train_start(trainer, lit)
    for index in range(9):  # the last one does not step: the buffers differ from those that were measured
        batch(net, probe_set, update=index % 2 == 1)
        trainer.global_step += index % 2
        callback.on_train_batch_end(trainer, lit, None, None, index)
    callback.on_train_end(trainer, lit)
    assert callback.tracker.scores.steps == [0, 1, 2, 4]
    assert callback.tracker.scores.layers == ["hidden"]


@pytest.mark.parametrize(("early", "steps"), [(False, [0, 1, 2, 3]), (True, [0, 1, 2])])
def test_transformers_on_a_stand_in(
    net: SmallNet, probe_set: pf.ProbeSet, monkeypatch: pytest.MonkeyPatch, early: bool, steps: list[int]
) -> None:
    package = SimpleNamespace(TrainerCallback=type("TrainerCallback", (), {}))
    module = fresh(monkeypatch, "transformers", transformers=package)
    callback = module.PhaseCallback(probe_set, **OPTIONS)
    args = SimpleNamespace(load_best_model_at_end=True)
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, best_model_checkpoint="checkpoint-1")
    control = SimpleNamespace(should_training_stop=False)
    callback.on_train_begin(args, state, control, model=net)
    for step in (1, 2, 3):
        batch(net, probe_set)
        state.global_step = step
        control.should_training_stop = step == 3 and not early  # early stopping comes after this hook
        callback.on_step_end(args, state, control, model=net)
    callback.on_train_end(args, state, control, model=net)  # the weights are the best ones by now
    assert callback.tracker.scores.steps == steps


def test_other_ranks_do_nothing(net: SmallNet, probe_set: pf.ProbeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(TrainerCallback=type("TrainerCallback", (), {}))
    callback = fresh(monkeypatch, "transformers", transformers=package).PhaseCallback(probe_set, **OPTIONS)
    args, control = SimpleNamespace(load_best_model_at_end=False), SimpleNamespace(should_training_stop=True)
    state = SimpleNamespace(is_world_process_zero=False, global_step=1)
    for hook in (callback.on_train_begin, callback.on_step_end, callback.on_train_end):
        hook(args, state, control, model=net)
    with pytest.raises(ArgumentError, match="once the training has begun, and only on rank 0"):
        _ = callback.tracker


def test_each_training_has_a_tracker_of_its_own(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    live = LiveProbe(probe_set, **OPTIONS)
    live._begin(net, 0)
    live._begin(net, 2)
    assert live.tracker.scores.steps == [0, 2]
    live._begin(net, 1)
    assert live.tracker.scores.steps == [1]
    live._begin(SmallNet(), 4)
    assert live.tracker.scores.steps == [4]


def test_a_callback_may_probe_a_module_around_the_model_or_a_part_of_it(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    class Around(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.model(x.flip(3))
            return out

    around, part = (
        LiveProbe(probe_set, out=None, wrap=Around),
        LiveProbe(probe_set, out=None, wrap=lambda m: nn.Sequential(m.conv)),
    )
    for probe in (around, part):
        probe._begin(net, 0)
    assert around.tracker.scores.layers[0] == "model.conv"
    assert part.tracker.scores.layers == ["0"]


def test_callbacks_that_log_to_a_trainer_are_copied_without_it(
    net: SmallNet, probe_set: pf.ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fresh(monkeypatch, "lightning", pytorch_lightning=SimpleNamespace(Callback=type("Callback", (), {})))
    callback, logged = module.PhaseCallback(probe_set, **OPTIONS, log=True), dict[int, dict[str, float]]()
    logger = SimpleNamespace(log_metrics=lambda values, step: logged.update({step: values}))
    trainer = SimpleNamespace(is_global_zero=True, global_step=0, loggers=[logger], lock=threading.Lock())
    callback.on_train_start(trainer, net)
    assert copy.deepcopy(callback).tracker.scores.steps == [0]
    trainer.global_step = 3
    batch(net, probe_set)
    callback.on_train_end(trainer, net)
    assert list(logged) == [0, 3]
    assert callback._log is None


def test_what_is_measured_is_logged(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    logged: list[tuple[dict[str, float], int]] = []
    live = LiveProbe(probe_set, **OPTIONS, log=lambda values, step: logged.append((values, step)))
    live._begin(net, 0)
    for step in (1, 2, 3):
        batch(net, probe_set)
        live._after(step)
    live._end(3)
    assert [step for _, step in logged] == live.tracker.scores.steps == [0, 1, 2, 3]
    for values, step in logged:
        assert values == {f"phasefast/{k}": v for k, v in live.tracker.scores.filter(step=step).to_dict().items()}
    assert {"phasefast/hidden/input/fvu", "phasefast/model/label/accuracy"} < logged[0][0].keys()


def test_options_of_callbacks_are_checked_at_once(probe_set: pf.ProbeSet) -> None:
    with pytest.raises(ArgumentError, match="unknown option 'layer'; did you mean 'layers'"):
        LiveProbe(probe_set, layer="conv", steps=[1], out=None)
    with pytest.raises(ArgumentError, match="selection: expected one of"):
        LiveProbe(probe_set, selection="best")
