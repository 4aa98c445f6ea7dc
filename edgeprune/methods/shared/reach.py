"""Which channels of other devices a layer's groups may read: those that are worth their exchange.

A channel that a device gets from another is there for all groups of that device, so it is paid once a device. A layer
keeps a share r of its kernels' importance in a time t without exchange, and takes p longer for what it gets. Among the
numbers of channels that a device may get, those of most importance first, the one with the greatest r / (t + p) is
taken: as long as more channels raise the importance by a larger share than the time. Where the groups shall read more
channels than their device holds, they may also read only those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeprune.devices.prices import FLOAT_BYTES, DevicePrices
from edgeprune.graph import Graph, Layer
from edgeprune.io import formatting as f
from edgeprune.methods.shared.alignment import Grouping
from edgeprune.methods.shared.clustering import Labels
from edgeprune.methods.shared.placement import Matrix, Placement
from edgeprune.plans.plan import LayerPlan

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Reach:
    """What the groups of one layer may read."""

    keep: int
    """Channels that each group reads."""
    allowed: Mask
    """(groups, channels)"""


@dataclass(frozen=True)
class Groups:
    """A layer's groups on devices, before it is decided what they read."""

    importance: Matrix
    """(groups, channels) of the kernels of each group's filters together."""
    devices: Labels
    """(groups,) that compute them."""
    holders: Labels | None
    """(channels,) the device that holds each; None where all devices do."""

    def own(self) -> Mask:
        """(groups, channels) whether a group's device holds a channel."""
        if self.holders is None:
            return np.ones(self.importance.shape, dtype=np.bool_)
        return np.asarray(self.devices[:, None] == self.holders[None, :])

    def kept(self, allowed: Mask, keep: int) -> float:
        """The share of the importance that stays if each group keeps the best of what it may read."""
        best = -np.sort(-np.where(allowed, self.importance, 0.0), axis=1)[:, :keep]
        return float(best.sum()) / (float(self.importance.sum()) or 1.0)


def reach_of(groups: Groups, layer: Layer, asked: Grouping, block: int, prices: DevicePrices) -> Reach:
    """What is worth reading. `asked`: groups and how many channels each shall read; `block`: what these shall be a
    multiple of. Of equals the fewest channels that are exchanged."""
    assert prices.exchange is not None
    macs = layer.macs * asked.kept // layer.in_channels
    of_work = float(np.bincount(groups.devices).max()) / asked.groups  # on the device with the most groups
    own_time = prices.convolution(macs, layer.out_channels // asked.groups) * of_work
    best, found = -1.0, Reach(asked.kept, np.ones(groups.importance.shape, dtype=np.bool_))
    for reach, got in _choices(groups, asked.kept, block):
        time = own_time + prices.exchange.cost(got * layer.input_positions)
        worth = groups.kept(reach.allowed, reach.keep) / (time or 1.0)
        if worth > best * (1 + 1e-12):
            best, found = worth, reach
    return found


def exchanged(entries: Iterable[LayerPlan], graph: Graph, placement: Placement) -> dict[str, int]:
    """Layer in groups -> elements a sample that its devices get from each other, as the plan has it."""
    found = {}
    for entry in entries:
        holders = placement.owners.get(graph.layer(entry.name).reads)
        if entry.is_dense or holders is None:
            continue
        got, first = 0, 0
        for device, count in enumerate(placement.groups[entry.name]):
            read = {channel for group in entry.inputs[first : first + count] for channel in group}
            got += sum(int(holders[channel]) != device for channel in read)
            first += count
        found[entry.name] = got * graph.layer(entry.name).input_positions
    return found


def exchange_note(entries: Iterable[LayerPlan], graph: Graph, placement: Placement) -> str:
    """What is left of exchange, for the user."""
    found = exchanged(entries, graph, placement)
    layers = sum(map(bool, found.values()))
    size = f", {f.size(FLOAT_BYTES * sum(found.values()))} of FP32 an image" if layers else ""
    return f"{layers} of {len(found)} layers read what another device holds{size}, as the price of exchange has it."


def _choices(groups: Groups, keep: int, block: int) -> Iterator[tuple[Reach, int]]:
    """Every reach, and how many channels the device that gets most gets, from none on."""
    own = groups.own()
    held = int(own.sum(1).min())
    if held < keep and (fewer := held // block * block):
        yield Reach(fewer, own), 0
    ranks = _foreign_ranks(groups, own)
    for got in range(max(keep - held, 0), int((~own).sum(1).max(initial=0)) + 1):
        yield Reach(keep, own | (ranks < got)), got


def _foreign_ranks(groups: Groups, own: Mask) -> NDArray[np.int64]:
    """(groups, channels) how many channels of other devices a group's device would rather get than this one."""
    ranks = np.zeros(own.shape, dtype=np.int64)
    for device in np.unique(groups.devices):
        there = groups.devices == device
        worth = np.where(own[there][0], -np.inf, groups.importance[there].sum(0))
        order = np.argsort(-worth, kind="stable")
        places = np.empty(len(order), dtype=np.int64)
        places[order] = np.arange(len(order))
        ranks[there] = places
    return ranks
