"""Tracing: layers, coupled sets, and what is said of layers that stay dense."""

from __future__ import annotations

import pytest
import torch
from networks import Branching, Concatenating, Mobile, Residual, Shuffled
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgeprune.errors import InputError
from edgeprune.graph import Graph
from edgeprune.tracing.trace import trace

X = torch.randn(2, 3, 16, 16)


def graph_of(model: nn.Module, x: Tensor = X) -> Graph:
    return trace(model, x).graph


@pytest.mark.parametrize("network", [Residual, Concatenating, Mobile, Shuffled, Branching])
def test_macs_and_parameters_are_torchs_own_count(network: type[nn.Module]) -> None:
    model = network().eval()
    graph = graph_of(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(X[:1])
    assert 2 * graph.macs == counter.get_total_flops()
    assert graph.params == sum(p.numel() for p in model.parameters())


def test_residual_adds_couple_their_producers() -> None:
    graph = graph_of(Residual())
    assert graph.layer("stem").writes == graph.layer("b").writes != graph.layer("a").writes
    assert graph.layer("d").writes == graph.layer("project").reads == graph.layer("e").reads
    assert graph.layer("e").writes == graph.layer("project").writes == graph.layer("head").reads
    assert graph.layer("head").features_per_channel == 4
    assert [layer.name for layer in graph.layers if layer.is_first] == ["stem"]
    assert [layer.name for layer in graph.layers if layer.is_shortcut] == ["project"]


def test_zero_channel_shortcuts_keep_two_sets_apart() -> None:
    traced = trace(Residual(), X)
    assert list(traced.paddings.values()) == [(8, 8)]
    assert traced.graph.layer("b").writes != traced.graph.layer("d").writes


def test_depthwise_layers_and_scales_follow_their_input() -> None:
    graph = graph_of(Mobile())
    assert graph.layer("mid.0").writes == graph.layer("depthwise.0").reads == graph.layer("depthwise.0").writes
    assert graph.layer("excite").writes == graph.layer("mid.0").writes
    assert graph.layer("depthwise.0").is_depthwise


def test_concatenations_are_made_of_their_parts() -> None:
    traced = trace(Concatenating(), X)
    assert traced.concatenations[traced.graph.layer("conv2").reads] == (
        traced.graph.layer("stem").writes, traced.graph.layer("conv1").writes,
    )  # fmt: skip


def test_what_is_not_understood_pins_its_sets_and_says_why() -> None:
    graph = graph_of(Shuffled())
    assert "several places" in graph.layer("shared").refusal
    assert graph.coupled_set(graph.layer("grouped").reads).pinned
    assert "already grouped" in graph.coupled_set(graph.layer("grouped").writes).in_order
    assert not graph.coupled_set(graph.layer("after").writes).pinned


def test_an_untraceable_submodule_stays_dense_as_a_whole() -> None:
    graph = graph_of(Branching())
    assert "torch.fx cannot trace" in graph.layer("moody.inner").refusal
    assert "moody" in graph.layer("moody.inner").refusal
    assert not graph.layer("tail").refusal
    assert [layer.name for layer in graph.layers] == ["stem", "moody.inner", "tail"]


def test_subclasses_of_layers_are_left_alone() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    graph = graph_of(nn.Sequential(nn.Conv2d(3, 8, 3), Scaled(8, 8, 3), nn.Conv2d(8, 8, 3)))
    assert "Scaled" in graph.layer("1").refusal
    assert not graph.layer("2").refusal


def test_a_model_whose_own_forward_branches_is_an_error_with_a_remedy() -> None:
    class Moody(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match="cannot be traced.*submodule"):
        trace(Moody(), X)


def test_an_input_of_the_wrong_size_is_an_error() -> None:
    with pytest.raises(InputError, match=r"cannot be run on an input of shape \(2, 1, 16, 16\).*--input-size"):
        trace(Residual(), torch.randn(2, 1, 16, 16))
