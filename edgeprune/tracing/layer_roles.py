"""What stands around a layer in the fx graph: the BatchNorm behind it, the add at the end of its branch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import fx, nn

from edgeprune.modules.filters import FILTER_LAYERS
from edgeprune.modules.norms import NORMS
from edgeprune.tracing.channel_ops import ADDS_FUNCTIONS, ADDS_METHODS

Modules = Mapping[str, nn.Module]
Shapes = Mapping[str, tuple[int, ...]]


def calls_of(node: fx.Node) -> int:
    """How many nodes call this node's module."""
    return sum(1 for other in node.graph.nodes if other.op == "call_module" and other.target == node.target)


def norm_behind(node: fx.Node, modules: Modules) -> str:
    """The BatchNorm that alone reads this layer's output, and nothing else; empty if there is none."""
    for follower in _only_way(node):
        module = modules[str(follower.target)] if follower.op == "call_module" else None
        if isinstance(module, NORMS):
            return str(follower.target) if calls_of(follower) == 1 else ""
        if not isinstance(module, nn.Identity):
            break
    return ""


def ends_branch(node: fx.Node, modules: Modules, shapes: Shapes) -> bool:
    """Whether the only way of this layer's output leads, through one BN at most, into an add to another such tensor."""
    norms = 0
    for follower in _only_way(node):
        module = modules[str(follower.target)] if follower.op == "call_module" else None
        if isinstance(module, NORMS) and norms == 0 and calls_of(follower) == 1:
            norms += 1
        elif not isinstance(module, nn.Identity):
            adds = follower.target in ADDS_FUNCTIONS or (
                follower.op == "call_method" and follower.target in ADDS_METHODS
            )
            return adds and [shapes.get(n.name) for n in follower.all_input_nodes] == [shapes[node.name]] * 2
    return False


def branch_of(node: fx.Node, modules: Modules, shapes: Shapes) -> tuple[str, ...]:
    """The layers that nothing needs if the branch that this layer ends is left out of the add, in forward order; empty
    where it ends none, or is the skip path."""
    if not ends_branch(node, modules, shapes) or is_shortcut(node, modules, shapes):
        return ()
    needless = {node, *(way for way in _way_to_add(node))}
    called = []
    for other in reversed(node.graph.nodes):
        if other in needless or (other.users and set(other.users) <= needless):
            needless.add(other)
            if other.op == "placeholder":
                return ()
            if other.op == "call_module" and isinstance(modules[str(other.target)], FILTER_LAYERS):
                called.append(str(other.target))
    return tuple(reversed(called))


def _way_to_add(node: fx.Node) -> Iterator[fx.Node]:
    for follower in _only_way(node):
        if follower.op != "call_module":
            return
        yield follower


def _only_way(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes behind this one, for as long as nothing else reads what they give."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        yield node


def is_shortcut(node: fx.Node, modules: Modules, shapes: Shapes) -> bool:
    """A 1x1 convolution whose input is also read elsewhere and whose output goes, through BN alone, into an add."""
    module = modules[str(node.target)]
    return (
        isinstance(module, nn.Conv2d)
        and tuple(module.kernel_size) == (1, 1)
        and len(node.all_input_nodes[0].users) > 1
        and ends_branch(node, modules, shapes)
    )
