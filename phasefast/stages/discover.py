"""What the first few samples show of a model: its layers, their order and widths, and where its predictions are."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..common.hooks import hooked, places_of_calls
from ..common.notices import few, listed_reasons, shown, warn
from ..common.random_state import rounding_of
from ..data.output_rows import (
    POOLED,
    Batch,
    RowOptions,
    as_cell,
    has_no_samples,
    is_unclear,
    places_of,
    samples_second,
    shape_of,
    width_of,
)
from ..data.outputs import called, ends_in_sigmoid, tensors_in
from ..data.token_rows import OWN_TOKENS, TokensOfBatch, own_tokens
from ..errors import LayerError
from ..layers.defaults import is_beside
from ..types import Layer, OwnPlace, TakesShapes, TokenMode

_COMPARED, _APART = 256, 1e-2  # to tell the order of rows: numbers of each; shares of their scatter
_FEWER, _ALONE = 2, 5  # samples that are left out then, of so many or more


class Discovered(NamedTuple):
    """The layers; where the model's output comes closest to targets, if anywhere, by name; ``_some`` rows by call.

    Attributes:
        batch: the samples that show it.
    """

    layers: list[Layer]
    places: Mapping[str, OwnPlace | None]
    some: Mapping[tuple[str, int], Tensor]
    batch: Tensor


@dataclass
class _Seen:
    """What one run of the first samples shows.

    Attributes:
        inputs, output: the model's, which it may have changed. layers: that have rows. unusable: those without, and
            why; ``apart`` have no axis of samples either. shapes: of outputs. turns: names by whether their positions
            are taken to come last. own: how many tokens more than positions. some: ``_some`` rows.
        unclear: whether an output may have its samples on two axes.
    """

    batch: Tensor
    of: Batch
    options: RowOptions
    inputs: Tensor
    output: Any = None
    layers: list[Layer] = field(default_factory=list)
    unusable: dict[str, LayerError] = field(default_factory=dict)
    apart: set[str] = field(default_factory=set)
    shapes: dict[str, torch.Size] = field(default_factory=dict)
    turns: dict[bool, list[str]] = field(default_factory=lambda: {False: [], True: []})
    own: dict[str, int] = field(default_factory=dict)
    some: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    unclear: bool = False

    def record(self, name: str, call: int, module: nn.Module, output: Any) -> None:
        """Called after each forward of a module."""
        of, options = self.of, self.options
        self.unclear |= is_unclear(output, of.size)
        how = of, options, samples_second(output, of.size)
        try:
            x, pool = as_cell(name, module, output, *how)
        except LayerError as error:
            self.unusable.setdefault(name, error)
            if has_no_samples(output, of.size):
                self.apart.add(name)
            return
        shape = self.shapes[name] = shape_of(name, module, output, *how)
        if len(shape) == 3 and options.tokens != "flatten":
            turned, guessed = of.axes.positions_last(module, shape)
            if guessed and (turned or (of.axes.elsewhere is not None and of.axes.elsewhere.turning)):
                self.turns[turned].append(name)
        if of.tokens is not None and len(shape) == 3:
            self.own[name] = max(self.own.get(name, 0), own_tokens(module, shape, of.tokens.length, of.axes))
        self.some[name, call] = _some(x, of.size)
        where = name if call == 0 else f"{name}:{call}"
        self.layers.append(Layer(where, name, call, width_of(x, pool), second=how[-1]))


def discover_layers(
    model: nn.Module,
    names: Sequence[str],
    batches: Iterable[Tensor],
    options: RowOptions,
    given: Collection[str],
    wanted: Iterable[TakesShapes] = (),
) -> Discovered:
    """Run one small batch and learn which layers fire, in which order, how often, and how wide their rows are.

    Args:
        names: names of modules. A module called k times gives k layers: ``relu``, ``relu:1``, ...
        batches: [b, ...] of other b, of which the first does that tells which axis of each output is that of samples.
        given: names that the user gave; others that cannot be probed are left out, with a warning.
        wanted: what the model's own output may be compared with.

    Raises:
        LayerError: a given hook never fires, or its output cannot be made into rows; or so with all of them.
    """
    seen = _run(model, names, batches, options)
    batch, found, unusable, shapes = seen.batch, seen.layers, seen.unusable, seen.shapes
    usable = [name for name in names if name not in unusable]
    silent = [name for name in usable if name not in {layer.module for layer in found}]
    if wrong := list(unusable) if len(silent) == len(usable) else [name for name in unusable if name in given]:
        raise unusable[wrong[0]]
    without = [*unusable, *silent]
    beside = {name for name in without if is_beside(model.get_submodule(name), model, name not in silent)}
    if whys := {name: why for name, why in unusable.items() if name not in beside & seen.apart}:
        warn(f"layers: left out {len(whys)}: {listed_reasons(whys)}")
    if lost := silent if not found else [name for name in silent if name in given]:
        raise LayerError(
            f"layer {lost[0]!r}: its forward hook never fired; the model does not call this module itself "
            "(unused, or only in training, or under torch.vmap, or called through a function, or a list of others: "
            "probe these); probe the module around it"
        )
    if lost := [name for name in silent if name not in beside]:
        warn(
            f"layers: left out {few(lost)}, whose forward hooks never fired on the first samples (unused, called "
            "through a function, or only the modules inside them are called, as in models of torch.fx: probe those)"
        )
    if options.pool and all(len(own) not in POOLED or max(own[2:]) <= options.pool for own in shapes.values()):
        warn(f"pool={options.pool} changes nothing: no layer's output is [b, c, h, w] or [b, c, d, h, w], and larger")
    if options.tokens not in ("flatten", "each"):
        _warn_of_tokens(options.tokens, shapes, batch)
    if options.tokens == "each":
        _warn_of_own_tokens({name: more for name, more in seen.own.items() if more}, batch.shape[1])
    for turned, axis in ((False, "second"), (True, "last")):
        if seen.turns[turned]:
            warn(
                f"tokens={options.tokens!r}: the outputs of {shown(seen.turns[turned])} may have their positions on "
                f"the second or the last axis: the {axis} is taken, which is a guess; probe convolutions of torch.nn "
                "instead"
            )
    places = places_of_calls(model, batch)
    found = [replace(layer, place=places.get((layer.module, layer.call))) for layer in found]
    layers = [layer for layer in found if layer.module not in unusable]
    own_places = {each.name: _own_place(model, seen, each) for each in wanted}
    _tell_shared(seen.output, own_places)
    return Discovered(layers, own_places, seen.some, batch)


def _run(model: nn.Module, names: Sequence[str], batches: Iterable[Tensor], options: RowOptions) -> _Seen:
    """Of the first batch that leaves nothing unclear, else of the first one."""
    runs = list[_Seen]()
    for batch in batches:
        runs.append(seen := _Seen(batch, _first_batch(model, batch, options), options, batch.clone()))
        with hooked(model, names, seen.record):
            seen.output = model(seen.inputs)
        if not seen.unclear and not any(is_unclear(each, len(batch)) for each in tensors_in(seen.output)):
            return seen
    return runs[0]


def warn_of_order(
    model: nn.Module,
    layers: Iterable[Layer],
    batch: Tensor,
    before: Mapping[tuple[str, int], Tensor],
    options: RowOptions,
) -> None:
    """Warn of layers that do not give the same rows for samples in reversed order, without two of the others.

    Args:
        layers: that the samples show. before: ``some`` of :class:`Discovered`, of a model that gives the same each
            time.
    """
    # Norms without running statistics take those of each batch, as whoever makes them knows.
    whole = len(batch) < _ALONE or any(
        isinstance(own, _BatchNorm) and own.running_mean is None for own in model.modules()
    )
    second = {(layer.module, layer.call): layer.second for layer in layers}

    def others(batch: Tensor) -> dict[str, None]:
        """The modules whose rows differ for these samples, which are the last of those before, in reversed order."""
        of, found = _first_batch(model, batch, options), dict[str, None]()

        def record(name: str, call: int, module: nn.Module, output: Any) -> None:
            if (name, call) not in second:
                return
            with contextlib.suppress(LayerError):
                x, _ = as_cell(name, module, output, of, options, second[name, call])
                if _are_others(before[name, call][-len(batch) :], _some(x, len(batch)).flip(0)):
                    found[name] = None

        with hooked(model, [*dict.fromkeys(module for module, _ in second)], record):
            model(batch.clone())
        return found

    other = batch.flip(0)
    try:
        found = others(other if whole else other[:-_FEWER])
    except Exception:  # of a model that takes no fewer, as where it looks for some neighbours of each
        found = others(other)
    if found:
        warn(
            f"layers {shown(found)}: their rows depend on the order of the samples, or on the others in a batch, so "
            "that little can be decoded: probe a module behind which samples are in the order of the inputs"
        )


def _some(rows: Tensor, samples: int) -> Tensor:
    """A copy, as the model may change them in place, of some numbers of each sample in rows of these or of tokens."""
    rows = rows.reshape(samples, -1)
    return rows[:, :: -(-rows.shape[1] // _COMPARED)].clone()


def _are_others(rows: Tensor, others: Tensor) -> bool:
    """Whether two of [b, k] are not of the same samples: they differ as samples do, not as by rounding."""
    one, other = (each.double().nan_to_num(0, 0, 0) for each in (rows, others))
    if one.shape != other.shape:
        return True
    apart, scatter = (one - other).square().sum(), (one - one.mean(0)).square().sum()
    return bool((apart > _APART * scatter) & (apart > rounding_of(rows.dtype) ** 2 * one.square().sum()))


def _tell_shared(output: Any, places: Mapping[str, OwnPlace | None]) -> None:
    """Warn if several targets are compared with one tensor of the output that has not the names of all."""
    for nth in {place.nth for place in places.values() if place is not None}:
        names = [name for name, place in places.items() if place is not None and place.nth == nth]
        own = [*tensors_in(output)][nth]
        if len(names) > 1 and not all(any(each is own for each in called(output, name)) for name in names):
            warn(f"predicts: {shown(names)} are all compared with the same tensor of the model's output")


def _first_batch(model: nn.Module, batch: Tensor, options: RowOptions) -> Batch:
    """What the first samples are, of which all tokens are rows."""
    tokens = TokensOfBatch(batch.shape[1]) if options.tokens == "each" else None
    return Batch(len(batch), options.real(batch), tokens, options.axes(model, batch), batch.device, batch.shape)


def _own_place(model: nn.Module, seen: _Seen, wanted: TakesShapes) -> OwnPlace | None:
    """Where in the model's output its predictions are, if not in its inputs; warns if they may be in several places."""
    batch, inputs, output = seen.batch, seen.inputs, seen.output
    given = inputs if wanted.of_inputs or torch.equal(inputs, batch) else None
    if not (found := places_of(model, given, output, seen.of, seen.options, wanted)):
        return None
    (place, likeness), *more = found
    tensors = [*tensors_in(output)]
    own = tensors[place.nth]
    others = {id(tensors[each.nth]) for each, like in more if like == likeness} - {id(own)}
    of_another = [name for name in wanted.others if any(each is own for each in called(output, name))]
    if likeness and of_another and not any(each is own for each in called(output, wanted.name)):
        warn(
            f"the model's output has no {wanted.name!r}: {of_another[0]!r} is taken for its prediction, although that "
            "is the name of another target"
        )
    elif likeness and others:
        warn(
            f"the model's output has {1 + len(others)} tensors that may be what it predicts for {wanted.name!r}: the "
            f"first is taken for layer 'model'; to tell them apart, give a dictionary with the key {wanted.name!r}, or "
            "wrap the model"
        )
    if place.shape == (1,) and not wanted.numbers and likeness:
        place = place._replace(share=ends_in_sigmoid(lambda: [*tensors_in(model(batch.clone()))][place.nth]))
    return place


def _warn_of_tokens(mode: TokenMode, shapes: Mapping[str, torch.Size], batch: Tensor) -> None:
    """Warn of layers whose outputs have an axis as long as a sequence, but are kept whole."""
    counts = {shape[1] for shape in shapes.values() if len(shape) == 3}
    if not counts:
        hint = "; pool=1 takes the mean of maps" if any(len(shape) in POOLED for shape in shapes.values()) else ""
        warn(f"tokens={mode!r} changes nothing: no layer's output is [b, t, f]{hint}")
        return
    counts |= {batch.shape[1]} if batch.dim() < 4 else set()
    # Maps [b, f, h, w] are of patches if tokens are as many, but for a model's own.
    maps = {name: math.prod(shape[2:]) for name, shape in shapes.items() if len(shape) in POOLED}
    patches = {
        name for name, own in maps.items() if any(0 <= count - own <= min(OWN_TOKENS, own - 1) for count in counts)
    }
    whole = [name for name, own in shapes.items() if len(own) != 3 and (counts & {*own[1:]} or name in patches)]
    if whole:
        warn(
            f"tokens={mode!r} needs outputs [b, t, f]; those of {shown(whole)} have other shapes, such as "
            f"{tuple(shapes[whole[0]])}, and are decoded whole, with all tokens; to leave them out, have "
            f"{shown(f'!{each}' for each in whole)} in layers"
        )


def _warn_of_own_tokens(more: Mapping[str, int], length: int) -> None:
    """Warn of layers with so many more tokens than there are positions."""
    if more:
        name, count = next(iter(more.items()))
        warn(
            f"layers {shown(more)} have more tokens than the {length} of the input, {name!r} {count} more: the first "
            "ones are taken for the model's own and left out; if they are not, leave these layers out"
        )
