"""The command ``phasefast demo | reproduce | theory | layers | plan | sweep | phases | report | info``."""

from . import experiments, planning, reporting, sweeping  # their commands register themselves
from .app import app

__all__ = ["app", "experiments", "main", "planning", "reporting", "sweeping"]


def main() -> None:
    """Entry point of the command ``phasefast``."""
    app(prog_name="phasefast")
