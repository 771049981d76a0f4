"""How much worse held-out errors are with the penalty that is chosen than with the best of the penalties.

`python benchmarks/choices.py --out docs/results/choices.json` trains small networks on the digits; ten minutes, for
docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import phasefast as pf
from phasefast.algebra.systems import DEFAULT_ALPHAS
from phasefast.experiments.checkpointing import log2_steps
from phasefast.experiments.datasets import digits
from phasefast.experiments.models import digits_net
from phasefast.experiments.training import train
from phasefast.stages import gcv

FIT, STEPS, LR, MUCH = 600, 1024, 0.02, 0.1
WAYS = {"gcv": {}, "without": {}, "loo": {"selection": "loo"}, "decades": {"alphas": DEFAULT_ALPHAS[::2]}}


def brightness(inputs: Tensor) -> Tensor:
    """Mean of the pixels."""
    return inputs.flatten(1).mean(1, keepdim=True)


def errors(model: torch.nn.Module, probe_set: pf.ProbeSet, **options: object) -> np.ndarray:
    """Held-out FVU of each layer and target."""
    targets = [pf.Input(), pf.Function(brightness)]
    found = pf.probe(model, probe_set, targets=targets, **options)  # type: ignore[arg-type]
    return np.array(found.filter(split="heldout", metric="fvu").to_arrow().column("value"))


def excess(seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Of each step of a training, by way of choosing: held-out errors over the least of all penalties, less one."""
    data = digits(seed)
    probe_set = pf.ProbeSet.from_tensors(data.fit_inputs[:FIT], None, data.heldout_inputs, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = digits_net()
    found = []

    def look(step: int) -> None:
        if step not in log2_steps(STEPS):
            return
        best = np.min([errors(model, probe_set, alphas=[alpha]) for alpha in DEFAULT_ALPHAS], axis=0)
        chosen = {way: errors(model, probe_set, **options) for way, options in WAYS.items() if way != "without"}
        with mock.patch.multiple(gcv, MISLED=np.inf, DOUBTFUL=np.inf):
            chosen["without"] = errors(model, probe_set)
        found.append({way: own / best - 1 for way, own in chosen.items()})

    train(model, data.fit_inputs, data.fit_labels, steps=STEPS, lr=LR, seed=seed, on_step=look)
    yield from found


def main() -> None:
    """Train, measure and write the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found = [each for seed in range(given.seeds) for each in excess(seed)]
    table = {way: np.concatenate([each[way] for each in found]) for way in WAYS}
    ways = {way: {"worse": int((own > MUCH).sum()), "worst": float(own.max())} for way, own in table.items()}
    result = {"fit": FIT, "seeds": given.seeds, "decoders": len(table["gcv"]), "ways": ways}
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
