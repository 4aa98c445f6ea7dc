"""Branches of a residual network that are left out: what they were added to goes on alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import fx, nn

from edgeprune.graph import Layer
from edgeprune.modules.fx_nodes import into_add

RELUS = {F.relu, torch.relu, "relu", "relu_"}


def leave_out(module: fx.GraphModule, ends: Collection[str]) -> None:
    """Take the branches that these layers end out of a traced network, with all that only they needed."""
    for node in list(module.graph.nodes):
        if node.op != "call_module" or node.target not in ends:
            continue
        last, add = into_add(node)
        stays = next(source for source in add.all_input_nodes if source is not last)
        add.replace_all_uses_with(stays)
        module.graph.erase_node(add)
        _without_second_relu(module, stays)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()


def _without_second_relu(module: fx.GraphModule, stream: fx.Node) -> None:
    """What is not negative goes through ReLU as it is."""
    if not _is_relu(module, stream):
        return
    for node in [node for node in stream.users if _is_relu(module, node)]:
        node.replace_all_uses_with(stream)
        module.graph.erase_node(node)


def _is_relu(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), nn.ReLU)
    return node.target in RELUS


def zeros_of(layers: Collection[Layer], like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, by key, that make layers of these keys give nothing: with their BatchNorms, all zeros."""
    names = [f"{layer.name}.{name}" for layer in layers for name in ("weight", "bias")]
    names += [f"{layer.norm}.{name}" for layer in layers if layer.norm for name in ("weight", "bias", "running_mean")]
    return {name: torch.zeros_like(like[name]) for name in names if name in like}


def silence(model: nn.Module, layer: Layer) -> None:
    """Make the layer that ends a branch, and its BatchNorm, give zeros, in place."""
    own = model.state_dict()
    with torch.no_grad():
        for key, zeros in zeros_of([layer], own).items():
            own[key].copy_(zeros)
