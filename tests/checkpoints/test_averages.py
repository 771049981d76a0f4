"""Averages of parameters alone, without the statistics of normalisations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import phasefast as pf
from phasefast.checkpoints import load_into
from phasefast.errors import CheckpointError, SweepError
from phasefast.stages.batchnorm import fresh_statistics
from tests.quiet import no_warnings


@pytest.mark.parametrize("batchnorm", ["recompute", "running"])
def test_averages_of_parameters_alone_do_where_statistics_are_recomputed(tmp_path: Path, batchnorm: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    averages = {name: value.detach() * 0.5 for name, value in model.named_parameters()}
    sources = {}
    for step in (1, 2):
        own = model.state_dict() | {"1.running_mean": torch.full((3,), float(step))}
        sources[step] = tmp_path / f"step_{step}.pt"
        torch.save({"model": own, "ema": averages}, sources[step])
    probe_set = pf.ProbeSet.from_tensors(torch.randn(40, 4), None, torch.randn(20, 4), None)
    options: dict[str, Any] = {"key": "ema", "batchnorm": batchnorm, "alphas": [0.1]}
    if batchnorm == "running":
        with pytest.raises(SweepError, match=r"it lacks the keys \['1.num_batches_tracked', '1.running_mean'"):
            pf.sweep(model, sources, probe_set, out=tmp_path / "out", **options)
        return
    scores = pf.sweep(model, sources, probe_set, out=tmp_path / "out", **options)
    assert [len(scores.filter(step=step).values_of("state_hash")) for step in (1, 2)] == [1, 1]
    assert len(scores.values_of("state_hash")) == 1
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(averages[name])
    expected = pf.probe(model, probe_set, alphas=[0.1])
    for step in (1, 2):
        assert scores.curve("3", "input", "fvu")[1][step - 1] == expected.curve("3", "input", "fvu")[1][0]


def test_several_averages_without_statistics_are_told_apart() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    state = {f"{name}.{key}": value for name in ("student", "teacher") for key, value in model.named_parameters()}
    spare = fresh_statistics(model)
    with pytest.raises(CheckpointError, match=r"under each of \['student.', 'teacher.'\]"):
        load_into(model, state, "x.pt", spare)
    load_into(model, {key: value for key, value in state.items() if key.startswith("teacher")}, "x.pt", spare)


def test_a_shared_norm_and_buffers_of_ones_own_are_no_hindrance() -> None:
    norm = nn.BatchNorm1d(3)
    norm.register_buffer("scale", torch.ones(1), persistent=False)
    norm.register_buffer("mask", torch.ones(1))
    model = nn.Sequential(nn.Linear(4, 3), norm, nn.Linear(3, 3), norm)
    spare = fresh_statistics(model)
    assert sorted(spare) == ["1.num_batches_tracked", "1.running_mean", "1.running_var"]
    parameters = dict(model.named_parameters())
    with pytest.raises(CheckpointError, match=r"lacks the keys \['1.mask', '3.mask'\]"):
        load_into(model, parameters, "x.pt", spare)
    load_into(model, {**parameters, "1.mask": torch.ones(1)}, "x.pt", spare)


@pytest.mark.parametrize("kept", ["1.", "3."])
def test_statistics_of_a_shared_norm_may_have_either_name(kept: str) -> None:
    norm = nn.BatchNorm1d(3)
    model = nn.Sequential(nn.Linear(4, 3), norm, nn.Linear(3, 3), norm)
    norm.running_mean += 2.0
    other = {"1.": "3.", "3.": "1."}[kept]
    state = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith(other)}
    norm.running_mean.zero_()
    load_into(model, state, "x.pt", fresh_statistics(model))
    assert norm.running_mean.tolist() == [2.0] * 3
    without = {name: value for name, value in state.items() if "running" not in name and "num" not in name}
    norm.register_buffer("running_mean", norm.running_mean, persistent=False)
    load_into(model, without, "x.pt", fresh_statistics(model))


def test_what_is_missing_does_not_depend_on_the_model_that_was_passed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    probe_set = pf.ProbeSet.from_tensors(torch.randn(40, 4), None, torch.randn(20, 4), None)
    averages = {1: {key: value.detach().clone() for key, value in model.named_parameters()}}
    found = []
    for _ in range(2):
        found.append(pf.sweep(model, averages, probe_set, out=tmp_path / "out", alphas=[0.1]))
        model[1].running_mean += 1
    assert len(found[0]) == len(found[1])


def test_weights_under_another_key_than_before_are_told(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    state = model.state_dict()
    saved = [{"model": state}, {"state_dict": state, "epoch": 1}, state, {"ema": state, "epoch": 3}, {"net": state}]
    paths = [tmp_path / f"step_{step}.pt" for step in range(len(saved))]
    for path, each in zip(paths, saved, strict=True):
        torch.save(each, path)
    probe_set = pf.ProbeSet.from_tensors(torch.randn(40, 4), None, torch.randn(20, 4), None)
    with no_warnings():  # these keys all stand for the weights
        pf.sweep(nn.Sequential(model), paths[:3], probe_set, out=tmp_path / "a", alphas=[0.1])
    with pytest.warns(RuntimeWarning) as caught:
        pf.sweep(nn.Sequential(model), paths, probe_set, out=tmp_path / "b", alphas=[0.1])
    (text,) = [str(each.message) for each in caught if "weights are read" in str(each.message)]
    assert f"from 'model' in {paths[0]}, but from 'ema' in {paths[3]}: if some are averages" in text
