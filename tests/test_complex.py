"""Layers of complex numbers, as of spectra, are decoded from both their parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from tests.quiet import no_warnings


class Spectrum(nn.Module):
    """Complex weights on the spectrum of the last axis; ``split``: both parts stand beside each other."""

    def __init__(self, width: int, split: bool, dtype: torch.dtype = torch.complex64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(width, width, dtype=dtype, generator=generator))
        self.split = split

    def forward(self, x: Tensor) -> Tensor:
        found = torch.fft.fft(x)[..., : len(self.weight)] @ self.weight
        return torch.cat([found.real, found.imag], 1) if self.split else found.conj().resolve_conj().conj()


class Net(nn.Module):
    def __init__(self, split: bool, dtype: torch.dtype = torch.complex64) -> None:
        super().__init__()
        self.spectrum = Spectrum(3, split, dtype)
        self.rest = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        found = self.spectrum(x)
        return self.rest(found.abs() if found.is_complex() else found)


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 4, 8)])
def test_a_complex_number_is_two_features(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    x = torch.randn(260, *shape)
    probe_set = pf.ProbeSet.from_tensors(x[:200], None, x[200:], None)
    with no_warnings():
        found, expected = (pf.probe(Net(split), probe_set, layers=["spectrum"]) for split in (False, True))
    for one, other in zip(found.to_arrow().to_pylist(), expected.to_arrow().to_pylist(), strict=True):
        assert one["dim"] == other["dim"] == 6 * x[0].numel() // 8
        assert (one["metric"], one["value"]) == (other["metric"], pytest.approx(other["value"], rel=1e-4))
    fvu = found.curve("spectrum", "input", "fvu")[1][0]
    assert 0.1 < fvu < 0.9  # of 8 numbers, 6 parts of 3 frequencies, of which the first has one


def test_double_precision_is_kept() -> None:
    torch.manual_seed(1)
    x = torch.randn(260, 8, dtype=torch.float64)
    probe_set = pf.ProbeSet.from_tensors(x[:200], None, x[200:], None)
    decoder = pf.fit_decoders(Net(False, torch.complex128), probe_set, layers=["spectrum"])["spectrum", "input"]
    assert decoder.dtype == torch.float64


def test_maps_with_features_last_are_pooled_part_by_part() -> None:
    class Mixed(nn.Module):
        def __init__(self, split: bool) -> None:
            super().__init__()
            self.mix, self.split = nn.Linear(3, 5, dtype=torch.complex64), split
            nn.init.ones_(self.mix.weight)
            nn.init.zeros_(self.mix.bias)
            self.turn = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            found = self.mix(torch.complex(x, x.roll(1, 1)))
            found = self.turn(torch.cat([found.real, found.imag], -1).movedim(-1, 1) if self.split else found)
            return found.abs().flatten(1)

    x = torch.randn(260, 8, 8, 3)
    probe_set = pf.ProbeSet.from_tensors(x[:200], None, x[200:], None)
    models = [Mixed(split) for split in (False, True)]
    found, expected = (
        pf.probe(model, probe_set, layers=[layer], pool=2, alphas=[0.1]).to_arrow().to_pylist()
        for model, layer in zip(models, ("mix", "turn"), strict=True)
    )
    for one, other in zip(found, expected, strict=True):
        assert one["dim"] == other["dim"] == 2 * 5 * 4
        assert (one["metric"], one["value"]) == (other["metric"], pytest.approx(other["value"], rel=1e-4))


def test_maps_are_pooled_part_by_part() -> None:
    torch.manual_seed(1)
    x = torch.randn(260, 2, 8, 8)

    class Maps(nn.Module):
        def __init__(self, split: bool) -> None:
            super().__init__()
            self.conv, self.split = nn.Conv2d(2, 3, 3), split
            self.parts, self.rest = nn.Identity(), nn.Flatten()

        def forward(self, x: Tensor) -> Tensor:
            real, imaginary = self.conv(x), self.conv(x.flip(3))
            found = torch.cat([real, imaginary], 1) if self.split else torch.complex(real, imaginary)
            return self.rest(self.parts(found).abs())

    probe_set = pf.ProbeSet.from_tensors(x[:200], None, x[200:], None)
    values = []
    for split in (False, True):
        torch.manual_seed(0)
        scores = pf.probe(Maps(split), probe_set, layers=["parts"], pool=2)
        assert set(scores.to_arrow().column("dim").to_pylist()) == {24}
        values.append(scores.curve("parts", "input", "fvu")[1][0])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_which_axis_of_sequences_has_the_features_is_not_guessed() -> None:
    x = torch.randn(60, 5, 8)
    probe_set = pf.ProbeSet.from_tensors(x[:40], None, x[40:], None)
    with pytest.raises(pf.PhasefastError, match=r"got torch\.complex64; tokens='flatten' takes"):
        pf.probe(Net(False), probe_set, layers=["spectrum"], tokens="mean")


def test_complex_numbers_without_an_axis_of_features_are_told() -> None:
    class Phase(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c, self.h = nn.Linear(8, 6), _First(), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            z = self.a(x)
            found: Tensor = self.h(z * self.c(z).abs()[:, None])
            return found

    x = torch.randn(90, 8)
    probe_set = pf.ProbeSet.from_tensors(x[:60], None, x[60:], None)
    with pytest.warns(RuntimeWarning, match=r"layer 'c': expected a floating.*complex64; give it a second axis"):
        assert pf.probe(Phase(), probe_set, layers=["*"], alphas=[0.1]).layers == ["a", "h"]


class _First(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return torch.complex(z, z)[:, 0]
