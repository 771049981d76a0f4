"""The callback in Lightning's trainers: those of ``lightning`` and of ``pytorch_lightning``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import phasefast as pf
from phasefast.errors import ArgumentError
from tests.conftest import SmallNet
from tests.test_sweep import without_seconds

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def package(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param)


def new_module(package: Any) -> Any:
    class Lit(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = SmallNet()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, rows: list[torch.Tensor], index: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self(rows[0]), rows[1])

        def validation_step(self, rows: list[torch.Tensor], index: int) -> None:
            self(rows[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    torch.manual_seed(0)
    return Lit()


def callback_for(probe_set: pf.ProbeSet, **options: Any) -> Any:
    from phasefast.integrations.lightning import PhaseCallback

    return PhaseCallback(probe_set, **{"layers": "hidden", "module": "net", "out": None, "on_error": "raise"} | options)


def fit(package: Any, probe_set: pf.ProbeSet, *callbacks: Any, start: Path | None = None, **options: Any) -> Any:
    """A module that was trained, the same way each time, and its trainer."""
    module = new_module(package)
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = package.Trainer(
        accelerator="cpu", callbacks=list(callbacks), enable_model_summary=False, **silent | {"max_steps": 5} | options
    )
    data = TensorDataset(probe_set.fit_inputs, probe_set.fit_labels)
    torch.manual_seed(5)
    trainer.fit(module, DataLoader(data, 32, shuffle=True), DataLoader(data, 50), ckpt_path=start)
    return module, trainer


def test_numbers_go_to_the_trainers_loggers_or_to_a_function(package: Any, probe_set: pf.ProbeSet) -> None:
    class Logger(package.loggers.CSVLogger):
        """One of a kind of its own, which keeps what comes."""

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            logged.append((metrics, step))

    logged: list[tuple[dict[str, float], int | None]] = []
    fit(package, probe_set, callback := callback_for(probe_set, log=True), logger=[Logger("unwritten")])
    by_probe = [(values, step) for values, step in logged if "phasefast/hidden/input/fvu" in values]
    assert [step for _, step in by_probe] == callback.tracker.scores.steps == [0, 1, 2, 4, 5]
    given: list[tuple[dict[str, float], int | None]] = []
    fit(package, probe_set, callback_for(probe_set, log=lambda *each: given.append(each)))
    assert given == by_probe


@pytest.mark.parametrize(
    ("limit", "steps"), [({"max_steps": 7}, [0, 1, 2, 4, 7]), ({"max_steps": -1, "max_epochs": 2}, [0, 1, 2, 4, 8, 10])]
)
def test_the_last_step_is_that_of_the_weights_that_are_trained(
    package: Any, probe_set: pf.ProbeSet, limit: dict[str, int], steps: list[int]
) -> None:
    found = []
    for averaged in (False, True):
        callback = callback_for(probe_set)

        class Averaging(package.Callback):
            """Puts averages in the place of the weights at the end, as Lightning's own does."""

            def on_train_end(self, trainer: Any, pl_module: Any) -> None:
                with torch.no_grad():
                    pl_module.net.hidden.weight.zero_()

        fit(package, probe_set, *([Averaging()] if averaged else []), callback, **limit)
        found.append(without_seconds(callback.tracker.scores))
        assert callback.tracker.scores.steps == steps
    assert found[0] == found[1]


def test_a_stop_that_has_to_wait_is_not_the_end(package: Any, probe_set: pf.ProbeSet) -> None:
    class Stopping(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = True

    callback = callback_for(probe_set)
    fit(package, probe_set, Stopping(), callback, max_steps=-1, max_epochs=9, min_epochs=3)
    assert callback.tracker.scores.steps == [0, 1, 2, 4, 8, 15]


def test_averages_are_not_measured_where_others_end_the_training(package: Any, probe_set: pf.ProbeSet) -> None:
    class Ending(package.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.should_stop = True

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            with torch.no_grad():
                pl_module.net.hidden.weight.zero_()

    class Last(Ending):
        """Lightning calls for the end of an epoch in the order in which callbacks are given."""

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            pass

    class First(Ending):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pass

    callback = callback_for(probe_set)
    fit(package, probe_set, First(), callback, Last(), max_steps=-1, max_epochs=9, min_epochs=0)
    assert callback.tracker.scores.steps == [0, 1, 2, 4]  # 5 would be of the averages


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_measures_in_full_precision_and_does_not_disturb_training(
    package: Any, probe_set: pf.ProbeSet, precision: str, tmp_path: Path
) -> None:
    callback = callback_for(probe_set, out=tmp_path)
    watched, _ = fit(package, probe_set, callback, precision=precision)
    alone, _ = fit(package, probe_set, precision=precision)
    for (name, tensor), other in zip(watched.state_dict().items(), alone.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    scores = callback.tracker.scores
    assert scores.steps == [0, 1, 2, 4, 5]
    for step, module in ((0, new_module(package)), (5, watched)):
        now = pf.probe(module.net, probe_set, layers="hidden", step=step)
        assert without_seconds(scores.filter(step=step)) == without_seconds(now)
    assert without_seconds(pf.read_scores(tmp_path)) == without_seconds(scores)
    assert {cell.layer for cell in pf.detect_phases(scores)} == {"hidden"}


def test_counts_optimizer_steps_while_gradients_accumulate(package: Any, probe_set: pf.ProbeSet) -> None:
    callback = callback_for(probe_set)
    fit(package, probe_set, callback, accumulate_grad_batches=2, max_steps=7)
    assert callback.tracker.scores.steps == [0, 1, 2, 4, 7]


def test_a_resumed_training_goes_on(package: Any, probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    _, trainer = fit(package, probe_set, callback_for(probe_set, out=tmp_path), max_steps=4)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    callback = callback_for(probe_set, out=tmp_path)
    fit(package, probe_set, callback, max_steps=9, start=tmp_path / "last.ckpt")
    assert callback.tracker.scores.steps == [0, 1, 2, 4, 8, 9]


def test_the_module_itself_and_several_callbacks(package: Any, probe_set: pf.ProbeSet) -> None:
    callbacks = callback_for(probe_set, layers="net.hidden", module=""), callback_for(probe_set, steps=[3])
    assert len({callback.state_key for callback in callbacks}) == 2
    fit(package, probe_set, *callbacks)
    assert callbacks[0].tracker.scores.layers == ["net.hidden"]
    assert callbacks[1].tracker.scores.steps == [3, 5]


def test_a_module_that_is_not_there_is_named(package: Any, probe_set: pf.ProbeSet) -> None:
    with pytest.raises(ArgumentError, match=r"one of \['net'\], got 'model'"):
        fit(package, probe_set, callback_for(probe_set, module="model"))
