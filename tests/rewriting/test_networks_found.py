"""Forwards as people write them, pruned at random in groups and in width: against the original with zeros, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from found_networks import NETWORKS
from networks import random_plan, random_thin_plan
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgeprune.errors import InputError
from edgeprune.graph import Graph
from edgeprune.methods.base import PruneRequest, dense_reason
from edgeprune.methods.shared.channel_alignment import aligned
from edgeprune.methods.shared.channel_choice import highest, plan_of
from edgeprune.methods.shared.units import prunable
from edgeprune.plans.check import check_plan
from edgeprune.plans.costs import planned_params
from edgeprune.plans.kept_channels import KeptChannels
from edgeprune.plans.plan import LayerPlan, Plan, SetPlan
from edgeprune.pruning.network import layer_weights
from edgeprune.rewriting.fold import fold
from edgeprune.rewriting.rewrite import masked, rewrite
from edgeprune.tracing.trace import trace

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def prepared(name: str) -> tuple[nn.Module, Graph]:
    """A network whose norms are not the trivial ones, and its graph."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if hasattr(module, "running_mean"):
            size = len(module.running_mean)
            module.running_mean.copy_(torch.randn(size, generator=generator) * 0.2)
            module.running_var.copy_(torch.rand(size, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(size, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(size, generator=generator) * 0.2)
        if isinstance(module, nn.PReLU):
            module.weight.data.copy_(torch.rand(module.num_parameters, generator=generator))
    model = model.double().eval()
    return model, trace(model, X[:1]).graph


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(X)


def assert_same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("overlap", [False, True])
def test_grouped_and_folded_it_computes_what_the_original_does_with_zeros(name: str, overlap: bool) -> None:
    model, graph = prepared(name)
    plan = random_plan(graph, 2, overlap=overlap, share=True)
    assert len(plan.grouped()) >= 2, [layer.refusal for layer in graph.layers]
    pruned = rewrite(model, plan, graph)
    reference = outputs(masked(pruned, model, plan, graph))
    assert_same(outputs(pruned), reference)
    assert_same(outputs(fold(pruned, X).module), reference)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", [1, 2])
def test_thinned_and_folded_it_computes_what_the_original_does_with_zeros(name: str, seed: int) -> None:
    model, graph = prepared(name)
    plan = random_thin_plan(graph, 0.6, seed)
    assert check_plan(plan, graph) == []
    assert plan.sets or any(entry.kept_filters for entry in plan.layers)
    small = rewrite(model, plan, graph)
    reference = outputs(masked(small, model, plan, graph))
    assert_same(outputs(small), reference)
    assert_same(outputs(fold(small, X).module), reference)
    assert planned_params(plan, graph) == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_cut_is_as_if_nothing_read_it(name: str) -> None:
    """Against hooks on the original network, which know nothing of how weights are cut."""
    model, graph = prepared(name)
    among = prunable(graph, PruneRequest(include_first=True), "coupled")
    rng = np.random.default_rng(3)
    kept_places = [highest(rng.random(unit.size), max(1, unit.size // 2)) for unit in among.units]
    plan = plan_of(kept_places, among, "random", {})
    assert check_plan(plan, graph) == []
    small = rewrite(model, plan, graph)
    kept = KeptChannels(plan, graph)
    for layer in graph.layers:
        mask = torch.zeros(kept.inputs(layer).channels, dtype=torch.float64)
        mask[list(kept.inputs(layer).index)] = 1
        behind = 0 if layer.kind == "linear" else 2  # axes behind that of the channels
        mask = mask.repeat_interleave(layer.features_per_channel).reshape(-1, *[1] * behind)
        if layer.reads:
            reader = model.get_submodule(layer.name)
            reader.register_forward_pre_hook(lambda module, inputs, mask=mask: inputs[0] * mask)
    assert_same(outputs(small), outputs(model))


def test_groups_go_as_a_whole_or_lose_the_same_channels_whichever_is_finer() -> None:
    layers = {}
    for name in ("in groups", "in two groups", "several filters a channel", "groups between groups"):
        model, graph = prepared(name)
        small = rewrite(model, random_thin_plan(graph, 0.5, seed=1), graph)
        grouped = small.get_submodule("grouped")
        layers[name] = (grouped.groups, grouped.in_channels, grouped.out_channels)
    assert layers["in groups"] == (4, 8, 8)
    assert layers["in two groups"] == (2, 8, 12)
    assert layers["several filters a channel"] == (8, 8, 24)
    groups, inputs, filters = layers["groups between groups"]
    assert inputs == filters == 2 * groups < 16


def test_a_convolution_that_comes_in_groups_keeps_the_order_around_it_and_groups_of_one_size() -> None:
    _, graph = prepared("in two groups")
    grouped = graph.layer("grouped")
    for name in (grouped.reads, grouped.writes):
        assert graph.coupled_set(name).in_order == "grouped is already grouped"
        assert not graph.coupled_set(name).pinned
    for sets, fault in (
        ((SetPlan(grouped.reads, (0, 1, 8)),), "different numbers of filters, or of input channels"),
        ((SetPlan(grouped.reads, (0, 8), ((0, 1), (8, 9))),), "cannot be merged"),
    ):
        plan = Plan("random", {}, 0, tuple(LayerPlan(layer.name) for layer in graph.layers), sets)
        assert any(fault in sentence for sentence in check_plan(plan, graph))


def test_concatenations_that_are_added_are_in_step_piece_by_piece() -> None:
    _, graph = prepared("added concatenations")
    among = prunable(graph, PruneRequest(include_shortcuts=True), "coupled")
    together = {tuple((name, len(numbers)) for name, numbers in unit.layers) for unit in among.units}
    assert {
        (("parts.0", 6), ("parts.2", 6), ("whole", 6)),
        (("parts.1", 4), ("parts.2", 4), ("whole", 4)),
        (("parts.1", 6), ("parts.3", 6), ("whole", 6)),
    } <= together


def test_transposed_layers_are_thinned_and_count_their_work_where_it_is_done() -> None:
    model, graph = prepared("transposed")
    up = graph.layer("up")
    assert (up.kind, up.positions, up.in_channels, up.out_channels) == ("conv_transpose", 6 * 6, 16, 12)
    assert up.norm == "up_norm"
    assert graph.layer("each").is_depthwise
    assert dense_reason(up, PruneRequest(groups=2)) == "transposed convolutions stay dense"
    with FlopCounterMode(display=False) as counter:
        outputs(model)
    assert 2 * len(X) * graph.macs == counter.get_total_flops()
    folded = fold(model, X).module
    assert "up_norm" not in {str(node.target) for node in folded.graph.nodes}


def test_hidden_channels_of_linear_layers_over_positions_may_go_and_those_of_a_classifier_stay() -> None:
    _, graph = prepared("channels last")
    among = prunable(graph, PruneRequest(), "coupled")
    assert "wide" in {unit.name for unit in among.units}
    assert "LayerNorm" in among.reasons["narrow"] or "permute" in among.reasons["narrow"]
    assert graph.layer("wide").positions == 12 * 12
    flat = trace(nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.ReLU(), nn.Linear(8, 2)).double(), X[:1]).graph
    with pytest.raises(InputError, match="linear layers keep their outputs"):
        prunable(flat, PruneRequest(), "coupled")


def test_the_channels_of_a_split_are_those_of_its_parts() -> None:
    _, graph = prepared("uneven split")
    (whole,) = (coupled for coupled in graph.coupled_sets if coupled.producers == ("second",))
    assert [graph.coupled_set(part).channels for part in whole.parts] == [5, 11]
    assert not whole.pinned
    assert graph.places(whole.parts[1])[1] == (whole.name, 5)


def test_norms_of_other_kinds_are_found_and_fold_away() -> None:
    for name in ("SyncBatchNorm", "FrozenBatchNorm", "BatchNorm with activation"):
        model, graph = prepared(name)
        assert {norm.name for norm in graph.norms} == {"norm", "norm2"}, name
        assert graph.layer("second").norm == "norm2"
        folded = fold(model, X).module
        called = {str(node.target) for node in folded.graph.nodes if node.op == "call_module"}
        assert not {"norm", "norm2"} & called, name
        assert_same(outputs(folded), outputs(model))


def test_a_forward_that_needs_a_second_input_is_told_so() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, other: Tensor) -> Tensor:
            return x + other

    with pytest.raises(InputError, match="also needs other; .* or wrap the network"):
        trace(Two(), X)


def test_blocks_of_channels_are_counted_in_whole_groups() -> None:
    model, graph = prepared("in groups")
    weights = layer_weights(model)
    among = prunable(graph, PruneRequest(rate=0.4, align=4), "coupled")
    (unit,) = (unit for unit in among.units if len({name for name, _ in unit.sets}) > 1)
    assert (unit.size, unit.width) == (8, 2)
    kept = dict(zip([unit.name for unit in among.units], aligned(among, weights).kept, strict=True))
    assert kept[unit.name] in (4, 6), "2 groups of 2 channels are a block of 4; 5 of the 8 were asked for"
    two = prunable(prepared("in two groups")[1], PruneRequest(), "coupled")
    assert {unit.width for unit in two.units} == {1}, "the same channels of each group do not lie side by side"
