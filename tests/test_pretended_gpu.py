"""What runs on a GPU, without one: tensors stay there, the numbers are those of the CPU, the host rarely waits."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import phasefast as pf
from phasefast import ops
from phasefast.algebra import dense
from phasefast.checkpoints import Reader, read_ahead
from phasefast.common.devices import resolve_device
from phasefast.engine import Engine
from phasefast.scoring import score_cells
from phasefast.stages.statistics import accumulate
from tests import test_cuda, test_linear_decoders, test_reconstruction
from tests.conftest import SmallNet, images
from tests.pretend_gpu import DEVICE, OnGpu, pretended

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: tests/test_cuda.py")
FINE = [10 ** (-6 + k / 8) for k in range(65)]
FEW = pf.ProbeSet.from_tensors(*images(30, 1), *images(20, 2))
VALUES = pf.ProbeSet.from_tensors(
    *images(150, 1),
    *images(60, 2),
    values={
        "age": (torch.linspace(0, 9, 150).double(), torch.linspace(0, 9, 60).double()),
        "kind": (torch.arange(150) % 4, torch.arange(60) % 4),
    },
)


def rows(scores: pf.Scores) -> list[dict[str, Any]]:
    """What does not depend on the device's speed."""
    table = scores.to_pandas().drop(columns=["seconds", "state_hash", "config_hash"])
    return [dict(row) for _, row in table.iterrows()]


def assert_same(found: pf.Scores, expected: pf.Scores, relative: float, flipped: float = 1e-12) -> None:
    """The same rows, numbers to so much of them, but accuracies to a share of samples that rounding may flip."""
    assert len(found) == len(expected) > 0
    for own, other in zip(rows(found), rows(expected), strict=True):
        for name, value in other.items():
            if isinstance(value, float) and not math.isnan(value):
                loose = name in ("condition", "error_estimate", "jitter")
                least = flipped if other["metric"] == "accuracy" else 1e-12
                assert own[name] == pytest.approx(value, rel=math.inf if loose else relative, abs=least), (name, other)
            elif not isinstance(value, float):
                assert own[name] == value, (name, other)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alphas": [0.01]},
        {"alphas": [0.0, 1e-3, 1.0]},
        pytest.param({"alphas": FINE}, id="fine"),
        {"alphas": [1e-12]},
        {"noise": 0.1},
        {"selection": "folds"},
        {"selection": "loo"},
        {"penalty_per": "column"},
        {"route": "eigen"},
        {"route": "dual"},
        {"route": "target-free", "splits": "heldout"},
        {"precision": "double"},
        {"target_components": 4},
        {"layer_sketch": 12},
        {"classifier": "lda"},
        {"batchnorm": "batch", "pool": 2},
        {"batchnorm": "running", "batch_size": 7},
    ],
    ids=str,
)
@pytest.mark.parametrize("given", [FEW, VALUES], ids=["few", "values"])
def test_a_gpu_gives_the_numbers_of_the_cpu(net: SmallNet, given: pf.ProbeSet, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pf.probe(net, given, layers=["conv", "hidden"], **options)
        with pretended():
            found = pf.probe(net, given, layers=["conv", "hidden"], device="cuda", **options)
    assert_same(found, expected, 1e-4)
    assert all(parameter.device.type == "cpu" for parameter in net.parameters())


@pytest.mark.parametrize("padding", [None, 0])
def test_tokens_on_a_gpu_give_the_numbers_of_the_cpu(padding: float | None) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(60, 5, 4) * (torch.arange(5) < torch.randint(1, 6, (60, 1)))[:, :, None]
    labels = (inputs[:, :, 0] > 0).long()
    given = pf.ProbeSet(inputs[:40], labels[:40], inputs[40:], labels[40:])
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    options: dict[str, Any] = {"tokens": "each", "padding": padding}
    expected, image = pf.probe(model, given, **options), pf.reconstruct(model, given, **options)
    with pretended():
        found = pf.probe(model, given, device="cuda", **options)
        assert_same(found, expected, 1e-4)
        again = pf.reconstruct(model, given, device="cuda", **options)
    for place, decoded in image.decoded.items():
        torch.testing.assert_close(again.decoded[place], decoded, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"alphas": [0.01]}, {"precision": "fast", "alphas": [0.1]}], ids=["", "one", "fast"]
)
def test_factors_of_blocks_are_made_of_products(
    net: SmallNet, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Hopper, where products are the package's own and much faster than factors."""
    expected = pf.probe(net, VALUES, layers=["conv", "hidden"], **options)
    for name, size in (("_BLOCK", 16), ("_LEAF", 4), ("_EVEN", 4)):
        monkeypatch.setattr(dense, name, size)
    monkeypatch.setattr(ops, "float32_is_fast", lambda device: device.type == "cuda")
    with pretended():
        found = pf.probe(net, VALUES, layers=["conv", "hidden"], device="cuda", **options)
    rounded = "precision" in options  # fvu is 4e-5
    assert_same(found, expected, 2e-2 if rounded else 1e-4, flipped=0.05 if rounded else 1e-12)


@pytest.mark.parametrize("given", [FEW, VALUES], ids=["row space", "columns"])
def test_reconstructions_come_back_from_a_gpu(net: SmallNet, given: pf.ProbeSet) -> None:
    expected = pf.reconstruct(net, given, layers=["conv", "hidden"])
    with pretended():
        found = pf.reconstruct(net, given, layers=["conv", "hidden"], device="cuda")
    for place, images_there in found.decoded.items():
        assert images_there.device.type == "cpu"
        torch.testing.assert_close(images_there, expected[place], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("given", [FEW, VALUES], ids=["dual", "primal"])
def test_decoders_come_back_from_a_gpu(net: SmallNet, given: pf.ProbeSet) -> None:
    expected = pf.fit_decoders(net, given, layers=["conv", "hidden"], classifier="lda")
    with pretended():
        found = pf.fit_decoders(net, given, layers=["conv", "hidden"], classifier="lda", device="cuda")
    for place, there in found.items():
        assert {own.device.type for own in (there.weight, there.bias, there.predictions)} == {"cpu"}
        torch.testing.assert_close(there.predictions, expected[place].predictions, rtol=1e-2, atol=1e-2)


def test_sweeps_and_trackers_run_on_a_gpu(net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    options: dict[str, Any] = {"layers": ["hidden"], "alphas": [0.1]}
    for step in (1, 2):
        torch.save(net.state_dict(), tmp_path / f"step_{step}.pt")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    expected = pf.probe(net, probe_set, **options)
    with pretended():
        found = pf.sweep(net, tmp_path, probe_set, out=tmp_path / "out", device="cuda", **options)
        net.to("cuda")
        tracker = pf.PhaseTracker(net, probe_set, out=None, **options)
        tracker.step(0)
        assert isinstance(next(net.parameters()).data, OnGpu)
        after = {name: tensor.own for name, tensor in net.state_dict().items()}
    value = expected.value(layer="hidden", target="input", metric="fvu", split="heldout")
    assert found.curve("hidden", "input", "fvu")[1] == pytest.approx([value, value])
    assert tracker.scores.curve("hidden", "input", "fvu")[1] == pytest.approx([value])
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("batchnorm", ["recompute", "batch", "running"])
def test_the_host_waits_no_more_often_for_more_batches(
    net: SmallNet, probe_set: pf.ProbeSet, batchnorm: pf.types.BatchNormMode
) -> None:
    counts = []
    with pretended() as gpu:
        net.to("cuda")
        for batch_size in (150, 10):
            engine = Engine(net, probe_set, layers=["conv", "hidden"], batchnorm=batchnorm, batch_size=batch_size)
            engine.activations()
            gpu.waits.clear()
            engine.activations()
            counts.append(list(gpu.waits))
    assert counts[0] == counts[1]
    assert len(counts[0]) == 2, counts[0]  # whether all is finite, and whether forward changed a tensor


def test_nor_does_it_for_what_the_model_predicts() -> None:
    model, counts = nn.Sequential(nn.Flatten(), nn.Linear(36, 40)), []

    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.body(x)
            return {"input": y[:, :36].reshape(x.shape), "label": y[:, :3], "age": y[:, 3:4], "kind": y[:, :4]}

    with pretended() as gpu:
        several = Several().to("cuda")
        for batch_size in (150, 10):
            how: dict[str, Any] = {"layers": ["body.1"], "alphas": [0.1], "batch_size": batch_size}
            engine = Engine(several, VALUES, predicts=["input", "label", "age", "kind"], **how)
            assert len(engine.measure(0).filter(layer="model", split="heldout")) == 8
            gpu.waits.clear()
            engine.measure(1)
            counts.append(list(gpu.waits))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("predicts", ["label", None])
def test_parts_of_a_model_may_be_on_other_devices(probe_set: pf.ProbeSet, predicts: str | None) -> None:
    class Back(nn.Module):
        def __init__(self, device: str) -> None:
            super().__init__()
            self.device = device

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to(self.device)

    parts = nn.Flatten(), nn.Linear(36, 9), nn.Tanh(), nn.Linear(9, 3)
    expected = pf.probe(nn.Sequential(*parts[:3], nn.Identity(), parts[3], nn.Identity()), probe_set, predicts=predicts)
    with pretended():
        model = nn.Sequential(*parts[:3], Back("cpu"), parts[3], Back("cpu"))
        for part in parts[:3]:
            part.to("cuda")
        with torch.no_grad():
            assert model(probe_set.heldout_inputs.to("cuda")).device.type == "cpu"
        found = pf.probe(model, probe_set, predicts=predicts)
    assert_same(found, expected, 1e-4)


def test_what_modules_move_by_themselves_comes_back(probe_set: pf.ProbeSet) -> None:
    class Anchored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.anchors = nn.Linear(36, 4), torch.ones(36)

        def _apply(self, fn: Any, recurse: bool = True) -> Any:
            self.anchors = fn(self.anchors)
            return super()._apply(fn, recurse)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1) * self.anchors)

    model = Anchored()
    model(probe_set.heldout_inputs).sum().backward()
    gradient = model.layer.weight.grad
    expected = pf.probe(model, probe_set, predicts="none")
    with pretended():
        found = pf.probe(model, probe_set, predicts="none", device="cuda")
    assert_same(found, expected, 1e-4)
    assert model.anchors.device.type == "cpu"
    assert model.layer.weight.grad is gradient is not None
    model(probe_set.heldout_inputs)


def test_a_gpu_is_known_by_its_number() -> None:
    with pretended():
        assert resolve_device("cuda", torch.device("cpu")) == DEVICE


def test_sparse_buffers_are_read_on_the_cpu(probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    state = {"weight": torch.ones(3), "adjacency": torch.eye(3).to_sparse(), "rows": torch.eye(3).to_sparse_csr()}
    torch.save(state, tmp_path / "step_1.pt")
    with pretended():
        ((_, read),) = read_ahead({1: tmp_path / "step_1.pt"}, DEVICE, Reader())
        assert {name: own.device.type for name, own in read()[0].items()} == {
            "weight": "cuda",
            "adjacency": "cpu",
            "rows": "cpu",
        }


@pytest.mark.parametrize(
    "test",
    [
        test_cuda.test_probe_gives_the_numbers_of_the_cpu,
        test_cuda.test_fast_is_within_the_rounding_of_bfloat16,
        test_cuda.test_sweep_of_files_equals_probing_each,
        test_cuda.test_a_state_on_a_gpu_has_the_hash_that_it_has_on_the_cpu,
        test_cuda.test_solve_and_residual_are_the_reference_on_cuda_tensors,
        test_linear_decoders.test_a_gpu_gives_the_same_decoders,
        partial(test_reconstruction.test_a_gpu_gives_the_same_images, 300, (1, 8, 8), 32),
    ],
    ids=lambda test: getattr(test, "func", test).__name__,
)
def test_the_tests_of_a_gpu_run_on_a_pretended_one(
    test: Callable[..., None], net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path
) -> None:
    """Those that are not of kernels: what they ask for is there, and is what they expect."""
    given = {"net": net, "probe_set": probe_set, "tmp_path": tmp_path}
    with pretended():
        test(**{name: given[name] for name in inspect.signature(test).parameters})


@pytest.mark.parametrize("padding", [None, 0])
def test_the_host_waits_no_more_often_for_more_batches_of_tokens(padding: float | None) -> None:
    ids = torch.randint(1, 9, (60, 5)) * (torch.arange(5) < torch.randint(1, 6, (60, 1)))
    probe_set = pf.ProbeSet(ids[:40], ids[:40] % 3, ids[40:], ids[40:] % 3)
    model, counts = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3)), []
    with pretended() as gpu:
        model.to("cuda")
        for batch_size in (40, 8):
            how: dict[str, Any] = {"tokens": "each", "padding": padding, "alphas": [0.1], "batch_size": batch_size}
            engine = Engine(model, probe_set, **how)
            engine.measure(0)
            gpu.waits.clear()
            engine.measure(1)
            counts.append(list(gpu.waits))
    assert counts[0] == counts[1]


def test_products_wait_for_nothing(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    with pretended() as gpu:
        engine = Engine(net.to("cuda"), probe_set, layers=["conv", "hidden"])
        cells = engine.activations()
        gpu.waits.clear()
        accumulate(cells, engine.targets, torch.float32)
        assert gpu.waits == []


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"alphas": [1e-2]}, 0),
        ({"alphas": [1e-2, 0.1, 1.0]}, 2),
        ({"alphas": [1e-2], "precision": "fast"}, 0),
        ({"alphas": [1e-2], "target_components": 4}, 0),
    ],
    ids=str,
)
def test_the_host_waits_few_times_for_a_cell(
    net: SmallNet, probe_set: pf.ProbeSet, options: dict[str, Any], most: int
) -> None:
    """For all penalties' scales; for the errors of each cell's, by all rows and some."""
    layers = ["conv", "hidden"]
    with pretended() as gpu:
        engine = Engine(net.to("cuda"), probe_set, layers=layers, **options)
        for _ in range(2):  # what is the same for all checkpoints is copied once
            cells = engine.activations()
            gpu.waits.clear()
            gpu.events = ""
            scores = list(score_cells(cells, engine.targets, engine.method))
    assert len(scores) == 6 * len(layers)
    assert len(gpu.waits) <= 1 + most * len(layers), gpu.waits
    # Certificates and scores of a layer are waited for once those of the next one are on their way.
    assert gpu.events == "rr" + "wr" + "wr" + "ww"


def test_what_fails_on_a_gpu_fails_on_a_pretended_one() -> None:
    with pretended() as gpu:
        there, here = torch.ones(3, 4, device="cuda"), torch.ones(3, 4)
        for mixed in (
            lambda: there + here,
            lambda: there @ here.T,
            lambda: torch.cat([there, here]),
            lambda: here[torch.zeros(2, dtype=torch.long, device="cuda")],
            lambda: torch.randn(3, generator=torch.Generator(), device="cuda"),
            lambda: nn.Linear(4, 2)(there),
        ):
            with pytest.raises(RuntimeError, match="cuda"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert (there * torch.tensor(2.0)).device == DEVICE  # a single number is no tensor of the CPU
        assert gpu.waits == []
        for waited in (
            lambda: there.sum().item(),
            lambda: there.cpu(),
            lambda: here.to("cuda"),
            lambda: there[0].tolist(),
            lambda: there[there > 0],
            lambda: there[torch.tensor([0, 1])],
            lambda: here.copy_(there),
            lambda: torch.tensor([1.0], device="cuda"),
            lambda: bool((there > 0).all()),
            lambda: torch.linalg.eigh(there[:3, :3]),
        ):
            before = len(gpu.waits)
            waited()
            assert len(gpu.waits) > before
        before = len(gpu.waits)
        moved = here.pin_memory().to("cuda", non_blocking=True)
        torch.zeros(5, device="cuda").copy_(moved.flatten()[:5])
        assert len(gpu.waits) == before
