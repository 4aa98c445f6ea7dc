"""Nodes of an fx graph: what they give for their inputs' values, and where a branch ends."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx, nn


def into_add(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """For the layer that ends a branch: the last node of the branch, which is its BatchNorm or itself, and the add."""
    last, add = node, next(iter(node.users))
    while add.op == "call_module":
        last, add = add, next(iter(add.users))
    return last, add


def result_of(
    node: fx.Node, args: Any, kwargs: Any, root: nn.Module, modules: Mapping[str, nn.Module] | None = None
) -> Any:
    """Run a node that is neither an input nor the output. `modules`: those to call, by path, in place of the root's."""
    target = node.target
    if node.op == "get_attr":
        return operator.attrgetter(str(target))(root)
    if node.op == "call_module":
        module = root.get_submodule(str(target)) if modules is None else modules[str(target)]
        return module(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(target))(*args[1:], **kwargs)
    assert callable(target)
    return target(*args, **kwargs)
