"""Measure every checkpoint of a training run, once."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

from torch import nn

from .checkpoints import file_hash, load_into, order_checkpoints, read_ahead, read_state_dict, state_hash
from .checkpoints.sources import Source
from .engine import Engine, ProbeOptions
from .errors import PhasefastError, StoreError, SweepError
from .progress import progress
from .scores import Scores
from .stages.preserve import on_device
from .stages.probe_set import ProbeSet
from .store import check_weights, open_store


def sweep(
    model: nn.Module,
    checkpoints: Mapping[int, Source] | Sequence[Source] | str | os.PathLike[str],
    probe_set: ProbeSet,
    *,
    out: str | Path,
    run: str = "run",
    overwrite: bool = False,
    weights_only: bool = True,
    **options: Unpack[ProbeOptions],
) -> Scores:
    """Probe the model with the weights of each checkpoint; steps that ``out`` holds already are not measured again.

    Args:
        model: gives the architecture; left exactly as it was found.
        checkpoints: ``{step: state dict or path}``, a list of state dicts or of paths, or a folder; see the README for
            what is read.
        out: directory whose ``scores/`` gets one Parquet shard per step, whole or not at all, and ``cache/`` what later
            sweeps of the same data and targets need not make again.
        run: label of the rows. weights_only: see ``torch.load``.
        overwrite: start over, removing the scores in ``out``, their ``phases.json`` and ``phases.png``.
        **options: see :class:`phasefast.ProbeOptions`.

    Returns:
        The scores of all given checkpoints, those of earlier calls included.

    Raises:
        SweepError: some checkpoints failed; names them, after all others were measured and stored.
        StoreError: ``out`` cannot be written, or holds scores of another configuration or of other weights.
    """
    ordered = order_checkpoints(checkpoints)
    engine = Engine(model, probe_set, run, out, **options)
    stored = open_store(out, engine.config_hash, engine.settings, overwrite)
    done = {step: scores for step, scores in stored.items() if step in ordered}
    todo = {step: source for step, source in ordered.items() if step not in done}
    failures: dict[int, PhasefastError] = {}
    before = copy.deepcopy(engine.model.state_dict())
    try:
        for step, scores in done.items():
            _check_same(scores, ordered[step], engine.model, weights_only)
        with on_device(engine.model, engine.device), progress("sweeping", len(todo), "checkpoints") as update:
            ahead = read_ahead(todo, engine.device, weights_only=weights_only)
            for index, (step, read) in enumerate(ahead):
                source = todo[step]
                try:
                    load_into(engine.model, read(), _name(step, source))
                    done[step] = engine.measure(step)
                    if not isinstance(source, Mapping):
                        done[step] = done[step].with_column("source_hash", file_hash(source))
                    done[step].write_shard(out)
                except StoreError:
                    raise
                except PhasefastError as error:
                    failures[step] = error
                update(index + 1, f"step {step}" + (" failed" if step in failures else ""))
    finally:
        engine.model.load_state_dict(before)
    if failures:
        listed = "\n".join(f"  step {step}: {error}" for step, error in failures.items())
        kept = f"the other {len(done)} are stored in {out}" if done else "none was measured"
        raise SweepError(
            f"{len(failures)} of {len(ordered)} checkpoints failed, {kept}; sweep again to retry:\n{listed}"
        )
    return Scores.concat([done[step] for step in ordered])


def _name(step: int, source: Source) -> str:
    return f"step {step}" if isinstance(source, Mapping) else os.fspath(source)


def _check_same(stored: Scores, source: Source, model: nn.Module, weights_only: bool) -> None:
    """Stored scores must be of this checkpoint: compare files without loading them, else the weights once loaded."""
    if not isinstance(source, Mapping) and not os.path.exists(source):
        return  # measured, and deleted since to save space
    if not isinstance(source, Mapping) and stored.values_of("source_hash") != ["none"]:
        check_weights(stored, "source_hash", file_hash(source))
    else:
        load_into(model, read_state_dict(source, weights_only=weights_only), _name(stored.steps[0], source))
        check_weights(stored, "state_hash", state_hash(model.state_dict()))
