"""Tensors in parts along their channels: what is known of each part, and what is not.

The channels of a tensor that is split are those of its parts, one after another, as in a concatenation.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from edgeprune.tracing.channel_ops import SPLITS_FUNCTIONS, SPLITS_METHODS
from edgeprune.tracing.set_parts import PartForest


@dataclass(frozen=True)
class Channels:
    """Where a tensor's channels are: their coupled set, how many consecutive features each is, and along which axis."""

    coupled_set: str
    features: int = 1
    axis: int = 1


@dataclass(frozen=True)
class Slice:
    """Some neighbouring channels that a tensor is reduced to."""

    parts: tuple[str, ...]
    """The sets of all channels of the tensor, in order."""
    number: int
    """Which of these is taken."""
    behind: tuple[Any, ...]
    """What is taken along the axes behind the channels."""


class PartWalk(PartForest):
    """The state of one walk over an fx graph, and the visits of nodes that take tensors to pieces."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes = shapes
        self.values: dict[str, Channels] = {}
        self.splits: dict[str, tuple[str, ...]] = {}
        self.slices: dict[str, Slice] = {}
        self.tuples: dict[str, tuple[Channels | None, ...]] = {}
        """fx node name of a tuple of tensors -> where the channels of each are; None for what is no tensor."""

    def visit_tuple(self, node: fx.Node) -> None:
        """A tensor in several parts: along its channels, which then are those of the parts one after another; or along
        another axis. What else gives several tensors is not known."""
        shapes = [tuple(meta.shape) if hasattr(meta, "shape") else None for meta in node.meta["tensor_meta"]]
        source = self.source(node)
        axis = _split_axis(node) if calls(node, SPLITS_FUNCTIONS, SPLITS_METHODS) else None
        rank = len(self.shapes.get(node.all_input_nodes[0].name, ()))
        sizes = tuple(shape[1] for shape in shapes if shape is not None and len(shape) > 1)
        if source is None:
            return
        in_features = axis is not None and rank > 0 and axis % rank == 1 and source.features > 1
        if axis is None or not rank or len(sizes) < len(shapes) or in_features or source.axis != 1:
            self.unknown_tuple(node, shapes)
        elif axis % rank != 1:
            self.tuples[node.name] = (source,) * len(shapes) if axis % rank else (None,) * len(shapes)
        else:
            parts = self.parts_of(source.coupled_set, sizes, node.name)
            self.tuples[node.name] = tuple(Channels(part) for part in parts)
            self.splits[node.name] = parts

    def visit_part(self, node: fx.Node, of: fx.Node) -> None:
        number = node.args[1]
        parts = self.tuples[of.name]
        found = parts[number] if isinstance(number, int) and -len(parts) <= number < len(parts) else None
        if found is not None:
            self.values[node.name] = found

    def visit_slice(self, node: fx.Node, source: Channels, keys: tuple[Any, ...]) -> bool:
        """Some of the channels, as a part of those that they stand among; False where it is no plain slice."""
        channels = self.sets.channels(source.coupled_set)
        taken = _channels_taken(keys[1], channels) if len(keys) > 1 else (0, channels)
        if taken == (0, channels):
            self.values[node.name] = source
            return True
        if taken is None or source.features > 1:
            return False
        ends = (0, *taken, channels)
        sizes = tuple(after - before for before, after in itertools.pairwise(ends) if after > before)
        parts = self.parts_of(source.coupled_set, sizes, node.name)
        number = 1 if taken[0] else 0
        self.values[node.name] = Channels(parts[number])
        self.slices[node.name] = Slice(parts, number, keys[2:])
        return True

    def unknown(self, node: fx.Node, reason: str) -> None:
        """The sets that this node reads and writes keep their order and width: so whichever axis is taken for that of
        the channels, nothing changes along it."""
        self.pin_inputs(node, reason)
        shape, source = self.shapes.get(node.name, ()), self.source(node)
        axis = 1 if source is None or source.axis >= len(shape) else source.axis
        if len(shape) > 1:
            self.values[node.name] = Channels(self.sets.make(node.name, shape[axis]), axis=axis)
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


def set_split_sizes(node: fx.Node, sizes: Sequence[int]) -> None:
    """Split into parts of these sizes, for a tensor that has become thinner."""
    node.op, node.target = "call_function", torch.split
    node.args, node.kwargs = (node.all_input_nodes[0], list(sizes), 1), {}


def set_slice(node: fx.Node, part: Slice, start: int, stop: int) -> None:
    """Take other channels, of a tensor that has become thinner."""
    node.args = (node.args[0], (slice(None), slice(start, stop), *part.behind))


def unknown_call(node: fx.Node) -> str:
    """Why the channels around a call that we do not know cannot change."""
    return f"{name_of(node)} may reorder, mix or count its channels"


def name_of(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def calls(node: fx.Node, functions: Container[object], methods: Container[object]) -> bool:
    return node.target in (methods if node.op == "call_method" else functions)


def _split_axis(node: fx.Node) -> int | None:
    """The axis along which a tensor is split; None where it is not written down."""
    axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    return axis if isinstance(axis, int) else None


def _channels_taken(key: object, channels: int) -> tuple[int, int] | None:
    """(first channel, the one behind the last) of a slice; None for what is no plain one."""
    if not isinstance(key, slice) or not all(
        bound is None or isinstance(bound, int) for bound in (key.start, key.stop)
    ):
        return None
    start, stop, step = key.indices(channels) if key.step in (None, 1) else (0, 0, 0)
    return (start, stop) if step == 1 and stop > start else None
