"""Layers that are probed where none are asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import pytest
import torch
from torch import nn

from phasefast.layers.selection import select_layers


def test_by_default_the_inside_of_a_wrapper_is_probed() -> None:
    inner = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 2)))
    assert select_layers(nn.Sequential(inner)) == ["0.0", "0.1", "0.2"]
    assert select_layers(nn.Sequential(nn.Sequential(inner))) == ["0.0.0", "0.0.1", "0.0.2"]
    assert select_layers(torch.optim.swa_utils.AveragedModel(inner)) == ["module.0", "module.1", "module.2"]
    assert select_layers(nn.Sequential(nn.Linear(3, 4))) == ["0"]
    assert select_layers(inner) == ["0", "1", "2"]


class Blocks(nn.Module):
    """As language models have them."""

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        blocks = (nn.Sequential(nn.Linear(3, 3)) for _ in range(count))
        self.embed, self.h = nn.Linear(3, 3), nn.ModuleList(blocks)


def test_by_default_the_blocks_of_the_only_part_that_has_some_are_probed() -> None:
    blocks = ["a.embed", "a.h.0", "a.h.1"]
    assert select_layers(nn.Sequential(OrderedDict(a=Blocks(), head=nn.Linear(3, 3)))) == [*blocks, "head"]
    deeper = nn.Sequential(OrderedDict(in_=nn.Linear(3, 3), a=Blocks()))
    assert select_layers(nn.Sequential(OrderedDict(all=deeper, head=nn.Linear(3, 3)))) == [
        "all.in_",
        *(f"all.{name}" for name in blocks),
        "head",
    ]
    assert select_layers(nn.Sequential(OrderedDict(a=Blocks(), b=Blocks()))) == ["a", "b"]
    assert select_layers(nn.Sequential(OrderedDict(a=Blocks(1), head=nn.Linear(3, 3)))) == ["a", "head"]
    whole = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2)
    assert select_layers(nn.Sequential(OrderedDict(a=whole, head=nn.Linear(3, 3)))) == ["a", "head"]
    few = nn.Sequential(OrderedDict(a=Blocks(), head=nn.Linear(3, 99)))
    assert select_layers(few) == ["a", "head"]
    branches = Blocks()
    branches.h = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    assert select_layers(nn.Sequential(OrderedDict(a=branches, head=nn.Linear(3, 3)))) == ["a", "head"]
    listed = nn.ModuleList([Blocks(), nn.Linear(3, 3)])
    assert select_layers(nn.Sequential(OrderedDict(a=listed, head=nn.Linear(3, 3)))) == ["a.0", "a.1", "head"]


class Core(nn.Module):
    """Of a language model."""


def language_model(words: int, width: int, blocks: Iterable[nn.Module]) -> nn.Module:
    core = Core()
    core.words, core.blocks = nn.Embedding(words, width), nn.ModuleList(blocks)
    return nn.Sequential(OrderedDict(core=core, head=nn.Linear(width, words, bias=False)))


def test_by_default_blocks_are_probed_of_small_mixed_and_compiled_models_too() -> None:
    block, other = (lambda: Block(nn.Linear(8, 8))), (lambda: nn.Sequential(nn.Linear(8, 8)))
    for parts in (
        [block(), block(), block()],  # a head of many more parameters
        [block(), other(), block(), other()],
        [block(), nn.Identity(), block()],
        [torch.compile(block()), block(), block()],
    ):
        names = [f"core.blocks.{i}" for i in range(len(parts))]
        assert select_layers(language_model(500, 8, parts)) == ["core.words", *names, "head"]
    assert select_layers(language_model(500, 8, [block(), other()])) == ["core", "head"]  # branches
    translating = language_model(500, 8, [block(), block()])
    translating.core.others = nn.Embedding(400, 8)
    names = ["core.words", "core.blocks.0", "core.blocks.1", "core.others", "head"]
    assert select_layers(translating) == names


class Block(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


def test_a_lazy_model_has_names() -> None:
    assert select_layers(nn.Sequential(nn.LazyLinear(3), nn.ReLU())) == ["0", "1"]


def test_by_default_parts_that_their_module_does_not_call_are_not_probed() -> None:
    class Only(nn.Module):
        def __init__(self, child: nn.Module) -> None:
            super().__init__()
            self.child = child

    assert select_layers(Only(nn.MultiheadAttention(4, 2))) == ["child"]
    assert select_layers(Only(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)))) == ["child"]
    block = nn.TransformerEncoderLayer(4, 2, batch_first=True)
    assert select_layers(Only(block)) == ["child"]
    assert select_layers(Only(nn.TransformerEncoder(block, 2))) == ["child.layers.0", "child.layers.1"]


def parts(**named: nn.Module) -> nn.Module:
    """A model with these parts."""
    model = Core()
    for name, part in named.items():
        model.add_module(name, part)
    return model


def sequence(*blocks: nn.Module) -> nn.Sequential:
    return nn.Sequential(*blocks)


class Wide(Block):
    """Another kind."""


def test_by_default_blocks_are_probed_of_the_only_sequence_of_them() -> None:
    block, wide = (lambda: Block(nn.Linear(8, 8))), (lambda: Wide(nn.Linear(8, 8)))
    head = nn.Linear(8, 2)
    whole = parts(stem=nn.Linear(3, 8), blocks=sequence(block(), block()), head=head)
    assert select_layers(whole) == ["stem", "blocks.0", "blocks.1", "head"]
    inside = parts(encoder=parts(layers=sequence(block(), block()), norm=nn.LayerNorm(8)), head=head)
    assert select_layers(inside) == ["encoder.layers.0", "encoder.layers.1", "encoder.norm", "head"]
    stages = sequence(nn.Linear(8, 8), sequence(block(), block()), wide(), sequence(block(), block(), block()))
    assert select_layers(parts(features=stages, head=head)) == [*(f"features.{i}" for i in range(4)), "head"]
    for others in (
        {"first": sequence(block(), block()), "second": sequence(block(), block(), block(), block())},
        {"first": sequence(block()), "second": sequence(block(), block(), block())},  # stages
        {"first": sequence(wide(), wide()), "second": sequence(*(block() for _ in range(9)))},
        {"branches": sequence(block(), wide())},
    ):
        assert select_layers(parts(**others, head=head)) == [*others, "head"]
    assert select_layers(parts(blocks=nn.ModuleList([block(), wide()]), head=head)) == ["blocks.0", "blocks.1", "head"]


def test_by_default_blocks_of_a_list_are_probed_beside_a_sequence_of_others() -> None:
    layers = nn.ModuleList(Block(nn.Linear(8, 8)) for _ in range(6))
    head = sequence(sequence(nn.Linear(8, 16), nn.ReLU()), sequence(nn.Linear(16, 8), nn.ReLU()), nn.Linear(8, 2))
    names = select_layers(parts(encoder=parts(layers=layers, norm=nn.LayerNorm(8)), head=head))
    assert names == [*(f"encoder.layers.{i}" for i in range(6)), "encoder.norm", "head.0", "head.1", "head.2"]


def plain(count: int = 2) -> nn.Sequential:
    """As layers are written one by one."""
    layers = [(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout()) for _ in range(count)]
    return sequence(nn.Flatten(), *(each for layer in layers for each in layer))


def test_by_default_of_layers_in_a_sequence_what_comes_last_before_the_next_is_probed() -> None:
    names = ["a.3", "a.7"]
    assert select_layers(parts(a=plain(), head=nn.Linear(8, 2))) == [*names, "head"]
    assert select_layers(parts(a=plain(), b=sequence(nn.Linear(8, 8), nn.LazyLinear(2)))) == [*names, "b.0", "b.1"]
    lazy = sequence(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.LazyLinear(3))
    assert select_layers(parts(a=lazy, head=nn.Linear(3, 2))) == ["a.1", "a.4", "head"]
    mixed = sequence(nn.Linear(8, 8), nn.ReLU(), Block(nn.Linear(8, 8)), nn.ReLU(), sequence(nn.Linear(8, 8)))
    assert select_layers(parts(a=mixed, head=nn.Linear(8, 2))) == ["a.1", "a.3", "a.4", "head"]
    called_itself = parts(a=plain(), b=nn.ReLU())
    assert select_layers(parts(net=called_itself, head=nn.Linear(8, 20))) == ["net", "head"]
    assert select_layers(parts(net=called_itself)) == ["net.a.3", "net.a.7", "net.b"]
    assert select_layers(sequence(plain(), nn.ReLU(), plain())) == ["0.3", "0.7", "1", "2.3", "2.7"]
    assert select_layers(parts(body=sequence(plain(), nn.ReLU(), plain()), head=nn.Linear(8, 200)))[0] == "body"
    for blocks in ({"a": plain(1)}, {"a": plain(), "b": plain(), "c": plain()}, {"a": Wide(plain())}):
        assert select_layers(parts(**blocks, head=nn.Linear(8, 2))) == [*blocks, "head"]
    assert len(select_layers(plain())) == 9  # the model itself


def test_by_default_the_inside_of_a_network_is_probed_beside_what_it_is_used_with() -> None:
    net = parts(a=plain(), b=parts(c=nn.Linear(8, 8)), head=nn.Linear(8, 3))
    inside = ["a.3", "a.7", "b", "head"]
    for beside in (
        nn.Dropout(),
        nn.BatchNorm1d(8, affine=False),
        nn.Linear(3, 3),
        nn.Sequential(nn.Linear(3, 3), nn.ReLU()),
        nn.Embedding(900, 3),
    ):
        assert select_layers(parts(net=net, beside=beside)) == [*(f"net.{name}" for name in inside), "beside"]
    assert select_layers(sequence(nn.Identity(), net)) == ["0", *(f"1.{name}" for name in inside)]
    assert select_layers(parts(net=net, other=parts(a=plain()))) == ["net", "other"]
    assert select_layers(parts(stage=Block(nn.Linear(90, 90)), head=nn.Linear(8, 3))) == ["stage", "head"]


class Branched(nn.Module):
    """Of a ResNet with parallel branches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(sequence(nn.Linear(width, width), nn.ReLU()) for _ in range(2))


def test_by_default_lists_of_branches_and_heads_are_no_blocks() -> None:
    stages = {f"layer{i}": sequence(Branched(width), Branched(width)) for i, width in enumerate((8, 16, 32))}
    assert select_layers(parts(stem=nn.Linear(3, 8), **stages, head=nn.Linear(32, 2))) == ["stem", *stages, "head"]
    features, heads = sequence(*(sequence(nn.Linear(8, 8), nn.ReLU()) for _ in range(6))), nn.ModuleList()
    heads.extend(sequence(nn.Linear(8, 12)) for _ in range(3))
    whole = parts(features=features, head=parts(conv=nn.Linear(8, 8), heads=heads))
    assert select_layers(whole) == ["features", "head"]


def test_by_default_losses_are_no_layers() -> None:
    trained = parts(net=parts(a=plain(), head=nn.Linear(8, 2)), loss=nn.CrossEntropyLoss())
    assert select_layers(trained) == ["net.a.3", "net.a.7", "net.head"]
    assert select_layers(trained, ["loss"]) == ["loss"]
    assert select_layers(parts(loss=nn.MSELoss())) == ["loss"]


def test_by_default_a_dictionary_of_modules_that_a_sequence_calls_is_a_block() -> None:
    class Dense(nn.ModuleDict):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for part in self.values():
                x = part(x)
            return x

    def dense() -> nn.Module:
        return Dense({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})

    features = sequence(nn.Linear(8, 8), dense(), dense())
    assert select_layers(parts(features=features, head=nn.Linear(8, 2))) == [
        *(f"features.{i}" for i in range(3)),
        "head",
    ]
    assert select_layers(parts(body=dense(), head=nn.Linear(8, 2))) == ["body.a", "body.b", "head"]


def test_by_default_known_networks_are_probed_block_by_block() -> None:
    models = pytest.importorskip("torchvision").models
    transformer = models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=10)
    blocks = [f"encoder.layers.encoder_layer_{i}" for i in range(3)]
    assert select_layers(transformer) == ["conv_proj", "encoder.dropout", *blocks, "encoder.ln", "heads"]
    swin = models.swin_transformer.SwinTransformer([4, 4], 8, [1, 2], [1, 2], [4, 4])
    assert select_layers(swin)[:5] == ["features.0", "features.1", "features.2", "features.3", "norm"]
    mobile = select_layers(models.mobilenet_v3_small())
    assert mobile == [*(f"features.{i}" for i in range(13)), "avgpool", "classifier.1", "classifier.3"]
    ends = [f"features.{i}" for i in (3, 7, 10, 14, 17, 21, 24, 28)]
    assert select_layers(models.vgg11_bn())[:9] == [*ends, "avgpool"]
    with torch.device("meta"):
        segmenting = models.get_model("deeplabv3_resnet50", weights_backbone=None)
        detecting = models.get_model("ssdlite320_mobilenet_v3_large", weights_backbone=None)
    assert select_layers(segmenting)[-4:] == ["backbone.layer4", "classifier.0", "classifier.3", "classifier.4"]
    assert select_layers(detecting) == ["backbone", "anchor_generator", "head", "transform"]
    small = [f"features.{name}" for name in ("pool0", "denseblock1", "transition1", "norm5")]
    assert select_layers(models.DenseNet(8, (1, 1), 16)) == [*small, "classifier"]
    assert select_layers(models.resnet18())[4:8] == ["layer1", "layer2", "layer3", "layer4"]
