"""Builds the compiled ops, ``phasefast._C``; everything else about the package stands in pyproject.toml.

Environment: PHASEFAST_CUDA=auto|0|1 (CUDA kernels: where nvcc and a GPU are there, never, always), PHASEFAST_WERROR=1
(warnings and spilled registers are errors), PHASEFAST_REQUIRE_EXTENSION=1 (a failed build fails the installation;
otherwise the package runs on its PyTorch reference).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

NEEDED = "pip install 'setuptools>=77' pybind11 ninja, beside torch, then phasefast with --no-build-isolation"
try:
    import pybind11
    import setuptools
    import torch
    from setuptools import Extension, setup
    from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths
except ModuleNotFoundError as missing:
    sys.exit(f"phasefast: there is no {missing.name} to build with; {NEEDED}")
if int(setuptools.__version__.partition(".")[0]) < 77:
    sys.exit(f"phasefast: setuptools {setuptools.__version__} does not know this pyproject.toml; {NEEDED}")

ROOT = Path(__file__).resolve().parent
ABI_TARGET = "0x020b000000000000"  # stable ABI of torch 2.11: the binary loads in this and every later torch
FLAGS = ["-std=c++20", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]
ARCHS = ("80", "90a")  # code for every GPU of compute capability 8.x and 9.0
NVCC_FLAGS = [
    "-std=c++20",
    "-O3",
    "-Xcompiler=-fvisibility=hidden",
    *(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS),
    "-gencode=arch=compute_90,code=compute_90",  # PTX for later ones
]


def switch(name: str, *values: str) -> str:
    """An environment variable that has one of these values, the first where it is empty or not there."""
    if (value := os.environ.get(name) or values[0]) not in values:
        sys.exit(f"{name}={value!r}: expected {', '.join(values[:-1])} or {values[-1]}")
    return value


def wants_cuda() -> bool:
    """Whether the CUDA kernels are built."""
    cuda = switch("PHASEFAST_CUDA", "auto", "0", "1")
    nvcc = shutil.which("nvcc")
    if cuda == "1" and (nvcc is None or torch.version.cuda is None):
        sys.exit("PHASEFAST_CUDA=1: expected nvcc on the path and a CUDA build of torch; set PHASEFAST_CUDA=auto or 0")
    if cuda != "auto" or nvcc is None or not torch.cuda.is_available():
        return cuda == "1"
    known = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.", known)
    if release is None or release[1] != str(torch.version.cuda).split(".")[0]:
        print(
            f"phasefast: built without CUDA kernels, as nvcc is of CUDA {release[1] if release else 'unknown'} and "
            f"torch of CUDA {torch.version.cuda}; PHASEFAST_CUDA=1 builds them nevertheless.",
            file=sys.stderr,
        )
        return False
    return True


def cuda_libraries() -> list[str]:
    """Where nvcc's own libraries lie; nvcc may be a wrapper on the path, so it is asked."""
    run = subprocess.run(["nvcc", "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=True)
    tops = [line.partition("TOP=")[2].strip() for line in run.stderr.splitlines() if "TOP=" in line]
    return [str(path) for top in tops[:1] for name in ("lib64", "lib") if (path := Path(top, name)).is_dir()]


def extension() -> Extension:
    """phasefast._C with its sources, flags and what build_info() reports."""
    cuda, strict = wants_cuda(), switch("PHASEFAST_WERROR", "0", "1") == "1"
    kernels = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cuda/*.cu") if cuda)
    if cuda and not kernels:
        sys.exit("PHASEFAST_CUDA: expected kernels in csrc/cuda, got none: these sources are not whole")
    flags = FLAGS + (["-Werror"] if strict else [])
    nvcc_flags = NVCC_FLAGS + (["-Werror=all-warnings", "-Xptxas=-warn-spills,-Werror"] if strict else [])
    # System headers: their warnings are not ours. pip's pybind11 stands before the copy that torch brings.
    headers = [flag for path in [pybind11.get_include(), *include_paths()] for flag in ("-isystem", path)]
    macros = [
        ("PHASEFAST_CUDA_VERSION", f'"{torch.version.cuda}"'),
        ("PHASEFAST_ARCHS", f'"{" ".join(ARCHS)}"'),
        ("USE_CUDA", None),
    ]
    return Extension(
        "phasefast._C",
        sources=[
            "csrc/library.cpp",
            "csrc/module.cpp",
            *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cpu/*.cpp")),
            *kernels,
        ],
        depends=[str(path.relative_to(ROOT)) for kind in ("h", "cuh") for path in ROOT.glob(f"csrc/**/*.{kind}")],
        include_dirs=[str(ROOT / "csrc")],
        library_dirs=library_paths() + (cuda_libraries() if cuda else []),
        libraries=["torch_cpu", *(["cudart_static", "dl", "rt", "pthread"] if cuda else [])],
        define_macros=[
            ("TORCH_TARGET_VERSION", ABI_TARGET),
            ("PHASEFAST_TORCH_VERSION", f'"{torch.__version__}"'),
            ("PHASEFAST_FLAGS", f'"{" ".join(flags)}"'),
            *(macros if cuda else []),
        ],
        extra_compile_args={"cxx": [*flags, *headers], "nvcc": [*nvcc_flags, *headers]},
        language="c++",
        optional=True,  # lets an editable install go on without the file that a failed build did not make
    )


class BuildOps(BuildExtension):
    """Builds the ops; where that fails, says so and lets the installation go on."""

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except Exception as error:
            self._end(f"{type(error).__name__}: {error}")
            return
        if any(not Path(self.get_ext_fullpath(ext.name)).exists() for ext in self.extensions):
            self._end("the compiler or linker failed; see above")

    def _end(self, reason: str) -> None:
        text = f"phasefast: the compiled ops were not built ({reason}). "
        mend = "To fix this, install a C++20 compiler (PHASEFAST_CUDA=0 leaves nvcc out) and install again."
        if REQUIRED:
            sys.exit(f"{text}{mend} Without PHASEFAST_REQUIRE_EXTENSION=1 the package is installed nevertheless.")
        works = "The package works without them, slower, on its PyTorch reference. "
        print(f"{text}{works}{mend} PHASEFAST_REQUIRE_EXTENSION=1 makes this an error.", file=sys.stderr)


REQUIRED = switch("PHASEFAST_REQUIRE_EXTENSION", "0", "1") == "1"
setup(ext_modules=[extension()], cmdclass={"build_ext": BuildOps})
