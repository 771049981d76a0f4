"""What modules keep in state dicts beside tensors of their own: it is read, loaded, and a part of the fingerprint."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.checkpoints import load_into, read_state_dict, state_hash, weights_hash
from phasefast.errors import CheckpointError, StoreError
from tests.conftest import images

WIDTH = 36  # of the samples


class Scaled(nn.Linear):
    """A layer whose scale is in its extra state."""

    def __init__(self, wide: int, kept: Any = None) -> None:
        super().__init__(wide, 4)
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))

    def get_extra_state(self) -> Any:
        return self.kept

    def set_extra_state(self, state: Any) -> None:
        self.kept = state


class Versioned(nn.Linear):
    """A layer whose second version has turned the bias's sign."""

    _version = 2

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *others: Any) -> None:
        if local_metadata.get("version") != 2:
            state_dict[f"{prefix}bias"] = -state_dict[f"{prefix}bias"]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:TypedStorage is deprecated")
def test_quantised_models_are_swept_and_known_apart(probe_set: pf.ProbeSet, tmp_path: Path) -> None:
    quantisation = pytest.importorskip("torch.ao.quantization")  # which later releases may have elsewhere

    def quantised(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, 4), nn.ReLU(), nn.Linear(4, 3))
        quantised: nn.Module = quantisation.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        return quantised

    for step in range(3):
        torch.save(quantised(step).state_dict(), tmp_path / f"step_{step}.pt")
    options: dict = {"alphas": [0.1], "layers": ["1", "3"]}
    scores = pf.sweep(quantised(9), tmp_path, probe_set, out=tmp_path / "out", **options)
    for step in range(3):
        found = pf.probe(quantised(step), probe_set, **options)
        for metric in ("fvu", "accuracy"):
            assert scores.filter(step=step, metric=metric).values_of("value") == pytest.approx(
                found.filter(metric=metric).values_of("value"), rel=1e-6
            )
    tracker = pf.PhaseTracker(quantised(0), probe_set, out=tmp_path / "live", **options)
    tracker.step(0)
    assert pf.PhaseTracker(quantised(0), probe_set, out=tmp_path / "live", **options).step(0) is not None
    with pytest.raises(StoreError, match="step 0"):
        pf.PhaseTracker(quantised(1), probe_set, out=tmp_path / "live", **options).step(0)


@pytest.mark.parametrize(
    "kept",
    [
        lambda value: {"scale": torch.full((3,), value), "calls": 3},
        lambda value: [("amax", (torch.full((2, 2), value),))],
        lambda value: io.BytesIO(b"%f" % value),
        lambda value: b"%f" % value,
        lambda value: torch.full((int(10 * value),), value),
    ],
    ids=["mapping", "tuples", "stream", "bytes", "tensor"],
)
def test_extra_states_are_loaded_and_count(kept: Callable[[float], Any], tmp_path: Path) -> None:
    models = [Scaled(3, kept(value)) for value in (0.5, 0.7)]
    models[1].load_state_dict({**models[0].state_dict(), "_extra_state": models[1].kept})
    assert weights_hash(models[0]) != weights_hash(models[1])
    torch.save(nn.Sequential(models[1]).state_dict(), tmp_path / "a.pt")
    state = read_state_dict(tmp_path / "a.pt", weights_only=not isinstance(models[1].kept, io.BytesIO))
    load_into(models[0], state, "a")
    assert weights_hash(models[0]) == weights_hash(models[1])


def test_weights_with_extra_states_are_found_beside_other_things() -> None:
    state = Scaled(3, {"calls": 3}).state_dict()
    assert read_state_dict({"net": state, "optim": {"a": torch.ones(3)}, "epoch": 3}).keys() == state.keys()
    with pytest.raises(CheckpointError, match="are not tensors"):
        read_state_dict({"layer._extra_state": {"calls": 3}, "epoch": 3})


def test_numbers_of_extra_states_may_count_and_one_may_hold_itself() -> None:
    model = Scaled(3, {"calls": 1})
    before = weights_hash(model)
    model.kept["calls"] += 1
    assert weights_hash(model) == before
    held: dict[str, Any] = {"scale": torch.ones(2)}
    held["self"] = held
    assert state_hash({"a": held}) == state_hash({"a": held})


def test_an_extra_state_is_no_state_dict_and_of_no_use_to_models_without_one() -> None:
    plain, own = nn.Linear(3, 4), {name: torch.ones(4, 3) for name in ("weight", "bias", "scale")}
    saved = {**plain.state_dict(), "_extra_state": own}
    assert read_state_dict(saved).keys() == saved.keys()
    load_into(nn.Linear(3, 4), {f"net.{name}": value for name, value in saved.items()}, "a")
    with pytest.raises(CheckpointError, match=r"lacks the keys \['_extra_state'\]"):
        load_into(Scaled(3), plain.state_dict(), "a")
    with pytest.raises(CheckpointError, match=r"unexpected keys \['0._extra_state'\]"):  # it may be weights
        load_into(
            nn.Sequential(plain), {f"0.{k}": torch.ones(4, 3) if k[0] == "_" else v for k, v in saved.items()}, "a"
        )


def test_an_object_in_an_extra_state_is_not_loaded_from_untrusted_files(tmp_path: Path) -> None:
    torch.save(Scaled(3, {"scale": io.BytesIO(b"a")}).state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"\['_extra_state'\] are not tensors; .*if you trust the file"):
        read_state_dict(tmp_path / "a.pt")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model._orig_mod."])
@pytest.mark.parametrize("version", [1, 2])
def test_modules_load_what_their_version_has_saved(prefix: str, version: int, tmp_path: Path) -> None:
    saved, model = nn.Sequential(Versioned(3, 4)), nn.Sequential(Versioned(3, 4))
    state: Any = OrderedDict((prefix + name, value) for name, value in saved.state_dict().items())
    state._metadata = OrderedDict({"": {"version": 1}, f"{prefix}0": {"version": version}})
    torch.save({"model": state}, tmp_path / "a.pt")
    load_into(model, read_state_dict(tmp_path / "a.pt"), "a")
    assert torch.equal(model[0].bias, saved[0].bias * (1 if version == 2 else -1))


def test_state_dicts_without_versions_are_of_the_present_ones(tmp_path: Path) -> None:
    saved, model = Versioned(3, 4), Versioned(3, 4)
    load_into(model, dict(saved.state_dict()), "a")
    assert torch.equal(model.bias, saved.bias)
    around = nn.Sequential(Versioned(3, 4))
    load_into(around, saved.state_dict(), "a")  # whose model is inside another one
    assert torch.equal(around[0].bias, saved.bias)


def test_an_extra_state_is_in_place_while_its_checkpoint_is_measured(tmp_path: Path) -> None:
    class Scaling(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.kept["scale"]

    model = nn.Sequential(Scaling(WIDTH, {"scale": torch.ones(4)}), nn.Linear(4, 3))
    states = []
    for scale in (1.0, 0.0):
        model[0].kept = {"scale": torch.full((4,), scale)}
        states.append(dict(model.state_dict()))
    probe_set = pf.ProbeSet.from_tensors(*images(150, 1), *images(60, 2))
    scores = pf.sweep(model, states, probe_set, out=tmp_path, layers="0", targets="input", alphas=[0.1])
    first, second = (scores.filter(step=step, metric="fvu", split="fit").values_of("value")[0] for step in (0, 1))
    assert first < 0.99 < second
