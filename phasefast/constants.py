"""A model's tensors that no state dict has, compared with those that stored scores were measured with."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from .checkpoints import constants_of
from .results.origins import check_constants, keep_constants


class Constants:
    """Those of a model as it is now, such as random features that are drawn when it is made.

    Args:
        out: run directory of the scores.
    """

    def __init__(self, model: nn.Module, out: str | Path) -> None:
        self._model, self._out = model, out
        self._found, self._told = constants_of(model), False

    def keep(self) -> None:
        """Note them beside the scores, if none are known yet, but for what has changed since: that is none.

        Raises:
            StoreError: they cannot be written.
        """
        if self._found:
            now = constants_of(self._model)
            changing = {name for name, own in self._found.items() if now.get(name) != own}
            self._found = {name: own for name, own in self._found.items() if name not in changing}
            keep_constants(self._out, self._found, changing)

    def check(self) -> None:
        """Warn, once, if they differ from those that are known."""
        if not self._told:
            self._told = check_constants(self._out, self._found)
