"""Where texts are printed: as they are, without markup, so that names and paths may have brackets in them."""

from __future__ import annotations

from rich.console import Console


class _Lasting(Console):
    """For what accompanies work: where nobody reads any more, the work goes on in silence."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


def of_work() -> Console:
    """Standard error, for progress and warnings."""
    return _Lasting(stderr=True, markup=False, highlight=False, emoji=False)


def of_results() -> Console:
    """Standard output."""
    return Console(markup=False, highlight=False, emoji=False)
