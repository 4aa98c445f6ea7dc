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
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

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
    reads = reads_of(layer, form)
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


def reads_of(layer: GroupedLayer, form: Form) -> Reads:
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
