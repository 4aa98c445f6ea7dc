"""Networks of every kind, thinned at random: against the original network with zeros, by costs, and as ONNX."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import (
    Concatenating,
    Exciting,
    Flattening,
    Inception,
    Mobile,
    Residual,
    Shuffled,
    random_merge_plan,
    random_thin_plan,
    settled,
)  # fmt: skip
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from edgeprune.deployment.parity import measure_parity, random_inputs
from edgeprune.exporters.to_onnx import to_onnx
from edgeprune.graph import Graph
from edgeprune.onnx_files.macs import count_macs
from edgeprune.onnx_files.model import save_onnx
from edgeprune.plans.check import check_plan
from edgeprune.plans.costs import planned_macs, planned_params
from edgeprune.plans.plan import Plan
from edgeprune.rewriting.fold import fold
from edgeprune.rewriting.rewrite import masked, rewrite
from edgeprune.tracing.trace import trace
from edgeprune.zoo.cifar_densenet import CifarDenseNet, CifarDenseNet86
from edgeprune.zoo.cifar_preresnet import CifarPreResNet
from edgeprune.zoo.cifar_resnet import FORMS, CifarResNet

FEWER_BLOCKS = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
"""Of MobileNetV2: expansion, channels, how many, stride. Blocks with and without a shortcut, as in all seven stages."""
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "shortcut with zeros on both sides": lambda: CifarResNet(8, FORMS[""], width=8),
    "shortcut with zeros behind": lambda: CifarResNet(14, FORMS["-stage"], width=6),
    "projection shortcut": lambda: CifarResNet(8, FORMS["-b"], width=8),
    "basic blocks": lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5),
    "bottlenecks": lambda: ResNet(Bottleneck, [1, 2, 1, 1], num_classes=5, width_per_group=8),
    "pre-activation": lambda: CifarPreResNet(20, width=4),
    "dense": lambda: CifarDenseNet(13, width=10),
    "dense bottlenecks": lambda: CifarDenseNet86(layers=2, width=10),
    "dense, list of parts": lambda: DenseNet(8, (2, 3), 12, num_classes=5),
    "depthwise": lambda: torchvision.models.MobileNetV2(5, 0.25, FEWER_BLOCKS),
    "inception": Inception,
    "flattened": Flattening,
    "squeeze and excitation": Exciting,
    "every shortcut": Residual,
    "concatenated": Concatenating,
    "mobile": Mobile,
    "pinned": Shuffled,
}
EXPORTED = (
    "shortcut with zeros on both sides", "pre-activation", "dense bottlenecks", "depthwise", "inception", "flattened",
    "squeeze and excitation",
)  # fmt: skip
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def prepared(name: str) -> tuple[nn.Module, Graph]:
    """The network, each test's own, and its graph."""
    model, graph = _prepared(name)
    return copy.deepcopy(model), graph


@functools.cache
def _prepared(name: str) -> tuple[nn.Module, Graph]:
    torch.manual_seed(0)
    model = settled(NETWORKS[name]()).double()
    return model, trace(model, X[:1]).graph


def outputs(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return model(x)


def assert_same(got: Tensor, expected: Tensor) -> None:
    """Equal to 1e-9 of the outputs' range, in float64."""
    span = float(expected.max() - expected.min())
    assert span > 0
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9 * span)


def with_equal_channels(model: nn.Module, plan: Plan, graph: Graph) -> nn.Module:
    """The model, in which the channels of each cluster are made equal: their filters, and BatchNorm wherever they go."""
    with torch.no_grad():
        for entry in plan.sets:
            places = dict(graph.places(entry.name))
            tensors = [
                (tensor, 0, 1)
                for name in graph.coupled_set(entry.name).producers
                for tensor in model.get_submodule(name).parameters()
            ]
            for norm in graph.norms:
                if norm.coupled_set in places:
                    state = model.get_submodule(norm.name).state_dict().values()
                    tensors += [(t, places[norm.coupled_set], norm.features_per_channel) for t in state if t.dim()]
            for tensor, offset, features in tensors:
                blocks = tensor.unflatten(0, (-1, features))
                for first, *others in entry.merged:
                    for other in others:
                        blocks[offset + other] = blocks[offset + first]
    return model


def reading_only_what_is_kept(model: nn.Module, plan: Plan, graph: Graph) -> nn.Module:
    """The model as its fx graph with masks: no layer and no zero-padded shortcut reads a channel that is cut, and the
    ends of branches add no filter that is."""
    kept = {coupled.name: torch.ones(coupled.channels, dtype=torch.float64) for coupled in graph.coupled_sets}
    for entry in plan.sets:
        gone = [c for c in range(graph.coupled_set(entry.name).channels) if c not in entry.kept]
        for place, offset in graph.places(entry.name):
            kept[place][[offset + c for c in gone]] = 0

    def masked_by(mask: Tensor | list[float], x: Tensor) -> Tensor:
        return x * torch.as_tensor(mask).to(x).reshape(1, -1, *[1] * (x.dim() - 2))

    traced = trace(model, X[:1])
    model = traced.module
    nodes = {node.name: node for node in model.graph.nodes}
    for name, padding in zip(traced.paddings, graph.paddings, strict=True):
        source = nodes[name].all_input_nodes[0]
        with model.graph.inserting_before(nodes[name]):
            masked_source = model.graph.call_function(masked_by, (kept[padding.source].tolist(), source))
        nodes[name].replace_input_with(source, masked_source)
    model.recompile()
    for layer in graph.layers:
        mask = kept[layer.reads].repeat_interleave(layer.features_per_channel)
        reader = model.get_submodule(layer.name)
        reader.register_forward_pre_hook(lambda module, inputs, mask=mask: masked_by(mask, inputs[0]))
    for entry in plan.layers:
        if entry.kept_filters:
            mask = torch.zeros(graph.layer(entry.name).out_channels, dtype=torch.float64)
            mask[list(entry.kept_filters)] = 1
            last = model.get_submodule(graph.layer(entry.name).norm or entry.name)
            last.register_forward_hook(lambda module, inputs, output, mask=mask: masked_by(mask, output))
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_cut_channels_are_as_if_nothing_read_them(name: str) -> None:
    model, graph = prepared(name)
    plan = random_thin_plan(graph, 0.6, seed=1, merge=False)
    small = rewrite(model, plan, graph)
    assert_same(outputs(small), outputs(reading_only_what_is_kept(model, plan, graph)))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_thinned_network_computes_what_the_original_does_with_zeros(name: str) -> None:
    model, graph = prepared(name)
    plan = random_thin_plan(graph, 0.6, seed=3)
    assert check_plan(plan, graph) == []
    small = rewrite(model, plan, graph)
    assert_same(outputs(small), outputs(masked(small, model, plan, graph)))
    assert set(small.state_dict()) == set(model.state_dict())
    assert planned_params(plan, graph) == sum(p.numel() for p in small.parameters()) < graph.params
    with FlopCounterMode(display=False) as counter:
        outputs(small, X[:1])
    assert 2 * sum(planned_macs(plan, graph).values()) == counter.get_total_flops() < 2 * graph.macs


@pytest.mark.parametrize("name", NETWORKS)
def test_merging_equal_channels_loses_nothing(name: str) -> None:
    model, graph = prepared(name)
    plan = random_merge_plan(graph, seed=5)
    assert any(entry.merged for entry in plan.sets)
    model = with_equal_channels(model, plan, graph)
    small = rewrite(model, plan, graph)
    assert sum(p.numel() for p in small.parameters()) < graph.params
    assert_same(outputs(small), outputs(model))
    assert_same(outputs(masked(small, model, plan, graph)), outputs(model))


@pytest.mark.parametrize("name", ["every shortcut", "concatenated", "mobile", "flattened", "squeeze and excitation"])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(share=st.floats(0.01, 1.0), seed=st.integers(0, 10**6))
def test_any_share_of_the_channels_can_be_left(name: str, share: float, seed: int) -> None:
    model, graph = prepared(name)
    plan = random_thin_plan(graph, share, seed)
    assert check_plan(plan, graph) == []
    small = rewrite(model, plan, graph)
    assert_same(outputs(small), outputs(masked(small, model, plan, graph)))
    assert planned_params(plan, graph) == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_a_thinned_network_changes_nothing(name: str) -> None:
    model, graph = prepared(name)
    small = rewrite(model, random_thin_plan(graph, 0.5, seed=7), graph)
    assert_same(outputs(fold(small, X).module), outputs(small))


@pytest.mark.parametrize("name", EXPORTED)
def test_the_file_of_a_thinned_network_computes_the_same(name: str, tmp_path: Path) -> None:
    model, graph = prepared(name)
    model = model.float()
    plan = random_thin_plan(graph, 0.5, seed=11)
    small = rewrite(model, plan, graph)
    onnx_model = to_onnx(fold(small, X.float()).module, X.float())
    save_onnx(onnx_model, tmp_path / "model.onnx")
    inputs = {"two": random_inputs((3, 32, 32), 3, 2), "five": random_inputs((3, 32, 32), 4, 5)}
    reference = masked(small, model, plan, graph).double()
    references = {key: [outputs(reference, torch.from_numpy(x).double()).numpy()] for key, x in inputs.items()}
    record = measure_parity(tmp_path / "model.onnx", inputs, references)
    assert record.max_rel < 1e-5
    assert count_macs(onnx_model).total == sum(planned_macs(plan, graph).values())


@pytest.mark.parametrize("name", ["shortcut with zeros on both sides", "dense", "flattened"])
def test_a_thinned_network_can_be_trained_on(name: str) -> None:
    model, graph = prepared(name)
    small = rewrite(model.train(), random_thin_plan(graph, 0.5, seed=13), graph)
    before = {key: tensor.clone() for key, tensor in small.state_dict().items()}
    small(X).square().mean().backward()
    torch.optim.SGD(small.parameters(), lr=0.1).step()
    moved = [key for key, p in small.named_parameters() if not np.array_equal(before[key], p.detach())]
    assert len(moved) > 0.9 * len(list(small.parameters()))
