"""What people use instead: each gives the held-out error of reconstruction, for one penalty or the best of some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 10


@dataclass(frozen=True)
class Data:
    """Rows [n, d] and [m, d] of a layer, with targets [n, p] and [m, p] centred on the fit rows.

    The first ``inputs`` columns are the input, whose reconstruction is compared; the others one-hot labels.
    """

    fit: Tensor
    heldout: Tensor
    fit_targets: Tensor
    heldout_targets: Tensor
    inputs: int

    def error(self, prediction: Tensor) -> float:
        """Held-out squared error of the input over its squared deviation from the fit mean."""
        expected = self.heldout_targets[:, : self.inputs]
        miss = prediction[:, : self.inputs] - expected
        return float(miss.square_().sum(dtype=torch.float64) / expected.square().sum(dtype=torch.float64))


def with_labels(inputs: Tensor, labels: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Targets of the first n rows and of the others: inputs and one-hot labels, centred on the former."""
    both = torch.cat([inputs, nn.functional.one_hot(labels, CLASSES).to(inputs)], 1)
    both -= both[:n].mean(0)
    return both[:n], both[n:]


def synthetic(n: int, m: int, d: int, p: int, device: str = "cpu") -> Data:
    """Inputs with a decaying spectrum, as images have one, labels that depend on them, and a noisy ReLU layer above."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    inputs = random(n + m, p) @ (random(p, p) * torch.linspace(1, 0.01, p, device=device)[:, None] / p**0.5)
    rows = (inputs @ random(p, d) + 2 * random(n + m, d)).relu()
    labels = (inputs @ random(p, CLASSES)).argmax(1)
    return Data(rows[:n], rows[n:], *with_labels(inputs, labels, n), p)


def oracle(data: Data, alphas: Sequence[float]) -> list[float]:
    """The error for each penalty, in float64 throughout."""
    wide = [matrix.double() for matrix in (data.fit, data.heldout, data.fit_targets, data.heldout_targets)]
    return _ridge(Data(*wide, data.inputs), alphas, fast=False)


def honest(data: Data, alphas: Sequence[float], fast: bool = False) -> float:
    """What one writes oneself: plain ATen, one matrix of inner products, per penalty a factor and triangular solves.

    Args:
        fast: products for the statistics in bfloat16 with float32 sums (CUDA only).
    """
    return min(_ridge(data, alphas, fast))


def _ridge(data: Data, alphas: Sequence[float], fast: bool) -> list[float]:
    """Of features where there are fewer of them than rows, of rows otherwise."""
    mean = data.fit.mean(0)
    a, b, t = data.fit - mean, data.heldout - mean, data.fit_targets
    n, d = a.shape
    left, right = (a, t) if d <= n else (a.T, None)
    if fast:
        left, right = left.bfloat16(), None if right is None else right.bfloat16()
    wide: dict[str, Any] = {"out_dtype": torch.float32} if fast else {}
    gram = torch.mm(left.T, left, **wide)
    scale = gram.diagonal().sum() / d
    cross = t if right is None else torch.mm(left.T, right, **wide)
    applied = b if right is not None else b @ a.T
    errors = []
    for alpha in alphas:
        matrix = gram.clone()
        matrix.diagonal().add_(alpha * scale)
        factor, _ = torch.linalg.cholesky_ex(matrix)
        errors.append(data.error(applied @ torch.cholesky_solve(cross, factor)))
    return errors


def lstsq(data: Data, alphas: Sequence[float]) -> float:
    """``torch.linalg.lstsq`` on centred rows with the penalty's root below them."""
    (alpha,) = alphas
    mean = data.fit.mean(0)
    a = data.fit - mean
    root = (alpha * a.square().sum(0).mean()).sqrt() * torch.eye(a.shape[1], device=a.device)
    padding = torch.zeros(a.shape[1], data.fit_targets.shape[1], device=a.device)
    weights = torch.linalg.lstsq(torch.cat([a, root]), torch.cat([data.fit_targets, padding])).solution
    return data.error((data.heldout - mean) @ weights)


def _absolute(data: Data, alphas: Sequence[float]) -> list[float]:
    scale = float((data.fit - data.fit.mean(0)).square().sum(0).mean())
    return [alpha * scale for alpha in alphas]


def ridge(data: Data, alphas: Sequence[float]) -> float:
    """scikit-learn's ``Ridge``, with one penalty."""
    from sklearn.linear_model import Ridge

    model = Ridge(_absolute(data, alphas)[0]).fit(data.fit.numpy(), data.fit_targets.numpy())
    return data.error(torch.from_numpy(model.predict(data.heldout.numpy())))


def ridge_cv(data: Data, alphas: Sequence[float]) -> float:
    """scikit-learn's ``RidgeCV``: leave-one-out from one decomposition, one penalty for all columns."""
    from sklearn.linear_model import RidgeCV

    model = RidgeCV(_absolute(data, alphas)).fit(data.fit.numpy(), data.fit_targets.numpy())
    return data.error(torch.from_numpy(model.predict(data.heldout.numpy())))


def himalaya(data: Data, alphas: Sequence[float]) -> float:
    """himalaya's ``RidgeCV`` with its torch backend: five folds, a penalty for every target column."""
    from himalaya.ridge import RidgeCV

    return _himalaya(data, RidgeCV(_absolute(data, alphas), cv=5))


def himalaya_kernel(data: Data, alphas: Sequence[float]) -> float:
    """himalaya's ``KernelRidgeCV`` with its torch backend and inner products, likewise."""
    from himalaya.kernel_ridge import KernelRidgeCV

    return _himalaya(data, KernelRidgeCV(_absolute(data, alphas), kernel="linear", cv=5))


def _himalaya(data: Data, model: Any) -> float:
    from himalaya.backend import set_backend

    set_backend("torch_cuda" if data.fit.is_cuda else "torch")
    mean = data.fit.mean(0)
    prediction = model.fit(data.fit - mean, data.fit_targets).predict(data.heldout - mean)
    return data.error(prediction.to(mean.device))  # it may lie on the CPU


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
        return data.error(decoder(data.heldout))


OPPONENTS: dict[str, Callable[[Data, Sequence[float]], float]] = {
    "aten": honest,
    "lstsq": lstsq,
    "adam": adam,
    "sklearn Ridge": ridge,
    "sklearn RidgeCV": ridge_cv,
    "himalaya RidgeCV": himalaya,
    "himalaya KernelRidgeCV": himalaya_kernel,
}
SLOW = ("adam", "lstsq", "sklearn RidgeCV", "himalaya RidgeCV", "himalaya KernelRidgeCV")


def installed(name: str) -> bool:
    """Whether the package of an opponent is there."""
    package = name.split()[0]
    return package not in ("sklearn", "himalaya") or find_spec(package) is not None
