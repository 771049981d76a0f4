"""What is kept of wide targets between sweeps: found again by content only, with the very same numbers."""

from __future__ import annotations

import copy
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.data import target_cache
from phasefast.data.target_cache import TargetCache
from phasefast.data.target_matrix import TargetMatrix
from phasefast.engine import Engine
from phasefast.stages import targets as target_stage
from tests.test_sweep import without_seconds

ROWS, WIDTH = (40, 12), 90
CPU = torch.device("cpu")


def wide_data(seed: int = 0) -> pf.ProbeSet:
    """Fewer rows than pixels."""
    g = torch.Generator().manual_seed(seed)
    inputs, labels = torch.randn(sum(ROWS), WIDTH, generator=g), torch.arange(sum(ROWS)) % 3
    return pf.ProbeSet(inputs[: ROWS[0]], labels[: ROWS[0]], inputs[ROWS[0] :], labels[ROWS[0] :])


def squares(inputs: Tensor) -> Tensor:
    return inputs.square()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 3))


def cached(out: Path) -> list[Path]:
    return sorted((out / "cache").iterdir())


def same(a: Any, b: Any) -> bool:
    """Whether records hold the same bits, laid out alike."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever coordinates are made."""
    calls: list[int] = []
    original = target_stage.coordinates

    def counted(rows: Tensor, others: Tensor) -> tuple[Tensor, Tensor] | None:
        calls.append(len(rows))
        return original(rows, others)

    monkeypatch.setattr(target_stage, "coordinates", counted)
    return calls


def test_a_second_sweep_makes_no_coordinates_and_gives_the_same_bits(made: list[int], tmp_path: Path) -> None:
    model, data = network(), wide_data()
    states = [copy.deepcopy(model.state_dict()), network().state_dict()]
    first = pf.sweep(model, states[:1], data, out=tmp_path)
    fresh = Engine(model, data).targets
    assert len(made) == 2
    second = pf.sweep(model, states, data, out=tmp_path)
    tracker = pf.PhaseTracker(model, data, out=tmp_path)
    over = pf.sweep(model, states, data, out=tmp_path, overwrite=True)
    kept = Engine(model, data, out=tmp_path).targets
    assert len(made) == 2
    assert same(kept, fresh)
    assert kept.fit.shape[1] == ROWS[0] + 1 + 3
    assert without_seconds(second.filter(step=0)) == without_seconds(first) == without_seconds(over.filter(step=0))
    assert tracker.scores.steps == [0, 1]
    assert without_seconds(pf.probe(model, data)) == without_seconds(first)
    assert len(made) == 3, "probe() has no directory to look in"


def test_a_tracker_keeps_what_a_sweep_then_finds(made: list[int], tmp_path: Path) -> None:
    model, data = network(), wide_data()
    pf.PhaseTracker(model, data, out=None)
    pf.PhaseTracker(model, data, out=tmp_path)
    assert len(made) == 2
    pf.sweep(model, [model.state_dict()], data, out=tmp_path)
    assert len(made) == 2


def test_targets_that_are_quick_to_make_are_not_kept(tmp_path: Path) -> None:
    pf.PhaseTracker(network(), wide_data(), out=tmp_path, targets=pf.Label(3))
    assert not (tmp_path / "cache").exists()


def other_values(inputs: Tensor) -> Tensor:
    return inputs.square() + 1e-3 * inputs


class Doubled(pf.Input):
    """Another target under the name of the input."""

    def columns(self, fit: tuple, heldout: tuple) -> tuple[Tensor, Tensor]:
        return 2 * fit[0], 2 * heldout[0]


def changed(split: str) -> Callable[[pf.ProbeSet], pf.ProbeSet]:
    def change(data: pf.ProbeSet) -> pf.ProbeSet:
        inputs = getattr(data, split).clone()
        inputs[-1, -1] += 1e-6
        return replace(data, **{split: inputs})

    return change


def same_data(data: pf.ProbeSet) -> pf.ProbeSet:
    return data


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (changed("fit_inputs"), {}),
        (changed("heldout_inputs"), {}),
        (same_data, {"targets": [pf.Input()]}),
        (same_data, {"targets": [pf.Function(squares), pf.Input()]}),
        (same_data, {"targets": [pf.Input(), pf.Function(other_values, name="squares")]}),
        (same_data, {"targets": [pf.Input(), pf.Function(squares, name="renamed")]}),
        (same_data, {"targets": [Doubled(), pf.Function(squares)]}),
        (same_data, {"selection": "folds"}),
    ],
    ids=["fit", "heldout", "fewer", "order", "values", "name", "subclass", "folds"],
)
def test_other_content_lies_in_another_file(
    tmp_path: Path, change: Callable[[pf.ProbeSet], pf.ProbeSet], options: dict
) -> None:
    usual = {"targets": [pf.Input(), pf.Function(squares)]}
    Engine(network(), wide_data(), out=tmp_path, **usual)
    Engine(network(), wide_data(), out=tmp_path, **usual)
    assert len(cached(tmp_path)) == 1
    got = Engine(network(), change(wide_data()), out=tmp_path, **usual | options).targets
    assert len(cached(tmp_path)) == 2
    assert same(got, Engine(network(), change(wide_data()), **usual | options).targets)


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    def digits(inputs: Tensor) -> Tensor:
        return (inputs[:, 0] > 0).long()

    def one_hot(inputs: Tensor) -> Tensor:
        return nn.functional.one_hot(digits(inputs), 2).float()

    for target in (pf.Function(digits, "classes", name="task"), pf.Function(one_hot, name="task")):
        Engine(network(), wide_data(), out=tmp_path, targets=[pf.Input(), target])
    assert len(cached(tmp_path)) == 2


def test_columns_of_another_type_have_another_key(tmp_path: Path) -> None:
    cache = TargetCache(tmp_path, "data")
    assert len({cache.key("digest", (0, 4), [dtype]) for dtype in (torch.float32, torch.int32, torch.float64)}) == 3


def test_another_format_or_other_fields_lie_in_another_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("FORMAT", 1), ("FORMAT", -1), ("_LAYOUT", [("TargetMatrix", [("new", "Tensor")])])):
        monkeypatch.setattr(target_cache, name, value)
        Engine(network(), wide_data(), out=tmp_path)
    assert len(cached(tmp_path)) == 3


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def of_other_data(path: Path) -> None:
    (other,) = (Engine(network(), wide_data(1), out=path.parents[2] / "other"), cached(path.parents[2] / "other"))[1]
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a file of tensors"),
        lambda path: path.write_bytes(path.read_bytes()[:-1000]),
        flipped,
        lambda path: torch.save({"fit": torch.zeros(3)}, path),
        lambda path: torch.save((path.stem.removeprefix("targets-"), [1, 2]), path),
        lambda path: torch.save(CPU, path),
        of_other_data,
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["empty", "text", "truncated", "flipped bit", "dictionary", "list", "object", "other data", "folder"],
)
def test_a_damaged_or_foreign_file_is_made_anew(
    made: list[int], tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    out, data = tmp_path / "out", wide_data()
    expected = Engine(network(), data, out=out).targets
    (path,) = cached(out)
    damage(path)
    made.clear()
    if path.is_dir():
        with pytest.warns(RuntimeWarning, match="cannot write the target statistics"):
            got = Engine(network(), data, out=out).targets
    else:
        got = Engine(network(), data, out=out).targets
        assert same(Engine(network(), data, out=out).targets, expected)
    assert len(made) == 1
    assert same(got, expected)
    assert cached(out) == [path]


def test_racing_engines_all_get_the_whole_matrix(tmp_path: Path) -> None:
    data = wide_data()
    expected = Engine(network(), data).targets
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: Engine(network(), data, out=tmp_path).targets, range(24)))
    assert all(same(matrix, expected) for matrix in found)
    assert len(cached(tmp_path)) == 1


def test_a_place_that_cannot_be_written_does_not_fail_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    model = network()
    with pytest.warns(RuntimeWarning, match="cannot write the target statistics"):
        scores = pf.sweep(model, [model.state_dict()], wide_data(), out=tmp_path)
    assert scores.steps == [0]


def test_a_full_disk_does_not_fail_the_sweep(tmp_path: Path) -> None:
    data, limits = wide_data(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.warns(RuntimeWarning, match="cannot write the target statistics"):
            got = Engine(network(), data, out=tmp_path).targets
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same(got, Engine(network(), data).targets)
    assert cached(tmp_path) == []


def test_records_of_any_device_come_back_on_the_device_asked_for(tmp_path: Path) -> None:
    cache = TargetCache(tmp_path, "data")
    targets = Engine(network(), wide_data()).targets
    cache.store("key", targets)
    kept = cache.load("key", torch.device("meta"))
    assert isinstance(kept, TargetMatrix)
    assert {kept.fit.device.type, kept.sketch.sums.device.type, kept.checks[0].heldout.device.type} == {"meta"}
