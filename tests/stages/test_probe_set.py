"""Probe sets: what they refuse, and what they promise."""

from __future__ import annotations

import pytest
import torch

import phasefast as pf
from phasefast.errors import DataError

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
        (([1.0], Y, X, Y), "got list"),
        ((X.numpy(), Y, X, Y), "got ndarray"),
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
        (Pairs(5, torch.zeros(2)), {}, "pairs"),
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


def test_fit_rows_are_shuffled_so_that_sorted_labels_do_not_spoil_the_folds() -> None:
    labels = torch.arange(100) // 10
    shuffled = pf.ProbeSet.from_tensors(labels[:, None].float(), labels, X[:, :1], Y).fit_labels
    assert not torch.equal(shuffled, labels)
    assert torch.equal(shuffled.sort().values, labels)
    assert len(set(shuffled[:20].tolist())) > 5
