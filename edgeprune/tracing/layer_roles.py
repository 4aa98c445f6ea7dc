"""What stands around a layer in the fx graph: the BatchNorm behind it, the add at the end of its branch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Branch:
    """What nothing needs if a branch is left out of its add."""

    layers: tuple[str, ...] = ()
    """In forward order."""
    others: tuple[str, ...] = ()
    """Modules in between: BatchNorms, activations."""


def branch_of(node: fx.Node, modules: Modules, shapes: Shapes) -> Branch:
    """The branch that this layer ends; an empty one where it ends none, is the skip path, or has to stay.

    Of two branches that are added to each other only the longer may go, so that something is left.
    """
    found = _branch(node, modules, shapes)
    other = _other_end(node, modules)
    if found.layers and other is not None:
        against = _branch(other, modules, shapes)
        if (len(against.layers), other.name) > (len(found.layers), node.name):
            return Branch()
    return found


def _branch(node: fx.Node, modules: Modules, shapes: Shapes) -> Branch:
    if not ends_branch(node, modules, shapes) or is_shortcut(node, modules, shapes):
        return Branch()
    needless = {node, *(way for way in _way_to_add(node))}
    layers, others = list[str](), list[str]()
    for other in reversed(node.graph.nodes):
        if other not in needless and not (other.users and set(other.users) <= needless):
            continue
        needless.add(other)
        if other.op == "placeholder":
            return Branch()
        if other.op == "call_module":
            named = layers if isinstance(modules[str(other.target)], FILTER_LAYERS) else others
            named.append(str(other.target))
    calls = [str(other.target) for other in node.graph.nodes if other.op == "call_module" and other not in needless]
    if set(layers) & set(calls):  # its weights are needed elsewhere
        return Branch()
    return Branch(tuple(reversed(layers)), tuple(name for name in reversed(others) if name not in calls))


def _other_end(node: fx.Node, modules: Modules) -> fx.Node | None:
    """The layer at the end of the other branch, of two that are added."""
    last = node
    for follower in _only_way(node):
        if follower.op != "call_module":
            other = next((source for source in follower.all_input_nodes if source is not last), None)
            while other is not None and other.op == "call_module":
                if isinstance(modules[str(other.target)], FILTER_LAYERS):
                    return other
                other = other.all_input_nodes[0]
            return None
        last = follower
    return None


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
