from __future__ import annotations

import sys

import pytest
import torch
from sklearn.datasets import load_digits

from phasefast.errors import DependencyError
from phasefast.experiments.datasets import digits


def test_every_image_is_in_one_split_with_its_label() -> None:
    data = digits(3)
    assert data.fit_inputs.shape == (1200, 1, 8, 8)
    assert data.heldout_inputs.shape == (597, 1, 8, 8)
    assert data.fit_inputs.dtype == torch.float32
    assert data.fit_labels.dtype == torch.int64
    bundle = load_digits()
    pixels = torch.cat([data.fit_inputs, data.heldout_inputs]).flatten(1)
    labels = torch.cat([data.fit_labels, data.heldout_labels])
    # Undo the normalisation: the smallest pixel was 0 and the largest 16.
    pixels = ((pixels - pixels.min()) / (pixels.max() - pixels.min()) * 16).round().int()
    got = sorted((*row.tolist(), int(label)) for row, label in zip(pixels, labels))
    expected = sorted(
        (*image.ravel().astype(int).tolist(), int(label)) for image, label in zip(bundle.images, bundle.target)
    )
    assert got == expected


def test_normalised_by_the_fit_pixels() -> None:
    data = digits(0)
    assert data.fit_inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert data.fit_inputs.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_the_permutation_belongs_to_the_seed() -> None:
    torch.manual_seed(0)
    first = digits(0)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, digits(0)))
    assert not torch.equal(first.fit_labels, digits(1).fit_labels)


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DependencyError, match=r"pip install 'phasefast\[demo\]'"):
        digits()
