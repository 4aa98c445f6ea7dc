"""The forms in which a grouped layer can be written. Each computes the same function, to rounding.

grouped   as the plan has it: one Conv with that many groups
merged    neighbouring groups joined: each reads the union of their channels, zeros filled in
split     one dense Conv a group, on its own channels, and a Concat
padded    inputs and filters a group filled up with zeros to multiples of the channel block
dense     one Conv without groups on the source itself, zeros filled in: no Gather is left
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgeprune.devices.channel_block import round_up
from edgeprune.lowering.layers import GroupedLayer, Reads
from edgeprune.plans.permutation import Selection

Kind = Literal["grouped", "merged", "split", "padded", "dense"]
MOST_SPLIT = 16
"""Groups above which one node a group is no candidate: starting the nodes alone takes longer."""


@dataclass(frozen=True, order=True)
class Form:
    """One way to write a layer."""

    kind: Kind
    groups: int = 0
    """Of merged: the groups that are left."""
    block: int = 0
    """Of padded: what channels a group become multiples of."""

    def __str__(self) -> str:
        number = self.groups or self.block
        return f"{self.kind}:{number}" if number else self.kind

    @staticmethod
    def parse(text: str) -> Form:
        """The form that `str` gave this text; ValueError for any other text."""
        kind, _, number = text.partition(":")
        count = int(number) if number.isdecimal() else 0
        form = {
            "grouped": GROUPED,
            "split": SPLIT,
            "dense": DENSE,
            "merged": Form("merged", groups=count),
            "padded": Form("padded", block=count),
        }.get(kind)
        if form is None or str(form) != text or (kind in ("merged", "padded") and not count):
            raise ValueError(f"{text!r} is no form")
        return form


GROUPED, DENSE, SPLIT = Form("grouped"), Form("dense"), Form("split")


@dataclass(frozen=True)
class Shape:
    """What a form computes, without its weights: enough to predict its cost, and to tell two layers apart."""

    groups: int
    inputs: int
    """Input channels a group."""
    filters: int
    """Filters a group, zeros filled in included."""
    gathered: int
    """Channels that Gathers move in front of it; 0 if it reads the source as it is."""
    dropped: int
    """Channels that a Gather behind it moves; 0 if there is none."""
    nodes: int
    """Convolutions: 1, or as many as groups if they are split."""

    @property
    def kernels(self) -> int:
        """Kernels that it multiplies with at each position."""
        return self.groups * self.inputs * self.filters


@dataclass(frozen=True)
class Lowered:
    """A layer in one form: nodes from its source to its output, with their constants."""

    nodes: tuple[NodeProto, ...]
    initializers: tuple[TensorProto, ...]


JOINED = "@joined"
"""Ends the name of the Concat of a split layer."""
_PARTS = re.compile(r"(?:\.(?:input|output)_gather|@\w+)$")  # no module of torch has an @ in its name


def layer_of_node(name: str) -> str:
    """The layer that a node belongs to, by the names that layers and their Gathers have in edgeprune's models."""
    return _PARTS.sub("", name)


def candidate_forms(layer: GroupedLayer, block: int) -> tuple[Form, ...]:
    """The forms that may pay for this layer on a device with this channel block; grouped first, dense last.

    What computes as much as dense and still groups is left out.
    """
    forms = [GROUPED]
    dense = layer.channels * layer.filters
    for groups in range(layer.groups // 2, 1, -1):
        if layer.groups % groups == 0:
            forms.append(Form("merged", groups=groups))
    inner, outer = layer.weight.shape[1], layer.filters // layer.groups
    if inner % block or outer % block:
        forms.append(Form("padded", block=block))
    if layer.groups <= MOST_SPLIT:
        forms.append(SPLIT)
    kept = [form for form in forms if form == GROUPED or shape_of(layer, form).kernels < dense]
    return (*kept, DENSE)


def shape_of(layer: GroupedLayer, form: Form) -> Shape:
    """What the layer computes in this form; ValueError for a form that it cannot have."""
    filters, moves = layer.filters // layer.groups, not layer.writes.is_identity
    if form.kind == "dense":
        return Shape(1, layer.channels, layer.filters, 0, 0, 1)
    reads = _reads(layer, form)
    if form.kind == "merged":
        filters = layer.filters // form.groups
    elif form.kind == "padded":
        moves |= bool(filters % form.block)
        filters = round_up(filters, form.block)
    alone = reads if form.kind == "split" else (tuple(channel for own in reads for channel in own),)
    gathered = sum(len(own) for own in alone if not Selection(own, layer.channels).is_identity)
    dropped = len(layer.writes) if moves else 0
    return Shape(len(reads), len(reads[0]), filters, gathered, dropped, len(alone))


def executed_macs(layer: GroupedLayer, form: Form) -> int:
    """Multiply-adds of one sample in this form, filled-in zeros included."""
    return shape_of(layer, form).kernels * math.prod(layer.kernel) * math.prod(layer.output_shape[1:])


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
        wide = same.widened(_reads(layer, form))
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


def _reads(layer: GroupedLayer, form: Form) -> Reads:
    """What each group reads in this form, all equally many channels; ValueError for a form that it cannot have."""
    if form.kind in ("grouped", "split"):
        return layer.reads
    if form.kind == "dense":
        return (tuple(range(layer.channels)),)
    if form.kind == "padded" and form.block > 0:
        wanted = round_up(len(layer.reads[0]), form.block)
        return tuple(_filled(reads, wanted, layer.channels) for reads in layer.reads)
    if form.kind == "merged" and form.groups > 0 and not layer.groups % form.groups:
        joined = layer.groups // form.groups
        unions = [
            tuple(sorted({channel for reads in layer.reads[start : start + joined] for channel in reads}))
            for start in range(0, layer.groups, joined)
        ]
        return tuple(_filled(union, max(map(len, unions)), layer.channels) for union in unions)
    raise ValueError(f"{layer.name}, {layer.groups} groups, cannot be written as {form}")


def _filled(reads: tuple[int, ...], wanted: int, channels: int) -> tuple[int, ...]:
    """These channels and others up to the number wanted: unused ones first, then any again (they meet zeros)."""
    own = set(reads)
    return (*reads, *islice(_others(own, channels), wanted - len(reads)))


def _others(own: set[int], channels: int) -> Iterator[int]:
    yield from (channel for channel in range(channels) if channel not in own)
    while True:
        yield from range(channels)
