"""One command per experiment of the paper: train, sweep, detect the phases, back-test the advice, compare, write."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from rich.console import Console
from torch import nn

from ..checkpoints import file_hash, load_into, read_state_dict
from ..common.console import of_results
from ..common.devices import fastest_device, resolve_device
from ..common.files import write_json, writing
from ..data.target_types import Input, Target
from ..engine import VERSION, Engine
from ..errors import ArgumentError, DependencyError
from ..phases.phase_report import CellPhases
from ..report import plot_phases
from ..results.scores import MODEL_LAYER, PER_SAMPLE, Scores
from .checkpointing import checkpoint_path
from .claims import check_claims
from .datasets import Splits
from .figures import plot_decoders, plot_published
from .measuring import Measured, measure
from .published import PUBLISHED
from .settings import Setting, find_setting
from .tables import print_results
from .tasks import OtherTask, draw, other_task
from .trained_decoder import conv_decoder, exact_decoder, linear_decoder, train_decoder
from .transfer import back_test, fine_tune

_DECODER_ROWS = (20_000, 5_000)
_EXACT_REPEATS = 3
_CONV_EPOCHS = 10  # the paper's 20 take three times as long as everything else, for a decoder that is no claim of ours


def reproduce(
    name: str,
    out: str | Path = "runs/reproduce",
    *,
    seeds: Sequence[int] = (0,),
    steps: int | None = None,
    file: str | Path | None = None,
    root: str | Path = "data",
    tasks: Sequence[str] = (),
    functions: Sequence[Target] = (),
    rows: tuple[int, int] = (10_000, 2_000),
    all_rows: bool = False,
    wide: bool = True,
    decoders: bool = False,
    device: str | torch.device | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run a named setting and write what it gives into ``out/name/``; whatever is there already is not done again.

    Writes per seed ``checkpoints/`` and the scores of each sweep, and over all seeds ``scores.parquet``,
    ``results.json``, ``phases.png`` (of the first seed) and, where there is something to show, ``published.png`` and
    ``decoders.png``.

    Args:
        name: see :func:`phasefast.experiments.settings.find_setting`.
        steps: of training; the setting's own by default. file, root: where the images come from, see ``datasets.load``.
        tasks: transfer tasks with images of their own: ``"rest"``, a data set or an ``.npz``; networks are also
            fine-tuned on the first of them.
        functions: further transfer tasks, functions of the setting's own images.
        rows: fit and held-out images that are measured. all_rows: measure the authors' way on all of them, as they do.
        wide: measure wide layers too, for the first seed. decoders: train the paper's decoders too, for the first seed.
        device: CUDA if there is any, else the CPU.

    Raises:
        ArgumentError, DataError, StoreError: what is asked for cannot be used, read or written.
        DependencyError: matplotlib is missing; all but the figures is written by then.
    """
    setting = find_setting(name)
    setting = setting if steps is None else replace(setting, steps=steps)
    if not seeds or setting.steps < setting.first:
        raise ArgumentError(f"expected at least one seed and {setting.first} steps, got {seeds} and {setting.steps}")
    console = console or of_results()
    folder = Path(out) / name
    whole = setting.load(file, root)
    data = setting.training_part(whole)
    others = [other_task(task, setting, whole, root) for task in tasks]
    measured: list[Measured] = []
    sizes = [len(data.fit_inputs), len(data.heldout_inputs)]
    fewer = [min(size, wanted) for size, wanted in zip(sizes, rows, strict=True)]
    results: dict[str, Any] = {
        "setting": asdict(setting),
        "images": sizes,
        "rows": {"recompute": fewer, "batch": sizes if all_rows else fewer},
        "versions": {"phasefast": VERSION, "torch": torch.__version__},
        "published": asdict(PUBLISHED[name]) if name in PUBLISHED else None,
        "seeds": [],
        "decoders": [],
    }
    place = resolve_device(device, fastest_device())
    for index, seed in enumerate(seeds):
        model = setting.network(data, seed).to(place)
        checkpoints = setting.train(model, data, folder / f"seed-{seed}" / "checkpoints", seed)
        first = index == 0
        sweeps = measure(
            setting,
            model,
            checkpoints,
            data,
            others,
            folder / f"seed-{seed}",
            seed,
            rows=rows,
            all_rows=all_rows,
            wide=wide and first,
            extra=functions,
        )
        measured.append(sweeps)
        results["seeds"].append(_summary(sweeps, setting, model, others, folder))
        if first and decoders:
            place_of_decoders = folder / f"seed-{seed}" / "decoders.json"
            results["decoders"] = _compare_decoders(model, checkpoints, data, sweeps.features, place_of_decoders)
    results["claims"] = [asdict(claim) for claim in check_claims(results)]
    _write(folder, results, measured)
    print_results(results, console)
    _draw(folder, results, measured[0])
    console.print(f"wrote {folder}/results.json, scores.parquet and figures", soft_wrap=True)
    return results


def _summary(
    sweeps: Measured, setting: Setting, model: nn.Module, others: Sequence[OtherTask], folder: Path
) -> dict[str, Any]:
    """What one seed gives: curves, phases, back-tests and fine-tuning."""
    layers, cell = sweeps.layers, sweeps.phases.cell(sweeps.features)
    transfer: dict[str, Any] = {}
    if cell.stop_window is not None:
        own = [name for name in sweeps.recompute.targets if name not in ("input", "label")]
        sources = {**dict.fromkeys(own, sweeps.recompute), **sweeps.tasks}
        for name, scores in sources.items():
            places, accuracy = scores.curve(sweeps.features, name, "accuracy")
            test = back_test(places, accuracy, cell.stop_window)
            transfer[name] = {**asdict(test), "regret": test.regret, "regret_of_last": test.regret_of_last}
            transfer[name]["accuracy"] = _rounded(accuracy)
    tuned = None
    if others and cell.stop_window is not None:
        tuned = _fine_tuned(others[0], cell, setting, model, folder / f"seed-{sweeps.seed}" / "checkpoints")
    return {
        "seed": sweeps.seed,
        "features": sweeps.features,
        "batch": _curves(sweeps.batch, sweeps.features),
        "recompute": {layer: _curves(layers, layer) for layer in layers.layers},
        "phases": [asdict(phase) for phase in cell.phases],
        "stop_window": cell.stop_window,
        "layer_phases": {
            c.layer: [[phase.kind, phase.start_step, phase.end_step] for phase in c.phases]
            for c in sweeps.phases
            if c.target == "input"
        },
        "transfer": transfer,
        "fine_tuning": tuned,
    }


def _curves(scores: Scores, layer: str) -> dict[str, Any]:
    """Held-out curves of one layer: mse, fvu and the accuracy of each classification target, and the network's own."""
    steps, mse = scores.curve(layer, "input", "mse")
    curves = {"steps": steps.tolist(), "mse": _rounded(mse), "fvu": _rounded(scores.curve(layer, "input", "fvu")[1])}
    for target in scores.targets:
        if scores.has_curve(layer, target, "accuracy"):
            curves[target] = _rounded(scores.curve(layer, target, "accuracy")[1])
    for key, split in (("test", "heldout"), ("train", "fit")):
        curves[key] = _rounded(scores.curve(MODEL_LAYER, "label", "accuracy", split)[1])
    return curves


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), 5) for value in values]


def _fine_tuned(task: OtherTask, cell: CellPhases, setting: Setting, model: nn.Module, folder: Path) -> dict[str, Any]:
    """Accuracy after fine-tuning from the window's last checkpoint, and from the last of all."""
    assert cell.stop_window is not None
    chosen = {"window": cell.stop_window[1], "last": setting.steps}
    accuracy = {
        key: [fine_tune(model, checkpoint_path(folder, step), task.data, seed=seed) for seed in range(3)]
        for key, step in chosen.items()
    }
    return {"task": task.name, "steps": chosen, "accuracy": {key: _rounded(value) for key, value in accuracy.items()}}


def _compare_decoders(
    model: nn.Module, checkpoints: dict[int, Path], data: Splits, features: str, path: Path
) -> list[dict[str, Any]]:
    """The exact decoder beside the paper's trained ones, at the first step, at 128 and at the last."""
    probe_set = draw(data, *_DECODER_ROWS)
    chosen = sorted({min(checkpoints), *({128} & checkpoints.keys()), max(checkpoints)})
    key = [probe_set.digest, *(file_hash(checkpoints[step]) for step in chosen)]
    if path.exists() and (stored := json.loads(path.read_text(encoding="utf-8")))["key"] == key:
        kept: list[dict[str, Any]] = stored["rows"]
        return kept
    engine = Engine(model, probe_set, layers=[features], targets=[Input()], batchnorm="batch")
    rows = []
    for step in chosen:
        load_into(model, read_state_dict(checkpoints[step]), str(checkpoints[step]))
        (cell,) = engine.activations()
        exact = sorted((exact_decoder(cell, engine) for _ in range(_EXACT_REPEATS)), key=lambda found: found.seconds)
        found = {"exact": exact[_EXACT_REPEATS // 2]}
        found["linear"] = train_decoder(linear_decoder, cell, probe_set)
        found["conv"] = train_decoder(conv_decoder, cell, probe_set, epochs=_CONV_EPOCHS)
        rows.append({"step": step, **{key: asdict(result) for key, result in found.items()}})
    write_json(path, {"key": key, "rows": rows}, "results to", indent=1)
    return rows


def _write(folder: Path, results: dict[str, Any], measured: Sequence[Measured]) -> None:
    parts = [s for m in measured for s in (m.batch, m.recompute, m.wide, *m.tasks.values()) if s is not None]
    with writing(folder / "scores.parquet", "the scores to") as partial, partial.open("wb") as file:
        pq.write_table(Scores.concat(parts).without_samples.to_arrow().drop_columns(PER_SAMPLE), file)
    write_json(folder / "results.json", results, "results to", indent=1)


def _draw(folder: Path, results: dict[str, Any], first: Measured) -> None:
    try:
        plot_phases(first.layers, first.phases, folder / "phases.png", title=results["setting"]["name"])
        if results["published"] is not None:
            plot_published(results, folder / "published.png")
        if results["decoders"]:
            plot_decoders(results, folder / "decoders.png")
    except DependencyError as error:
        raise DependencyError(f"{error}; {folder}/results.json and scores.parquet were written") from error
