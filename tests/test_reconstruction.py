"""Reconstructed inputs are those whose errors the scores tell, by every route, at every checkpoint."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import phasefast as pf
from phasefast.cli import app
from phasefast.errors import ArgumentError, CheckpointError, DataError, LayerError, StoreError
from phasefast.report import plot_reconstructions
from phasefast.report.gallery import _Layout, _Strip, _Table
from tests.conftest import SmallNet, images


def inputs(count: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Samples that lie near a space of six dimensions."""
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(6, *shape, generator=torch.Generator().manual_seed(5))
    flat = torch.randn(count, 6, generator=g) @ base.flatten(1)
    return flat.unflatten(1, shape) + 0.3 * torch.randn(count, *shape, generator=g)


def samples(n: int, m: int, shape: tuple[int, ...]) -> pf.ProbeSet:
    return pf.ProbeSet.from_tensors(inputs(n, shape, 1), None, inputs(m, shape, 2), None)


def network(features: int, width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(features, width), nn.ReLU(), nn.Linear(width, 5))


ROUTES: list[tuple[int, tuple[int, ...], int, dict[str, Any]]] = [
    (300, (1, 8, 8), 32, {}),
    (100, (1, 8, 8), 300, {}),  # dual
    (80, (3, 16, 16), 32, {}),  # row space
    (80, (3, 16, 16), 400, {}),
    (300, (1, 8, 8), 32, {"route": "eigen"}),
    (300, (1, 8, 8), 32, {"penalty_per": "column", "selection": "loo"}),
    (300, (12,), 32, {"alphas": [1e-6], "precision": "double"}),
]


@pytest.mark.parametrize(
    ("n", "shape", "width", "options"),
    [
        *ROUTES,
        (80, (3, 16, 16), 400, {"route": "target-free"}),
        (80, (40, 9), 32, {"precision": "fast"}),
    ],
)
def test_errors_are_those_of_the_scores(n: int, shape: tuple[int, ...], width: int, options: dict[str, Any]) -> None:
    probe_set = samples(n, 30, shape)
    model = network(probe_set.fit_inputs[0].numel(), width)
    found = pf.reconstruct(model, probe_set, samples=30, layers=["1", "2", "3"], **options)
    scores = pf.probe(model, probe_set, splits="heldout", layers=["1", "2", "3"], **options)
    assert found.layers == ["1", "2", "3"]
    for row in scores.to_arrow().to_pylist():
        decoded = found[0, row["layer"]]
        assert decoded.shape == found.inputs.shape == (30, *shape)
        error = float((decoded - found.inputs).double().square().mean())
        if row["metric"] == "mse":
            assert error == pytest.approx(
                row["value"], rel=1e-4 if options.get("precision") == "fast" else 2e-6, abs=1e-13
            )
        else:
            assert found.fvu[0, row["layer"]] == row["value"]


@pytest.mark.cuda
@pytest.mark.parametrize(("n", "shape", "width"), [(300, (1, 8, 8), 32), (80, (3, 16, 16), 400)])
def test_a_gpu_gives_the_same_images(n: int, shape: tuple[int, ...], width: int) -> None:
    probe_set = samples(n, 30, shape)
    model = network(probe_set.fit_inputs[0].numel(), width)
    expected = pf.reconstruct(model, probe_set, alphas=[0.1])
    found = pf.reconstruct(model, probe_set, alphas=[0.1], device="cuda")
    for place, there in found.decoded.items():
        torch.testing.assert_close(there, expected[place], rtol=1e-3, atol=1e-3)


def test_inputs_that_depend_on_each_other_have_no_row_space() -> None:
    fit = inputs(40, (3, 16, 16), 1).repeat(2, 1, 1, 1)
    probe_set = pf.ProbeSet.from_tensors(fit, None, inputs(20, (3, 16, 16), 2), None)
    found = pf.reconstruct(network(768, 16), probe_set, samples=20, layers="2")
    (mse,) = (
        row["value"]
        for row in pf.probe(network(768, 16), probe_set, splits="heldout", layers="2").to_arrow().to_pylist()
        if row["metric"] == "mse"
    )
    assert float((found[0, "2"] - found.inputs).double().square().mean()) == pytest.approx(mse, rel=1e-5)


def test_checkpoints_are_those_of_a_sweep(
    net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    states = {}
    for step in (0, 10, 200):
        torch.manual_seed(step)
        states[step] = SmallNet().state_dict()
        torch.save(states[step], tmp_path / f"step_{step}.pt")
    found = pf.reconstruct(net, probe_set, tmp_path, samples=[5, 2], layers=["conv", "hidden"])
    assert (found.steps, found.layers, found.samples) == ([0, 10, 200], ["conv", "hidden"], (5, 2))
    assert torch.equal(found.inputs, probe_set.heldout_inputs[[5, 2]])
    scores = pf.sweep(net, states, probe_set, out=tmp_path / "out", layers=["conv", "hidden"], targets="input")
    for row in scores.filter(metric="fvu", split="heldout").to_arrow().to_pylist():
        assert found.fvu[row["step"], row["layer"]] == pytest.approx(row["value"], rel=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    some = pf.reconstruct(net, probe_set, tmp_path, steps=[200], samples=[5, 2], layers="conv")
    assert torch.equal(some[200, "conv"], found[200, "conv"])
    net.load_state_dict(states[200])
    now = pf.reconstruct(net, probe_set, step=200, samples=[5, 2], layers="conv")
    torch.testing.assert_close(now[200, "conv"], some[200, "conv"])
    both = pf.Reconstructions.concat([now, pf.reconstruct(net, probe_set, step=300, samples=[5, 2], layers="conv")])
    assert both.steps == [200, 300]
    assert "2 inputs of shape (1, 6, 6), 2 steps from 200 to 300, layers ['conv']" in repr(both)


def test_a_checkpoint_that_fails_is_left_out(net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    good = copy.deepcopy(net.state_dict())
    broken = {**good, "conv.weight": torch.full_like(good["conv.weight"], torch.nan)}
    with pytest.warns(RuntimeWarning, match="step 5 is left out"):
        found = pf.reconstruct(net, probe_set, {0: good, 5: broken, 9: copy.deepcopy(good)}, layers="conv")
    assert found.steps == [0, 9]
    with pytest.raises(CheckpointError, match="an empty one"):
        pf.reconstruct(net, probe_set, {3: {}}, layers="conv")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"samples": 0}, ArgumentError, "expected some of the 60 held-out samples"),
        ({"samples": 61}, ArgumentError, "samples"),
        ({"samples": [1, -1]}, ArgumentError, "samples"),
        ({"samples": "all"}, ArgumentError, "got 'all'"),
        ({"samples": 1.5}, ArgumentError, "got 1.5"),
        ({"samples": 10**12}, ArgumentError, "expected some of the 60 held-out samples"),
        ({"samples": np.array(3.0)}, ArgumentError, "samples"),
        ({"steps": 0, "checkpoints": {0: {}}}, ArgumentError, r"steps: expected some of \[0\], got 0"),
        ({"steps": ["0"], "checkpoints": {0: {}}}, ArgumentError, r"steps: expected some of \[0\], got \['0'\]"),
        ({"targets": ["label"]}, ArgumentError, "targets: inputs are decoded whole"),
        ({"layer_sketch": 5}, ArgumentError, "layer_sketch"),
        ({"steps": [7], "checkpoints": {0: {}}}, ArgumentError, r"steps: expected some of \[0\], got \[7\]"),
        ({"steps": [7]}, ArgumentError, "steps= chooses among checkpoints="),
        ({"step": 7, "checkpoints": {0: {}}}, ArgumentError, "step= labels the model as it is"),
        ({"layers": "nothing"}, LayerError, "nothing"),
        ({"pools": 3}, ArgumentError, "unknown option 'pools'"),
    ],
)
def test_bad_arguments_are_named(
    net: SmallNet, probe_set: pf.ProbeSet, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        pf.reconstruct(net, probe_set, **options)


def test_numpy_chooses_samples_and_steps_too(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    states = {step: copy.deepcopy(net.state_dict()) for step in (0, 5)}
    for samples in (np.int64(2), np.arange(2), torch.arange(2), range(2)):
        found = pf.reconstruct(net, probe_set, states, samples=samples, steps=np.array([5]), layers="conv")  # type: ignore[arg-type]
        assert (found.samples, found.steps) == ((0, 1), [5])


def test_integers_are_not_reconstructed() -> None:
    tokens = torch.randint(0, 9, (40, 6))
    probe_set = pf.ProbeSet.from_tensors(tokens[:30], None, tokens[30:], None)
    with pytest.raises(DataError, match="expected floating-point inputs to reconstruct"):
        pf.reconstruct(nn.Sequential(nn.Embedding(9, 4)), probe_set)


def test_what_is_not_there_is_named(net: SmallNet, probe_set: pf.ProbeSet) -> None:
    found = pf.reconstruct(net, probe_set, layers="conv")
    with pytest.raises(
        ArgumentError, match=r"expected one of the steps \[0\] and of the layers \['conv'\], got \(1, 'conv'\)"
    ):
        found[1, "conv"]
    with pytest.raises(ArgumentError, match="the same held-out samples"):
        pf.Reconstructions.concat([found, pf.reconstruct(net, probe_set, layers="conv", samples=3)])


@pytest.mark.parametrize("shape", [(3, 9, 5), (1, 8, 8), (8, 8)])
@pytest.mark.parametrize("steps", [1, 20])
def test_pictures(shape: tuple[int, ...], steps: int, tmp_path: Path) -> None:
    from matplotlib.image import imread

    probe_set = samples(60, 5, shape)
    model = network(probe_set.fit_inputs[0].numel(), 6)
    parts = [pf.reconstruct(model, probe_set, step=step, samples=3, layers=["1", "3"]) for step in range(steps)]
    plot_reconstructions(pf.Reconstructions.concat(parts), path := tmp_path / "known.png")
    height, width, _ = imread(path).shape
    assert width <= 1620
    assert height > (2 if steps > 1 else 1) * 3 * 60
    with pytest.raises(StoreError, match="cannot write the picture"):
        plot_reconstructions(parts[0], tmp_path / "nowhere" / "known.png")


def test_colours_go_from_the_least_to_the_largest_value() -> None:
    from phasefast.report.gallery import _pixels

    of_two = torch.tensor([[[[0.0, 4.0]], [[-1.0, 1.0]], [[2.0, 2.0]]]])  # [1, 3, 1, 2]
    limits = torch.tensor([[0.0, -1.0, 2.0], [4.0, 1.0, 2.0]])
    assert _pixels(of_two, limits).tolist() == [[[[0, 0, 0], [1, 1, 0]]]]
    assert _pixels(torch.tensor([[[0.0, 9.0]]]), torch.tensor([[0.0], [4.0]])).tolist() == [[[[0] * 3, [1] * 3]]]


def test_spectrograms_are_drawn(tmp_path: Path) -> None:
    plot_reconstructions(pf.reconstruct(network(130, 6), samples(60, 10, (1, 2, 65))), tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize("shape", [(12,), (1, 12), (2, 3, 2), (40, 3), (24, 3), (3, 20), (1, 20, 2), (1, 2, 130)])
def test_what_is_no_image_is_not_drawn(shape: tuple[int, ...], tmp_path: Path) -> None:
    found = pf.reconstruct(network(math.prod(shape), 6), samples(60, 10, shape))
    with pytest.raises(DataError, match=rf"expected images .* got {re.escape(str(shape))}"):
        plot_reconstructions(found, tmp_path / "known.png")
    with pytest.raises(ArgumentError, match="expected Reconstructions, got NoneType"):
        plot_reconstructions(None, tmp_path / "known.png")  # type: ignore[arg-type]


def test_of_layers_at_other_steps_some_places_are_empty(tmp_path: Path) -> None:
    model, probe_set = network(64, 6), samples(60, 5, (8, 8))
    parts = [pf.reconstruct(model, probe_set, step=step, layers=layer) for step, layer in ((0, "1"), (1, "3"))]
    plot_reconstructions(pf.Reconstructions.concat(parts), tmp_path / "known.png")
    assert (tmp_path / "known.png").is_file()


def test_names_above_narrow_columns_are_slanted() -> None:
    """Of images that are so tall that columns are narrower than elsewhere."""
    table = _Table("step", ("0", "1000", "200000"), (_Strip("a", ()),), "")
    wide, tall = (_Layout.of(table, 2, shape, "title") for shape in ((8, 8), (48, 6)))
    assert (wide.slanted, tall.slanted) == (False, True)
    assert tall.height < 2 * wide.height + 4


def test_command(net: SmallNet, probe_set: pf.ProbeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for step in (0, 8, 16):
        torch.save(net.state_dict(), tmp_path / f"checkpoints/step_{step}.pt")
    probe_set.save("probe_set.pt")
    command = ["reconstruct", "tests.conftest:SmallNet", "checkpoints", "probe_set.pt", "--layer", "hidden"]
    done = CliRunner().invoke(app, [*command, "--step", "0", "--step", "16"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "wrote reconstructions.png" in done.output
    assert (tmp_path / "reconstructions.png").is_file()
    for folder in ("checkpoints", "pictures/of last"):
        done = CliRunner().invoke(app, [*command, "--step", "0", "--out", folder], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert (tmp_path / folder / "reconstructions.png").is_file()
    for place, told in (("nowhere/known.png", "expected an existing folder"), ("probe_set.pt/last", "cannot make the")):
        done = CliRunner().invoke(app, [*command, "--out", place])
        assert done.exit_code == 1
        assert told in done.output


def test_images_are_as_they_were_given(probe_set: pf.ProbeSet, net: SmallNet) -> None:
    """Held-out samples keep their order."""
    assert torch.equal(pf.reconstruct(net, probe_set, samples=4, layers="conv").inputs, images(60, 2)[0][:4])
