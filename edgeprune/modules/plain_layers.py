"""Subclasses of Conv2d and Linear that compute just what these do, as what they are.

A layer that standardises its weight (timm's ScaledStdConv2d) computes it from tensors of its own alone: in inference it
is an ordinary convolution with another weight. One that only guards its types is one with the same weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edgeprune.modules.fx_nodes import result_of

PLAIN: Mapping[object, type[nn.Conv2d | nn.Linear]] = {F.conv2d: nn.Conv2d, F.linear: nn.Linear}
"""What a forward calls -> the module that does the same."""
SIGNATURES: Mapping[object, tuple[str, ...]] = {
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.linear: ("input", "weight", "bias"),
}


def plain_form(module: nn.Module) -> nn.Conv2d | nn.Linear | None:
    """The plain layer that computes the same in eval mode; None for what is one already, and for what is none.

    It holds the module's own weight and bias where these are used as they are.
    """
    if not isinstance(module, (nn.Conv2d, nn.Linear)) or type(module) in (nn.Conv2d, nn.Linear):
        return None
    if type(module).forward in (nn.Conv2d.forward, nn.Linear.forward) or _has_hooks(module):
        return None
    try:
        graph = _LayerTracer().trace(module)
        call, values = _one_call(graph, module)
    except Exception:  # whatever a forward does that cannot be traced: then it is not known to be plain
        return None
    return None if call is None else _built(module, call, values)


def with_plain_layers(model: nn.Module) -> nn.Module:
    """The model, which is changed, with the plain form of every layer that has one; a layer in several places stays
    one."""
    plain = {module: form for module in model.modules() if (form := plain_form(module)) is not None}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in plain:
                setattr(parent, name, plain[child])
    return plain.get(model, model)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


class _LayerTracer(fx.Tracer):
    """Traces into everything."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False


def _one_call(graph: fx.Graph, module: nn.Module) -> tuple[fx.Node | None, dict[fx.Node, Any]]:
    """The one call that the input goes into and that gives the output, and the values of all that is computed from the
    module's own tensors."""
    values: dict[fx.Node, Any] = {}
    call = None
    for node in graph.nodes:
        sources = node.all_input_nodes
        if node.op == "output":
            return (call if sources == [call] else None), values
        elif all(source in values for source in sources) and node.op != "placeholder":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            with torch.no_grad():
                values[node] = result_of(node, args, kwargs, module)
        elif node.op != "placeholder":
            if call is not None or node.target not in PLAIN:
                return None, values
            call = node
    return None, values


def _built(module: nn.Module, call: fx.Node, values: Mapping[fx.Node, Any]) -> nn.Conv2d | nn.Linear | None:
    given: dict[str, Any] = dict(zip(SIGNATURES[call.target], call.args, strict=False)) | dict(call.kwargs)
    source = given.pop("input")
    if not isinstance(source, fx.Node) or source.op != "placeholder":
        return None
    given = {name: values[value] if isinstance(value, fx.Node) else value for name, value in given.items()}
    weight, bias = given.pop("weight"), given.pop("bias", None)
    layer: nn.Conv2d | nn.Linear
    if PLAIN[call.target] is nn.Linear:
        layer = nn.Linear(weight.shape[1], len(weight), bias=bias is not None)
    else:
        groups = given.get("groups", 1)
        layer = nn.Conv2d(weight.shape[1] * groups, len(weight), weight.shape[2:], bias=bias is not None, **given)
    layer.weight = _parameter(weight)
    layer.bias = None if bias is None else _parameter(bias)
    return layer.train(module.training)


def _parameter(value: Tensor) -> nn.Parameter:
    """The module's own parameter where it is used as it is."""
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach().clone())
