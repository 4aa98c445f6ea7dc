"""Thinner layers: what is cut, merged, constant or left out of an add, against a model with zeros in those places."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import Residual, settled
from torch import Tensor, nn

from edgeprune.errors import InputError
from edgeprune.graph import Graph
from edgeprune.plans.check import check_plan
from edgeprune.plans.kept_channels import Kept
from edgeprune.plans.plan import LayerPlan, Plan, SetPlan
from edgeprune.rewriting.rewrite import masked, rewrite
from edgeprune.rewriting.thinning import reduced_columns
from edgeprune.tracing.constants import constants_by_reader, constants_by_set
from edgeprune.tracing.trace import trace

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Plain(nn.Module):
    """Two convolutions with zero padding and BatchNorm between, a flattened linear layer behind."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.norm(self.a(x)))))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 2), 1))


def plan_of(graph: Graph, *sets: SetPlan, **kept_filters: tuple[int, ...]) -> Plan:
    layers = tuple(LayerPlan(layer.name, kept_filters=kept_filters.get(layer.name, ())) for layer in graph.layers)
    return Plan("by hand", {}, 0, layers, sets)


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(X)


def prepared(network: type[nn.Module]) -> tuple[nn.Module, Graph]:
    torch.manual_seed(0)
    model = settled(network()).double()
    return model, trace(model, X).graph


def test_cut_channels_are_as_if_they_were_zero() -> None:
    model, graph = prepared(Plain)
    plan = plan_of(graph, SetPlan("a", (0, 2, 5)), SetPlan("b", (1, 4)))
    small = rewrite(model, plan, graph)
    assert small.b.weight.shape == (2, 3, 3, 3)
    assert small.head.weight.shape == (5, 2 * 4)
    assert small.norm.running_mean.shape == (3,)
    with torch.no_grad():
        for dropped in (1, 3, 4, 6, 7):
            model.b.weight[:, dropped] = 0
        model.head.weight.unflatten(1, (6, 4))[:, [0, 2, 3, 5]] = 0
    torch.testing.assert_close(outputs(small), outputs(model), rtol=0, atol=1e-12)


def test_merged_channels_lose_nothing_where_filters_and_norms_are_equal() -> None:
    model, graph = prepared(Plain)
    with torch.no_grad():
        for tensor in (model.a.weight, model.a.bias, *model.norm.parameters(), model.norm.running_mean):
            tensor[[4, 7]] = tensor[[1, 1]]
        model.norm.running_var[[4, 7]] = model.norm.running_var[[1, 1]]
    plan = plan_of(graph, SetPlan("a", (0, 1, 2, 3, 5, 6), merged=((1, 4, 7),)))
    torch.testing.assert_close(outputs(rewrite(model, plan, graph)), outputs(model), rtol=0, atol=1e-12)


def test_constant_channels_are_one_channel_and_nothing_is_lost_at_the_borders() -> None:
    model, graph = prepared(Plain)
    zeros = [0, 3, 4, 6]
    with torch.no_grad():
        model.a.weight[zeros], model.a.bias[zeros] = 0, 0
        model.norm.running_mean[zeros] = torch.tensor([-1.0, -2.0, -0.5, 3.0], dtype=torch.float64)
        model.norm.bias[zeros] = 0
    constants = constants_by_set(graph, constants_by_reader(model, graph))["a"]
    assert constants[6] == 0  # behind the ReLU
    assert (constants[[0, 3, 4]] > 0).all()
    assert torch.from_numpy(constants[[1, 2, 5, 7]]).isnan().all()
    plan = plan_of(graph, SetPlan("a", (0, 1, 2, 5, 7), constant=(0, 3, 4)))
    small = rewrite(model, plan, graph)
    torch.testing.assert_close(outputs(small), outputs(model), rtol=0, atol=1e-12)


def test_a_branch_leaves_filters_out_of_the_add() -> None:
    model, graph = prepared(Residual)
    plan = plan_of(graph, d=tuple(range(0, 32, 3)), project=(0, 31))
    small = rewrite(model, plan, graph)
    assert small.d.weight.shape[0] == small.d_bn.num_features == 11
    with torch.no_grad():
        for norm, kept in ((model.d_bn, range(0, 32, 3)), (model.project_bn, (0, 31))):
            gone = [c for c in range(32) if c not in kept]
            norm.weight[gone], norm.bias[gone] = 0, 0
    torch.testing.assert_close(outputs(small), outputs(model), rtol=0, atol=1e-12)


def test_a_thinned_model_keeps_the_checkpoints_keys_and_trains() -> None:
    model, graph = prepared(Residual)
    plan = plan_of(graph, SetPlan("stem", tuple(range(12))), SetPlan("a", (0, 5)), d=(1, 2))
    small = rewrite(model.train(), plan, graph)
    assert set(small.state_dict()) == set(model.state_dict())
    assert all(module.training for module in small.modules())
    small(X).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_grouping_counts_in_the_channels_that_are_left() -> None:
    model, graph = prepared(Plain)
    grouped = LayerPlan("b", filters=((1, 5), (0, 3)), inputs=((0, 7), (2, 7)))
    sets = (SetPlan("a", (0, 2, 7)), SetPlan("b", (0, 1, 3, 5)))
    plan = Plan("by hand", {}, 0, (LayerPlan("a"), grouped, LayerPlan("head")), sets)
    assert check_plan(plan, graph) == []
    small = rewrite(model, plan, graph)
    torch.testing.assert_close(outputs(small), outputs(masked(small, model, plan, graph)), rtol=0, atol=1e-12)
    assert torch.equal(small.b.weight[0], model.b.weight[1, [0, 7]])


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (SetPlan("x", (0,)), "the network's input"),
        (SetPlan("nowhere", (0,)), "no such coupled set"),
        (SetPlan("a", ()), "no channel is kept"),
        (SetPlan("a", (2, 1)), "not ascending"),
        (SetPlan("a", (0, 16)), "not ascending numbers in 0..15"),
        (SetPlan("a", (0, 1, 2), merged=((1, 2),)), "the first, and no other, must be kept"),
        (SetPlan("a", (0, 1), merged=((0, 3), (1, 3))), "in two clusters"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_named(entry: SetPlan, fault: str) -> None:
    _, graph = prepared(Residual)
    assert any(fault in text for text in check_plan(plan_of(graph, entry), graph))


def test_filters_of_its_own_belong_to_the_end_of_a_branch_only() -> None:
    _, graph = prepared(Residual)
    assert "goes into an add" in check_plan(plan_of(graph, a=(0,)), graph)[0]
    both = plan_of(graph, SetPlan(graph.layer("d").writes, (0, 1)), d=(0,))
    assert "one of the two" in check_plan(both, graph)[0]


def test_columns_of_equal_channels_are_summed() -> None:
    _, graph = prepared(Plain)
    weight = torch.arange(5 * 24, dtype=torch.float64).reshape(5, 24)
    reduced = reduced_columns(weight, graph.layer("head"), Kept(6, (0, 1, 2), merged=((1, 4, 5),)))
    assert reduced.shape == (5, 12)
    assert torch.equal(reduced[:, 4:8], weight[:, 4:8] + weight[:, 16:20] + weight[:, 20:24])


class Chained(nn.Module):
    """Zero padding read by zero padding, an activation in front of it that is not zero at zero, functional dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(10, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.pad(torch.sigmoid(self.a(x)), (0, 0, 0, 0, 1, 1)), (0, 0, 0, 0, 0, 2))
        return self.head(F.dropout(F.relu(self.b(x)), 0.5, self.training).mean((2, 3)))


def test_padding_behind_padding_carries_no_channel_that_was_cut() -> None:
    model, graph = prepared(Chained)
    plan = plan_of(graph, SetPlan("a", (0, 3, 5)))
    assert check_plan(plan, graph) == []
    small = rewrite(model, plan, graph)
    torch.testing.assert_close(outputs(small), outputs(masked(small, model, plan, graph)), rtol=0, atol=1e-12)


def test_a_thinned_model_drops_out_in_training_and_keeps_what_was_frozen() -> None:
    model, graph = prepared(Chained)
    model.train()
    model.b.eval()
    model.a.weight.requires_grad_(False)
    small = rewrite(model, plan_of(graph, SetPlan("a", (0, 3, 5))), graph)
    assert not small.a.weight.requires_grad
    assert small.a.bias.requires_grad
    assert not small.b.training
    torch.manual_seed(0)
    assert not torch.equal(small(X), small(X))
    assert torch.equal(small.eval()(X), small(X))


def test_channels_that_are_not_constant_are_not_merged_as_such() -> None:
    model, graph = prepared(Plain)
    with pytest.raises(InputError, match="they are not"):
        rewrite(model, plan_of(graph, SetPlan("a", (0, 2, 3, 4, 5, 6, 7), constant=(0, 1))), graph)


def test_an_empty_cluster_is_a_fault() -> None:
    _, graph = prepared(Plain)
    assert "clustered channels ()" in check_plan(plan_of(graph, SetPlan("a", (0,), merged=((),))), graph)[0]


class Tied(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(F.relu(self.a(x))).mean((2, 3)))


def test_weights_that_two_modules_share_stay_as_they_are() -> None:
    _, graph = prepared(Tied)
    assert "several places" in graph.layer("a").refusal
    assert "several places" in graph.coupled_set("a").pinned
