"""The build of the extension: its switches, its way without a compiler, and what the library needs of torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def library() -> Path:
    return next((ROOT / "phasefast").glob("_C*.so"))


@pytest.mark.skipif(shutil.which("nm") is None, reason="binutils' nm is not here")
def test_only_c_symbols_of_torch_are_needed():
    names = subprocess.run(["nm", "-D", "--undefined-only", str(library())], capture_output=True, text=True, check=True)
    symbols = [line.split()[-1] for line in names.stdout.splitlines()]
    mangled = [name for name in symbols if re.match(r"_Z\w*?(2at|3c10|5torch|5caffe2)", name)]
    assert not mangled, f"C++ symbols of torch, which change from version to version: {mangled}"
    assert any(name.startswith("aoti_torch_") for name in symbols)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="binutils' readelf is not here")
def test_the_library_links_to_no_python_part_of_torch():
    dynamic = subprocess.run(["readelf", "-d", str(library())], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"NEEDED.*\[(.+?)\]", dynamic)
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if "torch_python" in name or "c10" in name]


def test_cuda_switch_is_understood():
    for value, message in (
        ("1", "PHASEFAST_CUDA=1, but csrc/cuda holds no CUDA sources"),
        ("yes", "expected auto, 0 or 1"),
    ):
        run = subprocess.run(
            [sys.executable, "setup.py", "--version"],
            cwd=ROOT,
            env={**os.environ, "PHASEFAST_CUDA": value},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode != 0
        assert message in run.stderr


@pytest.mark.parametrize(("required", "fails"), [("0", False), ("1", True)])
def test_installation_survives_a_missing_compiler(tmp_path, required, fails):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path)
    for name in ("csrc", "phasefast"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    absent = str(tmp_path / "no-such-compiler")
    run = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tmp_path,
        env={**os.environ, "CC": absent, "CXX": absent, "PHASEFAST_REQUIRE_EXTENSION": required},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (run.returncode != 0) is fails, run.stderr[-2000:]
    if not fails:
        assert "compiled ops were not built" in run.stderr
    assert not list((tmp_path / "phasefast").glob("_C*"))
