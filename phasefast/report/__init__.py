"""What a run directory's scores show: ``phases.json``, ``phases.png``, ``maps.png`` and tables."""

from .bests import with_best
from .compared import plot_comparison
from .gallery import plot_reconstructions
from .maps import plot_maps
from .page import need_matplotlib
from .plot import plot_phases
from .reading import read_phases, read_runs, restrict
from .recipes import plot_recipes
from .table import print_report
from .writing import check_picture, write_comparison, write_phases, write_report

__all__ = [
    "check_picture",
    "need_matplotlib",
    "plot_comparison",
    "plot_maps",
    "plot_phases",
    "plot_recipes",
    "plot_reconstructions",
    "print_report",
    "read_phases",
    "read_runs",
    "restrict",
    "with_best",
    "write_comparison",
    "write_phases",
    "write_report",
]
