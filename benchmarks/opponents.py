"""What people use instead: each gives the held-out squared error of reconstruction, for one penalty or the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Data:
    """Rows [n, d] and [m, d] of a layer, with targets [n, p] and [m, p] centred on the fit rows; labels are one-hot."""

    fit: Tensor
    heldout: Tensor
    fit_targets: Tensor
    heldout_targets: Tensor


def synthetic(n: int, m: int, d: int, p: int, device: str) -> Data:
    """Targets with a decaying spectrum, as images have one, and a noisy ReLU layer above them."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    targets = random(n + m, p) @ (random(p, p) * torch.linspace(1, 0.01, p, device=device)[:, None] / p**0.5)
    rows = (targets @ random(p, d) + 2 * random(n + m, d)).relu()
    return Data(rows[:n], rows[n:], targets[:n] - targets[:n].mean(0), targets[n:] - targets[:n].mean(0))


def honest(data: Data, alphas: Sequence[float], fast: bool = False) -> float:
    """One Gram matrix; per penalty a Cholesky factor, two triangular solves and the held-out error: plain ATen.

    Args:
        fast: products for the statistics in bfloat16 with float32 sums (CUDA only).
    """
    mean = data.fit.mean(0)
    a, t = data.fit - mean, data.fit_targets
    if fast:
        narrow = a.bfloat16()
        gram = torch.mm(narrow.T, narrow, out_dtype=torch.float32)
        cross = torch.mm(narrow.T, t.bfloat16(), out_dtype=torch.float32)
    else:
        gram, cross = a.T @ a, a.T @ t
    heldout, errors = data.heldout - mean, []
    for alpha in alphas:
        matrix = gram.clone()
        matrix.diagonal().add_(alpha * gram.diagonal().mean())
        factor, _ = torch.linalg.cholesky_ex(matrix)
        weights = torch.cholesky_solve(cross, factor)
        errors.append((heldout @ weights).sub_(data.heldout_targets).square_().sum())
    return min(float(error) for error in errors)


def lstsq(data: Data, alphas: Sequence[float]) -> float:
    """``torch.linalg.lstsq`` on centred rows with the penalty's root below them."""
    (alpha,) = alphas
    mean = data.fit.mean(0)
    a = data.fit - mean
    root = (alpha * a.square().sum(0).mean()).sqrt() * torch.eye(a.shape[1], device=a.device)
    padding = torch.zeros(a.shape[1], data.fit_targets.shape[1], device=a.device)
    weights = torch.linalg.lstsq(torch.cat([a, root]), torch.cat([data.fit_targets, padding])).solution
    return float(((data.heldout - mean) @ weights).sub_(data.heldout_targets).square_().sum())


def scikit(data: Data, alphas: Sequence[float]) -> float:
    """scikit-learn's ``RidgeCV``: leave-one-out from one singular value decomposition."""
    from sklearn.linear_model import RidgeCV

    scale = float((data.fit - data.fit.mean(0)).square().sum(0).mean())
    model = RidgeCV([alpha * scale for alpha in alphas]).fit(data.fit.numpy(), data.fit_targets.numpy())
    return float(((model.predict(data.heldout.numpy()) - data.heldout_targets.numpy()) ** 2).sum())


def himalaya(data: Data, alphas: Sequence[float]) -> float:
    """himalaya's ``RidgeCV`` with its torch backend: five folds, a penalty for every target column."""
    from himalaya.backend import set_backend
    from himalaya.ridge import RidgeCV

    set_backend("torch_cuda" if data.fit.is_cuda else "torch")
    mean = data.fit.mean(0)
    a = data.fit - mean
    scale = float(a.square().sum(0).mean())
    model = RidgeCV([alpha * scale for alpha in alphas], cv=5).fit(a, data.fit_targets)
    return float((model.predict(data.heldout - mean) - data.heldout_targets).square().sum())


def adam(data: Data, alphas: Sequence[float]) -> float:
    """A linear decoder trained as in arXiv 2312.06887: 20 epochs of Adam at 3e-4, batches of 128."""
    del alphas
    torch.manual_seed(0)
    decoder = nn.Linear(data.fit.shape[1], data.fit_targets.shape[1], device=data.fit.device)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-4, weight_decay=1e-5, foreach=True)
    for _ in range(20):
        for chosen in torch.randperm(len(data.fit)).to(data.fit.device).split(128):
            loss = nn.functional.mse_loss(decoder(data.fit[chosen]), data.fit_targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return float((decoder(data.heldout) - data.heldout_targets).square().sum())


OPPONENTS: dict[str, Callable[[Data, Sequence[float]], float]] = {
    "aten": honest,
    "lstsq": lstsq,
    "adam": adam,
    "scikit-learn": scikit,
    "himalaya": himalaya,
}
SLOW = ("adam", "scikit-learn", "himalaya")
