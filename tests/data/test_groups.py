"""Samples that belong together: folds of whole groups, and scores that count a group as one sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.data.groups import Groups, numbered
from phasefast.engine import Engine
from phasefast.errors import DataError, StoreError
from tests.quiet import no_warnings


def random_groups(seed: int, size: int, count: int) -> Tensor:
    """Of sizes that differ, in any order, none of them empty."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.permutation(np.concatenate([np.arange(count), rng.integers(0, count, size - count)])))


def probe_set(groups: bool = True, **options: Any) -> pf.ProbeSet:
    """60 and 40 samples of 13 and 9 groups."""
    torch.manual_seed(0)
    x = torch.randn(100, 6)
    of_both = (random_groups(1, 60, 13), 20 + random_groups(2, 40, 9))
    labels = (x[:, 0] > 0).long()
    given = {"groups": of_both} if groups else {}
    return pf.ProbeSet.from_tensors(x[:60], labels[:60], x[60:], labels[60:], **given, **options)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize("seed", range(20))
def test_an_order_keeps_groups_together_and_folds_end_between_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(5, 80))
    count = int(rng.integers(2, size + 1))
    groups = random_groups(seed, size, count)
    order = Groups(groups).shuffled(torch.randperm(size, generator=torch.Generator().manual_seed(seed)))
    assert sorted(order.tolist()) == list(range(size))
    sorted_groups = Groups(groups[order])
    assert int((groups[order].diff() != 0).sum()) == count - 1
    folds = min(int(rng.integers(1, 7)), size)
    offsets = sorted_groups.folds([size * i // folds for i in range(folds + 1)])
    assert (offsets[0], offsets[-1], len(offsets) - 1) == (0, size, min(folds, count))
    assert offsets == sorted(set(offsets))
    assert all(groups[order][edge] != groups[order][edge - 1] for edge in offsets[1:-1])
    if count == size:
        assert offsets == [size * i // folds for i in range(folds + 1)]


def test_folds_are_as_even_as_groups_allow() -> None:
    groups = Groups(torch.tensor([0] * 3 + [1] * 4 + [2] * 2 + [3] * 8 + [4] * 3))
    assert groups.folds([0, 10, 20]) == [0, 9, 20]
    assert groups.folds([0, 4, 8, 12, 16, 20]) == [0, 3, 7, 9, 17, 20]
    assert groups.folds([0, 20]) == [0, 20]


def test_folds_that_cannot_be_are_refused() -> None:
    with pytest.raises(DataError, match="groups: expected two or more among the fit samples"):
        Groups(torch.zeros(9)).folds([0, 4, 9])
    with pytest.raises(DataError, match="expected the samples of each group side by side"):
        Groups(torch.tensor([0, 1, 0])).folds([0, 1, 3])


def test_names_of_groups_are_numbers_of_both_splits() -> None:
    objects = np.array(["b", "a", "b"], object)
    for of_fit, of_heldout in ((["b", "a", "b"], [f"c{i}" for i in range(10)]), (objects, np.arange(10)[:, None])):
        with no_warnings():
            fit, heldout = numbered((of_fit, of_heldout), (3, 10))
        assert fit[0] == fit[2] != fit[1]
        assert len({*fit.tolist(), *heldout.tolist()}) == 12
    with pytest.warns(RuntimeWarning, match="groups: 1 among the held-out samples: intervals, phases"):
        numbered(([1, 2], [3, 3]), (2, 2))
    with pytest.warns(RuntimeWarning, match="groups: 1 have samples in both splits, such as group 7: "):
        numbered((np.array([7, 1]), torch.tensor([7, 2])), (2, 2))
    for wrong in ([1, 2, 3], [0.5, 1.5], [[1, 1], [2, 2]], [[1], [2, 3]]):
        with pytest.raises(DataError, match="heldout_groups: expected 2 integers or texts, one for each sample"):
            numbered(([1, 2], wrong), (2, 2))
    for missing in (None, float("nan")):
        with pytest.raises(
            DataError, match="heldout_groups: expected the group of each sample, got none for 1 of them"
        ):
            numbered(([1, 2], np.array(["a", missing], object)), (2, 2))
    for wrong in ([1, 2, 3], np.arange(2), {"a": 1}):
        with pytest.raises(DataError, match=r"groups: expected \(of fit, of held-out samples\), or the name of values"):
            numbered(wrong, (2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"classifier": "balanced"}, {"targets": "input"}], ids=str)
def test_a_group_counts_as_one_sample(model: nn.Module, options: dict[str, Any]) -> None:
    grouped, plain = probe_set(), probe_set(False)
    of = {"alphas": [1e-2], "layers": ["0", "1"], **options}
    # The same fit rows in another order give the same decoders.
    found, alone = pf.probe(model, grouped, **of), pf.probe(model, plain, **of)
    groups = 20 + random_groups(2, 40, 9)
    index = torch.stack([groups == each for each in groups.unique(sorted=True)[first_order(groups)]]).double()
    for row in found.filter(split="heldout").to_arrow().to_pylist():
        same = {key: row[key] for key in ("layer", "target", "metric")}
        (other,) = alone.filter(**same, split="heldout").to_arrow().to_pylist()
        assert row["value"] == pytest.approx(other["value"], rel=1e-4)
        assert row["n"] == other["n"]
        assert (row["samples"] is None) == (other["samples"] is None)
        if row["samples"] is not None:
            expected = index @ torch.tensor(other["samples"]).double() * (9 / 40)
            assert row["samples"] == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-6)
            unit = [1.0] * 40 if other["baseline_samples"] is None else other["baseline_samples"]
            expected = index @ torch.tensor(unit).double() * (9 / 40)
            assert row["baseline_samples"] == pytest.approx(expected.tolist(), rel=1e-5)


def first_order(groups: Tensor) -> list[int]:
    """Sorted groups in the order of their first samples."""
    names = groups.unique(sorted=True).tolist()
    return sorted(range(len(names)), key=lambda i: groups.tolist().index(names[i]))


def test_penalties_are_chosen_by_folds_of_whole_groups(model: nn.Module) -> None:
    given = probe_set()
    engine, plain = Engine(model, given), Engine(model, given, selection="gcv")
    assert engine.method.selection == "folds"
    assert plain.method.selection == "gcv"
    assert given.fit_groups is not None
    edges = engine.targets.folds
    assert len(edges) == 6
    assert all(given.fit_groups[edge] != given.fit_groups[edge - 1] for edge in edges[1:-1])


def test_tokens_of_sequences_of_a_group_count_as_one_sample() -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 5, 3)
    groups = torch.arange(100) // 4
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    grouped = pf.ProbeSet.from_tensors(x[:60], None, x[60:], None, groups=(groups[:60], groups[60:]))
    plain = pf.ProbeSet.from_tensors(x[:60], None, x[60:], None)
    of: dict[str, Any] = {"tokens": "each", "alphas": [1e-2]}
    found, alone = (pf.probe(model, given, **of).samples("0", "input", "fvu")[1][0] for given in (grouped, plain))
    assert found == pytest.approx(alone.reshape(10, 4).mean(1), rel=1e-3)


def test_groups_are_kept_and_hashed(tmp_path: Path) -> None:
    given, other = probe_set(), probe_set(False)
    given.save(tmp_path / "groups.pt")
    loaded = pf.ProbeSet.load(tmp_path / "groups.pt")
    assert loaded.digest == given.digest != other.digest
    assert "in 13 and 9 groups" in repr(loaded)
    assert loaded.fit_groups is not None
    assert given.fit_groups is not None
    assert loaded.fit_groups.equal(given.fit_groups)
    with pytest.raises(DataError, match="groups: expected them for both splits or for none, got them for one"):
        pf.ProbeSet(given.fit_inputs, None, given.heldout_inputs, None, fit_groups=given.fit_groups)
    inputs = given.fit_inputs, None, given.heldout_inputs, None
    both = {"fit_groups": given.fit_groups.float(), "heldout_groups": given.heldout_groups}
    with pytest.raises(DataError, match=r"fit_groups: expected 60 integers, one for each input, got torch\.float32"):
        pf.ProbeSet(*inputs, **both)


def test_a_sweep_does_not_go_on_with_other_groups(model: nn.Module, tmp_path: Path) -> None:
    of: dict[str, Any] = {"alphas": [1e-2], "out": tmp_path, "selection": "gcv"}
    given = probe_set()
    pf.sweep(model, [model.state_dict()], given, **of)
    plain = pf.ProbeSet(given.fit_inputs, given.fit_labels, given.heldout_inputs, given.heldout_labels)
    with pytest.raises(StoreError, match=r"which samples belong together \(groups=\) stored .*, now null"):
        pf.sweep(model, [model.state_dict()], plain, **of)


def test_groups_may_be_values_of_a_data_set() -> None:
    rows = [(torch.randn(3), i % 2, {"subject": f"s{i // 5}", "age": float(i)}) for i in range(60)]
    given = pf.ProbeSet.from_dataset(rows[:40], rows[40:], n_fit=35, groups="subject")
    assert sorted(given.fit_values) == ["age"]
    assert given.groups is not None
    assert {split: len(own.counts) for split, own in given.groups.items()} == {"fit": 8, "heldout": 4}
    assert given.fit_groups is not None
    subjects = given.fit_values["age"] // 5
    assert (given.fit_groups[:, None] == given.fit_groups).equal(subjects[:, None] == subjects)
    with pytest.raises(DataError, match=r"groups 'site': expected the name of one of the values, \['age'\]"):
        pf.ProbeSet.from_dataset(rows[:40], rows[40:], groups="site")
    with pytest.raises(DataError, match=r"groups 'site': expected the name of one of the values, \[\]"):
        pf.ProbeSet.from_tensors(torch.randn(4, 2), None, torch.randn(4, 2), None, groups="site")


def test_groups_whose_classes_are_told_beat_the_constant() -> None:
    """A group's accuracy scatters less than a sample's does."""
    torch.manual_seed(0)
    x = torch.randn(1600, 2)
    labels = ((x[:, 0] + 0.35 * torch.randn(1600)) > 0).long()
    groups = torch.arange(1600) // 100
    model = nn.Sequential(nn.Identity())
    given = pf.ProbeSet.from_tensors(x[:800], labels[:800], x[800:], labels[800:], groups=(groups[:800], groups[800:]))
    assert pf.best_checkpoint(pf.probe(model, given, layers="0", targets="label")).beats_constant
    shuffled = labels[torch.randperm(1600)]
    given = pf.ProbeSet.from_tensors(
        x[:800], shuffled[:800], x[800:], shuffled[800:], groups=(groups[:800], groups[800:])
    )
    assert not pf.best_checkpoint(pf.probe(model, given, layers="0", targets="label")).beats_constant


def test_groups_of_one_class_each_do_not_beat_it_by_chance() -> None:
    """All samples of a group are right or wrong together, as of a constant."""
    beaten = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        hits = rng.random(12) < 0.5  # of groups of 50, half of whose classes are the constant's
        rows = []
        for step in (0, 1):
            rows.append(
                {
                    "run": "a",
                    "step": step,
                    "layer": "a",
                    "dim": 3,
                    "target": "label",
                    "split": "heldout",
                    "metric": "accuracy",
                    "value": float(hits.mean()),
                    "n": 600,
                    "baseline": 0.5,
                    "samples": hits.astype(np.float32),
                }
            )
        beaten += pf.best_checkpoint(pf.Scores.from_rows(rows)).beats_constant
    assert beaten <= 4


def test_where_new_tensors_lie_by_default_matters_not() -> None:
    with torch.device("meta"):
        assert Groups(torch.tensor([0, 1, 1], device="cpu")).folds([0, 1, 3]) == [0, 1, 3]
        assert Groups(torch.tensor([0, 1, 1], device="cpu")).sums(
            torch.ones(3, device="cpu")
        ).tolist() == pytest.approx([2 / 3, 4 / 3])


def offset_groups() -> tuple[Tensor, Tensor]:
    """Samples [960, 3] of 16 groups that differ by more than samples within them do, and their groups."""
    torch.manual_seed(0)
    groups = torch.arange(960) // 60
    return torch.randn(960, 3) + 4 * torch.randn(16, 3)[groups], groups


def test_statistics_of_batchnorm_do_not_depend_on_groups() -> None:
    x, groups = offset_groups()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU())
    plain = pf.ProbeSet.from_tensors(x[:600], None, x[600:], None)
    grouped = pf.ProbeSet.from_tensors(x[:600], None, x[600:], None, groups=(groups[:600], groups[600:]))
    of: dict[str, Any] = {"layers": ["1", "2"], "alphas": [1e-2], "batch_size": 60}
    found, alone = (pf.probe(model, given, **of) for given in (grouped, plain))
    whole = pf.probe(model, grouped, **of | {"batch_size": 600})
    for layer in ("1", "2"):
        same = {"layer": layer, "metric": "fvu", "split": "heldout"}
        assert found.value(**same) == pytest.approx(alone.value(**same), rel=0.03)
        assert found.value(**same) == pytest.approx(whole.value(**same), rel=0.03)


def test_statistics_of_batches_of_few_groups_are_told() -> None:
    x, groups = offset_groups()
    given = pf.ProbeSet.from_tensors(x[:300], None, x[300:], None, groups=(groups[:300], groups[300:]))
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8))
    with pytest.warns(RuntimeWarning, match="batchnorm='batch' takes the statistics of few groups at a time"):
        Engine(model, given, batchnorm="batch")
    with no_warnings():
        Engine(nn.Sequential(nn.Linear(3, 8)), given, batchnorm="batch")


def test_groups_of_one_sample_each_are_none(model: nn.Module) -> None:
    x, _ = offset_groups()
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU())
    each = torch.arange(960)
    plain = pf.ProbeSet.from_tensors(x[:600], None, x[600:], None)
    grouped = pf.ProbeSet.from_tensors(x[:600], None, x[600:], None, groups=(each[:600], each[600:]))
    of: dict[str, Any] = {"alphas": [1e-2], "batch_size": 60}
    with no_warnings():
        found, alone = (pf.probe(net, given, **of) for given in (grouped, plain))
        Engine(net, grouped, batchnorm="batch")
    keep = ["layer", "target", "split", "metric", "value", "samples", "baseline_samples"]
    assert found.to_arrow().select(keep).equals(alone.to_arrow().select(keep))


def test_a_better_decoder_does_not_beat_a_constant_less() -> None:
    beaten = []
    for wrong in (0.0, 1 / 600, 0.01):  # of all rows
        samples = np.ones(6, np.float32) - np.array([6 * wrong, 0, 0, 0, 0, 0], np.float32)
        same = {"run": "a", "step": 0, "layer": "a", "dim": 3, "target": "label", "split": "heldout"}
        row = {**same, "metric": "accuracy", "value": 1 - wrong, "n": 600, "baseline": 0.5, "samples": samples}
        beaten.append(pf.best_checkpoint(pf.Scores.from_rows([row])).beats_constant)
    assert beaten == sorted(beaten, reverse=True)
