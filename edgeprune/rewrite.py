"""The rewriter: the only place where layers are replaced. (model, plan) -> a new model; the input is never changed."""

from __future__ import annotations

import copy

import torch
from torch import nn

from edgeprune.errors import InputError
from edgeprune.graph import Graph
from edgeprune.grouped_conv import GroupedConv2d
from edgeprune.plan import Plan
from edgeprune.plan_check import check_plan


def rewrite(model: nn.Module, plan: Plan, graph: Graph) -> nn.Module:
    """A copy of `model` in which every layer that the plan groups is a `GroupedConv2d` with the kept weights.

    Raises InputError with the first fault if the plan does not fit the network.
    """
    faults = check_plan(plan, graph)
    if faults:
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise InputError(f"the plan does not fit this network: {faults[0]}{more}")
    pruned = copy.deepcopy(model)
    for name, entry in plan.grouped().items():
        dense = pruned.get_submodule(name)
        assert isinstance(dense, nn.Conv2d), name  # check_plan saw a convolution there
        grouped = GroupedConv2d(dense, entry)
        grouped.load_dense(dense.weight, dense.bias)
        grouped.train(dense.training)
        _replace(pruned, name, grouped)
    return pruned


def masked(model: nn.Module) -> nn.Module:
    """A copy of a rewritten model in the original architecture: dense layers, zeros at the pruned kernels.

    This is what the exported model is held against: it shares no permutation, grouping or fold with it.
    """
    dense_model = copy.deepcopy(model)
    for name, module in list(dense_model.named_modules()):
        if isinstance(module, GroupedConv2d):
            with torch.no_grad():
                weight, bias = module.masked_dense()
            dense = module.plain_conv(weight, bias, groups=1)
            _replace(dense_model, name, dense)
    return dense_model


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
