"""Forwards as people write them, pruned at random in groups and in width: against the original with zeros, in float64."""

from __future__ import annotations

import pytest
import torch
from found_networks import NETWORKS
from networks import random_plan, random_thin_plan
from torch import Tensor, nn

from edgeprune.errors import InputError
from edgeprune.graph import Graph
from edgeprune.plans.check import check_plan
from edgeprune.plans.costs import planned_params
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
