"""What tracing finds in real networks: layers, coupled sets and their members, places, and why a set is pinned."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import Exciting, Flattening
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgeprune.checkpoints.arch_fit import fitting_arch, shapes_of
from edgeprune.checkpoints.checkpoint import load_into
from edgeprune.checkpoints.state import LoadedState
from edgeprune.graph import CoupledSet, Graph
from edgeprune.rewriting.fold import fold
from edgeprune.tracing.channel_calls import literal_features
from edgeprune.tracing.trace import trace
from edgeprune.zoo import build


def graph_of(model: nn.Module, size: int = 32) -> Graph:
    return trace(model.eval(), torch.randn(1, 3, size, size)).graph


@functools.cache
def graph_of_arch(arch: str) -> Graph:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_"):
            patch.setattr(nn.init, name, _left_as_it_is)  # tracing looks at no value, and drawing them takes longer
        model = build(arch).model
    return graph_of(model, 64 if arch.startswith("torchvision:") else 32)


def _left_as_it_is(tensor: Tensor, *_: object, **__: object) -> Tensor:
    return tensor


def written_by(graph: Graph, layer: str) -> CoupledSet:
    return graph.coupled_set(graph.layer(layer).writes)


def reasons(graph: Graph) -> dict[str, str]:
    return {coupled.name: coupled.pinned for coupled in graph.coupled_sets if coupled.pinned}


@dataclass(frozen=True)
class Census:
    layers: int
    sets: int
    concatenations: int = 0
    paddings: int = 0
    norms: int = 0
    branch_ends: int = 0
    shortcuts: int = 0


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("resnet20", Census(20, 14, paddings=2, norms=19, branch_ends=9)),
        ("resnet20-stage", Census(20, 14, paddings=2, norms=19, branch_ends=9)),
        ("resnet20-b", Census(22, 14, norms=21, branch_ends=11, shortcuts=2)),
        ("resnet56", Census(56, 32, paddings=2, norms=55, branch_ends=27)),
        ("resnet164", Census(167, 114, norms=163, branch_ends=57, shortcuts=3)),
        ("densenet40", Census(40, 77, concatenations=36, norms=39)),
        ("densenet86", Census(86, 129, concatenations=42, norms=85)),
        ("vgg16-cifar", Census(14, 15, norms=13)),
        ("torchvision:resnet18", Census(21, 14, norms=20, branch_ends=11, shortcuts=3)),
        ("torchvision:resnet50", Census(54, 39, norms=53, branch_ends=20, shortcuts=4)),
        ("torchvision:densenet121", Census(121, 184, concatenations=62, norms=121)),
        ("torchvision:mobilenet_v2", Census(53, 27, norms=52, branch_ends=10)),
        ("torchvision:googlenet", Census(58, 68, concatenations=9, norms=57)),
    ],
)
def test_networks_are_understood_whole(arch: str, expected: Census) -> None:
    graph = graph_of_arch(arch)
    found = Census(
        len(graph.layers), len(graph.coupled_sets), sum(bool(s.parts) for s in graph.coupled_sets), len(graph.paddings),
        len(graph.norms), sum(layer.ends_branch for layer in graph.layers), sum(la.is_shortcut for la in graph.layers),
    )  # fmt: skip
    assert found == expected
    assert list(reasons(graph).values()) == ["the network's input", "the network's output"]
    assert not any(layer.refusal for layer in graph.layers)
    assert [layer.name for layer in graph.layers if layer.is_first] == [graph.layers[0].name]


# -- residual streams --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["", "-stage"])
def test_the_stages_of_a_resnet_are_one_set_each_and_zero_padding_leads_from_one_to_the_next(form: str) -> None:
    graph = graph_of_arch(f"resnet14{form}")
    first, second, third = (written_by(graph, layer) for layer in [la.name for la in graph.layers][2:-1:4])
    assert [len(s.producers) for s in (first, second, third)] == [3, 2, 2]
    assert graph.layers[0].name in first.producers
    lead = (8, 16) if form == "" else (0, 0)
    assert [(p.source, p.target, p.lead) for p in graph.paddings] == [
        (first.name, second.name, lead[0]), (second.name, third.name, lead[1]),
    ]  # fmt: skip


def test_projections_belong_to_the_stream_that_they_lead_into() -> None:
    graph = graph_of_arch("torchvision:resnet50")
    stream = written_by(graph, "layer2.0.downsample.0")
    assert stream.producers == (
        "layer2.0.conv3", "layer2.0.downsample.0", "layer2.1.conv3", "layer2.2.conv3", "layer2.3.conv3",
    )  # fmt: skip
    assert stream.consumers == (
        "layer2.1.conv1", "layer2.2.conv1", "layer2.3.conv1", "layer3.0.conv1", "layer3.0.downsample.0",
    )  # fmt: skip
    assert graph.layer("layer2.0.conv3").norm == "layer2.0.bn3"
    assert written_by(graph, "layer2.0.conv2").producers == ("layer2.0.conv2",)


def test_norms_before_a_convolution_belong_to_the_stream_that_they_read() -> None:
    graph = graph_of_arch("resnet164-w4")
    norms = {norm.name: norm.coupled_set for norm in graph.norms}
    stream = written_by(graph, "layer2.0.downsample.0")
    assert len(stream.producers) == 19
    assert norms["layer2.1.bn1"] == norms["layer2.17.bn1"] == norms["layer3.0.bn1"] == stream.name
    assert norms["layer2.0.bn1"] == written_by(graph, "layer1.0.conv3").name != stream.name
    assert norms["bn"] == graph.layer("fc").reads
    # A convolution of the stream has no BatchNorm of its own, one inside a block has the next convolution's.
    assert graph.layer("layer2.1.conv3").norm == ""
    assert graph.layer("layer2.1.conv1").norm == "layer2.1.bn2"
    assert graph.layer("layer2.1.conv3").ends_branch
    assert graph.layer("layer2.0.downsample.0").is_shortcut


# -- concatenations ----------------------------------------------------------------------------------------------------
def test_dense_connections_are_concatenations_of_concatenations() -> None:
    graph = graph_of_arch("densenet40")
    read = graph.coupled_set(graph.layer("dense1.2.conv1").reads)
    inner = graph.coupled_set(read.parts[0])
    assert [read.channels, inner.channels] == [40, 28]
    assert inner.parts == (graph.layer("conv1").writes, graph.layer("dense1.0.conv1").writes)
    assert read.parts[1] == graph.layer("dense1.1.conv1").writes
    norms = {norm.name: norm.coupled_set for norm in graph.norms}
    assert norms["dense1.2.bn1"] == read.name
    # The second layer's channels stand behind 16 + 12 others from there to the end of the block, and nowhere else.
    (own, start), *later = graph.places(graph.layer("dense1.1.conv1").writes)
    assert (own, start) == (graph.layer("dense1.1.conv1").writes, 0)
    assert len(later) == 11
    assert {offset for _, offset in later} == {28}
    assert later[-1][0] == graph.layer("trans1.conv1").reads


def test_places_follow_blocks_without_a_convolution_between_them() -> None:
    graph = graph_of_arch("densenet86")
    assert len(graph.places(graph.layer("features.init_conv").writes)) == 1 + 3 * 14
    ((_, _), (last, offset)) = graph.places(graph.layer("features.denseblock_3.denselayer_14.conv2").writes)
    assert (last, offset) == (graph.layer("classifier").reads, 800 - 32)


def test_a_list_of_parts_is_one_concatenation() -> None:
    graph = graph_of_arch("torchvision:densenet121")
    read = graph.coupled_set(graph.layer("features.transition1.conv").reads)
    growing = [f"features.denseblock1.denselayer{number}.conv2" for number in range(1, 7)]
    assert read.parts == tuple(graph.layer(name).writes for name in ("features.conv0", *growing))
    places = dict(graph.places(graph.layer("features.denseblock1.denselayer2.conv2").writes))
    assert places[read.name] == 64 + 32
    assert graph.layer("features.denseblock1.denselayer2.conv1").norm == "features.denseblock1.denselayer2.norm2"
    assert graph.layer("features.denseblock1.denselayer2.conv2").norm == ""


def test_inception_branches_stand_side_by_side() -> None:
    graph = graph_of_arch("torchvision:googlenet")
    branches = [f"inception3a.branch{name}.conv" for name in ("1", "2.1", "3.1", "4.1")]
    joined = graph.coupled_set(graph.layer("inception3b.branch1.conv").reads)
    assert joined.parts == tuple(graph.layer(name).writes for name in branches)
    assert [dict(graph.places(graph.layer(name).writes))[joined.name] for name in branches] == [0, 64, 192, 224]
    assert len(joined.consumers) == 4
    assert graph.layer("inception3a.branch2.0.conv").norm == "inception3a.branch2.0.bn"


# -- depthwise, flattened ----------------------------------------------------------------------------------------------
def test_depthwise_convolutions_follow_the_expansion() -> None:
    graph = graph_of_arch("torchvision:mobilenet_v2")
    hidden = written_by(graph, "features.2.conv.0.0")
    assert hidden.producers == ("features.2.conv.0.0", "features.2.conv.1.0")
    assert hidden.consumers == ("features.2.conv.1.0", "features.2.conv.2")
    assert sum(layer.is_depthwise for layer in graph.layers) == 17
    stream = written_by(graph, "features.2.conv.2")
    assert stream.producers == ("features.2.conv.2", "features.3.conv.2")


def test_a_flattened_map_gives_each_channel_its_pixels() -> None:
    graph = graph_of(torchvision.models.vgg11(num_classes=5, init_weights=False))
    first = graph.layer("classifier.0")
    assert (first.in_channels, first.features_per_channel) == (512, 49)
    assert first.reads == graph.layer("features.18").writes
    hidden = written_by(graph, "classifier.0")
    assert (hidden.channels, hidden.consumers, hidden.pinned) == (4096, ("classifier.3",), "")


def test_views_that_write_their_features_down_are_marked() -> None:
    traced = trace(Flattening().eval(), torch.randn(1, 3, 16, 16))
    assert traced.literal_views == ("view",)
    node = next(node for node in traced.module.graph.nodes if node.name == "view")
    assert literal_features(node) == 40
    assert traced.graph.layer("hidden").features_per_channel == 4
    assert traced.graph.layer("hidden").norm == "hidden_bn"
    assert trace(build("vgg16-cifar").model, torch.randn(1, 3, 32, 32)).literal_views == ()


def test_squeeze_and_excitation_through_linear_layers_is_part_of_the_stream() -> None:
    traced = trace(Exciting().eval(), torch.randn(1, 3, 16, 16))
    graph = traced.graph
    assert written_by(graph, "excite").producers == ("stem", "b", "excite")
    assert graph.layer("squeeze").reads == graph.layer("head").reads == graph.layer("b").writes
    assert len(traced.literal_views) == 1
    assert len(reasons(graph)) == 2


# -- forwards that look difficult --------------------------------------------------------------------------------------
def test_checkpointing_to_save_memory_does_not_hide_the_layers() -> None:
    class Saving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.inner, self.stem(x), use_reentrant=False).mean((2, 3)))

    dense = torchvision.models.densenet.DenseNet(8, (2, 2), 16, memory_efficient=True)
    for graph, layers in ((graph_of(Saving()), 3), (graph_of(dense), 11)):
        assert len(graph.layers) == layers
        assert not any(layer.refusal for layer in graph.layers)
        assert len(reasons(graph)) == 2


def test_what_cannot_be_traced_inside_others_leaves_these_understood() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if x.sum() > -1e9 else x

    stages = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(Moody(), nn.Sequential(nn.ReLU(), Moody())))
    graph = graph_of(nn.Sequential(stages, nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 3)))
    assert [layer.name for layer in graph.layers if layer.refusal] == ["0.1.0.inner", "0.1.1.1.inner"]
    assert written_by(graph, "0.0").pinned == "0.1.0 cannot be traced by torch.fx"
    assert not written_by(graph, "1").pinned


def test_an_input_that_is_taken_apart_pins_nothing_but_itself() -> None:
    model = torchvision.models.GoogLeNet(num_classes=5, transform_input=True, init_weights=False)
    graph = graph_of(model, 64)
    assert not any(layer.refusal for layer in graph.layers)
    assert [layer.name for layer in graph.layers if layer.is_first] == ["conv1.conv"]
    pinned = {layer.name for layer in graph.layers if graph.coupled_set(layer.writes).pinned}
    assert pinned == {"fc"}


class Forward(nn.Module):
    """Two convolutions and a head, with something in between."""

    def __init__(self, between: object) -> None:
        super().__init__()
        self.between = between
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self, F.relu(self.a(x)))).mean((2, 3))


@pytest.mark.parametrize(
    "between",
    [
        lambda net, x: net.b(F.avg_pool2d(F.dropout(x, training=net.training), 2)),
        lambda net, x: net.b(x) * 0.5 + 1,
        lambda net, x: torch.sum(x, (2, 3), keepdim=True).expand_as(x) * net.b(x),
        lambda net, x: net.b(x[..., ::2, 1:]),
        lambda net, x: net.b(x.pow(2).clamp(min=0.1).sqrt()),
        lambda net, x: net.b(x).reshape(x.size(0), x.size(1), -1).view(x.size(0), x.size(1), 32, 32),
        lambda net, x: F.interpolate(net.b(x).mean(3).mean(2)[:, :, None, None], size=8),
    ],
)
def test_what_works_channel_by_channel_pins_nothing(between: object) -> None:
    assert len(reasons(graph_of(Forward(between)))) == 2


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda net, x: net.b(x).transpose(0, 1).transpose(0, 1), "transpose may reorder, mix or count its channels"),
        (
            lambda net, x: net.b(x).transpose(1, 2).cumsum(1).transpose(1, 2),
            "cumsum may reorder, mix or count its channels",
        ),
        (lambda net, x: net.b(x).softmax(1), "softmax may reorder, mix or count its channels"),
        (lambda net, x: torch.cat([net.b(x)[:, 4:], net.b(x)[:, :4]], 1), "b is used at several places"),
        (lambda net, x: net.b(x)[:, [1, 0, 2, 3, 4, 5, 6, 7]], "only some of its channels are taken (getitem)"),
        (
            lambda net, x: net.b(x + net.a.bias.view(1, -1, 1, 1)),
            "it meets view, a value for each channel, in add",
        ),
    ],
)
def test_the_reason_why_a_set_is_pinned_is_told(between: object, reason: str) -> None:
    assert reason in reasons(graph_of(Forward(between))).values()


def test_a_concatenation_that_is_added_to_something_is_in_step_with_it() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1)
            self.other, self.head = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.other(torch.cat([self.a(x), self.b(x)], 1) + self.c(x))).mean((2, 3))

    graph = graph_of(Added())
    assert not any(written_by(graph, name).pinned for name in ("a", "b", "c", "other"))
    assert written_by(graph, "c").parts == (graph.layer("a").writes, graph.layer("b").writes)
    assert graph.layer("other").reads == graph.layer("c").writes


def test_an_add_of_a_number_ends_no_branch() -> None:
    graph = graph_of(Forward(lambda net, x: net.b(x) + 1))
    assert not graph.layer("b").ends_branch
    assert graph_of(Forward(lambda net, x: net.b(x) + x)).layer("b").ends_branch


def test_a_norm_that_is_used_twice_belongs_to_no_layer() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.b(self.norm(self.a(x)))).mean((2, 3))

    graph = graph_of(Shared())
    assert [layer.norm for layer in graph.layers] == ["", ""]
    assert written_by(graph, "a").pinned == "norm is used at several places"


# -- checkpoints of these networks -------------------------------------------------------------------------------------
@pytest.mark.parametrize("arch", ["resnet164-w4", "densenet40-w24", "densenet86", "torchvision:googlenet"])
def test_a_checkpoint_of_another_network_is_told_apart(arch: str) -> None:
    with torch.device("meta"):
        shapes = shapes_of(build(arch).model)
        if arch == "torchvision:googlenet":  # with the auxiliary classifiers, as torchvision saves it
            shapes = shapes_of(torchvision.models.GoogLeNet(init_weights=False))
            assert any(key.startswith("aux1.") for key in shapes)
    assert fitting_arch(shapes) == arch


def test_auxiliary_classifiers_of_a_checkpoint_are_left_out_and_training_gives_logits() -> None:
    saved = torchvision.models.GoogLeNet(num_classes=5, init_weights=False)
    state = LoadedState(dict(saved.state_dict()), "", ())
    model = build("torchvision:googlenet", num_classes=5).model
    report = load_into(model, state, where="googlenet.pth")
    assert report.unexpected == report.missing == ()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(x), saved.eval()(x))
    assert model.train()(x).shape == (2, 5)


def test_modules_may_have_words_of_python_for_names() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inside = nn.ModuleDict({"is": nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())})
            self.parts = nn.ModuleDict({"in": nn.Conv2d(3, 8, 3), "class": inside})
            self.register_parameter("not", nn.Parameter(torch.ones(1)))
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.parts["class"]["is"](self.parts["in"](x)) * getattr(self, "not")
            return self.head(x).mean((2, 3))

    model, x = Words().eval(), torch.randn(2, 3, 16, 16)
    traced = trace(model, x)
    assert [layer.name for layer in traced.graph.layers] == ["parts.in", "parts.class.is.0", "head"]
    torch.testing.assert_close(traced.module(x), model(x))
    torch.testing.assert_close(copy.deepcopy(traced.module)(x), model(x))
    torch.testing.assert_close(fold(model, x).module(x), model(x))
