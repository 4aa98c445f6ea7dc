"""Folding and rewriting: the folded model computes what the masked dense model computes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Bare, Branching, Concatenating, Mobile, Residual, Shuffled, random_plan, settled
from torch import nn

from edgeprune.errors import InputError
from edgeprune.modules.grouped_conv import GroupedConv2d
from edgeprune.plans.plan import Plan
from edgeprune.rewriting.fold import Gather, fold, fold_batch_norm
from edgeprune.rewriting.rewrite import masked, rewrite
from edgeprune.tracing.trace import trace

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
NETWORKS = [Residual, Concatenating, Mobile, Shuffled, Bare, Branching]


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("groups", [2, 4])
def test_folded_rewritten_and_masked_models_agree(
    network: type[nn.Module], groups: int, share: bool, overlap: bool
) -> None:
    torch.manual_seed(0)
    model = settled(network()).double()
    x = X.double()
    graph = trace(model, x).graph
    plan = random_plan(graph, groups, overlap=overlap, share=share)
    pruned = rewrite(model, plan, graph)
    assert any(isinstance(module, GroupedConv2d) for module in pruned.modules())
    with torch.no_grad():
        reference = masked(pruned, model, plan, graph)(x)
        assert worst(pruned(x), reference) < 1e-12
        assert worst(fold(pruned, x).module(x), reference) < 1e-12


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_any_plan_of_a_residual_network_survives_folding(seed: int, overlap: bool, share: bool) -> None:
    torch.manual_seed(seed)
    model = settled(Residual(), seed).double()
    graph = trace(model, X.double()).graph
    plan = random_plan(graph, 4, overlap=overlap, share=share, seed=seed)
    pruned = rewrite(model, plan, graph)
    with torch.no_grad():
        reference = masked(pruned, model, plan, graph)(X.double())
        assert worst(fold(pruned, X.double()).module(X.double()), reference) < 1e-12


def test_shared_partitions_leave_no_gather_at_residual_adds() -> None:
    model = settled(Residual())
    graph = trace(model, X).graph
    gathers = {}
    for share in (True, False):
        folded = fold(rewrite(model, random_plan(graph, 4, overlap=True, share=share), graph), X)
        names = [name for name, module in folded.module.named_modules() if isinstance(module, Gather)]
        assert len(names) == folded.gathers_after < folded.gathers_before
        gathers[share] = [name for name in names if name.endswith("output_gather")]
    assert gathers[True] == []
    assert gathers[False] != []


def test_a_grouped_layer_between_dense_ones_needs_no_gather_when_each_channel_is_in_one_group() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 5, 1),
    )
    settled(model)
    graph = trace(model, X).graph
    plan = random_plan(graph, 4, overlap=False, share=True)
    folded = fold(rewrite(model, plan, graph), X)
    assert folded.gathers_before == 2
    assert folded.gathers_after == 0


def test_batch_norm_is_folded_away_behind_convolutions_only() -> None:
    folded = fold(settled(Residual()), X)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.module.modules())
    folded = fold(settled(Concatenating()), X)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.module.modules()) == 3


def test_batch_norm_fold_is_the_textbook_formula_in_float64() -> None:
    conv, norm = nn.Conv2d(3, 4, 3), settled(nn.Sequential(nn.BatchNorm2d(4)))[0]
    weight, bias = fold_batch_norm(conv.weight, conv.bias, norm)
    assert weight.dtype == bias.dtype == torch.float64
    with torch.no_grad():
        expected = norm.double()(conv.double()(X.double()))
        got = torch.nn.functional.conv2d(X.double(), weight, bias)
    assert worst(got, expected) < 1e-13


def test_rewriting_leaves_the_input_model_alone_and_keeps_key_names() -> None:
    model = settled(Residual())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = trace(model, X).graph
    pruned = rewrite(model, random_plan(graph, 4, overlap=True, share=True), graph)
    fold(pruned, X)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert set(pruned.state_dict()) == set(before)


def test_masked_model_holds_exactly_the_kept_weights() -> None:
    model = settled(Residual())
    graph = trace(model, X).graph
    plan = random_plan(graph, 4, overlap=True, share=False)
    dense = masked(rewrite(model, plan, graph), model, plan, graph)
    for name, entry in plan.grouped().items():
        weight, original = dense.get_submodule(name).weight, model.get_submodule(name).weight
        kept = torch.zeros(weight.shape[:2], dtype=torch.bool)
        for filters, inputs in zip(entry.filters, entry.inputs, strict=True):
            kept[torch.tensor(filters)[:, None], torch.tensor(inputs)] = True
        assert torch.equal(weight[kept], original[kept])
        assert not weight[~kept].any()


def test_a_plan_for_another_network_is_refused() -> None:
    model = settled(Residual())
    graph = trace(model, X).graph
    other = trace(settled(Mobile()), X).graph
    with pytest.raises(InputError, match="does not fit this network"):
        rewrite(model, random_plan(other, 4, overlap=True, share=True), graph)
    with pytest.raises(InputError, match="says nothing of this layer"):
        rewrite(model, Plan("none", {}, 0, ()), graph)


def test_training_computes_and_learns_what_the_grouped_form_does() -> None:
    model = settled(Residual()).double()
    graph = trace(model, X.double()).graph
    layer = rewrite(model, random_plan(graph, 4, overlap=True, share=False), graph).get_submodule("b")
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    outputs, gradients = [], []
    for training in (True, False):
        layer.train(training).zero_grad()
        output = layer(x)
        (output**2).sum().backward()
        outputs.append(output.detach())
        gradients.append([p.grad.clone() for p in layer.parameters()])
    assert worst(*outputs) < 1e-12
    assert all(worst(a, b) < 1e-12 for a, b in zip(*gradients, strict=True))
