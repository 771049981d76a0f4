"""The four ops of the core: compiled kernels where they are built, readable PyTorch everywhere else."""

from . import reference
from ._extension import bfloat16_is_fast, float32_is_fast, function, halves_are_slow
from .capture import capture
from .gram import gram
from .residual import residual
from .ridge_solve import ridge_solve

__all__ = [
    "bfloat16_is_fast",
    "capture",
    "float32_is_fast",
    "function",
    "gram",
    "halves_are_slow",
    "reference",
    "residual",
    "ridge_solve",
]
