"""The command ``phasefast``: its parts are commands such as ``demo``, ``sweep``, ``report``."""

from . import experiments, planning, reconstructing, reporting, sweeping
from .app import app

__all__ = ["app", "experiments", "main", "planning", "reconstructing", "reporting", "sweeping"]


def main() -> None:
    """Entry point of the command ``phasefast``."""
    app(prog_name="phasefast")
