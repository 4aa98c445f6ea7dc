"""What stands around a layer in the fx graph: the BatchNorm behind it, the add at the end of its branch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from edgeprune.channel_ops import ADDS_FUNCTIONS, ADDS_METHODS

Modules = Mapping[str, nn.Module]
Shapes = Mapping[str, tuple[int, ...]]


def calls_of(node: fx.Node) -> int:
    """How many nodes call this node's module."""
    return sum(1 for other in node.graph.nodes if other.op == "call_module" and other.target == node.target)


def norm_behind(node: fx.Node, modules: Modules) -> str:
    """The BatchNorm that alone reads this layer's output, and nothing else; empty if there is none."""
    if len(node.users) != 1:
        return ""
    user = next(iter(node.users))
    is_norm = user.op == "call_module" and isinstance(modules[str(user.target)], (nn.BatchNorm2d, nn.BatchNorm1d))
    return str(user.target) if is_norm and calls_of(user) == 1 else ""


def ends_branch(node: fx.Node, modules: Modules, shapes: Shapes) -> bool:
    """Whether the only way of this layer's output leads, through BN at most, into an add to another such tensor."""
    follower = node
    while len(follower.users) == 1:
        follower = next(iter(follower.users))
        if follower.op == "call_module" and isinstance(modules[str(follower.target)], (nn.BatchNorm2d, nn.Identity)):
            continue
        adds = follower.target in ADDS_FUNCTIONS or (follower.op == "call_method" and follower.target in ADDS_METHODS)
        return adds and [shapes.get(n.name) for n in follower.all_input_nodes] == [shapes[node.name]] * 2
    return False


def is_shortcut(node: fx.Node, modules: Modules, shapes: Shapes) -> bool:
    """A 1x1 convolution whose input is also read elsewhere and whose output goes, through BN alone, into an add."""
    module = modules[str(node.target)]
    return (
        isinstance(module, nn.Conv2d)
        and tuple(module.kernel_size) == (1, 1)
        and len(node.all_input_nodes[0].users) > 1
        and ends_branch(node, modules, shapes)
    )
