"""See, for every layer at every checkpoint, what can still be decoded linearly and which learning phase it is in."""

from .best import BestCheckpoint, best_checkpoint
from .comparing import Agreement, Comparison, compare_phases
from .curve import PhaseRules
from .engine import VERSION as __version__
from .errors import PhasefastError
from .linear_decoders import LinearDecoder, fit_decoders
from .ops._extension import build_info
from .options import ProbeOptions
from .phase_report import CellPhases, PhaseReport
from .planning import LayerPlan, plan
from .probe import probe
from .reconstruction import Reconstructions, reconstruct
from .scores import Scores
from .shards import read_scores
from .stages.phases import detect_phases
from .stages.probe_set import ProbeSet
from .store import read_failures
from .sweep import sweep
from .target_types import Function, Input, Label, Target
from .track import PhaseTracker
from .watch import watch

__all__ = [
    "Agreement",
    "BestCheckpoint",
    "CellPhases",
    "Comparison",
    "Function",
    "Input",
    "Label",
    "LayerPlan",
    "LinearDecoder",
    "PhaseReport",
    "PhaseRules",
    "PhaseTracker",
    "PhasefastError",
    "ProbeOptions",
    "ProbeSet",
    "Reconstructions",
    "Scores",
    "Target",
    "__version__",
    "best_checkpoint",
    "build_info",
    "compare_phases",
    "detect_phases",
    "fit_decoders",
    "plan",
    "probe",
    "read_failures",
    "read_scores",
    "reconstruct",
    "sweep",
    "watch",
]
