"""The paper's claims, checked on the results of a reproduction; the same checks for a small run and for a full one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

_LOSS, _COLOUR, _ACCURACY = 0.08, 4.0, 3.0  # relative; percentage points; percentage points
_LOSS_UNTIL = 4096
_MINIMUM, _BEST_COLOUR = (128, 1024), (128, 2048)
_AS_GOOD, _FASTER = 0.01, 40.0


@dataclass(frozen=True)
class Claim:
    """One statement about a reproduction: does it hold, and the figures that say so."""

    name: str
    holds: bool
    figures: str


def check_claims(results: dict[str, Any]) -> list[Claim]:
    """Every claim that the results bear on.

    Args:
        results: what :func:`phasefast.experiments.reproduce.reproduce` returns and writes as ``results.json``.
    """
    return [*_phases(results), *_published(results), *_advice(results), *_decoders(results)]


def _phases(results: dict[str, Any]) -> Iterator[Claim]:
    kinds = {seed["seed"]: [phase["kind"] for phase in seed["phases"]] for seed in results["seeds"]}
    three = [seed for seed, found in kinds.items() if found == ["constant", "decrease", "increase"]]
    yield Claim("three phases in the last features", len(three) == len(kinds), f"{len(three)} of {len(kinds)} seeds")


def _published(results: dict[str, Any]) -> Iterator[Claim]:
    table = results["published"]
    if table is None:
        return
    rows = [(row, seed) for seed in results["seeds"] for row in _matched(table, seed["batch"])]
    loss = [abs(row["mse"] / row["mse_published"] - 1) for row, _ in rows if row["step"] <= _LOSS_UNTIL]
    colour = [100 * abs(row["colour"] - row["colour_published"]) for row, _ in rows]
    test = [100 * abs(row["test"] - row["test_published"]) for row, _ in rows]
    yield Claim("loss as published up to step 4096", max(loss) <= _LOSS, f"largest difference {max(loss):.1%}")
    yield Claim("colour dominance as published", max(colour) <= _COLOUR, f"largest difference {max(colour):.1f} points")
    yield Claim("test accuracy as published", max(test) <= _ACCURACY, f"largest difference {max(test):.1f} points")
    curves = [seed["batch"] for seed in results["seeds"]]
    lows = [int(curve["steps"][int(np.argmin(curve["mse"]))]) for curve in curves]
    yield Claim("least loss where published", all(_within(step, _MINIMUM) for step in lows), f"at steps {lows}")
    best = [int(curve["steps"][int(np.argmax(curve["colour"]))]) for curve in curves]
    yield Claim("best colour where published", all(_within(step, _BEST_COLOUR) for step in best), f"at steps {best}")
    ends = [curve["mse"][-1] / curve["mse"][0] for curve in curves]
    yield Claim("loss ends above its start", min(ends) > 1, f"last over first {min(ends):.3f} at least")


def _advice(results: dict[str, Any]) -> Iterator[Claim]:
    tests = [test for seed in results["seeds"] for test in seed["transfer"].values()]
    if tests:
        regret, last = (float(np.mean([test[key] for test in tests])) for key in ("regret", "regret_of_last"))
        yield Claim(
            "the stop window beats the last step",
            regret < last,
            f"mean regret {regret:.2f} against {last:.2f} points over {len(tests)} pairs",
        )


def _decoders(results: dict[str, Any]) -> Iterator[Claim]:
    for row in results["decoders"]:
        worse = row["exact"]["heldout_mse"] / row["linear"]["heldout_mse"] - 1
        times = row["linear"]["seconds"] / row["exact"]["seconds"]
        name = f"exact decoder at step {row['step']}"
        yield Claim(f"{name} as good as Adam's", worse <= _AS_GOOD, f"loss {worse:+.1%}")
        if results["published"] is not None:  # a speed is claimed at the paper's sizes only
            yield Claim(f"{name} faster than Adam's", times >= _FASTER, f"{times:.0f} times")


def _matched(table: dict[str, Any], curve: dict[str, Any]) -> Iterator[dict[str, float]]:
    for index, step in enumerate(curve["steps"]):
        if step in table["steps"]:
            place = table["steps"].index(step)
            own = {key: curve[key][index] for key in ("mse", "colour", "test")}
            theirs = {f"{key}_published": table[key][place] for key in ("mse", "colour", "test")}
            yield {"step": step, **own, **theirs}


def _within(step: int, bounds: tuple[int, int]) -> bool:
    return bounds[0] <= step <= bounds[1]
