"""What a measurement will take, per layer: of a probe set, or of its sizes before any data is there."""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Unpack, overload

import torch
from torch import Tensor, nn

from .algebra.components import columns_with_components
from .algebra.systems import fold_sums
from .common.scalars import is_integer
from .common.tables import Printed, aligned, counted
from .configuration import Configuration
from .data.batches import MOST_FIRST, first_rows, model_inputs
from .data.probe_set import ProbeSet
from .data.target_types import Input
from .decoding import Method
from .engine import Engine
from .errors import ArgumentError, PhasefastError
from .options import ProbeOptions
from .scoring import score_cells
from .stages.batchnorm import fresh_statistics
from .stages.discover import discover_layers
from .stages.plan import Cost, Problem, fitting_cost, group_layers
from .stages.preserve import preserved
from .stages.targets import CHECK_COLUMNS, SKETCH_COLUMNS, build_targets
from .types import Activations, Layer

COLUMNS = "layer", "features", "route", "GFLOP", "GB", "seconds", "pass"
_SIZE = 2048
_TIMED, _PATIENCE = 64, 1.0  # samples, and seconds that they may take
_FIT, _HELDOUT = 2000, 500
_SMALL, _LARGE = 128, 512  # features, and columns: of cells that are timed
_EXPONENTS = 0.5, 1.0  # of the time, over the work


@dataclass(frozen=True)
class LayerPlan:
    """One layer's cost per checkpoint; ``seconds``: expected time, from timing cells of three sizes on this machine.

    ``forward_pass``: number, from 1, of the pass over the data in which the layer is captured.
    """

    layer: Layer
    cost: Cost
    seconds: float
    forward_pass: int

    @property
    def texts(self) -> tuple[str, ...]:
        """Its values for ``COLUMNS``, as text."""
        cost, sizes = self.cost, (f"{self.cost.flops / 1e9:.1f}", f"{self.cost.bytes / 1e9:.3f}")
        return self.layer.name, f"{self.layer.dim}", cost.route, *sizes, f"{self.seconds:.3f}", f"{self.forward_pass}"


@dataclass(frozen=True, repr=False)
class Plan(Printed, Sequence[LayerPlan]):
    """What one checkpoint will take; prints as a line for each layer, the sums of several, and the forward passes.

    Attributes:
        forward_passes: number over the data, and one over the fit rows if BatchNorm statistics are recomputed.
        forward_seconds: expected for all of these, from timing a small batch on this machine.
    """

    layers: tuple[LayerPlan, ...]
    forward_passes: int
    forward_seconds: float

    @property
    def seconds(self) -> float:
        """Expected seconds for all layers, without the forward passes."""
        return sum(each.seconds for each in self.layers)

    @overload
    def __getitem__(self, index: int) -> LayerPlan: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LayerPlan, ...]: ...
    def __getitem__(self, index: int | slice) -> LayerPlan | tuple[LayerPlan, ...]:
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        passes = counted(self.forward_passes, "forward pass", "es")
        times = f"{self.seconds:.3g} s, and {self.forward_seconds:.3g} s for {passes}"
        return f"Plan({len(self)} layers: {times})"

    def __str__(self) -> str:
        work = sum(each.cost.flops for each in self)
        sums = [("all", "", "", f"{work / 1e9:.1f}", "", f"{self.seconds:.3f}", "")] if len(self) > 1 else []
        lines = aligned([COLUMNS, *(each.texts for each in self), *sums], left=(0,))
        passes = counted(self.forward_passes, "forward pass", "es")
        return "\n".join([*lines, f"{passes}: {self.forward_seconds:.2f} s"])


def plan(
    model: nn.Module,
    sample: ProbeSet | Sequence[int] | Tensor,
    fit: int = 0,
    heldout: int = 0,
    *,
    classes: int = 0,
    **options: Unpack[ProbeOptions],
) -> Plan:
    """Route, FLOPs, memory and expected time of every layer, and the time of the forward passes, for one checkpoint.

    Args:
        sample: a probe set, whose targets are made as for a measurement. Before there is one, the shape of an input,
            such as (3, 32, 32), or an input itself: integers, such as tokens, are not decoded.
        fit, heldout: numbers of samples. classes: number of the label's classes, or 0. Give none of these with a probe
            set.
        **options: see :class:`phasefast.ProbeOptions`; ``targets`` only with a probe set: without one, the input and
            the label are planned for.

    Raises:
        ArgumentError, DataError, LayerError: sizes, targets or layers that cannot be used.
        MemoryBudgetError: a layer does not fit.
    """
    if isinstance(sample, ProbeSet):
        if fit or heldout or classes:
            raise ArgumentError("plan: a probe set has its own sizes; leave out fit, heldout and classes")
        engine = Engine(model, sample, **options)
        groups, problem = engine.planned()
        what: Engine | Configuration = engine
        inputs, fit, heldout = sample.fit_inputs, sample.n_fit, sample.n_heldout
    else:
        what = Configuration.of(model, options)
        groups, problem = _of_sizes(what, sample, fit, heldout, classes)
        inputs = torch.stack([_example(sample)] * min(fit + heldout, _TIMED))
    # Of any cell on this machine: not by its own route.
    how = replace(what.method, layer_sketch=None, route=None, budget=sys.maxsize)
    seconds = _expected_seconds(how, problem.per_column, what.device, what.rows.dtype)
    of_layers = []
    for index, group in enumerate(groups, 1):
        for layer in group:
            cost = fitting_cost(layer.dim, problem, what.method.budget, what.method.route)
            of_layers.append(LayerPlan(layer, cost, seconds(cost.work), index))
    recomputed = what.batchnorm == "recompute" and bool(fresh_statistics(what.model))
    of_model = forward_seconds(what.model, inputs, what.device, len(groups) * (fit + heldout) + recomputed * fit)
    return Plan(tuple(of_layers), len(groups) + recomputed, of_model)


def forward_seconds(model: nn.Module, inputs: Tensor, device: torch.device, count: int) -> float:
    """Expected seconds of one pass of so many samples through the model, from a batch of a few; the better of two.

    Of fewer where these already take long.
    """
    inputs = inputs[: min(count, _TIMED)]

    def seconds(size: int) -> float:
        batch = next(model_inputs(inputs, [(0, size)], model, device))
        start = time.perf_counter()
        model(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    with preserved(model, device, keep=torch.device("cpu")):
        some = min(2, len(inputs))
        seconds(some)  # which may wait for what the device sets up
        while (taken := seconds(some)) < _PATIENCE / 2 and some < len(inputs):
            some = min(2 * some, len(inputs))
        return min(taken, seconds(some)) * count / some


def _of_sizes(
    config: Configuration,
    sample: Sequence[int] | Tensor,
    fit: int,
    heldout: int,
    classes: int,
) -> tuple[list[list[Layer]], Problem]:
    """Layers captured together, and the problem, of an input and of a label of so many samples."""
    shape = tuple(sample.shape if isinstance(sample, Tensor) else sample)
    for name, size in (("fit", fit), ("heldout", heldout)):
        if not is_integer(size, 1):
            raise ArgumentError(f"{name}: expected a positive number of rows, got {size!r}")
    if not is_integer(classes, 0):
        raise ArgumentError(f"classes: expected an integer >= 0, got {classes!r}")
    if not all(is_integer(size, 1) for size in shape):
        raise ArgumentError(f"sample: expected positive sizes, got {shape}")
    example = _example(sample)
    each = config.rows.tokens == "each"
    if each and len(shape) not in (1, 2):
        raise ArgumentError(f"tokens='each': expected a sample [t] or [t, c], got {shape}")
    tokens = shape[0] if each else 1  # of a sample without padding
    fit, heldout = fit * tokens, heldout * tokens
    width = example.numel() // tokens if example.is_floating_point() else 0
    if not width and not classes:
        raise ArgumentError(f"nothing to decode: the sample is {example.dtype}, not floating-point, and classes=0")
    if config.options.get("targets") is not None:
        raise ArgumentError(
            "targets: without a probe set, only the input and a label (classes=) are planned for; leave targets out, "
            "or give plan(model, probe_set, targets=...)"
        )
    model, where, method = config.model, config.device, config.method
    with preserved(model, where, keep=torch.device("cpu")):
        samples = torch.stack([example] * MOST_FIRST)
        batches = model_inputs(samples, first_rows(samples), model, where)
        try:
            found = discover_layers(model, config.names, batches, config.rows, config.named).layers
        except PhasefastError:
            raise
        except Exception as error:  # a model may check its input by itself
            raise ArgumentError(
                f"the model takes no {example.dtype} input of shape {shape}: {error}; give an input that it takes, "
                "or the shape of one (--sample, or --probe-set)"
            ) from error
    per_column, options = config.per_column and width > 1, config.options
    # Wider targets than there are fit rows are replaced by n + 1 columns (row space), and combined where penalties are
    # chosen: not where each column has its own.
    columns = width if per_column else min(columns_with_components(width, options.get("target_components")), fit + 1)
    choosing = max(columns, classes) if per_column else SKETCH_COLUMNS
    q, checks = (min(columns, most) + min(classes, most) for most in (choosing, CHECK_COLUMNS))
    itemsize, folds = max(config.rows.dtype.itemsize, 4), len(method.folds(fit)) - 1
    sizes = Problem(fit, heldout, columns + classes, q, folds, checks=checks, itemsize=itemsize, per_column=per_column)
    problem = method.posed(sizes, targets=(width > 0) + (classes > 0))
    return group_layers(found, problem, method.budget, method.route), problem


def _example(sample: Sequence[int] | Tensor) -> Tensor:
    return sample if isinstance(sample, Tensor) else torch.randn(tuple(sample), device="cpu")


@functools.cache  # a machine's are the same for all that is planned
def _expected_seconds(
    method: Method, per_column: bool, device: torch.device, dtype: torch.dtype
) -> Callable[[float], float]:
    """What gives the seconds of a cell of so much work: a power of it between the cells that are timed, from below by
    the rate of large products, beside what the smallest cell takes: mostly Python, and launches on a GPU.
    """
    wide = method.precision == "double" or dtype == torch.float64
    rate = _product_rate(device, torch.float64 if wide else torch.float32)
    sizes = (64, 16, 8), (_FIT, _HELDOUT, _SMALL), (_FIT, _HELDOUT, _LARGE)
    (least, *times), (_, *works) = zip(
        *(_cell_seconds(method, per_column, device, dtype, *size) for size in sizes), strict=True
    )
    small, large = (max(each - least, work / rate) for each, work in zip(times, works, strict=True))
    low, high = _EXPONENTS
    exponent = min(max(math.log(large / small) / math.log(works[1] / works[0]), low), high)
    return lambda work: least + max(large * (work / works[1]) ** exponent, work / rate)


def _cell_seconds(
    method: Method, per_column: bool, device: torch.device, dtype: torch.dtype, n: int, m: int, size: int
) -> tuple[float, float]:
    """What decoding and scoring so many features takes, into as many columns, the better of two times; and its work."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n + m, size, generator=generator, device="cpu")
    rows = (inputs + torch.randn(n + m, size, generator=generator, device="cpu")).to(device, dtype)
    folds, seconds = method.folds(n), []
    targets = build_targets([Input()], (inputs[:n], None), (inputs[n:], None), folds, device, per_column)
    for _ in range(2):
        cell = Activations(Layer("", "", 0, size), rows[:n], rows[n:], rows.new_zeros(size), fold_sums(rows[:n], folds))
        work = method.cost(cell, targets).work
        start = time.perf_counter()
        for _score in score_cells([cell], targets, method):
            pass
        seconds.append(time.perf_counter() - start)
    return min(seconds), work


def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of matrix products, the best of three."""
    # No ones: multiplying equal numbers takes a GPU less power, so that its clock is higher.
    matrix = torch.randn(_SIZE, _SIZE, generator=torch.Generator().manual_seed(0), device="cpu").to(device, dtype)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        seconds.append(time.perf_counter() - start)
    return 2 * _SIZE**3 / min(seconds[1:])
