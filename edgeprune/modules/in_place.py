"""Traced networks in which no operation writes over what it reads."""

from __future__ import annotations

import operator

from torch import fx

IN_PLACE = {operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub}


def without_in_place(module: fx.GraphModule) -> None:
    """Nothing writes over a tensor that is still kept."""
    for part in module.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]
    for node in module.graph.nodes:
        if node.target in IN_PLACE:
            node.target = IN_PLACE[node.target]
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        if node.op == "call_method" and str(node.target).endswith("_"):
            node.target = str(node.target)[:-1]
