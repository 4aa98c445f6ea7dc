"""Tensors whose channels are not along axis 1: channels-last blocks, and tokens.

What does the same to each value keeps the channels where they are, a permutation moves them, and a linear layer over
the last axis reads them there. All else that such a tensor meets is unknown.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import fx, nn

from edgeprune.tracing.channel_ops import (
    DIVIDES,
    EACH_VALUE_FUNCTIONS,
    EACH_VALUE_MODULES,
    JOINS_FUNCTIONS,
    JOINS_METHODS,
    KEEPS_METHODS,
    MOVES_FUNCTIONS,
    MOVES_METHODS,
    REDUCES_FUNCTIONS,
    REDUCES_METHODS,
)
from edgeprune.tracing.channel_parts import Channels, PartWalk, calls, name_of, unknown_call


class AxisWalk(PartWalk):
    """The visits of nodes that move the axis of the channels, or meet them along another one than axis 1."""

    def is_off_axis(self, node: fx.Node) -> bool:
        """Whether a tensor that the node reads has its channels elsewhere than along axis 1."""
        return any(self.values[n.name].axis != 1 for n in node.all_input_nodes if n.name in self.values)

    def moves_axis(self, node: fx.Node) -> bool:
        return calls(node, MOVES_FUNCTIONS, MOVES_METHODS)

    def visit_move(self, node: fx.Node, source: Channels) -> None:
        """A permutation of axes that leaves the images where they are."""
        rank = len(self.shapes[node.name])
        order = _axes_of(node, rank)
        if order and order[0] == 0 and source.features == 1:
            self.values[node.name] = replace(source, axis=order.index(source.axis))
        else:
            self.unknown(node, unknown_call(node))

    def visit_off_axis(self, node: fx.Node, source: Channels, module: nn.Module | None = None) -> None:
        if module is not None:
            keeps = isinstance(module, EACH_VALUE_MODULES)
        else:
            keeps = calls(node, EACH_VALUE_FUNCTIONS, KEEPS_METHODS)
        if keeps and sum(n.name in self.shapes for n in node.all_input_nodes) == 1:
            self.values[node.name] = source
        elif self.moves_axis(node):
            self.visit_move(node, source)
        elif calls(node, JOINS_FUNCTIONS, JOINS_METHODS):
            self.visit_join(node)
        elif calls(node, REDUCES_FUNCTIONS, REDUCES_METHODS):
            self.visit_reduction(node, source)
        else:
            self.unknown(node, unknown_call(node) if module is None else unknown_module(node, module))

    def visit_join(self, node: fx.Node) -> None:
        axis = next(self.values[n.name].axis for n in node.all_input_nodes if n.name in self.values)
        channels = self.shapes[node.name][axis] if len(self.shapes[node.name]) > axis else 0
        sources = []
        for tensor in (n for n in node.all_input_nodes if n.name in self.shapes):
            shape = self.shapes[tensor.name]
            if len(shape) != len(self.shapes[node.name]):
                if math.prod(shape) == 1:
                    continue  # a scalar parameter: the same for every channel
                return self.unknown(node, unknown_call(node))
            if shape[axis] == 1 and channels > 1:
                continue  # broadcast over the channels
            if tensor.name not in self.values:
                return self.unknown(node, f"it meets {tensor.name}, a value for each channel, in {name_of(node)}")
            sources.append(self.values[tensor.name])
        divides = node.target in DIVIDES and len(sources) > 1
        if not sources or len({(s.features, s.axis) for s in sources}) > 1 or divides:
            return self.unknown(node, unknown_call(node))
        for other in sources[1:]:
            self.sets.join(sources[0].coupled_set, other.coupled_set)
        self.values[node.name] = sources[0]
        return None

    def visit_reduction(self, node: fx.Node, source: Channels) -> None:
        """Reduced over other axes than those of the images and the channels: (N, C, H, W) -> (N, C), (N, C, 1, 1)."""
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        rank = len(self.shapes[node.all_input_nodes[0].name])
        axes = [dims] if isinstance(dims, int) else list(dims) if isinstance(dims, (tuple, list)) else []
        known = [axis % rank for axis in axes if isinstance(axis, int)]
        if source.features == 1 and axes and len(known) == len(axes) and not {0, source.axis} & set(known):
            gone = sum(axis < source.axis for axis in known) * (len(self.shapes[node.name]) < rank)
            self.values[node.name] = replace(source, axis=source.axis - gone)
        else:
            self.unknown(node, unknown_call(node))


def unknown_module(node: fx.Node, module: nn.Module) -> str:
    """Why the channels around a module that we do not know cannot change."""
    return f"{node.target}, a {type(module).__name__}, may reorder, mix or count its channels"


def _axes_of(node: fx.Node, rank: int) -> list[int]:
    """Of each axis of the result, which one it was; empty where that is not written down."""
    given = [*node.args[1:], *node.kwargs.values()]
    sizes = list(given[0]) if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    axes = [axis % rank for axis in sizes if isinstance(axis, int)]
    if len(axes) < len(sizes):
        return []
    if "permute" in str(getattr(node.target, "__name__", node.target)):
        return axes if len(axes) == rank else []
    if len(axes) != 2:
        return []
    order = list(range(rank))
    order[axes[0]], order[axes[1]] = axes[1], axes[0]
    return order
