"""Builds the kernels' sources for the host: tests/stand_in/stand_in.h takes the place of the GPU."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """Compiles ``<op>_stand_in.cpp`` and loads it."""

    def build(op: str) -> ctypes.CDLL:
        library = tmp_path_factory.mktemp("stand_in") / f"{op}.so"
        flags = ["-std=c++20", "-O2", "-shared", "-fPIC", "-DPHASEFAST_STAND_IN", "-ffp-contract=off", "-x", "c++"]
        warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
        source = HERE / f"{op}_stand_in.cpp"
        compiler = os.environ.get("CXX", "g++")
        subprocess.run([compiler, *flags, *warnings, f"-I{HERE}", "-o", str(library), str(source)], check=True)
        return ctypes.CDLL(str(library))

    return build
