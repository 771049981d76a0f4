"""What is measured of a model, and how, according to the options, before any data is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import nn

from .algebra.systems import DEFAULT_ALPHAS, Penalties
from .common.devices import resolve_device
from .common.notices import warn
from .data.output_rows import RowOptions, rows_dtype
from .data.token_rows import Units
from .decoding import Method
from .errors import ArgumentError
from .layers.models import check_usable, unwrap
from .layers.selection import given_names, select_layers
from .ops import bfloat16_is_fast, halves_are_slow
from .options import DEFAULTS, as_tuple, checked_options
from .stages.plan import memory_budget
from .types import BatchNormMode

_AUTHORS_BATCH = 128  # arXiv 2312.06887 measures with the batch statistics of 128 images
_BATCH = 256
_LAYOUT = 2  # raise it where settings would differ that are stored now: a new one is stored where it is no default


@dataclass(frozen=True)
class Configuration:
    """A model, and how its layers are measured.

    Attributes:
        model: without what DDP and the like wrap it in. device: where it is measured.
        method: with the whole memory budget. rows: what becomes of outputs.
        names: of the modules that are probed. named: those of them that the user named.
        options: as they were checked, with the ``DEFAULTS`` of others.
    """

    model: nn.Module
    device: torch.device
    method: Method
    rows: RowOptions
    batchnorm: BatchNormMode
    names: list[str]
    named: set[str]
    options: Mapping[str, Any]

    @classmethod
    def of(cls, model: nn.Module, options: Mapping[str, Any], grouped: bool = False) -> Configuration:
        """As :class:`phasefast.ProbeOptions` say.

        Args:
            grouped: whether some samples belong together.

        Raises:
            ArgumentError, LayerError: a model, options or layers that cannot be used.
        """
        options = DEFAULTS | checked_options(options)
        if not isinstance(model, nn.Module):
            made = f"; give what {model.__name__}(...) makes" if isinstance(model, (type, FunctionType)) else ""
            raise ArgumentError(f"model: expected a Module, got {type(model).__name__}{made}")
        model = unwrap(model)
        check_usable(model)
        home = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
        device = resolve_device(options.get("device"), home)
        penalties = Penalties(as_tuple("alphas", options.get("alphas"), DEFAULT_ALPHAS), options.get("noise"))
        of_method = ("precision", "route", "selection", "splits", "layer_sketch", "classifier")
        # Tokens of one sequence and samples of one group are alike: of those left out alone too much is known.
        how: dict[str, Any] = {"selection": "folds"} if grouped or options["tokens"] == "each" else {}
        how |= {name: options[name] for name in of_method if name in options}
        method = Method(penalties, budget=memory_budget(options.get("memory"), device), **how)
        narrow = method.precision == "fast" and bfloat16_is_fast(device)
        _tell_slow(model, device)
        of_rows: dict[str, Any] = {name: options[name] for name in ("tokens", "padding") if name in options}
        of_rows["pool"] = options["pool"] or 0
        rows = RowOptions(dtype=rows_dtype(model, narrow), **of_rows)
        layers = options.get("layers")
        names, named = select_layers(model, layers), given_names(model, layers)
        return cls(model, device, method, rows, options["batchnorm"], names, named, options)

    @property
    def per_column(self) -> bool:
        """Whether each column of a regression chooses a penalty of its own."""
        return bool(self.options["penalty_per"] == "column")

    @property
    def batch_size(self) -> int:
        """Samples of the forward passes, and of the BatchNorm statistics that need batches."""
        return self.options.get("batch_size") or (_AUTHORS_BATCH if self.batchnorm == "batch" else _BATCH)

    def settings(self, run: str, data: str, units: Units) -> dict[str, Any]:
        """What scores of one table have in common, as JSON has it: none of these may differ.

        Args:
            data: hash of the samples. units: what their rows are.
        """
        method, rows = self.method, self.rows
        settings: dict[str, Any] = {
            "layout": _LAYOUT,
            "run": run,
            "model": [(name, list(t.shape)) for name, t in self.model.named_parameters()],
            "modules": [f"{name}: {type(m).__name__}({m.extra_repr()})" for name, m in self.model.named_modules()],
            "data": data,
            "penalties": [method.penalties.alphas, method.penalties.noise],
            "choice": [method.selection, self.per_column],
            "batchnorm": [self.batchnorm, self.batch_size],
            "precision": method.precision,
            "splits": method.splits,
            "rows": [rows.tokens, rows.pool, str(rows.dtype)],
        }
        if method.layer_sketch is not None:
            settings["sketch"] = method.layer_sketch
        if rows.padding is not None:
            settings["padding"] = float(rows.padding)
        if method.discriminates:
            settings["classifier"] = method.classifier
        if units.token_digest:
            settings["token_rows"] = units.token_digest
        if units.group_digest:
            settings["groups"] = units.group_digest
        return settings


def _tell_slow(model: nn.Module, device: torch.device) -> None:
    """Warn of a 16-bit model on a CPU that has no instructions for such numbers."""
    known = (own.dtype for own in model.parameters() if own.dtype in (torch.bfloat16, torch.float16))
    if halves_are_slow(device) and (found := next(known, None)):
        warn(
            f"model: its parameters are {found}, with which this CPU can be many times slower than with float32: a "
            "float32 copy of the model gives activations sooner, and less rounded"
        )
