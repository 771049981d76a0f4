"""Layers that are probed where none are asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import pytest
import torch
from torch import nn

import phasefast as pf
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
    assert select_layers(nn.Sequential(OrderedDict(a=whole, head=nn.Linear(3, 3)))) == [
        "a.layers.0",
        "a.layers.1",
        "head",
    ]
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


def two() -> nn.Sequential:
    return sequence(nn.Linear(8, 8), nn.Linear(8, 8))


def test_by_default_blocks_are_probed_of_the_only_sequence_of_them() -> None:
    block, wide = (lambda: Block(two())), (lambda: Wide(two()))
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
    ):
        assert select_layers(parts(**others, head=head)) == [*others, "head"]
    assert select_layers(parts(blocks=nn.ModuleList([block(), wide()]), head=head)) == ["blocks.0", "blocks.1", "head"]


def test_by_default_blocks_of_a_list_are_probed_beside_a_sequence_of_others() -> None:
    layers = nn.ModuleList(Block(nn.Linear(8, 8)) for _ in range(6))
    head = sequence(sequence(nn.Linear(8, 16), nn.ReLU()), sequence(nn.Linear(16, 8), nn.ReLU()), nn.Linear(8, 2))
    names = select_layers(parts(encoder=parts(layers=layers, norm=nn.LayerNorm(8)), head=head))
    assert names == [*(f"encoder.layers.{i}" for i in range(6)), "encoder.norm", "head"]


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
    mixed = sequence(nn.Linear(8, 8), nn.ReLU(), Block(two()), nn.ReLU(), sequence(nn.Linear(8, 8)), nn.ReLU())
    assert select_layers(parts(a=mixed, head=nn.Linear(8, 2))) == ["a.1", "a.2", "a.5", "head"]
    called_itself = parts(a=plain(), b=nn.ReLU())
    assert select_layers(parts(net=called_itself, head=nn.Linear(8, 20))) == ["net", "head"]
    assert select_layers(parts(net=called_itself)) == ["net.a.3", "net.a.7", "net.b"]
    assert select_layers(sequence(plain(), nn.ReLU(), plain())) == ["0.3", "0.7", "1", "2.3", "2.7"]
    assert select_layers(parts(body=sequence(plain(), nn.ReLU(), Wide(two())), head=nn.Linear(8, 2)))[0] == "body.0"
    few = {"a": plain(1), "b": plain(1), "c": plain(1), "d": plain()}
    for blocks in ({"a": plain(1)}, {"a": plain(), "b": plain(), "c": plain()}, {"a": Wide(plain())}, few):
        assert select_layers(parts(**blocks, head=nn.Linear(8, 2))) == [*blocks, "head"]
    # The model itself, without its dropouts, which give what they get.
    assert select_layers(plain()) == ["0", "1", "2", "3", "5", "6", "7"]
    assert select_layers(nn.Sequential(nn.Dropout(), nn.AlphaDropout())) == ["0", "1"]


def test_by_default_the_inside_of_a_network_is_probed_beside_what_it_is_used_with() -> None:
    net = parts(a=plain(), b=parts(c=nn.Linear(8, 8)), head=nn.Linear(8, 3))
    inside = ["a.3", "a.7", "b", "head"]
    assert select_layers(parts(net=net, beside=nn.Dropout())) == [f"net.{name}" for name in inside]
    for beside in (
        nn.ReLU(),
        nn.BatchNorm1d(8, affine=False),
        nn.Linear(3, 3),
        nn.Sequential(nn.Linear(3, 3), nn.ReLU()),
        nn.Embedding(900, 3),
    ):
        assert select_layers(parts(net=net, beside=beside)) == [*(f"net.{name}" for name in inside), "beside"]
    assert select_layers(sequence(nn.Identity(), net)) == ["0", *(f"1.{name}" for name in inside)]
    assert select_layers(parts(net=net, other=parts(a=plain()))) == ["net", "other"]
    compiled = [f"net._orig_mod.{name}" for name in inside]
    assert select_layers(parts(net=torch.compile(net), head=nn.Linear(3, 3))) == [*compiled, "head"]


def test_by_default_of_large_heads_blocks_and_teachers_the_inside_is_not_probed() -> None:
    small, large = parts(c=nn.Linear(2, 2), d=nn.Linear(2, 2)), parts(c=nn.Linear(90, 90), d=nn.Linear(90, 90))
    assert select_layers(parts(features=small, classifier=large)) == ["features", "classifier"]
    assert select_layers(parts(heads=nn.ModuleList([small]), classifier=large)) == ["heads.0", "classifier"]
    with_head = parts(net=large, head=Wide(two()))
    assert select_layers(with_head) == ["net.c", "net.d", "head"]


def test_by_default_of_several_lists_the_one_with_most_parameters_counts() -> None:
    heads = sequence(*(Wide(two()) for _ in range(3)))
    layers = nn.ModuleList(Block(two()) for _ in range(6))
    encoder = parts(layers=layers, norm=nn.LayerNorm(8))
    names = [*(f"encoder.layers.{i}" for i in range(6)), "encoder.norm"]
    assert select_layers(parts(heads=heads, encoder=encoder)) == ["heads", *names]
    assert select_layers(parts(encoder=encoder, heads=heads)) == [*names, "heads"]


def test_by_default_a_sequence_with_a_forward_of_its_own_is_one_layer() -> None:
    class Own(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + super().forward(x)

    assert select_layers(parts(a=Own(*plain()), head=nn.Linear(8, 2))) == ["a", "head"]
    assert select_layers(parts(a=plain(3), b=Own(*plain()), head=nn.Linear(8, 2)))[-3:] == ["a.11", "b", "head"]
    assert select_layers(parts(stage=Block(nn.Linear(90, 90)), head=nn.Linear(8, 3))) == ["stage", "head"]


def test_by_default_blocks_are_probed_themselves_and_not_what_follows_them() -> None:
    follow = (nn.ReLU(), nn.MaxPool2d(2), nn.LayerNorm(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    blocks = sequence(*(Block(two()) for _ in range(3)), *follow)
    names = [f"blocks.{i}" for i in range(3)]
    assert select_layers(parts(blocks=blocks, head=nn.Linear(8, 2))) == [*names, "head"]
    stages = sequence(nn.Conv2d(3, 8, 3), nn.ReLU(), Block(two()), nn.MaxPool2d(2), Wide(two()), *follow)
    assert select_layers(parts(a=stages, head=nn.Linear(8, 2))) == ["a.1", "a.2", "a.4", "head"]
    whole = sequence(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1))
    assert select_layers(parts(a=whole, head=nn.Linear(8, 2))) == ["a.1", "a.3", "head"]


def test_by_default_what_the_model_uses_in_several_places_stands_for_none_of_them() -> None:
    relu = nn.ReLU()
    first, second = (sequence(nn.Linear(8, 8), relu, nn.Linear(8, 8), relu) for _ in range(2))
    model = sequence(OrderedDict(first=first, second=second))  # type: ignore[arg-type]
    names = ["first.0", "first.2", "second.0", "second.2"]
    assert select_layers(model) == names
    probe_set = pf.ProbeSet.from_tensors(torch.randn(40, 8), None, torch.randn(20, 8), None)
    assert pf.probe(model, probe_set).layers == names
    assert pf.probe(model, probe_set, layers="!first*").layers == names[2:]
    twice = parts(a=nn.ModuleList([relu, nn.Linear(8, 8)]), b=nn.ModuleList([nn.Linear(8, 8), relu]))
    assert select_layers(twice) == ["a.0", "a.1", "b.0"]
    again = nn.Linear(8, 8)
    body = sequence(nn.Linear(8, 8), nn.ReLU(), again, nn.ReLU(), again, nn.Tanh())
    assert select_layers(parts(body=body, head=nn.Linear(8, 2))) == ["body.1", "body.3", "body.5", "head"]
    body = sequence(nn.Linear(8, 8), nn.ReLU(), again, nn.ReLU(), again)
    assert select_layers(parts(body=body, head=nn.Linear(8, 2))) == ["body.1", "body.2", "body.3", "head"]


def test_by_default_what_a_list_has_none_of_is_no_layer() -> None:
    holes = nn.ModuleList([None, Block(two()), Block(two())])  # type: ignore[list-item]
    assert select_layers(parts(blocks=holes, head=nn.Linear(8, 2))) == ["blocks.1", "blocks.2", "head"]


def test_by_default_activations_and_norms_of_the_user_count_as_such() -> None:
    class Sine(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sin()

    class Norm(Block):
        """Around one of torch."""

    class GlobalPool(Sine):
        """Of whole maps."""

    class GlobalNorm(Sine):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

    class FlattenNorm(GlobalNorm):
        """Of another shape."""

    for follow, last in (
        (Sine(), True),
        (GlobalNorm(), True),
        (FlattenNorm(), False),
        (Norm(nn.LayerNorm(8)), True),
        (GlobalPool(), False),
        (nn.Upsample(8), False),
    ):
        body = sequence(nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 8), follow, nn.Flatten(), nn.Identity())
        assert select_layers(parts(a=body, head=nn.Linear(8, 2))) == ["a.0", "a.3" if last else "a.2", "head"]


def test_by_default_a_module_of_two_names_is_no_other_one() -> None:
    model = parts(encoder=plain(), head=nn.Linear(8, 2))
    model.backbone = model.encoder
    assert select_layers(model) == ["encoder.3", "encoder.7", "head"]
    stages = parts(a=Block(two()), b=Block(two()))
    aliased = parts(net=stages, stages=nn.ModuleList([stages.a, stages.b]), head=nn.Linear(8, 2))
    assert select_layers(aliased) == ["net", "net.a", "net.b", "head"]


def test_by_default_layers_beside_a_sequence_of_some_are_few_or_many() -> None:
    bare = {f"fc{i}": nn.Linear(8, 8) for i in range(3)}
    assert select_layers(parts(conv=plain(), **bare)) == ["conv.3", "conv.7", *bare]
    tables = parts(embs=nn.ModuleList(nn.Embedding(9, 4) for _ in range(6)), mlp=plain())
    assert select_layers(tables)[-2:] == ["mlp.3", "mlp.7"]

    class Noisy(nn.Module):
        def __init__(self, of: int, to: int) -> None:
            super().__init__()
            self.mean, self.deviation = (nn.Parameter(torch.ones(to, of)) for _ in range(2))

    noisy = sequence(Noisy(8, 64), nn.ReLU(), Noisy(64, 64), nn.ReLU(), Noisy(64, 1))
    assert select_layers(parts(body=noisy, head=nn.Linear(8, 2)))[:3] == ["body.1", "body.3", "body.4"]


def test_by_default_norms_of_maps_scales_and_parametrized_layers_are_what_they_are() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))

    normed = nn.utils.parametrizations.spectral_norm
    for layer in (
        lambda: (nn.Conv2d(8, 8, 3), nn.LayerNorm([8, 6, 6]), nn.ReLU()),
        lambda: (nn.Conv2d(8, 8, 3), Scale(), nn.ReLU()),
        lambda: (normed(nn.Conv2d(8, 8, 3)), nn.Dropout(), nn.LeakyReLU()),
        lambda: (nn.Conv2d(1, 8, 1), nn.InstanceNorm2d(8), nn.PReLU()),
    ):
        assert select_layers(parts(a=sequence(*layer(), *layer()), head=nn.Linear(8, 2))) == ["a.2", "a.5", "head"]


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
    assert select_layers(whole) == [*(f"features.{i}" for i in range(6)), "head"]


def test_by_default_losses_are_no_layers() -> None:
    trained = parts(net=parts(a=plain(), head=nn.Linear(8, 2)), loss=nn.CrossEntropyLoss())
    assert select_layers(trained) == ["net.a.3", "net.a.7", "net.head"]
    assert select_layers(trained, ["loss"]) == ["loss"]
    assert select_layers(parts(loss=nn.MSELoss())) == ["loss"]
    metric = type("Accuracy", (nn.Module,), {"__module__": "torchmetrics.classification"})()
    assert select_layers(parts(head=nn.Linear(8, 2), accuracy=metric)) == ["head"]


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
    assert select_layers(transformer) == ["conv_proj", *blocks, "encoder.ln", "heads"]
    swin = models.swin_transformer.SwinTransformer([4, 4], 8, [1, 2], [1, 2], [4, 4])
    assert select_layers(swin)[:5] == ["features.0", "features.1", "features.2", "features.3", "norm"]
    mobile = select_layers(models.mobilenet_v3_small())
    assert mobile == [*(f"features.{i}" for i in range(13)), "avgpool", "classifier"]
    ends = [f"features.{i}" for i in (3, 7, 10, 14, 17, 21, 24, 28)]
    assert select_layers(models.vgg11_bn())[:9] == [*ends, "avgpool"]
    with torch.device("meta"):
        segmenting = models.get_model("deeplabv3_resnet50", weights_backbone=None)
        detecting = models.get_model("ssdlite320_mobilenet_v3_large", weights_backbone=None)
    assert select_layers(segmenting)[-2:] == ["backbone.layer4", "classifier"]
    assert select_layers(detecting) == ["backbone", "anchor_generator", "head", "transform"]
    small = [f"features.{name}" for name in ("pool0", "denseblock1", "transition1", "denseblock2")]
    assert select_layers(models.DenseNet(8, (1, 1), 16)) == [*small, "classifier"]
    assert select_layers(models.resnet18())[4:8] == ["layer1", "layer2", "layer3", "layer4"]
