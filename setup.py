"""Builds the compiled ops, ``phasefast._C``; everything else about the package stands in pyproject.toml.

Environment: PHASEFAST_CUDA=auto|0|1 (this version has CPU sources only: 1 is an error), PHASEFAST_WERROR=1 (warnings
are errors), PHASEFAST_REQUIRE_EXTENSION=1 (a failed build fails the installation; otherwise the package runs on its
PyTorch reference).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths

ROOT = Path(__file__).resolve().parent
ABI_TARGET = "0x020b000000000000"  # stable ABI of torch 2.11: the binary loads in this and every later torch
FLAGS = ["-std=c++20", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]


def extension() -> Extension:
    """phasefast._C with its sources, flags and what build_info() reports."""
    cuda = os.environ.get("PHASEFAST_CUDA", "auto")
    if cuda not in ("auto", "0", "1"):
        sys.exit(f"PHASEFAST_CUDA={cuda!r}: expected auto, 0 or 1")
    if cuda == "1" and not list((ROOT / "csrc/cuda").glob("*.cu")):
        sys.exit("PHASEFAST_CUDA=1, but csrc/cuda holds no CUDA sources; set PHASEFAST_CUDA=auto or 0")
    flags = FLAGS + (["-Werror"] if os.environ.get("PHASEFAST_WERROR") == "1" else [])
    # System headers: their warnings are not ours. pip's pybind11 stands before the copy that torch brings.
    headers = [flag for path in [pybind11.get_include(), *include_paths()] for flag in ("-isystem", path)]
    return Extension(
        "phasefast._C",
        sources=[
            "csrc/library.cpp",
            "csrc/module.cpp",
            *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cpu/*.cpp")),
        ],
        depends=[str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.h")],
        include_dirs=[str(ROOT / "csrc")],
        library_dirs=library_paths(),
        libraries=["torch_cpu"],
        define_macros=[
            ("TORCH_TARGET_VERSION", ABI_TARGET),
            ("PHASEFAST_TORCH_VERSION", f'"{torch.__version__}"'),
            ("PHASEFAST_FLAGS", f'"{" ".join(flags)}"'),
        ],
        extra_compile_args=[*flags, *headers],
        language="c++",
        optional=True,  # lets an editable install go on without the file that a failed build did not make
    )


class BuildOps(BuildExtension):
    """Builds the ops; where that fails, says so and lets the installation go on."""

    def build_extensions(self) -> None:
        required = os.environ.get("PHASEFAST_REQUIRE_EXTENSION") == "1"
        try:
            super().build_extensions()
        except Exception as error:
            if required:
                raise
            self._note(f"{type(error).__name__}: {error}")
            return
        missing = [ext.name for ext in self.extensions if not Path(self.get_ext_fullpath(ext.name)).exists()]
        if missing and required:
            raise RuntimeError(f"{missing} were not built")
        if missing:
            self._note("the compiler or linker failed; see above")

    def _note(self, reason: str) -> None:
        print(
            f"phasefast: the compiled ops were not built ({reason}). The package works without them, slower, on its "
            "PyTorch reference. Mend: install a C++20 compiler and install again; PHASEFAST_REQUIRE_EXTENSION=1 makes "
            "this an error.",
            file=sys.stderr,
        )


setup(ext_modules=[extension()], cmdclass={"build_ext": BuildOps})
