"""Units: which channels of a network a filter-pruning method may choose among, and why it may not leave out others.

Filters are chosen in *units*: channels of which the i-th ones stay or go together. Two couplings:

- "separate" (paper 004, eq. 4.8): a coupled set into which branches are added (a residual stream) stays whole, and
  each layer at the end of a branch is a unit, whose filters are left out of the add. Other coupled sets are units.
- "coupled": every coupled set loses the same channels in all of its layers, so that no add needs a scatter.

What is joined beyond a coupled set stays in step, too: channels of a concatenation are those of its parts, and the
channels that a parameter-free shortcut pads with zeros are those of its source (else the padded stream could not lose
them without loss). A padded stream therefore consists of several units: the channels from its source, and its own.

A convolution that comes in groups stays one, with groups of one size: it loses whole groups, with all that these read
and write (as a depthwise one does), or the same channels of each group, whichever is the finer choice.

Paper 004 prunes all convolutions but the projection shortcuts. Here the first convolution, where it alone writes its
coupled set, also waits for --include-first, as with every other method; --include-shortcuts takes in the shortcuts.
In a coupled set of several layers both follow the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from edgeprune.graph import CoupledSet, Graph, Layer
from edgeprune.methods.base import PruneRequest, check_skip_patterns, nothing_to_prune

Coupling = Literal["separate", "coupled"]
Numbers = tuple[int, ...]
"""Channel or filter numbers of the original network."""


@dataclass(frozen=True)
class Unit:
    """Channels that are chosen together; number i of the unit is number `numbers[i]` of each of its parts.

    Around a convolution that comes in groups, number i is several channels of a set, each in a part of its own.
    """

    layers: tuple[tuple[str, Numbers], ...]
    """(layer, filter numbers): the layers whose filters are chosen, in forward order."""
    followers: tuple[tuple[str, Numbers], ...] = ()
    """(layer, filter numbers): the depthwise convolutions in between."""
    sets: tuple[tuple[str, Numbers], ...] = ()
    """(coupled set, channel numbers); empty for the end of a branch, whose coupled set stays whole."""

    @property
    def name(self) -> str:
        """Its first layer."""
        return self.layers[0][0]

    @property
    def size(self) -> int:
        return len(self.layers[0][1])

    @property
    def width(self) -> int:
        """Neighbouring channels that a number of the unit is, in each of its sets: those of a group that goes whole."""
        first: dict[str, list[int]] = {}
        for name, channels in self.sets:
            first.setdefault(name, []).append(channels[0])
        widths = [len(numbers) if numbers[-1] - numbers[0] < len(numbers) else 1 for numbers in first.values()]
        return min(widths, default=1)

    @property
    def is_branch_end(self) -> bool:
        return not self.sets


@dataclass(frozen=True)
class Prunable:
    """The units of a network under a request."""

    graph: Graph
    request: PruneRequest
    units: tuple[Unit, ...]
    """By their first layer, in forward order."""
    reasons: Mapping[str, str]
    """Layer -> why it keeps all of its filters, for every layer that is in no unit."""
    asked: Numbers = ()
    """How many filters of each unit were asked for, where alignment decides how many stay; else empty."""
    kept: Numbers = ()
    """How many filters of each unit stay on the request's block; empty where nothing is aligned."""

    @property
    def choosing(self) -> tuple[str, ...]:
        """The layers whose filters are chosen."""
        return tuple(dict.fromkeys(name for unit in self.units for name, _ in unit.layers))


def prunable(graph: Graph, request: PruneRequest, coupling: Coupling, *, merging: bool = False) -> Prunable:
    """The units that may be thinned; InputError if there are none, or a --skip pattern matches nothing.

    `merging`: channels are not left out by whole units, but merged, or looked at one by one.
    """
    found = units(graph, request, coupling, merging=merging)
    if not found.units:
        raise nothing_to_prune(
            graph, found.reasons, "lose filters",
            "see --skip, --include-first, --include-shortcuts and --set coupling=coupled",
        )  # fmt: skip
    return found


def units(graph: Graph, request: PruneRequest, coupling: Coupling, *, merging: bool = False) -> Prunable:
    """As `prunable`, where there may be none."""
    check_skip_patterns(graph, request)
    reasons = {
        coupled.name: _set_reason(coupled, graph, request, coupling) or (_unmerged(coupled, graph) if merging else "")
        for coupled in graph.coupled_sets
    }
    found, because = list[Unit](), dict[str, str]()
    for sets in _joined_channels(graph):
        unit = _unit_of(sets, graph)
        reason = next((reasons[name] for name, _ in sets if reasons[name]), "")
        if unit.layers and not reason:
            found.append(unit)
        for name, _ in (*unit.layers, *unit.followers):
            own = reasons[graph.layer(name).writes]
            because.setdefault(name, own or (f"in step with channels that stay: {reason}" if reason else ""))
    ends = [layer for layer in graph.layers if layer.ends_branch] if coupling == "separate" else []
    for layer in ends:
        because[layer.name] = _branch_reason(layer, request)
        if not because[layer.name]:
            found.append(Unit(((layer.name, tuple(range(layer.out_channels))),)))
    inside = {name for unit in found for name, _ in (*unit.layers, *unit.followers)}
    left_alone = {
        layer.name: layer.refusal or _skipped(layer, request) or because[layer.name]
        for layer in graph.layers
        if layer.name not in inside
    }
    order = {layer.name: place for place, layer in enumerate(graph.layers)}
    return Prunable(graph, request, tuple(sorted(found, key=lambda unit: order[unit.name])), left_alone)


def _joined_channels(graph: Graph) -> list[tuple[tuple[str, Numbers], ...]]:
    """The network's channels in parts that are in step: ((set, channels), ...) each, number i the same in all entries.

    Together the parts hold each channel of each coupled set once. A part has the entries of a unit.
    """
    first = {}  # coupled set -> number of its channel 0 among all channels of the network
    count = 0
    for coupled in graph.coupled_sets:
        first[coupled.name] = count
        count += coupled.channels
    links = [
        (first[padding.source], first[padding.target] + padding.lead, graph.coupled_set(padding.source).channels)
        for padding in graph.paddings
    ]
    for coupled in graph.coupled_sets:
        start = first[coupled.name]
        for part in map(graph.coupled_set, coupled.parts):
            links.append((first[part.name], start, part.channels))
            start += part.channels
    pairs = [(a + channel, b + channel) for a, b, channels in links for channel in range(channels)]
    pairs += [pair for layer in graph.layers if layer.is_grouped for pair in _group_links(layer, graph, first)]
    rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
    joins = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(count, count))
    _, classes = connected_components(joins, directed=False)  # (count,) which channels are one
    joined: dict[int, list[tuple[str, int]]] = {}
    for coupled in graph.coupled_sets:
        for channel in range(coupled.channels):
            joined.setdefault(int(classes[first[coupled.name] + channel]), []).append((coupled.name, channel))
    parts: dict[tuple[str, ...], list[Numbers]] = {}
    for places in joined.values():
        parts.setdefault(tuple(name for name, _ in places), []).append(tuple(channel for _, channel in places))
    return [tuple(zip(names, zip(*channels, strict=True), strict=True)) for names, channels in parts.items()]


def _group_links(layer: Layer, graph: Graph, first: Mapping[str, int]) -> list[tuple[int, int]]:
    """Which channels stay in step around a convolution that comes in groups, each with the first of them."""
    read, written = (
        np.arange(channels).reshape(layer.groups, -1) + first.get(name, 0)
        for name, channels in ((layer.reads, layer.in_channels), (layer.writes, layer.out_channels))
    )  # (groups, channels of each)
    if not layer.reads or not layer.writes:
        return []
    if layer.thins_by_group and not any(graph.coupled_set(name).pinned for name in (layer.reads, layer.writes)):
        together = [np.concatenate([read, written], axis=1)]
    else:
        together = [read.T, written.T]
    return [(int(row[0]), int(channel)) for rows in together for row in rows for channel in row[1:]]


def _unit_of(sets: tuple[tuple[str, Numbers], ...], graph: Graph) -> Unit:
    """The unit of channels that are in step, whether it may be thinned or not."""
    parts = [(name, channels) for coupled, channels in sets for name in graph.coupled_set(coupled).producers]
    order = {layer.name: place for place, layer in enumerate(graph.layers)}
    parts = sorted(parts, key=lambda part: order[part[0]])
    return Unit(
        layers=tuple(part for part in parts if not graph.layer(part[0]).is_depthwise),
        followers=tuple(part for part in parts if graph.layer(part[0]).is_depthwise),
        sets=sets,
    )


def _set_reason(coupled: CoupledSet, graph: Graph, request: PruneRequest, coupling: Coupling) -> str:
    """Why the channels of this coupled set all stay; empty if they may go."""
    producers = [graph.layer(name) for name in coupled.producers]
    choosing = [layer for layer in producers if not layer.is_depthwise]
    if coupled.pinned:
        return f"its channels cannot change: {coupled.pinned}"
    for layer in producers:
        if stays := layer.refusal or _skipped(layer, request):
            return f"{layer.name} of its coupled set stays: {stays}"
    if choosing and all(layer.kind == "linear" and layer.positions == 1 for layer in choosing):
        return "linear layers keep their outputs"
    if coupling == "separate" and any(layer.ends_branch for layer in choosing):
        return "writes a residual stream, which stays whole unless coupling is coupled"
    return _asked_for(choosing[0], request) if len(choosing) == 1 else ""


def _unmerged(coupled: CoupledSet, graph: Graph) -> str:
    """Why no two channels of this coupled set may become one; empty if they may."""
    for layer in map(graph.layer, (*coupled.producers, *coupled.consumers)):
        if layer.is_grouped:
            return f"{layer.name} comes in groups, around which no channels are merged"
    transposed = [name for name in coupled.producers if graph.layer(name).kind == "conv_transpose"]
    return f"{transposed[0]} is a transposed convolution, whose filters are not merged" if transposed else ""


def _branch_reason(layer: Layer, request: PruneRequest) -> str:
    """Why a layer at the end of a branch keeps all of its filters; empty if some may go."""
    if layer.kind == "linear":
        return "writes a residual stream, of which only convolutions leave filters out"
    if layer.groups > 1:
        return f"already grouped ({layer.groups} groups)"
    return layer.refusal or _skipped(layer, request) or _asked_for(layer, request)


def _asked_for(layer: Layer, request: PruneRequest) -> str:
    if layer.is_first and not request.include_first:
        return "the first convolution keeps its filters unless asked (--include-first)"
    if layer.is_shortcut and not request.include_shortcuts:
        return "1x1 shortcuts keep their filters unless asked (--include-shortcuts)"
    return ""


def _skipped(layer: Layer, request: PruneRequest) -> str:
    return "skipped by request" if request.skips(layer.name) else ""
