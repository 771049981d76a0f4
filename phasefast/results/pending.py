"""Scores of a training on their way to disk, which may refuse them for a while."""

from __future__ import annotations

from collections.abc import Mapping

from .origins import Training
from .scores import Scores
from .store import Store, write_step


class Pending:
    """Scores by step that a run directory does not hold yet.

    Attributes:
        store: where they are written to, by this training alone.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._training = Training(store.directory)
        self._steps = dict[int, tuple[Scores, Mapping[str, Exception]]]()

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, scores: Scores, lost: Mapping[str, Exception]) -> None:
        """To be written next. Args: lost: why layers were left out."""
        self._steps[step] = scores, lost

    def write(self, claims: bool) -> dict[int, Exception]:
        """Write all of them; why some were not, by step. What the disk refused stays pending, what others did does not.

        Args:
            claims: whether nobody else may store scores there; not where all ranks store the same.
        """
        failed = dict[int, Exception]()
        for step, (scores, lost) in list(self._steps.items()):
            try:
                if claims:
                    self._training.claim()
                write_step(self.store, scores, lost)
            except Exception as error:
                failed[step] = error
                if isinstance(error.__cause__, OSError):
                    continue
            self._steps.pop(step, None)
        return failed
