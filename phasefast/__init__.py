"""See, for every layer at every checkpoint, what can still be decoded linearly and which learning phase it is in."""

from .data.probe_set import ProbeSet
from .data.target_types import Function, Input, Label, Target
from .engine import VERSION as __version__
from .errors import PhasefastError
from .linear_decoders import LinearDecoder, fit_decoders
from .ops._extension import build_info
from .options import ProbeOptions
from .phases.best import BestCheckpoint, CommonBest, best_checkpoint, best_of_runs
from .phases.comparing import Agreement, Comparison, compare_phases
from .phases.detect import detect_curve, detect_phases
from .phases.phase_report import CellPhases, PhaseReport
from .phases.recipes import Difference, RecipeCell, RecipeComparison, compare_recipes
from .phases.rules import PhaseRules
from .planning import LayerPlan, Plan, plan
from .probe import probe
from .reconstruction import Reconstructions, reconstruct
from .report import plot_comparison, plot_maps, plot_phases, plot_recipes, plot_reconstructions
from .results.failures import read_failures
from .results.scores import Scores
from .results.shards import read_scores
from .sweep import sweep
from .track import PhaseTracker
from .watch import watch

__all__ = [
    "Agreement",
    "BestCheckpoint",
    "CellPhases",
    "CommonBest",
    "Comparison",
    "Difference",
    "Function",
    "Input",
    "Label",
    "LayerPlan",
    "LinearDecoder",
    "PhaseReport",
    "PhaseRules",
    "PhaseTracker",
    "PhasefastError",
    "Plan",
    "ProbeOptions",
    "ProbeSet",
    "RecipeCell",
    "RecipeComparison",
    "Reconstructions",
    "Scores",
    "Target",
    "__version__",
    "best_checkpoint",
    "best_of_runs",
    "build_info",
    "compare_phases",
    "compare_recipes",
    "detect_curve",
    "detect_phases",
    "fit_decoders",
    "plan",
    "plot_comparison",
    "plot_maps",
    "plot_phases",
    "plot_recipes",
    "plot_reconstructions",
    "probe",
    "read_failures",
    "read_scores",
    "reconstruct",
    "sweep",
    "watch",
]


def __dir__() -> list[str]:
    """What completion offers: not the modules that all of it lies in."""
    return __all__
