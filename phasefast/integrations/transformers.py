"""A callback for ``transformers.Trainer``."""

from __future__ import annotations

from typing import Any

from ..errors import DependencyError
from ._common import LiveProbe

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise DependencyError(
        f"phasefast.integrations.transformers needs transformers ({error}): pip install 'phasefast[hf]'"
    ) from error


class PhaseCallback(LiveProbe, TrainerCallback):  # type: ignore[misc]
    """Measures before the first optimizer step, then at ``state.global_step``, and at the last step.

    The model is given the samples as its first argument and nothing else: ``input_ids`` without padding, or
    ``pixel_values``; ``wrap=`` puts a module around it that makes other arguments from them, such as a mask. Not for
    models that are sharded over ranks, which rank 0 cannot run by itself; the others meet it in their next step. If
    early stopping ends a training that loads its best weights, the last step is measured only if it is one of
    ``steps``.

    Args:
        probe_set: the samples. wrap: turns the model into the one that is probed. **options: see
            :class:`phasefast.PhaseTracker`.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """With the weights of the checkpoint, if a training is resumed."""
        if state.is_world_process_zero:
            self._begin(kwargs["model"], state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After an optimizer step."""
        self._after(state.global_step)
        if control.should_training_stop:
            self._end(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """With the weights of the last step, unless the best ones have replaced them."""
        if not (args.load_best_model_at_end and state.best_model_checkpoint):
            self._end(state.global_step)
