"""Branches of residual blocks that are left out: against the network with zeros there, by costs, as ONNX, and refused."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import networks
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

import edgeprune
from edgeprune.graph import Graph
from edgeprune.methods.base import MethodResult
from edgeprune.plans.check import check_plan
from edgeprune.plans.costs import planned_macs, planned_params
from edgeprune.plans.plan import LayerPlan, Plan
from edgeprune.pruning.network import load_network
from edgeprune.pruning.options import NetworkSource
from edgeprune.pruning.pruned import Pruned, open_pruned
from edgeprune.rewriting.rewrite import masked, rewrite
from edgeprune.tracing.trace import trace
from edgeprune.zoo.cifar_preresnet import CifarPreResNet

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "basic blocks": lambda: ResNet(BasicBlock, [2, 1, 1, 1], num_classes=5),
    "bottlenecks": lambda: ResNet(Bottleneck, [2, 1, 1, 1], num_classes=5, width_per_group=8),
    "depthwise and squeeze-excite": lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
    "pre-activation": lambda: CifarPreResNet(20, width=4),
    "padded shortcut": networks.Residual,
}
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def prepared(name: str) -> tuple[nn.Module, Graph]:
    """The network, each test's own, and its graph."""
    model, graph = _prepared(name)
    return copy.deepcopy(model), graph


@functools.cache
def _prepared(name: str) -> tuple[nn.Module, Graph]:
    torch.manual_seed(0)
    model = networks.settled(NETWORKS[name]()).double()
    return model, trace(model, X[:1]).graph


def ends_of(graph: Graph) -> list[str]:
    return [layer.name for layer in graph.layers if layer.branch]


def without(plan: Plan, ends: Sequence[str]) -> Plan:
    """The plan, in which the branches that these layers end are left out."""
    layers = tuple(LayerPlan(e.name, left_out=True) if e.name in ends else e for e in plan.layers)
    return msgspec.structs.replace(plan, layers=layers)


def dense_plan(graph: Graph) -> Plan:
    return Plan("by hand", {}, 0, tuple(LayerPlan(layer.name) for layer in graph.layers))


def outputs(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return model(x)


def assert_carried_out(model: nn.Module, plan: Plan, graph: Graph) -> nn.Module:
    """The rewritten model, which computes what the original does with zeros, and costs what the plan says."""
    assert check_plan(plan, graph) == []
    small = rewrite(model, plan, graph)
    expected = outputs(masked(small, model, plan, graph))
    torch.testing.assert_close(outputs(small), expected, rtol=0, atol=1e-9 * float(expected.max() - expected.min()))
    assert planned_params(plan, graph) == sum(p.numel() for p in small.parameters())
    with FlopCounterMode(display=False) as counter:
        outputs(small, X[:1])
    assert 2 * sum(planned_macs(plan, graph).values()) == counter.get_total_flops()
    if not plan.grouped():
        again = trace(small, X[:1]).graph
        assert (sum(planned_macs(plan, graph).values()), planned_params(plan, graph)) == (again.macs, again.params)
    return small


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_without_some_branches_is_the_original_with_zeros_there(name: str) -> None:
    model, graph = prepared(name)
    ends = ends_of(graph)
    assert ends
    small = assert_carried_out(model, without(dense_plan(graph), ends[::2]), graph)
    assert not {layer for end in ends[::2] for layer in graph.layer(end).branch} & dict(small.named_modules()).keys()
    moved = outputs(small) - outputs(model)
    assert float(moved.abs().max()) > 1e-3, "the branches did something"
    assert_carried_out(model, without(dense_plan(graph), ends), graph)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("seed", "share"), [(1, 0.3), (2, 0.7)])
def test_beside_thinner_layers(name: str, seed: int, share: float) -> None:
    model, graph = prepared(name)
    ends = ends_of(graph)[seed % 2 :: 2]
    assert_carried_out(model, without(networks.random_thin_plan(graph, share, seed), ends), graph)


def test_beside_layers_in_groups() -> None:
    model, graph = prepared("basic blocks")
    end = ends_of(graph)[1]
    grouped = networks.random_plan(graph, 4, overlap=True, share=True)
    inside = graph.layer(end).branch
    layers = tuple(LayerPlan(e.name) if e.name in inside else e for e in grouped.layers)
    assert_carried_out(model, without(msgspec.structs.replace(grouped, layers=layers), [end]), graph)


def relus(model: nn.Module) -> int:
    traced = trace(model, X[:1]).module
    modules = dict(traced.named_modules())
    return sum(
        n.target in (F.relu, torch.relu) or (n.op == "call_module" and isinstance(modules[str(n.target)], nn.ReLU))
        for n in traced.graph.nodes
    )


def test_a_relu_behind_a_relu_goes_with_the_branch() -> None:
    """Of a basic block both do: the one inside, and the one behind the add, which reads what is not negative."""
    model, graph = prepared("basic blocks")
    small = rewrite(model, without(dense_plan(graph), ["layer1.1.conv2"]), graph)
    assert relus(small) == relus(model) - 2
    model, graph = prepared("pre-activation")  # no ReLU in the stream: the other blocks still need theirs
    end = ends_of(graph)[1]
    assert relus(rewrite(model, without(dense_plan(graph), [end]), graph)) == relus(model) - 3


def test_the_rewritten_model_can_be_trained_on() -> None:
    model, graph = prepared("bottlenecks")
    small = rewrite(model.train(), without(dense_plan(graph), ends_of(graph)[:2]), graph)
    assert small.training
    small(X).square().mean().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_the_plan_survives_json(tmp_path: Path) -> None:
    _, graph = prepared("basic blocks")
    plan = without(dense_plan(graph), ends_of(graph)[:1])
    for text in (plan.to_json(), plan.to_readable_json()):
        again = msgspec.json.decode(text, type=Plan)
        assert again == plan
        assert again.sha256() == plan.sha256() != dense_plan(graph).sha256()
    assert b"left_out" not in dense_plan(graph).to_json(), "plans of before keep their hashes"


def test_the_bundle_of_a_network_without_a_branch_passes_parity(tmp_path: Path) -> None:
    """As a file, which shares nothing with the model that has zeros in the branch's place."""
    network = load_network(NetworkSource("resnet8-w8", random_init=True, input_size=(3, 16, 16)))
    networks.settled(network.model)
    graph = trace(network.model, network.example_input(1)).graph
    ends = ends_of(graph)
    plan = without(networks.random_thin_plan(graph, 0.6, 1, merge=False), ends[:1])
    pruned = Pruned(network, graph, plan, rewrite(network.model, plan, graph).eval(), MethodResult(plan))
    bundle = edgeprune.export(pruned, tmp_path / "bundle")
    assert bundle.manifest.parity is not None
    assert bundle.manifest.parity.max_rel < 1e-4
    reopened = open_pruned(bundle)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(outputs(reopened.model, x), outputs(pruned.model, x))


# -- what cannot be left out -------------------------------------------------------------------------------------------
def faults(graph: Graph, *entries: LayerPlan) -> list[str]:
    named = {entry.name: entry for entry in entries}
    layers = tuple(named.get(layer.name, LayerPlan(layer.name)) for layer in graph.layers)
    return check_plan(Plan("by hand", {}, 0, layers), graph)


def test_layers_that_end_no_branch_cannot_be_left_out() -> None:
    _, graph = prepared("basic blocks")
    for name in ("conv1", "layer1.0.conv1", "layer2.0.downsample.0", "fc"):
        assert [f.partition(":")[0] for f in faults(graph, LayerPlan(name, left_out=True))] == [name]
    both = LayerPlan("layer1.0.conv2", left_out=True, kept_filters=(0, 1))
    assert "is changed as well" in faults(graph, both)[0]


def test_nothing_inside_a_branch_that_is_left_out_is_grouped() -> None:
    _, graph = prepared("basic blocks")
    halves = (tuple(range(32)), tuple(range(32, 64)))
    inside = LayerPlan("layer1.0.conv1", halves, halves)
    assert faults(graph, inside) == []
    found = faults(graph, inside, LayerPlan("layer1.0.conv2", left_out=True))
    assert found == ["layer1.0.conv1: is grouped, and its branch is left out: one of the two."]


class Two(nn.Module):
    """Two branches of one add, one with a BatchNorm and a PReLU of its own, and an inner layer that is called again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.slope = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.PReLU(8)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.d = nn.Conv2d(8, 8, 3, padding=1)
        self.shared, self.c = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = self.a(self.d(self.slope(self.norm(x)))) + self.b(x)
        x = x + self.c(F.relu(self.shared(x)))
        return self.shared(x).mean((2, 3))


def test_of_two_branches_that_are_added_the_longer_may_go() -> None:
    model = networks.settled(Two()).double()
    graph = trace(model, X[:1]).graph
    assert graph.layer("a").branch == ("d", "a")
    assert graph.layer("b").branch == ()
    small = assert_carried_out(model, without(dense_plan(graph), ["a"]), graph)
    assert not hasattr(small, "slope"), "nor what was between the layers"
    assert check_plan(without(dense_plan(graph), ["a", "b"]), graph), "nothing would be left to add"


def test_a_layer_that_is_called_elsewhere_does_not_go_with_a_branch() -> None:
    graph = trace(networks.settled(Two()).double(), X[:1]).graph
    assert graph.layer("c").ends_branch
    assert "ends no branch" in check_plan(without(dense_plan(graph), ["c"]), graph)[0]
