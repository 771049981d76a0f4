from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import phasefast as pf
from phasefast.cli import app
from phasefast.engine import Engine
from phasefast.errors import ArgumentError, StoreError
from phasefast.options import ProbeOptions
from phasefast.planning import forward_seconds

from .conftest import SmallNet, images
from .report.synthetic import log2_steps, make_scores, write_run

ROOT = Path(pf.__file__).parents[1]
NEEDS_TORCHVISION = pytest.mark.skipif(find_spec("torchvision") is None, reason="needs torchvision")
DIGITS_NET = "phasefast.experiments.models:digits_net"


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


def fails(*arguments: str | Path) -> str:
    """The one line of an error, on standard error, with exit code 1."""
    result = invoke(*arguments)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.output
    return lines[0]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", make_scores(["stage1", "features"], log2_steps(12)))


@pytest.mark.parametrize(
    ("command", "without"),
    [
        ("sweep", set()),
        ("plan", set()),
        ("reconstruct", {"targets", "splits", "predicts", "classifier", "target_components", "layer_sketch"}),
    ],
)
def test_commands_that_measure_have_all_options(command: str, without: set[str]) -> None:
    shown = invoke(command, "--help").stdout
    flags = {"layers": "layer", "alphas": "alpha", "targets": "target"}
    names = {name: f"--{flags.get(name, name).replace('_', '-')}" for name in ProbeOptions.__annotations__}
    assert {name for name, flag in names.items() if not re.search(rf"{flag}\s", shown)} == without


def test_demo_of_eight_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PHASEFAST_PROGRESS", raising=False)
    out = tmp_path / "demo"
    result = invoke("demo", "--steps", "8", "--out", out, "--device", "cpu", "--seed", "1")
    assert result.exit_code == 0, result.output
    assert "training 8/8 steps" in result.stderr
    assert "Held-out fvu of target input" in result.stdout
    assert len(list((out / "scores").glob("step-*.parquet"))) == 5
    cells = json.loads((out / "phases.json").read_text())["cells"]
    assert len(cells) == 10
    assert {(cell["target"], cell["metric"]) for cell in cells} == {("input", "fvu"), ("label", "error")}
    assert (out / "phases.png").stat().st_size > 10_000


def test_info_says_what_there_is() -> None:
    result = invoke("info")
    assert result.exit_code == 0
    for fact in (pf.__version__, torch.__version__, "extension", "CUDA devices", "cores", "torchvision"):
        assert fact in result.stdout


def test_info_says_why_the_extension_is_not_used_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = {"compiled": False, "problem": "phasefast._C is not built; pip install -e ."}
    monkeypatch.setattr("phasefast.cli.reporting.build_info", lambda: problem)
    assert "not used: phasefast._C is not built; pip install -e ." in invoke("info").stdout


def test_info_names_the_extra_of_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phasefast.cli.reporting._EXTRAS", {"no-such-package": "vision"})
    assert "missing: pip install 'phasefast[vision]'" in invoke("info").stdout


def test_layers_marks_those_probed_by_default() -> None:
    result = invoke("layers", DIGITS_NET)
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["*", "stage1", "Sequential"] in rows
    assert ["stage1.conv", "Conv2d"] in rows
    assert ["*", "features", "Flatten"] in rows
    assert "6 of 18 modules are probed by default" in result.stdout


def test_layers_with_patterns_lists_only_matches() -> None:
    result = invoke("layers", DIGITS_NET, "--pattern", "stage?.conv", "--pattern", "features")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [row[1] for row in rows[1:-1]] == ["stage1.conv", "stage2.conv", "stage3.conv", "stage4.conv", "features"]


def test_plan_tells_route_and_memory_of_every_layer() -> None:
    result = invoke("plan", DIGITS_NET, "--sample", "1,8,8", "--fit", "200", "--heldout", "50", "--checkpoints", "3")
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.split()[1:3] for line in result.stdout.splitlines()}
    assert rows["stage1"] == ["1024", "dual"]
    assert rows["classifier"] == ["10", "primal"]
    assert "3 checkpoints: " in result.stdout
    assert re.search(r"and \d+\.\d\d s for 6 forward passes", result.stdout)
    assert "is for the BatchNorm statistics" in result.stdout
    running = invoke("plan", DIGITS_NET, "--sample", "1,8,8", "--checkpoints", "3", "--batchnorm", "running")
    assert "s for 3 forward passes" in running.stdout
    free = "--route", "target-free", "--splits", "heldout"
    heldout = invoke("plan", DIGITS_NET, "--sample", "1,8,8", "--fit", "200", "--heldout", "5", *free)
    assert "primal-target-free" in heldout.stdout
    assert "1 checkpoint: " in heldout.stdout
    assert "held-out scores only" in heldout.stdout
    forced = invoke("plan", DIGITS_NET, "--sample", "1,8,8", "--route", "target-free")
    assert forced.exit_code == 1
    assert "splits='heldout'" in forced.output
    small = invoke("plan", DIGITS_NET, "--sample", "1,8,8", "--fit", "200", "--memory", "20MB", "--heldout", "50")
    assert " 2\n" in small.stdout.replace(" \n", "\n")


def test_plans_are_printed_as_tables(net: SmallNet) -> None:
    found = pf.plan(net, (1, 6, 6), 150, 60, classes=3, layers=["conv", "hidden"])
    head, conv, hidden, total, passes = str(found).splitlines()
    assert head.split() == ["layer", "features", "route", "GFLOP", "GB", "seconds", "pass"]
    assert conv.split()[:3] == ["conv", "54", "primal"]
    assert hidden.split()[:2] == ["hidden", "20"]
    assert len(head) == len(conv) == len(hidden) == len(total.rstrip()) + len("  pass")
    assert total.split() == ["all", f"{sum(each.cost.flops for each in found) / 1e9:.1f}", f"{found.seconds:.3f}"]
    # One over the fit rows is for BatchNorm.
    assert passes == f"2 forward passes: {found.forward_seconds:.2f} s"
    assert found.forward_seconds > 0
    one = pf.plan(net, (1, 6, 6), 150, 60, layers="conv", batchnorm="running")
    assert len(str(one).splitlines()) == 3
    assert str(one).splitlines()[-1].startswith("1 forward pass: ")
    assert [each.layer.name for each in found] == ["conv", "hidden"]
    assert found[0] == found[:1][0]


def test_plan_is_what_a_measurement_does(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    layers = ["conv", "hidden"]
    planned = {entry.layer.name: entry for entry in pf.plan(net, (1, 6, 6), 150, 60, classes=3, layers=layers)}
    engine = Engine(net, probe_set, layers=layers)
    for cell in engine.activations():
        entry = planned[cell.layer.name]
        assert entry.layer == cell.layer
        assert entry.cost == engine.method.cost(cell, engine.targets)
        assert entry.seconds > 1e-4  # what Python takes alone
    wide = Engine(net.double(), probe_set, layers=layers)
    doubles = [entry.cost for entry in pf.plan(net, torch.randn(1, 6, 6).double(), 150, 60, classes=3, layers=layers)]
    assert doubles == [wide.method.cost(cell, wide.targets) for cell in wide.activations()]
    assert doubles[-1].bytes - entry.cost.bytes == 4 * 210 * 20 * 2  # the rows and a copy
    assert pf.plan(net, torch.randn(1, 6, 6), 150, 60, classes=3, layers=layers)[-1].cost == doubles[-1]
    one, alone = (
        pf.plan(net, (1, 6, 6), 150, 60, classes=3, layers=layers, alphas=alphas) for alphas in (1e-2, [1e-2])
    )
    assert [entry.cost for entry in one] == [entry.cost for entry in alone]
    with pytest.raises(ArgumentError, match="positive"):
        pf.plan(net, (1, 6, 6), 0, 60)
    with pytest.raises(ArgumentError, match=r"takes no torch.float32 input of shape \(3, 6, 6\)"):
        pf.plan(net, (3, 6, 6), 150, 60)


@pytest.mark.parametrize("rows", [20, 150])  # less and more than columns
@pytest.mark.parametrize(
    "options",
    [
        {"noise": 0.1},
        {"alphas": [0.1]},
        {"precision": "double"},
        {"layer_sketch": 5},
        *({"selection": how} for how in ("loo", "folds")),
        *({"penalty_per": "column", "selection": how} for how in ("gcv", "loo", "folds")),
    ],
    ids=str,
)
def test_plan_knows_how_penalties_are_given_and_chosen(net: SmallNet, rows: int, options: dict) -> None:
    probe_set = pf.ProbeSet.from_tensors(*images(rows, 1), *images(60, 2))
    how = {"layers": ["conv", "hidden"], "memory": "1GB", **options}
    engine = Engine(net, probe_set, **how)
    planned = pf.plan(net, (1, 6, 6), rows, 60, classes=3, **how)
    assert [entry.cost for entry in planned] == [engine.method.cost(c, engine.targets) for c in engine.activations()]
    with pytest.raises(ArgumentError, match="alphas and noise exclude each other"):
        pf.plan(net, (1, 6, 6), rows, 60, alphas=[0.1], noise=0.1)
    with pytest.raises(
        ArgumentError, match=r"targets: without a probe set, only the input and a label \(classes=\) are planned for"
    ):
        pf.plan(net, (1, 6, 6), rows, 60, targets=["label"])
    with pytest.raises(ArgumentError, match="model: expected a Module, got list"):
        pf.plan([net], (1, 6, 6), rows, 60)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"expected a Module, got type; give what Identity\(...\) makes"):
        pf.plan(torch.nn.Identity, (1, 6, 6), rows, 60)  # type: ignore[arg-type]


@pytest.mark.parametrize(("each_pass", "each_sample", "tried"), [(0.2, 0.0, 64), (0.0, 0.4, 2), (0.0, 0.002, 64)])
def test_passes_are_timed_on_as_many_samples_as_soon_tell(
    each_pass: float, each_sample: float, tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, sizes = [0.0], []

    class Slow(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            clock[0] += each_pass + each_sample * len(x) + 60 * (len(sizes) == 1)
            return x.flatten(1)

    monkeypatch.setattr("phasefast.planning.time.perf_counter", lambda: clock[0])
    expected = 640 / tried * each_pass + 640 * each_sample
    inputs = torch.zeros(70, 1, 6, 6)
    found = forward_seconds(torch.nn.Sequential(Slow()), inputs, torch.device("cpu"), 640)
    assert found == pytest.approx(expected)
    assert max(sizes) == tried


def test_plan_takes_penalties_as_the_sweep_does() -> None:
    def plan(*given: str) -> list[list[str]]:
        sizes = "--layer", "stage1", "--sample", "1,8,8", "--fit", "200", "--heldout", "50"
        result = invoke("plan", DIGITS_NET, *sizes, *given)
        assert result.exit_code == 0, result.output
        return [line.split()[2:4] for line in result.stdout.splitlines()[1:2]]  # route, GFLOP

    chosen, noisy = plan(), plan("--noise", "0.1")
    assert noisy == plan("--alpha", "0.1")
    assert noisy != chosen != plan("--penalty-per", "column")
    assert chosen == plan("--precision", "double") == plan("--layer-sketch", "3")
    without = "layers are planned without a sketch, the way they are decoded if it fails"
    assert without in " ".join(invoke("plan", DIGITS_NET, "--sample", "1,8,8", "--layer-sketch", "3").stdout.split())
    assert "padding: needs tokens=" in fails("plan", DIGITS_NET, "--sample", "1,8,8", "--padding", "0")
    assert "penalty_per: expected one of" in fails("plan", DIGITS_NET, "--penalty-per", "columns")


class Picky(torch.nn.Module):
    """Says itself what it does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Flatten()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1:] != (1, 8, 8):
            raise ValueError("only 8x8")
        return self.layer(x)


@pytest.mark.parametrize("model", [DIGITS_NET, "tests.test_cli:Picky"])
def test_plan_without_a_sample_says_how_one_is_given(model: str) -> None:
    assert "give an input that it takes, or the shape of one (--sample, or --probe-set)" in fails("plan", model)


def test_plan_of_a_probe_set_is_what_a_measurement_of_it_does(
    probe_set: pf.ProbeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = torch.randint(0, 9, (80, 5)), torch.arange(80) % 3
    tokens, model = pf.ProbeSet.from_tensors(x[:60], y[:60], x[60:], y[60:]), torch.nn.Sequential()
    model.append(torch.nn.Embedding(9, 4)).append(torch.nn.Flatten())
    engine = Engine(model, tokens, layers="*", tokens="mean")
    planned = pf.plan(model, x[0], 60, 20, classes=tokens.classes, layers="*", tokens="mean")
    assert [entry.cost for entry in planned] == [engine.method.cost(c, engine.targets) for c in engine.activations()]
    with pytest.raises(ArgumentError, match=r"the sample is torch.int64, not floating-point, and classes=0"):
        pf.plan(model, x[0], 60, 20)
    with pytest.raises(ArgumentError, match="plan: a probe set has its own sizes; leave out fit, heldout and classes"):
        pf.plan(model, tokens, 60, 20)
    probe_set.save(tmp_path / "probe_set.pt")
    given = invoke("plan", "tests.conftest:SmallNet", "--layer", "hidden", "--probe-set", tmp_path / "probe_set.pt")
    sizes = "--sample", "1,6,6", "--fit", "150", "--heldout", "60", "--classes", "3"
    same = invoke("plan", "tests.conftest:SmallNet", "--layer", "hidden", *sizes)
    columns = [[line.split()[:5] for line in each.stdout.splitlines()[:2]] for each in (given, same)]
    assert columns[0] == columns[1]
    assert columns[0][1][0] == "hidden"
    some = "plan", "tests.conftest:SmallNet", "--probe-set", tmp_path / "probe_set.pt", "--target"
    assert "'age'" in fails(*some, "age")
    of_label = invoke(*some, "label", "--splits", "heldout", "--classifier", "lda")
    assert of_label.stdout.splitlines()[1].split()[:3] == ["conv", "54", "primal"]  # and no target-free one
    assert "--target: without --probe-set" in fails("plan", DIGITS_NET, "--target", "label")


@pytest.mark.parametrize(
    "options",
    [
        {"targets": ["label"]},
        {"targets": [pf.Input(), pf.Function(lambda x: x.mean((2, 3)), name="mean")], "penalty_per": "column"},
        {"splits": "heldout", "classifier": "lda"},
        {"splits": "heldout"},
        {"memory": 8e5},
    ],
    ids=str,
)
def test_plan_of_targets_is_what_a_measurement_of_them_does(net: SmallNet, probe_set: pf.ProbeSet, options) -> None:
    how = {"layers": ["conv", "hidden"], "memory": "1GB", **options}
    engine = Engine(net, probe_set, **how)
    planned = pf.plan(net, probe_set, **how)
    assert [entry.cost for entry in planned] == [engine.method.cost(c, engine.targets) for c in engine.activations()]
    passes = 2 if "memory" in options else 1
    assert planned[-1].forward_pass == passes
    assert planned.forward_passes == passes + 1  # one is for BatchNorm


def test_layers_of_a_torchvision_model() -> None:
    pytest.importorskip("torchvision")
    assert "layer4.1.conv2" in invoke("layers", "resnet18").stdout


def test_layers_of_a_module_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text("from torch import nn\nnet = nn.Sequential(nn.Linear(2, 2), nn.ReLU())\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert "ReLU" in invoke("layers", "my_nets:net").stdout


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no.such.module:net", "expected package.module:callable; No module named 'no'"),
        ("phasefast.experiments.models:digits_nett", "has no attribute 'digits_nett'"),
        ("json:dumps", "without required arguments"),
        ("json:JSONDecoder", "expected a Module, got JSONDecoder"),
        (":net", "expected package.module:callable"),
        pytest.param("resnet19", "did you mean resnet1", marks=NEEDS_TORCHVISION),
        pytest.param("???", "no torchvision model has such a name", marks=NEEDS_TORCHVISION),
    ],
)
def test_bad_model_names(model: str, message: str) -> None:
    line = fails("layers", model)
    assert repr(model) in line
    assert message in line


def test_pattern_without_match_names_near_ones() -> None:
    assert "stage1.conv" in fails("layers", DIGITS_NET, "--pattern", "stage1.cnv")


def test_missing_or_unwritable_directories_are_one_line(tmp_path: Path) -> None:
    assert "no scores in" in fails("phases", tmp_path / "absent")
    assert "no scores in" in fails("report", tmp_path / "absent")
    (tmp_path / "file").write_text("")
    assert "cannot write to the output directory" in fails("demo", "--steps", "1", "--out", tmp_path / "file")
    assert "device 'abacus' cannot be used" in fails("demo", "--steps", "1", "--out", tmp_path, "--device", "abacus")


def test_debug_shows_the_error_itself(tmp_path: Path) -> None:
    result = invoke("--debug", "phases", tmp_path)
    assert isinstance(result.exception, StoreError)


def test_usage_errors_are_told_from_failures(tmp_path: Path) -> None:
    assert invoke("demo", "--steps", "many").exit_code == 2
    assert invoke("demo", "--seed", "-1").exit_code == 2
    assert invoke("phases").exit_code == 2


def test_python_dash_m_in_a_fresh_process() -> None:
    command = [sys.executable, "-m", "phasefast", "layers", "nonsense:net"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    why = f"No module named 'nonsense', looked for in {ROOT} and on PYTHONPATH"
    assert done.stderr == f"error: model 'nonsense:net': expected package.module:callable; {why}\n"


def test_the_command_line_loads_no_optional_package() -> None:
    heavy = ["matplotlib", "sklearn", "torchvision", "pandas"]
    code = f"import sys, phasefast.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"
