"""Which learning phases a loss curve shows: nearly constant, decrease, increase, and when to stop.

A curve is the mean held-out loss at each probed step. What is asked of it, in this order:

* *Which steps are odd?* A single inner step that lies above both its neighbours, and above where they lead, by six
  times the step noise, 2 % of its loss and three standard errors of its difference to a neighbour, such as the
  checkpoint of a training that diverged and came back, is left out: where all falls, then rises, it has no place.
* *Where is the valley?* The least-squares fit that first never rises and then never falls (two isotonic regressions,
  Barlow et al. 1972, over all places to split) says where the minimum is; a checkpoint that is too low by much less
  than the valley's depth does not move it. Where the lowest step and a neighbour lie below that minimum by more
  than steps scatter, the fit is the best one that falls up to the lowest step. Where the curve falls, rises and falls
  again by what counts, there are two valleys, with a fit each, and the lower one is taken.
* *Is there an order at all?* The residual of that fit and the von Neumann ratio (1941) are compared with those of the
  same values in random order (a permutation test): a curve that is neither a better valley nor smoother is noise, and
  constant only where all of it stays within what a change needs.
* *Is a change large enough?* It must be at least 2 % of the loss before it, 0.0001, and three times the step noise, and
  its bootstrap interval must exclude 0. Where several steps are about as low as the minimum, the lowest is low by
  chance too: then it must be as rare for one step to be so far above the lowest of them as three times the noise above
  a single one is, or for all steps of the fall or the rise to explain so much of the curve, as far as its scatter is
  not correlated from step to step. With eight steps or more a change must be that large without the lowest step too,
  from or to the lower of its neighbours: noise dwindles as a training converges, and early steps are low by chance. A
  rise must be that large without the last step too, which may have diverged; where the last step alone comes down, as
  after annealing, a rise after a decrease counts that is that large from and to neighbours of its ends, and ends at its
  top if the whole of it would not count. A rise within a decrease, of a quarter of it or more, is no phase: it is told
  if its interval excludes 0, as a hump of few steps is scatter to the step noise.
* *What is the step noise?* What neighbouring steps scatter, by the median absolute second difference (Gasser et al.
  1986), or by the larger of the third one and the residual of the valley fit, if that is less; at least that residual
  where it changes its sign often; with fewer than seven steps, that residual. Where the six steps to both sides of the
  minimum scatter more than twice as much, that counts: noise dwindles as a training converges.
* *Is there a plateau before it?* The longest beginning of three or more probed steps whose losses stay within 20 % of
  the following change of their mean, with at most a third of its slope (per probed step), and whose own drift would
  not count as a change. A straight line has none.

Intervals are percentiles of a bootstrap over held-out samples (Efron 1979), the same samples at all steps, widened as
Student's t is for few samples. They say what other held-out samples would have given *for these checkpoints*, not what
another training run would give.

What this cannot do, and how often it is right: docs/phases.md, measured by ``benchmarks/calibration.py``. A random
walk is as smooth as a trend, and is often reported as one. Fewer than four steps have no phases; of fewer than eight
there are too few orders to test (``order_p`` is None), so that checkpoints that scatter by more than 2 % are often
reported as a change; of fewer than nine no odd one is left out. An odd checkpoint that is too low passes for the
minimum. A straight fall with step noise may get a plateau at its beginning. A fall and a rise that take two or three
probed steps each look like scatter: probe more steps there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from ..common.scalars import as_float, is_integer
from ..errors import ArgumentError, DataError
from ..metrics import FVU, LOSSES
from ..results.failures import Failure
from ..results.losses import Losses, losses_of
from ..results.scores import Scores
from .bootstrap import bootstrap, draw
from .curve import Curve
from .phase_report import CellPhases, Phase, PhaseReport
from .rules import DEFAULT_RULES, PhaseRules
from .valley import noise_around, odd_steps, order_test, valleys


def detect_phases(
    scores: Scores,
    *,
    layers: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    replicates: int = 1_000,
    rules: PhaseRules = DEFAULT_RULES,
    failed: Mapping[int, Failure] | None = None,
) -> PhaseReport:
    """The phases of every probed layer and target of one run, leaving out those of one step if others have more.

    Args:
        scores: rows of at least two steps with per-sample held-out ``fvu``, or ``accuracy`` (analysed as ``error``).
        layers, targets: names or globs; None for all.
        seed: of the bootstrap and the permutations; the same for every cell.
        confidence, replicates: of the bootstrap's intervals.
        rules: thresholds.
        failed: what :func:`phasefast.read_failures` gives, to be told with the phases, and in pictures of them.

    Raises:
        DataError: scores without held-out ones, of several runs or of fewer than two steps, or a loss is not finite.
        LayerError, ArgumentError: a pattern matches no layer or no target.
    """
    if not isinstance(scores, Scores):
        raise ArgumentError(
            f"scores: expected those of one run, got {type(scores).__name__}; for several runs see compare_phases"
        )
    scores.check_one_run()
    known = failed.values() if isinstance(failed, Mapping) else [] if failed is None else [failed]
    if not all(isinstance(each, Failure) for each in known):
        raise ArgumentError(f"failed: expected what read_failures gives, got {failed!r}")
    wanted = scores.select(layers, targets)
    options: dict[str, Any] = {"seed": seed, "confidence": confidence, "replicates": replicates, "rules": rules}
    cells = tuple(
        _phases_of(losses_of(wanted, layer, target, name), layer=layer, target=target, metric=LOSSES[name], **options)
        for layer, target, name in _cells(wanted)
    )
    if not cells:
        raise DataError(f"no phases to detect: expected held-out 'fvu' or 'accuracy', got {scores!r}; probe first")
    return PhaseReport(cells, failed=failed or {})


def detect_curve(
    steps: np.ndarray,
    samples: np.ndarray,
    *,
    baseline_samples: np.ndarray | None = None,
    layer: str = "curve",
    target: str = "input",
    metric: str = FVU,
    seed: int = 0,
    confidence: float = 0.95,
    replicates: int = 1_000,
    rules: PhaseRules = DEFAULT_RULES,
) -> CellPhases:
    """The phases of one loss curve (lower is better).

    At most one phase of each kind is named, in the order constant, decrease, increase. A decrease ends at the minimum,
    below the loss of the first step; an increase starts there, or at the end of a plateau, and the last step still lies
    above it, or is the only one that does not. Phases share their boundary steps, unless the curve rises before it
    falls: that rise has no name. Single steps far above both their neighbours are left out. There may be no phase at
    all, if the curve changes but neither falls below its start nor ends above its minimum.

    Args:
        steps: [K] training steps, in any order.
        samples: [K, m] loss of each held-out sample at each step.
        baseline_samples: [m] losses of the best constant, whose mean is the unit of the losses, as for FVU: other
            samples would have another mean, so intervals are of the ratio.
        layer, target, metric: labels of the result.
        seed, confidence, replicates, rules: as for ``detect_phases``.

    Returns:
        Phases with signed changes, the minimum, and the stop window: the probed steps around the minimum whose loss is
        at most 25 % of the decrease above it, or of the fall from before a rise that comes first; it goes to the last
        step if no increase counts, and is None if nothing decreases.
    """
    if not 0 < as_float(confidence) < 1 or not is_integer(replicates, 100):
        got = f"confidence={confidence!r}, replicates={replicates!r}"
        raise ArgumentError(f"{got}: expected a confidence between 0 and 1 and at least 100 replicates")
    if not is_integer(seed, 0):
        raise ArgumentError(f"seed: expected an integer >= 0, got {seed!r}")
    where = f"layer {layer!r}, target {target!r}"
    steps, samples = _checked(steps, samples, where)
    unit = np.ones(samples.shape[1]) if baseline_samples is None else np.asarray(baseline_samples, dtype=np.float64)
    if unit.shape != samples.shape[1:] or not (np.isfinite(unit) & (unit >= 0)).all() or not unit.any():
        span = f" from {unit.min():g} to {unit.max():g}" if unit.size else ""
        raise DataError(
            f"{where}: expected baseline_samples of {samples.shape[1]} finite numbers >= 0, not all 0, got "
            f"{unit.shape}{span}"
        )
    unit = unit / unit.mean()
    # Each is right or wrong, whatever it counts. FVUs are not: all that lie at the mean are as wrong as the constant.
    of_classes = (metric != FVU or baseline_samples is None) and _right_or_wrong(samples, unit)
    draws = draw(seed, samples.shape[1], replicates, of_classes)
    rng, loss = draws.rng, samples.mean(axis=1)
    # What few samples change from step to step is no news of the step: an error more among hundreds without any.
    unsure = np.append(np.diff(samples, axis=0).std(axis=1), 0) / samples.shape[1] ** 0.5
    least = np.maximum(rules.change * np.abs(loss), rules.noise * np.maximum(unsure, np.roll(unsure, 1)))
    odd = odd_steps(loss, rules.odd, least, rules.order_steps)
    kept, loss, samples = np.delete(steps, odd), np.delete(loss, odd), np.delete(samples, odd, axis=0)
    found = valleys(loss[None])
    minimum = int(found.minima[0])
    replicated, plain = bootstrap(samples, unit, draws, confidence, rng)
    noise, rough = noise_around(minimum, loss, found.fit(0), rules.noise_steps)
    curve = Curve(
        loss=loss,
        fit=found.fit(0),
        minimum=minimum,
        gains=found.gains(0),
        replicates=replicated,
        tails=(50 * (1 - confidence), 50 * (1 + confidence)),
        noise=noise,
        rough=rough,
        order_p=order_test(loss, rules.permutations, rng) if len(loss) >= rules.order_steps else None,
        rules=rules,
    ).at_lowest(found)
    spans, reason = curve.spans()
    window, early, within = curve.stop_window(spans), curve.early_rise(spans), curve.rise_within(spans)
    minima = valleys(plain).minima if curve.minimum == minimum else plain.argmin(axis=1)
    # A percentile that is a probed step, not a number between two of them.
    low, high = np.percentile(kept[minima], curve.tails, method="inverted_cdf")
    return CellPhases(
        layer=layer,
        target=target,
        metric=metric,
        phases=tuple(Phase(s.kind, int(kept[s.first]), int(kept[s.last]), *curve.change(s)) for s in spans),
        minimum_step=int(kept[curve.minimum]),
        minimum_ci=(int(low), int(high)),
        stop_window=(int(kept[window[0]]), int(kept[window[1]])) if window else None,
        evidence={
            **curve.evidence(),
            "reason": reason,
            "doubt": curve.doubt(spans),
            "early_rise": None if early is None else [int(kept[each]) for each in early],
            "rise_within": None if within is None else [int(kept[within.first]), int(kept[within.last])],
            "other_minimum": int(kept[curve.other]) if spans and curve.other is not None else None,
            "steps": steps.tolist(),
            "left_out": steps[odd].tolist(),
            "samples": samples.shape[1],
            "confidence": confidence,
        },
    )


def _right_or_wrong(samples: np.ndarray, unit: np.ndarray) -> bool:
    """Whether all losses [K, m] are 0, or what their samples [m] count."""
    return bool(((samples == 0) | np.isclose(samples, unit, rtol=1e-6, atol=0)).all())


def _phases_of(losses: Losses, **options: Any) -> CellPhases:
    return detect_curve(losses.steps, losses.samples, baseline_samples=losses.baseline, **options)


def _cells(scores: Scores) -> list[tuple[str, str, str]]:
    """Layer, target and the metric that counts; those of one step not where others have more, as one diverged."""
    table = scores.filter(split="heldout").without_samples.to_arrow()
    steps = Counter(zip(*(table.column(name).to_pylist() for name in ("layer", "target", "metric"))))
    found = []
    for layer, target in product(scores.layers, scores.targets):
        cells = ((layer, target, metric) for metric in LOSSES)
        found += [cell for cell in cells if cell in steps][:1]
    return [cell for cell in found if steps[cell] > 1] or found


def _checked(steps: np.ndarray, samples: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [K] int64 in ascending order and their samples [K, m] float64."""
    given, samples = np.asarray(steps), np.asarray(samples, dtype=np.float64)
    if given.ndim != 1 or samples.ndim != 2 or len(given) != len(samples):
        raise DataError(f"{where}: expected steps [K] and samples [K, m], got {given.shape} and {samples.shape}")
    if samples.shape[0] < 2 or samples.shape[1] < 2:
        got = f"{samples.shape[0]} steps and {samples.shape[1]} samples"
        raise DataError(f"{where}: expected at least 2 steps and 2 held-out samples (or groups), got {got}; probe more")
    with np.errstate(invalid="ignore"):
        whole = given.astype(np.int64)
    if not np.array_equal(whole, given):
        raise DataError(f"{where}: expected whole numbers as steps, got {given.tolist()}")
    order = np.argsort(whole, kind="stable")
    whole, samples = whole[order], samples[order]
    if (twice := whole[1:][np.diff(whole) == 0]).size:
        raise DataError(f"{where}: step {twice[0]} occurs more than once; give the scores of one run: filter(run=...)")
    if (bad := ~np.isfinite(samples).all(axis=1)).any():
        raise DataError(
            f"{where}: the loss of step {whole[bad][0]} is not finite in {(~np.isfinite(samples[bad][0])).sum()} of "
            f"{samples.shape[1]} samples; leave that step out or probe it again"
        )
    return whole, samples
