"""A grouped layer in one of its forms, as nodes and constants of ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgeprune.devices.channel_block import round_up
from edgeprune.lowering.forms import JOINED, Form, reads_of
from edgeprune.lowering.layers import GroupedLayer, Reads
from edgeprune.plans.permutation import Selection


@dataclass(frozen=True)
class Lowered:
    """A layer in one form: nodes from its source to its output, with their constants."""

    nodes: tuple[NodeProto, ...]
    initializers: tuple[TensorProto, ...]


def lower(layer: GroupedLayer, form: Form) -> Lowered:
    """The layer in this form; ValueError for a form that it cannot have."""
    if form.kind == "split":
        return _split(layer)
    return _Block.of(layer, form).written(layer)


@dataclass(frozen=True)
class _Block:
    """One convolution with equal groups: `reads[g]` and the rows of `weight` that belong to group g."""

    reads: Reads
    weight: NDArray[np.generic]
    bias: NDArray[np.generic] | None
    writes: Selection

    @staticmethod
    def of(layer: GroupedLayer, form: Form) -> _Block:
        same = _Block(layer.reads, layer.weight, layer.bias, layer.writes)
        if form.kind == "grouped":
            return same
        wide = same.widened(reads_of(layer, form))
        if form.kind == "dense":
            return wide.ordered()
        return wide.taller(form.block) if form.kind == "padded" else wide

    def widened(self, reads: Sequence[tuple[int, ...]]) -> _Block:
        """The same function where `len(reads)` groups read these channels instead; others get zeros."""
        joined = len(self.reads) // len(reads)
        rows = self.weight.shape[0] // len(self.reads)
        weight = np.zeros((self.weight.shape[0], len(reads[0]), *self.weight.shape[2:]), self.weight.dtype)
        for group, own in enumerate(self.reads):
            position = {channel: place for place, channel in enumerate(reads[group // joined])}
            part = slice(group * rows, (group + 1) * rows)
            for column, channel in enumerate(own):  # a group may read a channel twice: the sum does what both did
                weight[part, position[channel]] += self.weight[part, column]
        return replace(self, reads=tuple(reads), weight=weight)

    def ordered(self) -> _Block:
        """The same with its filters in the order of its output (one group only), so that no Gather follows."""
        order = self.writes.array()
        bias = None if self.bias is None else self.bias[order]
        return _Block(self.reads, self.weight[order], bias, Selection.identity(len(order)))

    def taller(self, block: int) -> _Block:
        """The same with zero filters behind each group's own, up to a multiple of the block."""
        groups, rows = len(self.reads), self.weight.shape[0] // len(self.reads)
        wanted = round_up(rows, block)
        if wanted == rows:
            return self
        shape = (groups, wanted - rows, *self.weight.shape[1:])
        grouped = self.weight.reshape(groups, rows, *self.weight.shape[1:])
        weight = np.concatenate([grouped, np.zeros(shape, self.weight.dtype)], axis=1)
        bias = self.bias
        if bias is not None:
            zeros = np.zeros((groups, wanted - rows), bias.dtype)
            bias = np.concatenate([bias.reshape(groups, rows), zeros], axis=1).reshape(-1)
        kept = Selection(tuple(g * wanted + row for g in range(groups) for row in range(rows)), groups * wanted)
        return _Block(self.reads, weight.reshape(groups * wanted, *self.weight.shape[1:]), bias, kept.then(self.writes))

    def written(self, layer: GroupedLayer) -> Lowered:
        names = _Names(layer)
        index = Selection.concatenated(self.reads, layer.channels)
        source = layer.source if index.is_identity else names.gather(".input_gather", layer.source, index)
        target = layer.output if self.writes.is_identity else names.value("conv")
        names.conv("", source, target, self.weight, self.bias, len(self.reads))
        if not self.writes.is_identity:
            names.gather(".output_gather", target, self.writes, layer.output)
        return Lowered(tuple(names.nodes), tuple(names.initializers))


def _split(layer: GroupedLayer) -> Lowered:
    names = _Names(layer)
    rows, parts = layer.filters // layer.groups, []
    for group, reads in enumerate(layer.reads):
        index = Selection(reads, layer.channels)
        source = layer.source
        if not index.is_identity:
            source = names.gather(f"@gather{group}", layer.source, index)
        part = slice(group * rows, (group + 1) * rows)
        bias = None if layer.bias is None else layer.bias[part]
        parts.append(names.value(f"group{group}"))
        names.conv(f"@group{group}", source, parts[-1], layer.weight[part], bias, 1)
    joined = layer.output if layer.writes.is_identity else names.value("joined")
    names.nodes.append(helper.make_node("Concat", parts, [joined], name=f"{layer.name}{JOINED}", axis=1))
    if not layer.writes.is_identity:
        names.gather(".output_gather", joined, layer.writes, layer.output)
    return Lowered(tuple(names.nodes), tuple(names.initializers))


class _Names:
    """Collects the nodes and constants of one layer, all named after it."""

    def __init__(self, layer: GroupedLayer) -> None:
        self.layer = layer
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []

    def value(self, what: str) -> str:
        return f"{self.layer.name}@{what}"

    def constant(self, what: str, values: NDArray[np.generic]) -> str:
        name = self.value(what)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def gather(self, suffix: str, source: str, index: Selection, target: str = "") -> str:
        """Add a Gather, called after the layer with this suffix, and return the value that it writes."""
        what = suffix.strip(".@")
        target = target or self.value(f"{what}_values")
        inputs = [source, self.constant(f"{what}_index", index.array())]
        self.nodes.append(helper.make_node("Gather", inputs, [target], name=self.layer.name + suffix, axis=1))
        return target

    def conv(
        self,
        suffix: str,
        source: str,
        target: str,
        weight: NDArray[np.generic],
        bias: NDArray[np.generic] | None,
        groups: int,
    ) -> None:
        """Add a Conv, called after the layer with this suffix."""
        what = suffix.strip("@") or "conv"
        inputs = [source, self.constant(f"{what}_weight", weight)]
        if bias is not None:
            inputs.append(self.constant(f"{what}_bias", bias))
        node = helper.make_node("Conv", inputs, [target], name=self.layer.name + suffix, group=groups)
        node.attribute.extend(self.layer.attributes)
        self.nodes.append(node)
