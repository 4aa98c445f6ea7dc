"""What functions and methods in an fx graph do to the channel axis of the tensors that they are given.

Each tensor's channel axis belongs to one coupled set. A call keeps the set (all that works channel by channel), joins
two sets (add, multiply), makes a new one (concatenation, zero channels), or is unknown: then the sets that it touches
are pinned to the original order and width, which is always correct.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import fx

from edgeprune.tracing.channel_axes import AxisWalk
from edgeprune.tracing.channel_ops import (
    CONCATENATES,
    JOINS_FUNCTIONS,
    JOINS_METHODS,
    KEEPS_FUNCTIONS,
    KEEPS_METHODS,
    REDUCES_FUNCTIONS,
    REDUCES_METHODS,
    RESHAPES_FUNCTIONS,
    RESHAPES_METHODS,
    VIEWS,
)
from edgeprune.tracing.channel_parts import Channels, calls, name_of, unknown_call


class CallWalk(AxisWalk):
    """The state of one walk over an fx graph, and the visits of its calls of functions and methods."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(shapes)
        self.paddings: dict[str, tuple[int, int]] = {}
        self.literal_views: list[str] = []

    def visit_call(self, node: fx.Node) -> None:
        target = node.target
        if node.name not in self.shapes:
            # Sizes, shapes and other numbers carry no channels; tuples of tensors (split, chunk) do.
            if isinstance(node.meta.get("tensor_meta"), (tuple, list)):
                self.visit_tuple(node)
            return
        if target is operator.getitem and isinstance(of := node.args[0], fx.Node) and of.name in self.tuples:
            self.visit_part(node, of)
            return
        tensors = [n for n in node.all_input_nodes if n.name in self.shapes]
        source = self.source(node)
        if source is None:
            return  # made of parameters: a value for each channel where it meets some
        if self.moves_axis(node):
            self.visit_move(node, source)
        elif self.is_off_axis(node):
            self.visit_off_axis(node, source)
        elif calls(node, JOINS_FUNCTIONS, JOINS_METHODS):
            self.visit_join(node)
        elif calls(node, KEEPS_FUNCTIONS, KEEPS_METHODS) and len(tensors) == 1:
            self.values[node.name] = source
        elif calls(node, RESHAPES_FUNCTIONS, RESHAPES_METHODS):
            self.reshape(node, source)
        elif calls(node, REDUCES_FUNCTIONS, REDUCES_METHODS):
            self.visit_reduction(node, source)
        elif target is operator.getitem:
            self.visit_getitem(node, source)
        elif target in CONCATENATES:
            self.visit_concat(node)
        elif target is F.pad:
            self.visit_pad(node, source)
        else:
            self.unknown(node, unknown_call(node))

    def visit_getitem(self, node: fx.Node, source: Channels) -> None:
        key = node.args[1]
        keys = key if isinstance(key, tuple) else (key,)
        whole = slice(None, None, None)
        if keys and keys[0] is Ellipsis:
            rank = len(self.shapes[node.all_input_nodes[0].name])
            keys = (whole,) * (rank - sum(k is not None for k in keys[1:])) + keys[1:]
        are_slices = all(k is None or isinstance(k, slice) for k in keys) and keys[:1] == (whole,)
        if not are_slices or not self.visit_slice(node, source, keys):
            self.unknown(node, f"only some of its channels are taken ({name_of(node)})")

    def visit_concat(self, node: fx.Node) -> None:
        parts, *rest = node.args or (node.kwargs.get("tensors"),)
        axis = rest[0] if rest else node.kwargs.get("dim", 0)
        listed = parts if isinstance(parts, (tuple, list)) else ()
        sources = [self.values.get(part.name) if isinstance(part, fx.Node) else None for part in listed]
        rank = len(self.shapes[node.name])
        known = [s for s in sources if s is not None and s.features == 1]
        if not isinstance(axis, int) or axis % rank != 1 or not known or len(known) < len(sources):
            return self.unknown(node, unknown_call(node))
        self.values[node.name] = Channels(self.sets.make(node.name, self.shapes[node.name][1]))
        self.concatenations.append((node.name, tuple(s.coupled_set for s in known)))
        return None

    def visit_pad(self, node: fx.Node, source: Channels) -> None:
        names = ("input", "pad", "mode", "value")
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        pad, mode, value = given.get("pad"), given.get("mode", "constant"), given.get("value")
        sizes = [p for p in pad if isinstance(p, int)] if isinstance(pad, (tuple, list)) else []
        if not isinstance(pad, (tuple, list)) or len(sizes) != len(pad) or len(self.shapes[node.name]) != 4:
            self.unknown(node, unknown_call(node))
        elif not any(sizes[4:]):
            self.values[node.name] = source
        elif (
            not any(sizes[:4])
            and not any(sizes[6:])
            and min(sizes[4:]) >= 0
            and mode == "constant"
            and value in (None, 0, 0.0)
        ):
            self.values[node.name] = Channels(self.sets.make(node.name, self.shapes[node.name][1]))
            self.paddings[node.name] = (sizes[4], sizes[5])
        else:
            self.unknown(node, unknown_call(node))

    def reshape(self, node: fx.Node, source: Channels) -> None:
        """Flattening to (N, C * features), and image axes that are folded, added or removed behind axis 1."""
        before, after = self.shapes[node.all_input_nodes[0].name], self.shapes[node.name]
        channels = self.sets.channels(source.coupled_set)
        same_samples = len(after) > 1 and after[0] == before[0] and math.prod(after) == math.prod(before)
        if same_samples and (after[1] == before[1] or after[1] == channels or len(after) == 2):
            self.values[node.name] = Channels(source.coupled_set, after[1] // channels)
            if literal_features(node) is not None:
                self.literal_views.append(node.name)
        else:
            self.unknown(node, unknown_call(node))


def literal_features(node: fx.Node) -> int | None:
    """The number that a view or reshape writes down for axis 1: `x.view(-1, 512)`; None if it writes none."""
    sizes = _sizes(node)
    second = sizes[1] if len(sizes) > 1 else None
    return second if isinstance(second, int) and second > 0 else None


def set_literal_features(node: fx.Node, features: int) -> None:
    """Write another number there, for a tensor that has become thinner."""
    sizes = [features if axis == 1 else size for axis, size in enumerate(_sizes(node))]
    node.args, node.kwargs = (node.all_input_nodes[0], tuple(sizes)), {}


def _sizes(node: fx.Node) -> tuple[Any, ...]:
    """The sizes that a view or reshape is given, one by one or as one tuple."""
    if node.target not in VIEWS:
        return ()
    sizes = node.args[1:] or tuple(node.kwargs.get(name) for name in ("shape", "size") if name in node.kwargs)
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
