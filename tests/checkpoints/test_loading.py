"""Prefixes of keys and tied tensors: what fits is loaded, and nothing is dropped unsaid."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import prune

from phasefast import ProbeSet, sweep
from phasefast.checkpoints import load_into
from phasefast.errors import ArgumentError, CheckpointError
from tests.conftest import SmallNet, images
from tests.quiet import no_warnings


class Tied(nn.Module):
    """An output layer that shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.lm_head = nn.Linear(3, 5)
        self.lm_head.weight = self.embed.weight


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def under(prefix: str, model: nn.Module) -> dict[str, Tensor]:
    return {prefix + key: value.clone() for key, value in model.state_dict().items()}


def same(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(value, right.state_dict()[key]) for key, value in left.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "model.", "net.", "module._orig_mod.", "model.backbone.0."])
@pytest.mark.parametrize("extra", [{}, {"loss_fn.weight": torch.ones(2)}, {"head.0.bias": torch.ones(4)}])
def test_the_one_prefix_that_fits_is_stripped(prefix: str, extra: dict[str, Tensor]) -> None:
    saved, model = network(), network()
    state = {**extra, **under(prefix, saved)}
    if extra and not prefix:
        with pytest.raises(CheckpointError, match=rf"does not fit .* unexpected keys \['{next(iter(extra))}'"):
            load_into(model, state, "x.ckpt")
        assert not same(model, saved)
    else:
        load_into(model, state, "x.ckpt")
        assert same(model, saved)


def test_two_networks_that_fit_are_refused() -> None:
    state = {**under("student.", network()), **under("teacher.", network())}
    with pytest.raises(CheckpointError, match=r"under each of \['student.', 'teacher.'\]; give"):
        load_into(network(), state, "x.ckpt")


@pytest.mark.parametrize("extra", [{}, {"student.mask": torch.ones(1)}, {"mask": torch.ones(1)}])
@pytest.mark.parametrize("raw", ["", "student."])
def test_an_average_is_not_loaded_in_place_of_the_weights(raw: str, extra: dict[str, Tensor]) -> None:
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {**under(raw, network()), **under("ema.", network()), **extra}
    with pytest.raises(CheckpointError, match=r"x.pt: .* under each of \[.*'ema.'"):
        load_into(model, state, "x.pt")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_prefix_with_other_shapes_is_none_to_choose_from() -> None:
    saved, model = network(), network()
    wider = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    for first, second in (("student.", "teacher."), ("", "teacher.")):
        load_into(model, {**under(first, wider), **under(second, saved)}, "x.pt")
        assert same(model, saved)


@pytest.mark.parametrize("change", [Tensor.to_sparse, lambda value: value.to("meta")])
def test_what_torch_cannot_load_is_named(change: Callable[[Tensor], Tensor]) -> None:
    model = nn.Linear(2, 2)
    state = {key: change(value) for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"x.pt: cannot be loaded into Linear \(.*weight"):
        load_into(model, state, "x.pt")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.complex64, torch.bool])
def test_what_is_no_floating_point_is_no_weight(dtype: torch.dtype) -> None:
    model = nn.Linear(2, 2)
    state = model.state_dict() | {"weight": torch.ones(2, 2).to(dtype)}
    with pytest.raises(CheckpointError, match=rf"has weight of type {dtype}, while the model's is torch.float32"):
        load_into(model, state, "x.pt")


def test_the_models_own_keys_count_before_any_prefix() -> None:
    saved, model = network(), network()
    outer = nn.ModuleDict({"net": nn.ModuleDict({"net": network()})})
    load_into(outer, under("", outer), "x")
    saved.add_module("ema", network())
    model.add_module("ema", network())
    load_into(model, under("", saved), "x")
    assert same(model, saved)


@pytest.mark.parametrize("prefix", ["", "model.", "module.encoder."])
@pytest.mark.parametrize("nothing", [nn.Identity(), nn.Sequential()], ids=["identity", "empty"])
def test_a_head_that_the_encoder_has_nothing_for_is_left_out(prefix: str, nothing: nn.Module) -> None:
    class Encoder(nn.Module):
        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.blocks, self.act, self.head = network(), nn.ReLU(), head

    saved, model = Encoder(nn.Sequential(nn.Linear(2, 9), nn.Linear(9, 3))), Encoder(nothing)
    with pytest.warns(RuntimeWarning, match=r"\['head.0.bias', .*\] are left out, since the model, like an encoder"):
        load_into(model, under(prefix, saved), "x.ckpt")
    assert same(model.blocks, saved.blocks)
    for odd in ("blocks.9.weight", "act.weight", "headless.weight", "other.head.weight"):
        with pytest.raises(CheckpointError, match=rf"has the unexpected keys \['{odd}'\]; load= \(--load\) can leave"):
            load_into(model, {**under(prefix, saved), f"{prefix}{odd}": torch.ones(1)}, "x.ckpt")
    with pytest.raises(CheckpointError, match="lacks the keys"):
        load_into(Encoder(nn.Linear(2, 3)), under(prefix, model), "x.ckpt")


class Scaled(nn.Identity):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))


def test_nothing_amid_a_network_stands_for_no_head() -> None:
    saved = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    for model in (
        nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.ReLU(), nn.Linear(4, 2)),
        nn.Sequential(nn.Identity()),
    ):
        with pytest.raises(CheckpointError, match="has the unexpected keys"):
            load_into(model, saved.state_dict(), "x.ckpt")
    with pytest.raises(CheckpointError, match="has the unexpected keys"):
        load_into(nn.Sequential(nn.Identity()), nn.Sequential(nn.Linear(4, 2)).state_dict(), "x.ckpt")
    of_its_own, own = nn.Sequential(nn.Linear(4, 2), Scaled()), nn.Sequential(nn.Linear(4, 2), Scaled())
    own[1].scale.data += 1
    with no_warnings():
        load_into(of_its_own, own.state_dict(), "x.ckpt")
    assert same(of_its_own, own)


def test_a_head_is_told_by_all_names_of_modules_and_without_wrappers() -> None:
    class Tied(nn.Module):
        def __init__(self, norm: nn.Module, head: nn.Module) -> None:
            super().__init__()
            self.a, self.norm = nn.Linear(3, 3), norm
            self.b, self.head = self.a, head

    nothing = nn.Identity()
    state = Tied(nn.Identity(), nn.Linear(3, 2)).state_dict()
    with pytest.warns(RuntimeWarning, match=r"\['head.bias', 'head.weight'\] are left out"):
        load_into(Tied(nothing, nothing), state, "x.ckpt")
    with pytest.raises(CheckpointError, match=r"unexpected keys \['norm.bias', 'norm.weight'\]"):
        load_into(Tied(nn.Identity(), nn.Identity()), Tied(nn.LayerNorm(3), nn.Identity()).state_dict(), "x.ckpt")
    body, norm, head = nn.Sequential(nn.Linear(3, 3)), nn.LayerNorm(3), nn.Linear(3, 2)
    with pytest.warns(RuntimeWarning, match=r"\['1.bias', '1.weight'\] are left out"):
        load_into(nn.Sequential(checkpoint_wrapper(body), nn.Identity()), nn.Sequential(body, head).state_dict(), "x")
    model = nn.Sequential(nn.Linear(3, 3), nn.Identity(), checkpoint_wrapper(body))
    with pytest.raises(CheckpointError, match=r"unexpected keys \['1.bias', '1.weight'\]"):
        load_into(model, nn.Sequential(nn.Linear(3, 3), norm, body).state_dict(), "x")


def test_keys_under_a_prefix_are_named_without_it() -> None:
    state = under("model.", network())
    del state["model.2.bias"]
    with pytest.raises(CheckpointError, match=r"it under 'model.' lacks the keys \['2.bias'\]$"):
        load_into(network(), {**state, "loss_fn.weight": torch.ones(1)}, "x.ckpt")
    state = {**under("model.", network()), "model.3.weight": torch.ones(1)}
    with pytest.raises(
        CheckpointError,
        match=r"it under 'model.' has the unexpected keys \['3.weight'\]; load= \(--load\) can leave keys out$",
    ):
        load_into(network(), state, "x.ckpt")
    state = {**under("model.", network()), "model.2.bias": torch.ones(9)}
    with pytest.raises(CheckpointError, match=r"has 2.bias of shape \(9,\), while the model's is \(2,\)$"):
        load_into(network(), state, "x.ckpt")
    with pytest.raises(CheckpointError, match=r"lacks the keys \['0.bias', .* \.\.\.; it has the unexpected"):
        load_into(network(), {"other": torch.ones(1)}, "x.ckpt")


@pytest.mark.parametrize("absent", ["embed.weight", "lm_head.weight"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_one_of_tied_tensors_is_enough(absent: str, prefix: str) -> None:
    saved, model = Tied(), Tied()
    state = under(prefix, saved)
    del state[prefix + absent]
    load_into(model, state, "x.safetensors")
    assert same(model, saved)
    assert model.lm_head.weight is model.embed.weight


def test_none_of_tied_tensors_is_too_few_and_equal_ones_are_not_tied() -> None:
    state = under("", Tied())
    few = {"lm_head.bias": state["lm_head.bias"]}
    with pytest.raises(CheckpointError, match=r"lacks the keys \['embed.weight', 'lm_head.weight'\]"):
        load_into(Tied(), few, "x")
    untied = Tied()
    untied.lm_head.weight = nn.Parameter(untied.embed.weight.detach().clone())
    del state["lm_head.weight"]
    with pytest.raises(CheckpointError, match=r"lacks the keys \['lm_head.weight'\]"):
        load_into(untied, state, "x")


def test_tied_tensors_that_the_checkpoint_has_apart_are_refused() -> None:
    state = {key: value.clone() for key, value in Tied().state_dict().items()}
    load_into(Tied(), state, "x.ckpt")
    state["lm_head.weight"] += 1
    with pytest.raises(
        CheckpointError, match=r"other values in embed.weight than in lm_head.weight, although the model"
    ):
        load_into(Tied(), state, "x.ckpt")


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"])
def test_names_that_wrappers_of_parts_add_are_no_other_keys(wrapper: str) -> None:
    saved, model, average = network(), network(), network()
    state = under("net.", saved)
    state = {key.replace("net.0.", f"net.0.{wrapper}."): value for key, value in state.items()}
    load_into(model, state, "x.ckpt")
    assert same(model, saved)
    with pytest.raises(CheckpointError, match=r"under each of \['ema.', 'net.'\]"):
        load_into(model, {**state, **under("ema.", average)}, "x.ckpt")


def test_state_dicts_that_later_ones_would_change_are_refused(tmp_path: Path) -> None:
    model, probe_set = SmallNet(), ProbeSet.from_tensors(*images(60, 1), *images(30, 2))
    states = {0: copy.deepcopy(model.state_dict()), 1: {"state_dict": model.state_dict()}}
    with pytest.raises(
        ArgumentError,
        match=r"step 1 holds the model's own tensors, not copies; keep the weights of each step by copy\.deepcopy",
    ):
        sweep(model, states, probe_set, out=tmp_path / "own", layers="conv")
    other = SmallNet().state_dict()
    with pytest.warns(RuntimeWarning, match=r"steps \['3', '5'\] are the same tensors, so the same weights"):
        sweep(model, {3: other, 4: states[0], 5: dict(other)}, probe_set, out=tmp_path / "same", layers="conv")
    with no_warnings():
        sweep(model, {7: model.state_dict()}, probe_set, out=tmp_path / "alone", layers="conv")


def test_a_frozen_backbone_that_all_share_may_be_the_models_own(tmp_path: Path) -> None:
    model, probe_set = SmallNet(), ProbeSet.from_tensors(*images(60, 1), *images(30, 2))
    heads = {step: {f"head.{k}": v.clone() for k, v in model.head.state_dict().items()} for step in (0, 1)}
    scores = sweep(model, {s: model.state_dict() | heads[s] for s in heads}, probe_set, out=tmp_path, layers="conv")
    assert scores.steps == [0, 1]


def test_a_module_around_the_one_that_was_stored_takes_its_weights() -> None:
    def inner() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    stored = inner().state_dict()
    model = nn.Sequential(nn.Sequential(inner()), nn.ReLU())  # 0.0.*
    load_into(model, stored, "a")
    assert torch.equal(model[0][0][0].weight, stored["0.weight"])  # type: ignore[index]
    wrapped = {f"module.{name}": value for name, value in nn.Sequential(inner()).state_dict().items()}
    load_into(model, {f"0.{name.removeprefix('module.')}": value for name, value in wrapped.items()}, "a")
    with pytest.raises(CheckpointError, match=r"Sequential: it lacks the keys \['0.0.1.bias', .*weight'\]$"):
        load_into(model, {name: value for name, value in stored.items() if "1." not in name}, "a")
    for prefix in ("module.", "net."):
        load_into(model, {f"{prefix}{name}": value + 1 for name, value in stored.items()}, "a")
        assert torch.equal(model[0][0][0].weight, stored["0.weight"] + 1)  # type: ignore[index]
    with pytest.raises(
        CheckpointError, match=r"it has the unexpected keys \['0.0.head'\]; load= \(--load\) can leave keys out"
    ):
        load_into(model, {**stored, "head": torch.zeros(1)}, "a")


def test_tied_tensors_that_are_sparse_are_compared() -> None:
    state = {key: value.clone() for key, value in Tied().state_dict().items()}
    state["lm_head.weight"] = (state["lm_head.weight"] + 1).to_sparse()
    with pytest.raises(CheckpointError, match=r"other values in embed.weight than in lm_head.weight"):
        load_into(Tied(), state, "x.ckpt")


def test_models_of_transformers_may_read_other_names() -> None:
    class Pretrained(nn.Linear):
        from_pretrained = None

    model = nn.Sequential(Pretrained(2, 2))
    renamed = {"0.old": torch.zeros(2, 2), "0.bias": torch.zeros(2)}
    hint = "load= a function that calls Pretrained.from_pretrained and refuses missing keys"
    with pytest.raises(CheckpointError, match=rf"'0.weight'.*'0.old'.*; if transformers renames keys, give {hint}"):
        load_into(model, renamed, "step 1")
    with pytest.raises(CheckpointError, match=r"lacks the keys \['0.weight'\]$"):
        load_into(model, {"0.bias": torch.zeros(2)}, "step 1")


def _pruned(model: nn.Module) -> nn.Module:
    """A copy of a model, half of whose weights, and one bias of which, are pruned."""
    model = copy.deepcopy(model)
    for part, kind in ((model[0], prune.l1_unstructured), (model[1][0], prune.random_unstructured)):
        kind(part, "weight", amount=0.5)
    prune.l1_unstructured(model[1][0], "bias", amount=1)
    return model


def test_pruned_checkpoints_fit_the_model_as_it_was_before() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    model[0].register_buffer("attn_mask", torch.ones(2))  # which has nothing to do with it
    model[0].register_buffer("own_orig", torch.ones(2))
    model[0].register_buffer("own_mask", torch.ones(2))
    pruned = _pruned(model)
    for prefix in ("", "module."):
        dense = copy.deepcopy(model)
        load_into(dense, {prefix + key: own for key, own in pruned.state_dict().items()}, "a")
        assert torch.equal(dense[0].weight, pruned[0].weight)
        assert torch.equal(dense[1][0].weight, pruned[1][0].weight)
        assert torch.equal(dense[1][0].bias, pruned[1][0].bias)
        assert float((dense[1][0].weight == 0).float().mean()) == 0.5
    partly = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
    state = copy.deepcopy(partly)
    for part in (state[0], state[1][0]):
        prune.l1_unstructured(part, "weight", amount=0.5)
    prune.l1_unstructured(partly[1][0], "weight", amount=0.5)  # whose keys end like the other's
    load_into(partly, state.state_dict(), "a")
    assert torch.equal(partly[0].weight, state[0].weight)
    assert torch.equal(partly[1][0].weight_orig, state[1][0].weight_orig)
    other = _pruned(model)
    load_into(other, pruned.state_dict(), "a")
    assert torch.equal(other[1][0].weight_mask, pruned[1][0].weight_mask)
    with pytest.raises(CheckpointError, match=r"unexpected keys .*; load= .* can make a state dict that fits"):
        load_into(_pruned(model), model.state_dict(), "a")
