"""Probe sets: what they refuse, and what they promise."""

from __future__ import annotations

import resource
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import phasefast as pf
from phasefast.errors import DataError, StoreError
from tests.quiet import no_warnings

X, Y = torch.randn(10, 4), torch.arange(10) % 3


class Pairs:
    def __init__(self, count: int, item: object = None) -> None:
        self.count, self.item = count, item

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> object:
        return (torch.full((2,), float(i)), i) if self.item is None else self.item


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((X[:1], Y[:1], X, Y), "fit_inputs: expected at least 2"),
        ((X, Y, X[:0], Y[:0]), "heldout_inputs: expected at least 1"),
        ((X, Y, X[:, :3], Y), r"heldout_inputs: expected samples of shape \(4,\)"),
        ((X, Y[:9], X, Y), r"fit_labels: expected shape \(10,\)"),
        ((X, Y.float(), X, Y), "fit_labels: expected integers"),
        ((X, Y, X, None), "for both splits or for none"),
        ((X[:, 0], Y, X, Y), "at least 2 dimensions"),
        (((X, X), Y, X, Y), "at least 2 dimensions, got tuple; wrap a model of several inputs"),
        (([1.0], Y, X, Y), "got list"),
        ((np.array(["a"] * 6), Y, X, Y), "got (ndarray|text)"),
        ((X.index_fill(0, torch.tensor(3), torch.nan), Y, X, Y), "NaN or Inf, first in row 3"),
        ((X, Y, X / 0, Y), "heldout_inputs: expected finite"),
    ],
)
def test_unusable_tensors_are_named(arguments: tuple, words: str) -> None:
    with pytest.raises(DataError, match=words):
        pf.ProbeSet.from_tensors(*arguments)
    with pytest.raises(DataError, match=words):
        pf.ProbeSet(*arguments)


@pytest.mark.parametrize(
    ("fit", "options", "words"),
    [
        (Pairs(5), {"n_fit": 6}, "n_fit: expected between 1 and the 5"),
        (Pairs(0), {}, "n_fit"),
        (Pairs(5, {"x": torch.zeros(2)}), {}, r"sample \d: expected \(input, label\), got a dict of \['x'\]"),
        (Pairs(5, ()), {}, "expected inputs that are tensors, got tuple"),
        (Pairs(5, (torch.zeros(2), 1, 2)), {}, r"\(input, label, {name: value}\), got \(Tensor, int, int\)"),
        (
            Pairs(5, (torch.zeros(2), 0.5)),
            {},
            r"labels that are integers or None, got 0.5; give other .* \(input, None, ",
        ),
        (Pairs(5, (torch.zeros(2), torch.eye(3)[0])), {}, r"integers or None, got \(3,\) torch.float32"),
        (Pairs(5, (torch.zeros(2), "7")), {}, "integers or None, got '7'"),
        (Pairs(5, (torch.zeros(2), 1, {"age": {}})), {}, "values 'age': expected numbers, .* got dict"),
        (Pairs(5, ("image", 1)), {}, "transform"),
        (iter([]), {}, r"len\(\) and \[i\]"),
    ],
)
def test_unusable_datasets_are_named(fit: Pairs, options: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        pf.ProbeSet.from_dataset(fit, Pairs(3), **options)


def test_dataset_sample_is_random_but_repeatable() -> None:
    first, again, other = (pf.ProbeSet.from_dataset(Pairs(50), Pairs(9), n_fit=20, seed=s) for s in (0, 0, 1))
    assert first.n_fit == 20
    assert first.n_heldout == 9
    assert torch.equal(first.fit_inputs[:, 0].long(), first.fit_labels)
    assert first.digest == again.digest != other.digest
    assert len(set(first.fit_labels.tolist())) == 20


@pytest.mark.parametrize("copies", [0, 9, 10, 50])
def test_copies_among_the_fit_samples_are_told(copies: int) -> None:
    inputs = torch.randn(100, 3)
    inputs[:copies] = inputs[50 : 50 + copies]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pf.ProbeSet.from_tensors(inputs, None, torch.randn(9, 3), None)
    expected = [f"{copies} of 100 fit samples are copies of others"] if copies >= 10 else []
    assert [str(each.message).split(":")[0] for each in told] == expected


def test_samples_that_differ_in_few_numbers_are_no_copies() -> None:
    words = torch.eye(1000)[torch.randperm(1000)[:60]]
    with no_warnings():
        pf.ProbeSet.from_tensors(words[:50], None, words[50:], None)


def test_fit_rows_are_shuffled_so_that_sorted_labels_do_not_spoil_the_folds() -> None:
    labels = torch.arange(100) // 10
    inputs = torch.linspace(2, 3, 100)[:, None]
    shuffled = pf.ProbeSet.from_tensors(inputs, labels, X[:, :1], Y).fit_labels
    assert not torch.equal(shuffled, labels)
    assert torch.equal(shuffled.sort().values, labels)
    assert len(set(shuffled[:20].tolist())) > 5


def tensors(probe_set: pf.ProbeSet) -> list[torch.Tensor | None]:
    return [probe_set.fit_inputs, probe_set.fit_labels, probe_set.heldout_inputs, probe_set.heldout_labels]


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8])
def test_saved_samples_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype, labels: bool) -> None:
    inputs = (100 * torch.rand(12, 2, 5)).to(dtype)
    given = pf.ProbeSet.from_tensors(
        inputs, Y[:1].repeat(12) if labels else None, inputs[:3], Y[:3] if labels else None
    )
    path = tmp_path / "new folder" / "probe_set.pt"
    given.save(path)
    found = pf.ProbeSet.load(str(path))
    assert found.digest == given.digest
    for got, expected in zip(tensors(found), tensors(given)):
        assert (got is None) == (expected is None)
        assert got is None or (got.dtype == expected.dtype and torch.equal(got, expected))
    given.save(path)
    assert [file.name for file in path.parent.iterdir()] == ["probe_set.pt"]


@pytest.mark.parametrize("shape", [(1, 16), (16, 1), (1, 4, 1), (1, 1)])
def test_the_hash_is_of_numbers_whatever_their_strides(shape: tuple[int, ...]) -> None:
    x, labels = torch.rand(60, *shape), torch.arange(60) % 3
    turned = x.transpose(1, -1)
    hashes = {
        pf.ProbeSet.from_tensors(own[:40], labels[:40], own[40:], labels[40:]).digest
        for own in (turned, turned.clone(memory_format=torch.contiguous_format), torch.tensor(turned.tolist()))
    }
    assert len(hashes) == 1


def test_a_part_of_a_large_tensor_takes_its_own_room_only(tmp_path: Path) -> None:
    large = torch.randn(1000, 1000, requires_grad=True)
    given = pf.ProbeSet(large[:4, ::50], None, large[4:6, ::50], None)
    given.save(tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 10_000
    assert pf.ProbeSet.load(tmp_path / "a.pt").digest == given.digest


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(X.numpy().tobytes()[:16]) + 1] ^= 1
    path.write_bytes(content)


def edited(**changes: object) -> Callable[[Path], None]:
    return lambda path: torch.save(torch.load(path) | changes, path)


def lacking(name: str) -> Callable[[Path], None]:
    return lambda path: torch.save({key: each for key, each in torch.load(path).items() if key != name}, path)


class Unsafe:
    """An object whose unpickling would run code."""

    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('code was run')",)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "cannot be read .No such file"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read .Is a directory"),
        (lambda path: path.write_bytes(b""), "truncated or of another kind"),
        (lambda path: path.write_text("text"), "truncated or of another kind"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "truncated or of another kind"),
        (lambda path: torch.save(Unsafe(), path), "truncated or of another kind"),
        (lambda path: torch.save(X, path), "got Tensor"),
        (lambda path: torch.save({"weight": X}, path), r"got \['weight'\]"),
        (lacking("fit_values"), r"expected a probe set with \['digest', .*'fit_values', .*\], got \['digest', .*\]"),
        (edited(fit_inputs=X.tolist()), "fit_inputs: expected a tensor"),
        (edited(fit_inputs=X / 0), "fit_inputs: expected finite"),
        (edited(fit_labels="text"), "got text"),
        (edited(fit_labels=None), "for both splits or for none"),
        (edited(fit_labels=Y.flip(0)), "expected samples of digest [0-9a-f]{32}, got [0-9a-f]{32}"),
        (edited(digest="0"), "expected samples of digest 0, got"),
        (flipped, "damaged or changed"),
    ],
)
def test_files_that_are_no_whole_probe_set_are_named(tmp_path: Path, damage: Callable, words: str) -> None:
    path = tmp_path / "samples.pt"
    pf.ProbeSet(X, Y, X + 1, Y).save(path)
    damage(path)
    with pytest.raises(DataError, match=f"samples.pt: .*{words}.*; write it with ProbeSet.save"):
        pf.ProbeSet.load(path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    probe_set = pf.ProbeSet(X, Y, X, Y)
    with pytest.raises(StoreError, match=r"cannot write the probe set to .*file/a\.pt"):
        probe_set.save(tmp_path / "file" / "a.pt")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    probe_set.save(tmp_path / "a.pt")
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(StoreError, match="choose another place"):
            pf.ProbeSet(X + 1, Y, X, Y).save(tmp_path / "a.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert pf.ProbeSet.load(tmp_path / "a.pt").digest == probe_set.digest
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pt", "file"]
