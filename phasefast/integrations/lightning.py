"""A callback for Lightning's ``Trainer``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from ..data.probe_set import ProbeSet
from ..errors import ArgumentError, DependencyError
from ._common import LiveProbe


def _bases() -> list[Any]:
    """The class of callbacks of each package there is: the trainer of one refuses callbacks of the other alone."""
    found, errors = [], []
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            found.append(import_module(name).Callback)
        except ImportError as error:
            errors.append(error)
    if not found:
        raise DependencyError(
            f"phasefast.integrations.lightning needs Lightning ({errors[0]}): pip install 'phasefast[lightning]'"
        ) from errors[0]
    return found


class PhaseCallback(LiveProbe, *_bases()):  # type: ignore[misc]
    """Measures before the first optimizer step, then at ``trainer.global_step``, and at the last step.

    Lightning counts the steps of all optimizers: if a batch takes several, give ``steps=`` that occur. Not for
    models that are sharded over ranks, which rank 0 cannot run by itself; the others meet it in their next step.

    Args:
        probe_set: the samples. module: name of the network in the LightningModule; by default the LightningModule
            itself, whose ``forward`` then takes the samples.
        log: a function of the values and the step, as for ``LiveProbe``; True for the trainer's own loggers.
        **options: see :class:`phasefast.PhaseTracker`.
    """

    def __init__(
        self,
        probe_set: ProbeSet,
        *,
        module: str = "",
        log: Callable[[dict[str, float], int], object] | bool = False,
        **options: Any,
    ) -> None:
        super().__init__(probe_set, log=None if isinstance(log, bool) else log, **options)
        self._name, self._to_loggers = module, log is True

    def __getstate__(self) -> dict[str, Any]:
        """Without the trainer, which copies and files cannot hold."""
        return {**vars(self), "_log": None} if self._to_loggers else dict(vars(self))

    @property
    def state_key(self) -> str:
        """Tells callbacks of one trainer apart."""
        options = {name: str(self._options.get(name)) for name in ("layers", "run", "out")}
        return f"PhaseCallback{options | {'module': self._name}}"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """After the sanity check and, if a training is resumed, with its weights."""
        if self._to_loggers:
            self._log = partial(_log_to, trainer)
        if trainer.is_global_zero:
            self._begin(self._network(pl_module), trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After a batch, which need not be an optimizer step."""
        self._after(trainer.global_step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """After the last epoch, before callbacks that average weights replace those of the last step."""
        steps_done = 0 <= trainer.max_steps <= trainer.global_step
        stops = trainer.should_stop and getattr(trainer.fit_loop, "_can_stop_early", True)  # min_epochs, min_steps
        self._keep_hash()
        if stops or steps_done or trainer.max_epochs == trainer.current_epoch + 1:
            self._end(trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """With the weights of the last step, unless others have replaced them since its epoch ended."""
        self._end(trainer.global_step)
        self._log = None if self._to_loggers else self._log

    def _network(self, pl_module: Any) -> Any:
        try:
            return pl_module.get_submodule(self._name)
        except AttributeError as error:
            there = f"such as one of {[*dict(pl_module.named_children())]}"
            raise ArgumentError(f"module: expected the name of a network, {there}, got {self._name!r}") from error


def _log_to(trainer: Any, values: dict[str, float], step: int) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(values, step)
