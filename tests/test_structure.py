"""The shape of the house: import order, one stem per op, short files, one home for every fact."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "phasefast"
OPS = ("capture", "gram", "residual", "ridge_solve")
LEVELS = (
    ("metrics",),
    ("errors", "types"),
    ("common",),
    ("data", "ops", "results"),
    ("algebra", "layers", "phases"),
    ("stages",),
    ("decoding",),
    ("named_targets", "options", "predicted", "scoring"),
    ("checkpoints", "configuration"),
    ("constants", "target_set"),
    ("engine",),
    ("in_turn", "linear_decoders", "probe", "schedule", "track", "planning"),
    ("provenance",),
    ("reconstruction", "sweep"),
    ("watch",),
    ("report",),
    ("__init__",),
    ("experiments", "integrations"),
    ("cli",),
    ("__main__",),
)
RANK = {name: level for level, names in enumerate(LEVELS) for name in names}
SOURCES = [
    path
    for pattern in (
        "phasefast/**/*.py",
        "tests/**/*.py",
        "benchmarks/**/*.py",
        "docs/*.py",
        "csrc/**/*.cpp",
        "csrc/**/*.h",
        "csrc/**/*.cu",
        "csrc/**/*.cuh",
        "setup.py",
    )
    for path in ROOT.glob(pattern)
]


def imports(path: Path) -> set[tuple[str, ...]]:
    """Absolute dotted names, without the leading ``phasefast``, of everything a module of the package imports."""
    package = path.relative_to(PACKAGE).parts[:-1]
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                base += tuple(node.module.split(".")) if node.module else ()
            elif node.module and node.module.split(".")[0] == "phasefast":
                base = tuple(node.module.split(".")[1:])
            else:
                continue
            found |= {(*base, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names]
            found |= {(*name[1:], "*") for name in parts if name[0] == "phasefast"}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("**/*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts
    for target in imports(path):
        top = target[0] if target[0] in RANK else "__init__"
        if top == own[0] and len(own) > 1:
            if own[0] == "stages" and own[1] != "__init__":
                pytest.fail(f"stage {own[1]} imports stage {target[1]}")
            continue
        assert RANK[top] <= RANK[own[0]], f"{'.'.join(own)} imports {'.'.join(target)}"
        assert top != own[0], f"{'.'.join(own)} imports itself"


def test_no_import_cycles() -> None:
    modules = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.glob("**/*.py")}
    graph = {
        name: {
            known for target in imports(path) for known in (target, target[:-1]) if known in modules and known != name
        }
        for name, path in modules.items()
    }
    done: set[tuple[str, ...]] = set()

    def visit(name: tuple[str, ...], trail: tuple[tuple[str, ...], ...]) -> None:
        assert name not in trail, f"import cycle: {[*trail, name]}"
        if name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("op", OPS)
def test_each_op_has_one_stem_everywhere(op: str) -> None:
    assert re.search(rf'"{op}\(', (ROOT / "csrc/library.cpp").read_text()), "schema"
    assert re.search(rf"^def {op}\(", (PACKAGE / "ops/reference.py").read_text(), re.MULTILINE), "reference"
    places = ("csrc/{}.h", "csrc/cpu/{}.cpp", "phasefast/ops/{}.py", "tests/ops/test_{}.py", "benchmarks/bench_{}.py")
    for place in places:
        assert (ROOT / place.format(op)).is_file(), place.format(op)


def test_no_op_without_a_stem() -> None:
    stems = {path.stem for path in (ROOT / "csrc/cpu").glob("*.cpp")}
    assert stems == set(OPS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_version_has_one_home() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    homes = [path for path in SOURCES if f'"{version}"' in path.read_text(encoding="utf-8")]
    assert homes == []


def test_the_readme_has_all_environment_variables() -> None:
    read = re.compile(r"""(?:environ(?:\.get\(|\[)|getenv\(|is_set\(|switch\()"(PHASEFAST_\w+)""")
    places = [path for path in SOURCES if path.is_relative_to(PACKAGE) or path.is_relative_to(ROOT / "csrc")]
    found = {name for path in [*places, ROOT / "setup.py"] for name in read.findall(path.read_text(encoding="utf-8"))}
    assert len(found) >= 8
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Environment variables")[2]
    assert found == {*re.findall(r"PHASEFAST_\w+", table)}


def test_only_the_pybind11_module_looks_beyond_the_stable_abi() -> None:
    allowed = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/")
    for path in ROOT.glob("csrc/**/*"):
        if path.suffix in (".cpp", ".h", ".cu", ".cuh"):
            for header in re.findall(r"#include\s*<((?:torch|ATen|c10)[^>]*)>", path.read_text()):
                assert header.startswith(allowed), f"{path.name} includes {header}"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("**/*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_inner_function_calls_itself(path: Path) -> None:
    """It would be a cycle that keeps the matrices it refers to until the garbage collector comes by."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    outer = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inner = [
        node for each in outer for node in ast.walk(each) if isinstance(node, ast.FunctionDef) and node is not each
    ]
    for function in inner:
        names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
        assert function.name not in names, f"{path.name}:{function.lineno}: {function.name}"
