"""What functions and methods in an fx graph do to the channel axis of the tensors that they are given.

Each tensor's channel axis belongs to one coupled set. A call keeps the set (all that works channel by channel), joins
two sets (add, multiply), makes a new one (concatenation, zero channels), or is unknown: then the sets that it touches
are pinned to the original order and width, which is always correct.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from edgeprune.tracing.channel_ops import (
    CONCATENATES,
    DIVIDES,
    JOINS_FUNCTIONS,
    JOINS_METHODS,
    KEEPS_FUNCTIONS,
    KEEPS_METHODS,
    REDUCES_FUNCTIONS,
    REDUCES_METHODS,
    RESHAPES_FUNCTIONS,
    RESHAPES_METHODS,
    SPLITS_FUNCTIONS,
    SPLITS_METHODS,
    VIEWS,
)
from edgeprune.tracing.coupling import SetForest


@dataclass(frozen=True)
class Channels:
    """Where a tensor's channels are: its coupled set, and how many consecutive features each channel is."""

    coupled_set: str
    features: int = 1


class CallWalk:
    """The state of one walk over an fx graph, and the visits of its calls of functions and methods."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.values: dict[str, Channels] = {}
        self.sets = SetForest()
        self.paddings: dict[str, tuple[int, int]] = {}
        self.concatenations: list[tuple[str, tuple[str, ...]]] = []
        self.literal_views: list[str] = []
        self.splits: dict[str, tuple[str, ...]] = {}
        self.tuples: dict[str, tuple[Channels | None, ...]] = {}
        """fx node name of a tuple of tensors -> where the channels of each are; None for what is no tensor."""

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
        if _calls(node, JOINS_FUNCTIONS, JOINS_METHODS):
            self.visit_join(node, tensors)
        elif _calls(node, KEEPS_FUNCTIONS, KEEPS_METHODS) and len(tensors) == 1:
            self.values[node.name] = source
        elif _calls(node, RESHAPES_FUNCTIONS, RESHAPES_METHODS):
            self.reshape(node, source)
        elif _calls(node, REDUCES_FUNCTIONS, REDUCES_METHODS):
            self.visit_reduction(node, source)
        elif target is operator.getitem:
            self.visit_getitem(node, source)
        elif target in CONCATENATES:
            self.visit_concat(node)
        elif target is F.pad:
            self.visit_pad(node, source)
        else:
            self.unknown(node, unknown_call(node))

    def visit_tuple(self, node: fx.Node) -> None:
        """A tensor in several parts: along its channels, which then are those of the parts one after another; or along
        another axis. What else gives several tensors is not known."""
        shapes = [tuple(meta.shape) if hasattr(meta, "shape") else None for meta in node.meta["tensor_meta"]]
        source = self.source(node)
        axis = _split_axis(node) if _calls(node, SPLITS_FUNCTIONS, SPLITS_METHODS) else None
        rank = len(self.shapes.get(node.all_input_nodes[0].name, ()))
        sizes = tuple(shape[1] for shape in shapes if shape is not None and len(shape) > 1)
        if source is None:
            return
        if axis is None or not rank or len(sizes) < len(shapes) or (axis % rank == 1 and source.features > 1):
            self.unknown_tuple(node, shapes)
        elif axis % rank != 1:
            self.tuples[node.name] = (source,) * len(shapes) if axis % rank else (None,) * len(shapes)
        elif parts := self.parts_of(source.coupled_set, sizes, node.name):
            self.tuples[node.name] = tuple(Channels(part) for part in parts)
            self.splits[node.name] = parts
        else:
            self.unknown_tuple(node, shapes)

    def parts_of(self, coupled_set: str, sizes: tuple[int, ...], name: str) -> tuple[str, ...]:
        """The sets that a set consists of, in parts of these sizes; empty where it consists of others already."""
        root = self.sets.root(coupled_set)
        known = [parts for whole, parts in self.concatenations if self.sets.root(whole) == root]
        if known:
            fits = tuple(self.sets.channels(part) for part in known[0]) == sizes
            return known[0] if fits else ()
        parts = tuple(self.sets.make(f"{name}_{number}", size) for number, size in enumerate(sizes))
        self.concatenations.append((root, parts))
        return parts

    def visit_part(self, node: fx.Node, of: fx.Node) -> None:
        number = node.args[1]
        parts = self.tuples[of.name]
        found = parts[number] if isinstance(number, int) and -len(parts) <= number < len(parts) else None
        if found is not None:
            self.values[node.name] = found

    def visit_join(self, node: fx.Node, tensors: list[fx.Node]) -> None:
        channels = self.shapes[node.name][1] if len(self.shapes[node.name]) > 1 else 0
        sources = []
        for tensor in tensors:
            shape = self.shapes[tensor.name]
            if len(shape) != len(self.shapes[node.name]):
                if math.prod(shape) == 1:
                    continue  # a scalar parameter: the same for every channel
                return self.unknown(node, unknown_call(node))
            if shape[1] == 1 and channels > 1:
                continue  # broadcast over the channels
            if tensor.name not in self.values:
                return self.unknown(node, f"it meets {tensor.name}, a value for each channel, in {_name(node)}")
            sources.append(self.values[tensor.name])
        divides = node.target in DIVIDES and len(sources) > 1
        if not sources or len({s.features for s in sources}) > 1 or divides:
            return self.unknown(node, unknown_call(node))
        for other in sources[1:]:
            self.sets.join(sources[0].coupled_set, other.coupled_set)
        self.values[node.name] = sources[0]
        return None

    def visit_reduction(self, node: fx.Node, source: Channels) -> None:
        """Reduced over image axes only: (N, C, H, W) -> (N, C), (N, C, W) or (N, C, 1, 1)."""
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        rank = len(self.shapes[node.all_input_nodes[0].name])
        axes = [dims] if isinstance(dims, int) else list(dims) if isinstance(dims, (tuple, list)) else []
        if source.features == 1 and axes and all(isinstance(axis, int) and axis % rank >= 2 for axis in axes):
            self.values[node.name] = source
        else:
            self.unknown(node, unknown_call(node))

    def visit_getitem(self, node: fx.Node, source: Channels) -> None:
        key = node.args[1]
        keys = key if isinstance(key, tuple) else (key,)
        whole = slice(None, None, None)
        if keys and keys[0] is Ellipsis:
            rank = len(self.shapes[node.all_input_nodes[0].name])
            keys = (whole,) * (rank - sum(k is not None for k in keys[1:])) + keys[1:]
        if all(k is None or isinstance(k, slice) for k in keys) and all(k == whole for k in keys[:2]):
            self.values[node.name] = source
        else:
            self.unknown(node, f"only some of its channels are taken ({_name(node)})")

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

    # -- what all visits share ---------------------------------------------------------------------------------------
    def unknown(self, node: fx.Node, reason: str) -> None:
        """The sets that this node reads and writes keep their order and width."""
        self.pin_inputs(node, reason)
        shape = self.shapes.get(node.name, ())
        if len(shape) > 1:
            self.values[node.name] = Channels(self.sets.make(node.name, shape[1]))
            self.sets.pin(node.name, reason)

    def unknown_tuple(self, node: fx.Node, shapes: Sequence[tuple[int, ...] | None]) -> None:
        """As `unknown`, for what gives several tensors."""
        reason = unknown_call(node)
        self.pin_inputs(node, reason)
        parts: list[Channels | None] = []
        for number, shape in enumerate(shapes):
            if shape is None or len(shape) < 2:
                parts.append(None)
                continue
            name = self.sets.make(f"{node.name}_{number}", shape[1])
            self.sets.pin(name, reason)
            parts.append(Channels(name))
        self.tuples[node.name] = tuple(parts)

    def pin_inputs(self, node: fx.Node, reason: str) -> None:
        for source in node.all_input_nodes:
            for found in (self.values.get(source.name), *self.tuples.get(source.name, ())):
                if found is not None:
                    self.sets.pin(found.coupled_set, reason)

    def source(self, node: fx.Node) -> Channels | None:
        return next((self.values[n.name] for n in node.all_input_nodes if n.name in self.values), None)


def _split_axis(node: fx.Node) -> int | None:
    """The axis along which a tensor is split; None where it is not written down."""
    axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    return axis if isinstance(axis, int) else None


def set_split_sizes(node: fx.Node, sizes: Sequence[int]) -> None:
    """Split into parts of these sizes, for a tensor that has become thinner."""
    node.op, node.target = "call_function", torch.split
    node.args, node.kwargs = (node.all_input_nodes[0], list(sizes), 1), {}


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


def unknown_call(node: fx.Node) -> str:
    """Why the channels around a call that we do not know cannot change."""
    return f"{_name(node)} may reorder, mix or count its channels"


def _name(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _calls(node: fx.Node, functions: Container[object], methods: Container[object]) -> bool:
    return node.target in (methods if node.op == "call_method" else functions)
