"""The rewriter: the only place where layers are replaced. (model, plan) -> a new model; the input is never changed."""

from __future__ import annotations

import copy

import msgspec
import torch
from torch import nn

from edgeprune.errors import InputError
from edgeprune.graph import Graph
from edgeprune.modules.grouped_conv import GroupedConv2d
from edgeprune.plans.check import check_plan
from edgeprune.plans.kept_channels import KeptChannels
from edgeprune.plans.plan import LayerPlan, Plan
from edgeprune.rewriting.thinning import expanded, thin, with_masked_paddings


def rewrite(model: nn.Module, plan: Plan, graph: Graph) -> nn.Module:
    """A copy of `model` with the kept weights: thinner layers, and a `GroupedConv2d` for every layer that is grouped.

    Raises InputError with the first fault if the plan does not fit the network.
    """
    faults = check_plan(plan, graph)
    if faults:
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise InputError(f"the plan does not fit this network: {faults[0]}{more}")
    pruned = copy.deepcopy(model)
    if plan.thins:
        pruned = thin(pruned, plan, graph)
        modes = {name: module.training for name, module in model.named_modules()}
        for name, module in pruned.named_modules():
            module.training = modes.get(name, model.training)
    kept = KeptChannels(plan, graph)
    for name, entry in plan.grouped().items():
        dense = pruned.get_submodule(name)
        assert isinstance(dense, nn.Conv2d), name  # check_plan saw a convolution there
        grouped = GroupedConv2d(dense, _renumbered(entry, graph, kept))
        grouped.load_dense(dense.weight, dense.bias)
        grouped.train(dense.training)
        _replace(pruned, name, grouped)
    return pruned


def masked(pruned: nn.Module, original: nn.Module, plan: Plan, graph: Graph) -> nn.Module:
    """The rewritten model's weights in the original architecture: all layers dense, zeros in the pruned places.

    This is what the exported model is held against: it shares no permutation, grouping or fold with it.
    """
    state = dict(pruned.state_dict())
    for name, module in pruned.named_modules():
        if isinstance(module, GroupedConv2d):
            weight, bias = module.masked_dense()
            state[f"{name}.weight"] = weight.detach()
            if bias is not None:
                state[f"{name}.bias"] = bias.detach()
    dense = copy.deepcopy(original)
    own = dense.state_dict()
    with torch.no_grad():
        for key, tensor in expanded(state, plan, graph, own).items():
            own[key].copy_(tensor)
    return with_masked_paddings(dense, plan, graph).train(pruned.training)


def _renumbered(entry: LayerPlan, graph: Graph, kept: KeptChannels) -> LayerPlan:
    """The entry counted in the channels that are left."""
    layer = graph.layer(entry.name)
    rows, columns = kept.filters(layer).position, kept.inputs(layer).position
    return msgspec.structs.replace(
        entry,
        filters=tuple(tuple(rows[f] for f in filters) for filters in entry.filters),
        inputs=tuple(tuple(columns[c] for c in inputs) for inputs in entry.inputs),
    )


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
