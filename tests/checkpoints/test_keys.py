"""Which of several state dicts in one checkpoint is read."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phasefast as pf
from phasefast.checkpoints import Reader, file_hash, load_into, order_checkpoints, read_state_dict
from phasefast.errors import ArgumentError, CheckpointError, StoreError, SweepError
from tests.quiet import no_warnings

OWN = {"weight": torch.ones(3, 4), "bias": torch.zeros(3)}
AVERAGE = {name: value + 1 for name, value in OWN.items()}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
BOTH = {"net": OWN, "ema": {"module": AVERAGE, "decay": 0.99}, "optimizer": OPTIMIZER, "epoch": 3}


def under(prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in AVERAGE.items()}


@pytest.mark.parametrize(
    "saved",
    [
        {"net": [1], "history": {"val": {"accuracy": torch.tensor(0.5)}}, "epoch": 3},
        {"net": [1], "optim": {"adam": {"lr.x": torch.ones(2)}}},
        {"optimized": {"net": {"w": torch.ones(2, 2)}}, "initial": {"net": {"w": torch.ones(2, 2)}}},
        {"parts": {"a": {"w": {"x": torch.ones(2, 2)}}, "b": {"w": {"x": torch.ones(2, 2)}}}},
    ],
)
def test_other_tensors_within_dictionaries_are_no_weights(tmp_path: Path, saved: dict[str, object]) -> None:
    torch.save(saved, tmp_path / "step_1.pt")
    with pytest.raises(CheckpointError, match="are not tensors"):
        read_state_dict(tmp_path / "step_1.pt")


def test_a_state_dict_alone_is_what_the_usual_keys_have(tmp_path: Path) -> None:
    torch.save(OWN, tmp_path / "step_1.pt")
    torch.save({"model": OWN, "ema": AVERAGE}, tmp_path / "step_2.pt")
    for step in (1, 2):
        assert read_state_dict(tmp_path / f"step_{step}.pt", key="model").keys() == OWN.keys()
    with pytest.raises(CheckpointError, match="expected weights under the key 'ema'"):
        read_state_dict(tmp_path / "step_1.pt", key="ema")
    torch.save({"net": {**under("ema."), **under("own.")}, "step": 3}, tmp_path / "step_3.pt")
    with pytest.raises(CheckpointError, match=r"under the key 'ema' .*, got \['net', 'step'\]; is it 'net.ema'\?"):
        read_state_dict(tmp_path / "step_3.pt", key="ema")
    assert read_state_dict(tmp_path / "step_3.pt", key="net.ema").keys() == AVERAGE.keys()


@pytest.mark.parametrize(
    ("saved", "longer"),
    [
        (under("module.ema."), "module.ema"),
        ({"state_dict": under("module.ema.")}, "state_dict.module.ema"),
        ({"a": {"b": {"ema": AVERAGE}}}, "a.b.ema"),
        ({"a": {"b": under("model.ema.")}}, "a.b.model.ema"),
        ({"xema.": AVERAGE, **under("module.mema.")}, None),
    ],
)
def test_longer_keys_that_end_in_one_are_told(tmp_path: Path, saved: dict[str, object], longer: str | None) -> None:
    torch.save(saved, tmp_path / "step_1.pt")
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(tmp_path / "step_1.pt", key="ema")
    assert str(caught.value).partition("; is it ")[2] == ("" if longer is None else f"{longer!r}?")
    if longer is not None:
        assert read_state_dict(tmp_path / "step_1.pt", key=longer).keys() == AVERAGE.keys()


@pytest.mark.parametrize(
    "saved",
    [
        {"net": OWN, "optimizer": OPTIMIZER, "rng": {"cpu": torch.ones(2)}, "epoch": 3},
        {"model": {"width": 4, "norm": {"eps": 1e-5}}, "net": OWN, "app": {}},
        {"backbone": {"net": OWN, "width": 4}, "model": {"net": OWN}},
        {"net": OWN, "rng_state": torch.zeros(8, dtype=torch.uint8), "epoch": 3},
        BOTH,
        {"state": {"model": OWN, "optimizers": {"Adam": OPTIMIZER}, "timestamp": {"epoch": 1}}, "rng": [{"cuda": 1}]},
        {"ema": {"module": OWN}},
        {"epoch": 1, "nets": {"encoder": OWN}, "optim": {"adam": OPTIMIZER}},
        {"model": {"language_model": {"encoder": OWN}}, "args": None},
        {"metrics": {"loss": torch.ones(())}, "trainer": {"model": OWN}, "step": 3},
        {"net": OWN, "scores": {"loss": torch.ones(()), "val.loss": torch.ones(())}},
        {"net": {"inner": OWN}, "opt": {"exp_avg": AVERAGE}},
        {"optical": {"net": OWN}},
    ],
)
def test_the_only_state_dict_needs_no_key(tmp_path: Path, saved: dict[str, object]) -> None:
    torch.save(saved, tmp_path / "step_1.pt")
    assert read_state_dict(tmp_path / "step_1.pt")["weight"] is not None
    assert torch.equal(read_state_dict(saved)["weight"], OWN["weight"])


def test_a_folder_of_deepspeed_is_read_by_its_module(tmp_path: Path) -> None:
    folder = tmp_path / "global_step6"
    folder.mkdir()
    shapes = [{name: value.shape for name, value in OWN.items()}]
    beside = {
        "buffer_names": ["mean"],
        "param_shapes": shapes,
        "shared_params": {},
        "dp_world_size": 2,
        "optimizer": None,
    }
    torch.save({"module": OWN, "lr_scheduler": {"last_epoch": 6}, **beside}, folder / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": AVERAGE}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    read = read_state_dict(order_checkpoints(tmp_path)[6])
    assert read.keys() == OWN.keys()
    assert torch.equal(read["weight"], OWN["weight"])


@pytest.mark.parametrize(
    ("saved", "key"),
    [
        (BOTH, "ema"),
        (BOTH, "ema.module"),
        ({"model": OWN, "ema": AVERAGE}, "ema"),
        ({"model": OWN, "ema": under("module.")}, "ema.module"),
        ({"state_dict": {**{f"net.{name}": value for name, value in OWN.items()}, **under("ema_net.")}}, "ema_net"),
        ({"state_dict": {**{f"net.{name}": value for name, value in OWN.items()}, **under("ema_net.")}}, "ema_net."),
        ({**OWN, **under("averaged.net.")}, "averaged.net"),
        ({"a.b": AVERAGE, "a": {"c": OWN}}, "a.b"),
    ],
)
def test_a_key_chooses_among_several(tmp_path: Path, saved: dict[str, object], key: str) -> None:
    torch.save(saved, tmp_path / "step_1.pt")
    for source in (saved, tmp_path / "step_1.pt"):
        found = read_state_dict(source, key=key)
        assert found.keys() == AVERAGE.keys()
        assert all(torch.equal(found[name], AVERAGE[name]) for name in AVERAGE)


def test_what_a_key_does_not_find_is_named(tmp_path: Path) -> None:
    torch.save(BOTH, tmp_path / "step_1.pt")
    with pytest.raises(
        CheckpointError, match=r"step_1.pt: .* under the key 'mean' .*got \['ema', 'epoch', 'net', 'opt"
    ):
        read_state_dict(tmp_path / "step_1.pt", key="mean")
    with pytest.raises(
        CheckpointError, match=r"\['extra'\] are not tensors; give key= .* \['extra'\], or load= to read the"
    ):
        read_state_dict({**OWN, "extra": {"scale": torch.ones(1)}})
    with pytest.raises(ArgumentError, match="key: expected a string, got 5"):
        Reader(key=5)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"\['decay'\] are not tensors; save"):
        read_state_dict({"ema": {**AVERAGE, "decay": 0.99}}, key="ema")
    several = {"generator": OWN, "discriminator": AVERAGE, "epoch": 3}
    with pytest.raises(CheckpointError, match=r"give key= \(--key\), one of \['discriminator', 'generator'\]"):
        read_state_dict(several)
    trained = {"trained": {"generator": {"net": OWN}, "discriminator": {"net": AVERAGE}, "epoch": 3}}
    for key, saved in ((None, trained), ("all", {"all": trained})):
        under_both = [f"{'' if key is None else 'all.'}trained.{name}.net" for name in ("discriminator", "generator")]
        with pytest.raises(CheckpointError, match=rf"one of {re.escape(str(under_both))}"):
            read_state_dict(saved, key=key)
        assert read_state_dict(saved, key=under_both[1])["weight"] is OWN["weight"]


def test_the_names_in_the_error_of_several_prefixes_are_keys() -> None:
    state = {"state_dict": {**{f"net.{name}": value for name, value in OWN.items()}, **under("ema.")}}
    model = nn.Linear(4, 3)
    with pytest.raises(CheckpointError, match=r"under each of \['ema.', 'net.'\]; give one of these as key= \(--key\)"):
        load_into(model, read_state_dict(state), "x.pt")
    load_into(model, read_state_dict(state, key="ema."), "x.pt")
    assert torch.equal(model.weight, AVERAGE["weight"])


def test_the_fingerprint_of_a_file_is_that_of_the_weights_under_the_key(tmp_path: Path) -> None:
    path = tmp_path / "step_1.pt"
    torch.save(BOTH, path)
    found = [Reader(key=key).fingerprint(path) for key in (None, "net", "ema")]
    assert found[0] == file_hash(path)
    assert len(set(found)) == 3
    assert Reader(key="ema.").fingerprint(path) == found[2]
    assert Reader(key="net").fingerprint(BOTH) is None


def half(path: Path) -> dict[str, Tensor]:
    return {name: value / 2 for name, value in torch.load(path)["net"].items()}


def test_a_function_may_read_checkpoints(tmp_path: Path) -> None:
    torch.save(BOTH, tmp_path / "step_1.weights")
    reader = Reader(load=half)
    assert torch.equal(reader.read(tmp_path / "step_1.weights")["weight"], OWN["weight"] / 2)
    assert torch.equal(reader.read(OWN)["weight"], OWN["weight"])
    with pytest.raises(CheckpointError, match=r"step_1.weights: expected a state dict from load=, got Tensor"):
        Reader(load=lambda path: torch.load(path)["net"]["weight"]).read(tmp_path / "step_1.weights")
    with pytest.raises(CheckpointError, match=r"step_1.weights, as load= reads it: .* expected a state dict"):
        Reader(load=lambda _: {"a": 1}).read(tmp_path / "step_1.weights")
    with pytest.raises(CheckpointError, match=r"step_1.weights: load= raised KeyError: 'epochs'"):
        Reader(load=lambda path: torch.load(path)["epochs"]).read(tmp_path / "step_1.weights")
    model = nn.Linear(4, 3)
    probe_set = pf.ProbeSet.from_tensors(torch.randn(40, 4), None, torch.randn(20, 4), None)
    outer = nn.Sequential(model)
    sources = {1: tmp_path / "step_1.weights"}
    scores = pf.sweep(
        outer, sources, probe_set, out=tmp_path / "out", load=lambda p: {f"0.{k}": v for k, v in half(p).items()}
    )
    assert scores.steps == [1]


def strictly(folder: Path) -> dict[str, Tensor]:
    return {f"0.{name}": torch.load(folder / f"{name}.part") for name in ("weight", "bias")}


def in_parts(folder: Path) -> dict[str, Tensor]:
    return {f"0.{path.stem}": torch.load(path) for path in folder.glob("*.part")}


def test_what_a_function_reads_is_compared_with_what_is_stored(tmp_path: Path) -> None:
    probe_set = pf.ProbeSet.from_tensors(torch.randn(40, 4), None, torch.randn(20, 4), None)
    model, folder, out = nn.Sequential(nn.Linear(4, 3)), tmp_path / "parts", tmp_path / "out"
    folder.mkdir()
    for name, value in {"weight": torch.randn(3, 4), "bias": torch.zeros(3)}.items():
        torch.save(value, folder / f"{name}.part")
    first = pf.sweep(model, {1: folder}, probe_set, out=out, load=in_parts)
    assert (
        pf.sweep(model, {1: folder}, probe_set, out=out, load=lambda path: in_parts(path)).to_arrow()
        == first.to_arrow()
    )
    with pytest.raises(StoreError, match="step 1 is stored already, but was measured on other weights"):
        pf.sweep(
            model, {1: folder}, probe_set, out=out, load=lambda path: {k: 2 * v for k, v in in_parts(path).items()}
        )
    (folder / "weight.part").unlink()
    assert len(pf.sweep(model, {1: folder}, probe_set, out=out, load=strictly)) == len(first)  # the rest is there

    def as_hugging_face(path: Path) -> dict[str, Tensor]:
        raise OSError(f"Error no file named pytorch_model.bin found in directory {path}")

    assert len(pf.sweep(model, {1: folder}, probe_set, out=out, load=as_hugging_face)) == len(first)
    with pytest.raises(SweepError, match=r"load= raised FileNotFoundError: .*no_such"):
        pf.sweep(model, {1: folder}, probe_set, out=out, load=lambda path: torch.load(path.parent / "no_such.pt"))
    with pytest.raises(SweepError, match=r"load= raised KeyError: 'weight'"):
        pf.sweep(model, {1: folder}, probe_set, out=out, load=lambda path: in_parts(path)["weight"])  # type: ignore[arg-type, return-value]
    shutil.rmtree(folder)
    assert len(pf.sweep(model, {1: folder}, probe_set, out=out, load=in_parts)) == len(first)


def test_one_checkpoint_that_is_no_state_dict_stops_no_sweep(tmp_path: Path) -> None:
    probe_set = pf.ProbeSet.from_tensors(torch.randn(40, 4), None, torch.randn(20, 4), None)
    model = nn.Sequential(nn.Linear(4, 3))
    for step, saved in enumerate((model.state_dict(), torch.randn(3), model.state_dict())):
        torch.save(saved, tmp_path / f"step_{step}.pt")
    with pytest.raises(SweepError, match=r"1 of 3 checkpoints failed, .*\n.*got Tensor; save model.state_dict"):
        pf.sweep(model, tmp_path, probe_set, out=tmp_path / "out")
    assert pf.read_scores(tmp_path / "out").steps == [0, 2]


@pytest.mark.parametrize(
    "saved",
    [
        {**OWN, "ema": {"n_averaged": torch.tensor(1), **under("module.")}},
        {**{f"net.{name}": own for name, own in OWN.items()}, "ema": {"decay": torch.ones(1), **under("shadow.")}},
        {
            "net": OWN,
            "ema": {"n_averaged": torch.tensor(1), **under("module.")},
            "rng": torch.ones(2),
            "cuda": OWN["bias"],
        },
    ],
)
def test_an_average_is_not_taken_for_the_weights_beside_it(saved: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="are not tensors; "):
        read_state_dict(saved)


@pytest.mark.parametrize("averaged", [AVERAGE, {"n_averaged": torch.tensor(1), **under("module.")}])
def test_weights_of_the_same_names_beside_are_told(averaged: dict[str, Tensor]) -> None:
    saved = {"model": OWN, "ema": averaged, "statistics": {"mean": torch.ones(3)}}
    with pytest.warns(RuntimeWarning, match=r"'model', but \['ema'\] has tensors .*: key='ema' .* key='model'"):
        assert read_state_dict(saved)["weight"] is OWN["weight"]
    with no_warnings():
        assert read_state_dict(saved, key="model")["weight"] is OWN["weight"]
        read_state_dict({"model": OWN, "statistics": {"weight": torch.ones(3)}})
        read_state_dict({"model": OWN, "norms": {name: torch.ones(()) for name in OWN}})
    for saved in ({"model": under("module."), "ema": under("module.")}, {"model": under("module."), "ema": AVERAGE}):
        with pytest.warns(RuntimeWarning, match="has tensors of the same names"):
            read_state_dict(saved)


@pytest.mark.parametrize(
    ("saved", "way", "other"),
    [
        ({"net": {"weights": OWN}, "ema": AVERAGE}, "ema", "net.weights"),
        ({"model": {"net": OWN}, "ema": AVERAGE}, "model.net", "ema"),
        ({"model": {"net": OWN}, "ema": {"shadow": AVERAGE}}, "model.net", "ema.shadow"),
        ({"state": {"model": OWN, "ema": AVERAGE}}, "state.model", "state.ema"),
        (BOTH, "net", "ema.module"),
        ({"model": OWN, "momentum_encoder": {"state": AVERAGE}}, "model", "momentum_encoder.state"),
        ({"model": OWN, "callbacks": {"EMA{0.999}": {"v1.0": AVERAGE}}}, "model", "callbacks.EMA{0.999}.v1.0"),
    ],
)
def test_weights_of_the_same_names_elsewhere_are_told(saved: dict[str, Any], way: str, other: str) -> None:
    named = re.escape(other)
    with pytest.warns(RuntimeWarning, match=rf"'{way}', but \['{named}'\] has tensors .*: key='{named}'"):
        found = read_state_dict(saved)
    with no_warnings():
        for key, same in ((way, True), (other, False)):
            assert torch.equal(read_state_dict(saved, key=key)["weight"], found["weight"]) is same
        read_state_dict({"model": {"net": OWN}, "optimizer": {"averages": AVERAGE}})
        read_state_dict({"model": OWN, "optimizer_state_dict": {"momentum": AVERAGE}, "adam": {"m": AVERAGE}})
        itself: dict[str, Any] = {"model": OWN}
        read_state_dict(itself | {"me": itself})


def test_other_weights_of_the_same_files_are_not_taken_for_those_that_are_stored(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    probe_set = pf.ProbeSet.from_tensors(torch.randn(40, 4), None, torch.randn(20, 4), None)
    own = {f"0.{name}": torch.randn(3, 4) if name == "weight" else value for name, value in OWN.items()}
    torch.save({"net": own, "ema": {name: 2 * value + 1 for name, value in own.items()}}, tmp_path / "step_1.pt")
    found = {}
    for key in ("net", "ema"):
        found[key] = pf.sweep(model, tmp_path, probe_set, out=tmp_path / key, key=key)
        assert len(pf.sweep(model, tmp_path, probe_set, out=tmp_path / key, key=key)) == len(found[key])
    assert found["net"].values_of("state_hash") != found["ema"].values_of("state_hash")
    with pytest.raises(StoreError, match="other weights"):
        pf.sweep(model, tmp_path, probe_set, out=tmp_path / "net", key="ema")
    torch.save({"net": own, "ema": own}, tmp_path / "step_1.pt")  # another file and key, the same weights
    for how in ({"key": "net"}, {"key": "ema"}, {"load": lambda path: torch.load(path)["net"]}):
        assert len(pf.sweep(model, tmp_path, probe_set, out=tmp_path / "net", **how)) == len(found["net"])
    torch.save({"model": own, "ema": {name: 2 * value + 1 for name, value in own.items()}}, tmp_path / "step_1.pt")
    pf.sweep(model, tmp_path, probe_set, out=tmp_path / "load", load=lambda path: torch.load(path)["ema"])
    with pytest.raises(StoreError, match="other weights"):
        pf.sweep(model, tmp_path, probe_set, out=tmp_path / "load")


@pytest.mark.parametrize("key", [0, ("a", 1)])
def test_keys_that_are_no_names_are_no_weights(key: object) -> None:
    with pytest.raises(CheckpointError, match="expected a state dict"):
        read_state_dict({"model": {key: torch.zeros(3)}})
