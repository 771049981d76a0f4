from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from phasefast.errors import ArgumentError
from phasefast.ops import _cuda, _extension, reference

ROOT = Path(__file__).resolve().parents[2]
F64 = torch.float64


def python(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def arguments() -> dict[str, tuple]:
    """Valid arguments of every op; two cells where that is a list."""
    rows, targets = torch.randn(9, 4), torch.randn(9, 5)
    gram = rows.T @ rows
    return {
        "capture": (
            [torch.randn(6, 2, 4, 4), torch.randn(3, 5)],
            [torch.zeros(8), torch.zeros(5)],
            [2, 0],
            [torch.zeros(6, 8), torch.zeros(3, 5)],
            [torch.zeros(8, dtype=F64), torch.zeros(5, dtype=F64)],
            [torch.zeros(8, dtype=F64), torch.zeros(5, dtype=F64)],
        ),
        "gram": (
            [rows, rows[:, :2]],
            targets,
            [torch.zeros(4, 4), torch.zeros(2, 2)],
            [torch.zeros(4, 5), torch.zeros(2, 5)],
        ),
        "ridge_solve": (
            [gram],
            [rows.T @ targets],
            [torch.ones(2, dtype=F64)],
            [torch.zeros(2, 4, 5)],
            [torch.zeros(2, 4, 4)],
            torch.zeros(1, 2, dtype=torch.int32),
        ),
        "residual": (
            [rows],
            [torch.randn(4, 5)],
            [torch.zeros(5)],
            targets,
            [0, 3, 5],
            [False, True],
            [torch.zeros(2, 9, dtype=F64)],
            [torch.zeros(2, 9, dtype=torch.bool)],
        ),
    }


def test_built():
    assert _extension.available(), _extension.build_info()["problem"]
    info = _extension.build_info()
    assert info["compiled"] is True
    assert info["problem"] is None
    assert info["abi_target"] == "2.11"
    assert "-O3" in info["flags"]
    assert "fast-math" not in info["flags"]


@pytest.mark.parametrize("op", _extension.OPS)
def test_opcheck(op):
    torch.library.opcheck(_extension.compiled(op), arguments()[op])


@pytest.mark.parametrize("op", _extension.OPS)
def test_direct_calls_are_checked_too(op):
    given = list(arguments()[op])
    given[0] = [torch.zeros(3, 3, 3, dtype=torch.int8)] * len(given[0])
    with pytest.raises(RuntimeError, match=r"phasefast: (activations|rows|grams)\[0\] has"):
        _extension.compiled(op)(*given)


@pytest.mark.parametrize("op", _extension.OPS)
def test_fakes_and_cuda_fall_back_to_the_reference(op):
    kernels = torch._C._dispatch_dump(f"phasefast::{op}")
    assert re.search(r"^Meta", kernels, re.MULTILINE)
    if not _extension.build_info()["cuda"]:
        assert re.search(r"^CUDA", kernels, re.MULTILINE)
        assert callable(getattr(reference, op))


def test_environment_forces_the_reference():
    code = (
        "import torch; from phasefast.ops import _extension, gram; g = torch.zeros(2, 2); c = torch.zeros(2, 1);"
        "gram([torch.ones(3, 2)], torch.ones(3, 1), [g], [c]);"
        "print(_extension.available(), _extension.build_info()['problem'], c.sum().item())"
    )
    run = python(code, ROOT, PHASEFAST_REFERENCE="1")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("False PHASEFAST_REFERENCE=1")
    assert run.stdout.rstrip().endswith("6.0")


@pytest.mark.parametrize("broken", [None, b"this is no library", b"\x7fELF and then nothing"])
def test_absent_or_broken_library_gives_a_message(tmp_path, broken):
    shutil.copytree(ROOT / "phasefast", tmp_path / "phasefast", ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    if broken is not None:
        suffix = next(path for path in (ROOT / "phasefast").glob("_C*")).name
        (tmp_path / "phasefast" / suffix).write_bytes(broken)
    code = (  # the finder of an editable install would fetch the library of the checkout
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)];"
        "import torch, phasefast; from phasefast.ops import _extension, capture; r = torch.zeros(2, 3);"
        "s = torch.zeros(3, dtype=torch.float64);"
        "capture([torch.ones(2, 3)], [torch.zeros(3)], [0], [r], [s], [s.clone()]);"
        "print(phasefast.__file__, _extension.available(), s.sum().item(), _extension.build_info()['problem'])"
    )
    run = python(code, tmp_path, PYTHONPATH=str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert str(tmp_path) in run.stdout
    assert "False 6.0 phasefast._C" in run.stdout
    assert ("is missing: no compiler was found" if broken is None else "does not load") in run.stdout
    assert "pip install" in run.stdout
    assert ("the PyTorch reference is used, which is slower" in run.stderr) is (broken is not None)


def widened(argument):
    """The argument with float64 tensors in the place of float ones."""
    if isinstance(argument, list):
        return [widened(entry) for entry in argument]
    floating = isinstance(argument, torch.Tensor) and argument.is_floating_point()
    return argument.double() if floating else argument


def test_cuda_kernels_are_used_where_asked_for_and_leave_the_rest_to_the_reference(monkeypatch):
    asked = {}
    kernels = {op: SimpleNamespace(default=lambda *args, op=op: asked.setdefault(op, args)) for op in _extension.OPS}
    monkeypatch.setattr(torch.ops, "phasefast_cuda", SimpleNamespace(**kernels), raising=False)
    for wanted, built in (("0", True), ("1", False)):
        monkeypatch.setenv("PHASEFAST_CUDA_KERNELS", wanted)
        for op, given in arguments().items():
            _cuda.implementation(op, built)(*given)
            assert op not in asked
            with pytest.raises(ArgumentError):  # the reference alone would take what it can use
                _cuda.implementation(op, built)([*given[0], given[0][0]], *given[1:])
    monkeypatch.setenv("PHASEFAST_CUDA_KERNELS", "1")
    for op, given in arguments().items():
        _cuda.implementation(op, True)(*given)
        assert asked.pop(op) is not None
        wide = [argument if op == "capture" and i == 1 else widened(argument) for i, argument in enumerate(given)]
        _cuda.implementation(op, True)(*wide)
        assert op not in asked


@pytest.mark.parametrize("faster", [True, False])
def test_cuda_kernels_are_the_default_where_they_are_faster(monkeypatch, faster):
    monkeypatch.delenv("PHASEFAST_CUDA_KERNELS", raising=False)
    asked = []
    kernels = {op: SimpleNamespace(default=lambda *args, op=op: asked.append(op)) for op in _extension.OPS}
    monkeypatch.setattr(torch.ops, "phasefast_cuda", SimpleNamespace(**kernels), raising=False)
    monkeypatch.setattr(_cuda, "_FASTER", dict.fromkeys(_extension.OPS, lambda *_: faster))
    for op, given in arguments().items():
        _cuda.implementation(op, True)(*given)
    assert asked == (list(arguments()) if faster else [])


def test_what_makes_cuda_kernels_faster():
    solve, residual = (_cuda._FASTER[op] for op in ("ridge_solve", "residual"))
    gram, path = torch.empty(1024, 1024), torch.empty(4)
    assert solve([gram], [], [path])
    assert not solve([gram], [], [path[:3]])
    assert not solve([], [], [])
    assert residual([torch.empty(10, 256)], [torch.empty(256, 74)], [], torch.empty(10, 74), [0, 64, 74])
    assert not residual([torch.empty(10, 512)], [torch.empty(512, 74)], [], torch.empty(10, 74), [0, 64, 74])


@pytest.mark.parametrize("wanted", ["abacus", "amx", ""])
def test_products_that_are_not_there_are_said(wanted):
    code = "from phasefast import build_info; build_info(); print(build_info()['products'])"
    run = python(code, ROOT, PHASEFAST_PRODUCTS=wanted)
    assert run.returncode == 0, run.stderr
    taken = run.stdout.strip()
    said = f"RuntimeWarning: PHASEFAST_PRODUCTS={wanted}: expected blas, avx2, avx512 or amx" in run.stderr
    assert said == (wanted not in ("", taken))
    assert run.stderr.count("Warning:") == said
    assert not said or f"{taken} is used" in run.stderr


def test_the_reference_sums_some_rows_at_a_time():
    rows, targets = torch.randn(9000, 6) + 3, torch.randn(9000, 3)
    found = []
    for edges in ([0, 9000], [0, 4096, 8192, 9000]):
        grams, crosses = torch.zeros(6, 6, dtype=torch.float64), torch.zeros(6, 3, dtype=torch.float64)
        for start, stop in pairwise(edges):
            reference.gram([rows[start:stop]], targets[start:stop], [grams], [crosses])
        found.append((grams, crosses))
    assert all(torch.equal(whole, parts) for whole, parts in zip(*found))


def test_pytorch_products_are_summed_some_rows_at_a_time():
    rows, targets = torch.randn(9000, 6), torch.randn(9000, 3)
    grams, crosses = torch.ones(6, 6, dtype=torch.float64), torch.ones(6, 3, dtype=torch.float64)
    _cuda._gram([rows], targets, [grams], [crosses])
    wide = rows.double()
    torch.testing.assert_close(grams.tril(), (wide.T @ wide).tril() + torch.ones(6, 6).tril(), rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(crosses, wide.T @ targets.double() + 1, rtol=1e-6, atol=1e-3)
