"""Which channels of a network a plan leaves over: of every coupled set, and of every layer's two axes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from edgeprune.graph import Graph, Layer, Norm, Slopes
from edgeprune.plans.plan import LayerPlan, Plan


@dataclass(frozen=True)
class Kept:
    """What is left of a coupled set's channels."""

    channels: int
    """Before."""
    index: tuple[int, ...]
    """The channels that are kept, ascending, by their original numbers."""
    merged: tuple[tuple[int, ...], ...] = ()
    """Clusters of channels that are equal; the first of each is in `index`."""
    constant: tuple[tuple[int, ...], ...] = ()
    """Clusters of constant channels; the first of each is in `index`."""

    @staticmethod
    def all(channels: int) -> Kept:
        return Kept(channels, tuple(range(channels)))

    @property
    def is_all(self) -> bool:
        return len(self.index) == self.channels

    @cached_property
    def position(self) -> dict[int, int]:
        """Original channel -> its place in the thinner tensor; a merged one -> its first's; none for a dropped one."""
        places = {channel: place for place, channel in enumerate(self.index)}
        for cluster in self.merged:
            places |= dict.fromkeys(cluster, places[cluster[0]])
        return places


@dataclass(frozen=True)
class GroupLeft:
    """What is left of one group of a grouped convolution."""

    filters: list[int]
    """By their numbers in the layer."""
    inputs: list[int]
    """By their numbers in the group."""


class KeptChannels:
    """What a sound plan leaves over of a network (`check_plan` says whether it is sound)."""

    def __init__(self, plan: Plan, graph: Graph) -> None:
        self.sets: dict[str, Kept] = {}
        self._entries = {entry.name: entry for entry in plan.layers}
        ends = [entry.name for entry in plan.layers if entry.left_out and entry.name in graph]
        branches = [layer.branch + layer.branch_others for layer in map(graph.layer, ends)]
        self.gone = frozenset(name for branch in branches for name in branch)
        """Layers of branches that are left out, and the modules between them."""
        named = {entry.name: entry for entry in plan.sets}
        for coupled in graph.coupled_sets:  # in forward order: the parts of a concatenation come before it
            if coupled.parts:
                self.sets[coupled.name] = concatenated([self.sets[part] for part in coupled.parts])
            elif coupled.name in named:
                entry = named[coupled.name]
                self.sets[coupled.name] = Kept(
                    coupled.channels, entry.kept, entry.merged, (entry.constant,) if entry.constant else ()
                )
            else:
                self.sets[coupled.name] = Kept.all(coupled.channels)

    def filters(self, layer: Layer) -> Kept:
        """The layer's output channels that it still computes."""
        if layer.name in self.gone:
            return Kept(layer.out_channels, ())
        entry = self._entries.get(layer.name, LayerPlan(layer.name))
        if entry.kept_filters:
            return Kept(layer.out_channels, entry.kept_filters)
        return self.sets[layer.writes] if layer.writes in self.sets else Kept.all(layer.out_channels)

    def norm(self, norm: Norm, graph: Graph) -> Kept:
        """The channels of a BatchNorm that are left."""
        if norm.name in self.gone:
            return Kept(self.sets[norm.coupled_set].channels, ())
        behind = next((layer for layer in graph.layers if layer.norm == norm.name), None)
        return self.sets[norm.coupled_set] if behind is None else self.filters(behind)

    def slopes(self, slopes: Slopes) -> Kept:
        """The channels of a PReLU that are left."""
        kept = self.sets[slopes.coupled_set]
        return Kept(kept.channels, ()) if slopes.name in self.gone else kept

    def groups(self, layer: Layer) -> tuple[GroupLeft, ...]:
        """What is left of a layer that comes in groups, or is depthwise: group by group; none that is gone."""
        filters, inputs = self.filters(layer).index, self.inputs(layer).index
        rows, columns = layer.out_channels // layer.groups, layer.in_channels // layer.groups
        left = [GroupLeft([], []) for _ in range(layer.groups)]
        for filter_ in filters:
            left[filter_ // rows].filters.append(filter_)
        for channel in inputs:
            left[channel // columns].inputs.append(channel % columns)
        return tuple(group for group in left if group.filters or group.inputs)

    def inputs(self, layer: Layer) -> Kept:
        """The layer's input channels that are still there."""
        return self.sets[layer.reads] if layer.reads in self.sets else Kept.all(layer.in_channels)


def concatenated(parts: list[Kept]) -> Kept:
    """The channels of several tensors, one after another."""
    index: list[int] = []
    merged: list[tuple[int, ...]] = []
    constant: list[tuple[int, ...]] = []
    start = 0
    for part in parts:
        index += [start + channel for channel in part.index]
        merged += [tuple(start + channel for channel in cluster) for cluster in part.merged]
        constant += [tuple(start + channel for channel in cluster) for cluster in part.constant]
        start += part.channels
    return Kept(start, tuple(index), tuple(merged), tuple(constant))
