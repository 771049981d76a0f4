from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from phasefast.errors import ArgumentError, DataError, DependencyError
from phasefast.experiments.datasets import adapt, digits, keep_classes, load, read_npz


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


def write_npz(path: Path, keys: str, images: np.ndarray, labels: np.ndarray) -> Path:
    """The same images in both splits, under the keys of a layout such as ``{}_images {}_labels``."""
    image_key, label_key = keys.split()
    arrays = {}
    for split in ("train", "test"):
        arrays[image_key.format(split)], arrays[label_key.format(split)] = images, labels
    np.savez(path, **arrays)
    return path


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)  # [n, h, w, c]


@pytest.mark.parametrize("keys", ["{}_images {}_labels", "x_{} y_{}", "{}_x {}_y", "{}_data {}_targets"])
@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2)], ids=["hwc", "chw"])
def test_npz_layouts(tmp_path: Path, keys: str, axes: tuple[int, ...]) -> None:
    data = read_npz(write_npz(tmp_path / "a.npz", keys, PIXELS.transpose(axes), np.arange(6) % 3))
    assert data.sample == (3, 5, 4)
    assert data.num_classes == 3
    torch.testing.assert_close(data.fit_inputs, torch.from_numpy(PIXELS.transpose(0, 3, 1, 2) / np.float32(255)))


def test_npz_of_grey_floats_and_column_labels(tmp_path: Path) -> None:
    images = PIXELS[..., 0].astype(np.float64)
    data = read_npz(write_npz(tmp_path / "a.npz", "x_{} y_{}", images, np.arange(6)[:, None]))
    assert data.sample == (1, 5, 4)
    torch.testing.assert_close(data.fit_inputs[:, 0], torch.from_numpy(images).float())
    assert data.heldout_labels.tolist() == list(range(6))


def encoded(images: list[np.ndarray]) -> dict[str, np.ndarray]:
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.append(buffer.getvalue())
    found: dict[str, np.ndarray] = {}
    for split in ("train", "test"):
        found[f"{split}_jpeg"] = np.frombuffer(b"".join(files), np.uint8)
        found[f"{split}_offsets"] = np.cumsum([0, *map(len, files)])
        found[f"{split}_labels"] = np.arange(len(files), dtype=np.uint8)
    return found


def test_npz_of_encoded_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **encoded(list(PIXELS)))
    data = read_npz(tmp_path / "a.npz")
    torch.testing.assert_close(data.fit_inputs, torch.from_numpy(PIXELS.transpose(0, 3, 1, 2) / np.float32(255)))
    np.savez(tmp_path / "b.npz", **encoded([PIXELS[0], PIXELS[1][:3]]))
    with pytest.raises(DataError, match=r"b\.npz, train_jpeg: .* one size, image 1"):
        read_npz(tmp_path / "b.npz")
    damaged = encoded(list(PIXELS))
    damaged["train_jpeg"] = damaged["train_jpeg"].copy()
    damaged["train_jpeg"][:8] = 0
    np.savez(tmp_path / "c.npz", **damaged)
    with pytest.raises(DataError, match="image 0 cannot be decoded"):
        read_npz(tmp_path / "c.npz")


def test_npz_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz: no such file"):
        read_npz(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("words")
    with pytest.raises(DataError, match=r"text\.npz: expected an \.npz"):
        read_npz(tmp_path / "text.npz")
    np.savez(tmp_path / "keys.npz", pictures=np.zeros(3))
    with pytest.raises(DataError, match=r"train_images and train_labels.*\['pictures'\]"):
        read_npz(tmp_path / "keys.npz")
    with pytest.raises(DataError, match="6 images and 5 labels"):
        read_npz(write_npz(tmp_path / "n.npz", "x_{} y_{}", PIXELS, np.arange(5)))
    with pytest.raises(DataError, match="got shape"):
        read_npz(write_npz(tmp_path / "s.npz", "x_{} y_{}", PIXELS[:, :, 0, 0], np.arange(6)))
    np.savez(tmp_path / "two.npz", x_train=PIXELS, y_train=np.arange(6), x_test=PIXELS[:, :4], y_test=np.arange(6))
    with pytest.raises(DataError, match="one shape in both splits"):
        read_npz(tmp_path / "two.npz")


def test_normalisation(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", "x_{} y_{}", PIXELS, np.arange(6))
    own = load("pictures", file=path)
    deviation, mean = torch.std_mean(own.fit_inputs, (0, 2, 3), correction=0)
    torch.testing.assert_close((mean, deviation), (torch.zeros(3), torch.ones(3)), atol=1e-5, rtol=0)
    paper = load("cifar10", file=path)  # by the constants of the paper, whatever the images
    expected = (PIXELS[0, 0, 0] / 255 - np.array([0.4914, 0.4822, 0.4465])) / np.array([0.2023, 0.1994, 0.2010])
    torch.testing.assert_close(paper.fit_inputs[0, :, 0, 0].double(), torch.from_numpy(expected), atol=1e-5, rtol=0)
    flat = write_npz(tmp_path / "b.npz", "x_{} y_{}", np.full_like(PIXELS, 7), np.arange(6))
    with pytest.raises(DataError, match="constant"):
        load("pictures", file=flat)


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_torchvision_data_sets(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torchvision import datasets

    class Small:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert root == str(tmp_path)
            assert download
            self.data = PIXELS if name == "cifar10" else torch.from_numpy(PIXELS[..., 0])
            self.targets = list(range(6)) if name == "cifar10" else torch.arange(6)

    monkeypatch.setattr(datasets, {"cifar10": "CIFAR10", "mnist": "MNIST"}[name], Small)
    data = load(name, root=tmp_path)
    assert data.sample == ((3, 5, 4) if name == "cifar10" else (1, 5, 4))
    assert data.heldout_labels.tolist() == list(range(6))


def test_torchvision_data_set_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torchvision import datasets

    def absent(*_args: object, **_options: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(datasets, "CIFAR100", absent)
    with pytest.raises(DataError, match=r"'cifar100'.*no network.*--data FILE"):
        load("cifar100", root=tmp_path)
    with pytest.raises(ArgumentError, match=r"'cifar11'.*digits"):
        load("cifar11")


def test_adapt() -> None:
    colour = torch.rand(2, 3, 8, 8)
    grey = adapt(colour, (1, 8, 8))
    torch.testing.assert_close(grey[:, 0], colour.mean(1))
    assert adapt(grey, (3, 8, 8)).shape == (2, 3, 8, 8)
    torch.testing.assert_close(adapt(torch.full((1, 1, 8, 8), 2.0), (3, 32, 32)), torch.full((1, 3, 32, 32), 2.0))
    torch.testing.assert_close(adapt(colour, (3, 1, 1))[..., 0, 0], colour.mean((2, 3)), atol=0.1, rtol=0)
    with pytest.raises(ArgumentError, match="images"):
        adapt(torch.rand(2, 5), (3, 8, 8))


def test_keep_classes() -> None:
    data = digits()
    kept = keep_classes(data, [7, 2])
    assert kept.num_classes == 2
    assert len(kept.fit_labels) == int(((data.fit_labels == 7) | (data.fit_labels == 2)).sum())
    assert torch.equal(kept.fit_inputs[kept.fit_labels == 0], data.fit_inputs[data.fit_labels == 7])
