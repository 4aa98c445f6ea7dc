"""What a node of an fx graph gives for its inputs' values."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx, nn


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
