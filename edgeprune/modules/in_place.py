"""Traced networks in which no operation writes over what it reads."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

IN_PLACE: Mapping[Any, Any] = {operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub}


def without_in_place(module: fx.GraphModule) -> None:
    """Nothing writes over a tensor that is still kept: what read the tensor afterwards reads what was written."""
    places = {node: number for number, node in enumerate(module.graph.nodes)}
    for node in module.graph.nodes:
        if node.all_input_nodes and _writes(node, module):
            own = places[node]
            node.all_input_nodes[0].replace_all_uses_with(node, lambda reader: places[reader] > own)  # noqa: B023
    for part in module.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]
    for node in module.graph.nodes:
        if node.op == "call_function":
            node.target = _plain(node.target)
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        if node.op == "call_method" and callable(getattr(Tensor, plain := str(node.target).removesuffix("_"), None)):
            node.target = plain


def _writes(node: fx.Node, module: nn.Module) -> bool:
    """Whether a node writes over the first tensor that it reads."""
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_function":
        return bool(node.kwargs.get("inplace")) or _plain(node.target) is not node.target
    return node.op == "call_method" and str(node.target).endswith("_")


def _plain(function: Any) -> Any:
    """The function that gives what this one writes over its input; the same where it writes nothing, or there is
    none."""
    name = getattr(function, "__name__", "")
    if function in IN_PLACE or not name.endswith("_"):
        return IN_PLACE.get(function, function)
    return getattr(F, name[:-1], getattr(torch, name[:-1], function))
