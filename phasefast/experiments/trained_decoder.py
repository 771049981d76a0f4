"""Opponents of the exact decoder: the same reconstruction, by a network trained with Adam as in the paper.

arXiv 2312.06887 measures reconstruction with decoders that are trained anew at every checkpoint: 20 epochs of Adam at
3e-4 with weight decay 1e-5 and batches of 128, a linear one and one of transposed convolutions.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.probe_set import ProbeSet
from ..decoding import decode
from ..engine import Engine
from ..errors import ArgumentError
from ..stages.evaluate import evaluate
from ..types import Activations

_WIDEST, _NARROWEST = 128, 32


@dataclass(frozen=True)
class DecoderResult:
    """Held-out and fit squared error per element of one decoder, and the seconds from activations to these errors."""

    heldout_mse: float
    fit_mse: float
    seconds: float


def linear_decoder(dim: int, sample: Sequence[int]) -> nn.Module:
    """``Linear(dim, c h w)``, the paper's decoder: [b, dim] -> [b, c, h, w]."""
    return nn.Sequential(nn.Linear(dim, torch.Size(sample).numel()), nn.Unflatten(1, tuple(sample)))


def conv_decoder(dim: int, sample: Sequence[int]) -> nn.Module:
    """Transposed convolutions that double the size from 1x1 on, with BatchNorm and ReLU: [b, dim] -> [b, c, h, w].

    Channels go from 128 down to 32; the last convolution gives the image's, cut to its size.
    """
    channels, height, width = sample
    doublings = max(1, (max(height, width) - 1).bit_length())
    stages: OrderedDict[str, nn.Module] = OrderedDict(start=nn.Unflatten(1, (dim, 1, 1)))
    before = dim
    for index in range(doublings - 1):
        after = max(_NARROWEST, _WIDEST >> index)
        convolution = nn.ConvTranspose2d(before, after, kernel_size=4, stride=2, padding=1, bias=False)
        stages[f"stage{index + 1}"] = nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())
        before = after
    stages["image"] = nn.ConvTranspose2d(before, channels, kernel_size=4, stride=2, padding=1)
    stages["cut"] = _Cut(height, width)
    return nn.Sequential(stages)


class _Cut(nn.Module):
    """The first rows and columns of an image."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, c, height, width]."""
        return x[..., : self.height, : self.width]


def train_decoder(
    make: Callable[[int, Sequence[int]], nn.Module],
    cell: Activations,
    probe_set: ProbeSet,
    *,
    epochs: int = 20,
    lr: float = 3e-4,
    weight_decay: float = 1e-5,
    batch_size: int = 128,
    seed: int = 0,
) -> DecoderResult:
    """Train a decoder from the rows of ``cell`` to the inputs of its probe set; the defaults are the paper's.

    Args:
        make: ``linear_decoder`` or ``conv_decoder``.
        cell: one entry of :meth:`phasefast.engine.Engine.activations` for ``probe_set``.

    Raises:
        ArgumentError: rows and inputs differ in number, or inputs are not images.
    """
    inputs = probe_set.fit_inputs
    if inputs.dim() != 4 or len(inputs) != len(cell.fit) or epochs < 1:
        raise ArgumentError(
            f"layer {cell.layer.name!r}: expected images [{len(cell.fit)}, c, h, w] and epochs >= 1, "
            f"got {tuple(inputs.shape)} and {epochs}"
        )
    begin = time.perf_counter()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        decoder = make(cell.layer.dim, inputs.shape[1:]).to(cell.fit.device)
        optimizer = torch.optim.Adam(decoder.parameters(), lr=lr, weight_decay=weight_decay, foreach=True)
        rows, images = cell.fit + cell.shift, inputs.to(cell.fit.device)
        for _ in range(epochs):
            for chosen in torch.randperm(len(rows)).to(rows.device).split(batch_size):
                if len(chosen) == 1:
                    continue  # BatchNorm needs two
                loss = nn.functional.mse_loss(decoder(rows[chosen]), images[chosen])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    decoder.eval()
    heldout = _mse(decoder, cell.heldout + cell.shift, probe_set.heldout_inputs)
    return DecoderResult(heldout, _mse(decoder, rows, inputs), time.perf_counter() - begin)


def exact_decoder(cell: Activations, engine: Engine) -> DecoderResult:
    """The package's own decoder of the same rows, penalties chosen and certified as ``engine`` was told to."""
    begin = time.perf_counter()
    ((cell, decoder),) = decode([cell], engine.targets, engine.method)
    scores = evaluate(cell, decoder, engine.targets)()
    seconds = time.perf_counter() - begin
    mse = {score.split: score.value for score in scores if (score.target, score.metric) == ("input", "mse")}
    return DecoderResult(mse["heldout"], mse["fit"], seconds)


@torch.no_grad()
def _mse(decoder: nn.Module, rows: Tensor, images: Tensor) -> float:
    total = torch.zeros((), dtype=torch.float64, device=rows.device)
    for part, expected in zip(rows.split(1024), images.split(1024), strict=True):
        total += (decoder(part) - expected.to(rows.device)).double().square().sum()
    return float(total) / images.numel()
