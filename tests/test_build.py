"""The build of the extension: its switches, its way without a compiler, and what the library needs of torch."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from phasefast import build_info

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


@pytest.mark.parametrize(
    ("absent", "message"),
    [("pybind11", "there is no pybind11 to build with"), ("setuptools", "setuptools 76.1 does not know")],
)
def test_what_is_needed_to_build_is_named(tmp_path, absent, message):
    text = (
        "raise ModuleNotFoundError(name=__name__)"
        if absent == "pybind11"
        else "__version__ = '76.1'; Extension = setup = 0"
    )
    (tmp_path / f"{absent}.py").write_text(text)
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import torch.utils.cpp_extension, runpy, sys; sys.modules.pop({absent!r}, None); "
            f"sys.path.insert(0, {str(tmp_path)!r}); runpy.run_path('setup.py')",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1
    assert f"phasefast: {message}" in run.stderr
    assert "Traceback" not in run.stderr


def test_switches_are_understood(tmp_path):
    for name, value, message in (
        ("PHASEFAST_CUDA", "1", "PHASEFAST_CUDA=1: expected nvcc on the path and a CUDA build of torch"),
        ("PHASEFAST_CUDA", "yes", "expected auto, 0 or 1"),
        ("PHASEFAST_WERROR", "true", "PHASEFAST_WERROR='true': expected 0 or 1"),
        ("PHASEFAST_REQUIRE_EXTENSION", "yes", "PHASEFAST_REQUIRE_EXTENSION='yes': expected 0 or 1"),
    ):
        run = subprocess.run(
            [sys.executable, "setup.py", "--version"],
            cwd=ROOT,
            env={**os.environ, "PHASEFAST_CUDA": "auto", name: value, "PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode != 0
        assert message in run.stderr


@pytest.mark.parametrize(("release", "built"), [("12.4", False), (None, False), ("own", True)])
def test_an_nvcc_of_another_cuda_is_not_taken_by_itself(tmp_path, release, built):
    if release == "own" and torch.version.cuda is None:
        pytest.skip("torch knows no CUDA here")
    text = f"release {torch.version.cuda if release == 'own' else release}, V0"
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, {text if release else 'none'}'\n")
    nvcc.chmod(0o755)
    as_with_a_gpu = (
        "import runpy, sys, torch; torch.cuda.is_available = lambda: True; sys.argv = ['setup.py', '--version']; "
        "print(runpy.run_path('setup.py')['wants_cuda']())"
    )
    run = subprocess.run(
        [sys.executable, "-c", as_with_a_gpu],
        cwd=ROOT,
        env={**os.environ, "PHASEFAST_CUDA": "auto", "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == str(built)
    assert ("built without CUDA kernels, as nvcc is of CUDA" in run.stderr) is not built


@pytest.fixture(scope="module")
def machine_code():
    """SASS of the library's kernels, by architecture."""
    tool = shutil.which("cuobjdump")
    if tool is None and (triton := importlib.util.find_spec("triton")) and triton.origin:
        tool = str(Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump")
    if not build_info()["cuda"] or tool is None:
        pytest.skip("built without CUDA kernels, or no cuobjdump here")
    return {
        arch: subprocess.run([tool, "-sass", "-arch", f"sm_{arch}", str(library())], capture_output=True, text=True)
        for arch in build_info()["archs"]
    }


def test_machine_code_of_the_kernels_is_what_was_meant(machine_code):
    assert set(machine_code) == {"80", "90a"}
    for arch, run in machine_code.items():
        kernels = dict(part.split("\n", 1) for part in run.stdout.split("Function : ")[1:])
        for stem, count in (("gram_kernel", 5), ("residual_kernel", 3)):
            codes = {name: code for name, code in kernels.items() if stem in name}
            assert len(codes) == count, (arch, stem, run.stderr)
            for name, code in codes.items():
                for wanted in ("HMMA.16816.F32.BF16", "LDSM.16.MT88.4", "LDG.E.128"):
                    assert wanted in code, (arch, name, wanted)
        copying = [name for name, code in kernels.items() if "LDGSTS.E.BYPASS.128" in code]
        assert len(copying) == 2, (arch, copying)  # bfloat16 rows, whatever the targets, need no taking apart
        assert all("gram_kernelI13__nv_bfloat16" in name for name in copying)
        solving = "".join(code for name, code in kernels.items() if "ridge_solve_kernel" in name)
        assert all(wanted in solving for wanted in ("HMMA.16816.F32.BF16", "LDSM.16.M88.4", "LDSM.16.MT88.4")), arch
        spilled = [name for name, code in kernels.items() if re.search(r"\b(LDL|STL)\b", code)]
        assert not spilled, (arch, spilled)


def test_machine_code_for_hopper_is_what_was_meant(machine_code):
    kernels = dict(part.split("\n", 1) for part in machine_code["90a"].stdout.split("Function : ")[1:])
    codes = {name: code for name, code in kernels.items() if re.search(r"sm90_kernel", name)}
    assert len(codes) == 3
    for name, code in codes.items():
        turned = (
            "tnspB" if "residual" in name else "tnspA.tnspB"
        )  # the left rows of residual lie as they are multiplied
        products = re.findall(r"HGMMA\.64x(\d+)x16\.F32(\S*) \S+, gdesc\[\w+\](\S*),", code)
        whole = "Shape<256" in name or "ShapeILi256" in name  # bfloat16 as it is; else parts, which are float16
        assert {kind for _, kind, _ in products} == {".BF16" if whole else ""}, (name, set(products))
        assert {kind.strip(".") for *_, kind in products} == {turned}, (name, set(products))
        assert "UTMALDG.3D" in code, name
        assert "UTMALDG.3D.MULTICAST" in code, name
        assert "USETMAXREG" in code, name
    # No other code may wait for the memory of the whole GPU: only starting and ending a cluster does.
    waits = [code.count("MEMBAR.ALL.GPU") for code in codes.values()]
    assert max(waits) <= 3, waits


PARTS = (".ci", "benchmarks", "csrc", "docs", "phasefast", "tests")
NOT_SOURCES = shutil.ignore_patterns("_C*", "__pycache__", "*.egg-info")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_wheel_made_of_the_source_distribution_is_whole(tmp_path):
    source, unpacked, absent = tmp_path / "source", tmp_path / "unpacked", str(tmp_path / "no-such-compiler")
    for name in PARTS:
        shutil.copytree(ROOT / name, source / name, ignore=NOT_SOURCES)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith(".git"):
            shutil.copy(path, source)
    before = files(source)

    def build(kind: str, folder: Path) -> Path:
        run = subprocess.run(
            [sys.executable, "setup.py", "--quiet", kind, "--dist-dir", str(tmp_path / kind)],
            cwd=folder,
            env={**os.environ, "CC": absent, "CXX": absent, "PHASEFAST_REQUIRE_EXTENSION": "0", "PHASEFAST_CUDA": "0"},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert run.returncode == 0, run.stderr[-2000:]
        return next((tmp_path / kind).iterdir())

    with tarfile.open(build("sdist", source)) as archive:
        archive.extractall(unpacked, filter="data")
    distribution = next(unpacked.iterdir())
    assert before - files(distribution) == set()
    with zipfile.ZipFile(build("bdist_wheel", distribution)) as wheel:
        installed = set(wheel.namelist())
        points = next(name for name in installed if name.endswith("entry_points.txt"))
        assert "phasefast = phasefast.cli:main" in wheel.read(points).decode()
    assert {name for name in before if name.startswith("phasefast/")} - installed == set()
    assert {name.split("/")[0].split("-")[0] for name in installed} == {"phasefast"}


@pytest.mark.parametrize(("required", "fails"), [("0", False), ("1", True)])
def test_installation_survives_a_missing_compiler(tmp_path, required, fails):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path)
    for name in ("csrc", "phasefast"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=NOT_SOURCES)
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
    assert "compiled ops were not built" in run.stderr
    assert run.stderr.strip().splitlines()[-1].startswith("phasefast: ")
    assert not list((tmp_path / "phasefast").glob("_C*"))
