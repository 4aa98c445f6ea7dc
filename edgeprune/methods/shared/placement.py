"""Which of several devices holds which channels, so that what layers read lies where it is read.

A grouped layer's filters are computed, and the channels that they give then held, by the device that has their group.
Each coupled set has one owner for each channel, whoever writes it, so that nothing crosses at an addition. Owners are
chosen for the kernels that need no exchange, (filter, channel) on one device, to hold as much importance as can be:
for one set with all others given that is an assignment problem, solved exactly; one set is solved after the other until
none gains, from several starts.

Channels with an order that cannot change lie in neighbouring parts, those of a concatenation as in what it joins. What
no layer writes, such as the network's input, has no owner: every device gets it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from edgeprune.devices.shares import shares_of
from edgeprune.graph import Graph, Layer
from edgeprune.methods.base import MethodInput
from edgeprune.methods.shared.clustering import Labels
from edgeprune.methods.shared.reconstruction import filter_gains

Matrix = NDArray[np.float64]
STARTS = 24
OF_PADDING = 1000.0
"""Importance of a zero-channel shortcut, which hands channels on as they are, where that of a layer is 1: its channels
stay where they are if that can be."""


@dataclass(frozen=True)
class Placement:
    """Owners of channels."""

    owners: Mapping[str, Labels]
    """Coupled set -> (channels,) the device that holds each; sets that all devices hold are not in it."""
    groups: Mapping[str, tuple[int, ...]]
    """Layer -> how many of its groups each device computes."""

    def filters(self, layer: Layer) -> Labels:
        """(filters,) the device that computes each: the owner of what it gives, as far as its groups' sizes allow."""
        counts = self.groups[layer.name]
        sizes = [count * (layer.out_channels // sum(counts)) for count in counts]
        return sized_assignment(-np.eye(len(sizes))[self.owners[layer.writes]], sizes)


@dataclass(frozen=True, eq=False)
class Reader:
    """What reads one set and writes another: a layer, or a zero-channel shortcut."""

    reads: str
    writes: str
    importance: Matrix
    """(filters, channels) of each kernel, 1 in all."""


@dataclass(frozen=True)
class Places:
    """The problem: what is to be placed, and by which work."""

    graph: Graph
    importance: Mapping[str, Matrix]
    """Grouped layer -> (filters, channels) of its kernels."""
    groups: Mapping[str, int]
    """Grouped layer -> its groups."""
    shares: tuple[float, ...]
    """Of the work, a device."""
    blocks: Mapping[str, Labels] = field(default_factory=dict)
    """Coupled set -> (channels,) number of the block of channels that stay together, all of one size; sets that are
    not in it are placed channel by channel."""

    @property
    def devices(self) -> int:
        return len(self.shares)

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        graph, found = self.graph, list[Reader]()
        for name, matrix in self.importance.items():
            layer = graph.layer(name)
            found.append(Reader(layer.reads, layer.writes, matrix / (float(matrix.sum()) or 1.0)))
        for padding in graph.paddings:
            channels = graph.coupled_set(padding.source).channels
            matrix = np.eye(graph.coupled_set(padding.target).channels, channels, -padding.lead)
            found.append(Reader(padding.source, padding.target, OF_PADDING / channels * matrix))
        return tuple(found)

    @cached_property
    def placed(self) -> tuple[str, ...]:
        """The sets that are given owners, in the graph's order."""
        touched = {
            base for reader in self.readers for end in (reader.reads, reader.writes) for base in self._bases(end)
        }
        padded = {padding.target for padding in self.graph.paddings}
        sets = (coupled for coupled in self.graph.coupled_sets if coupled.name in touched)
        return tuple(coupled.name for coupled in sets if coupled.producers or coupled.name in padded)

    @cached_property
    def around(self) -> Mapping[str, tuple[tuple[Reader, int | None], ...]]:
        """Placed set -> who writes it (None), and who reads it, with the number of its first channel there."""
        found: dict[str, list[tuple[Reader, int | None]]] = {name: [] for name in self.placed}
        for name in self.placed:
            places = self.graph.places(name)
            for reader in self.readers:
                found[name] += [(reader, None)] if reader.writes == name else []
                found[name] += [(reader, offset) for place, offset in places if place == reader.reads]
        return {name: tuple(ends) for name, ends in found.items()}

    def sizes(self, name: str) -> list[int]:
        """How many channels of a set each device holds: those of its groups, where a layer in groups writes it."""
        channels = self.graph.coupled_set(name).channels
        written = [self.groups[layer] for layer in self.graph.coupled_set(name).producers if layer in self.groups]
        groups = written[0] if written else max(self.groups.values())
        if channels % groups:
            return [stop - start for start, stop in shares_of(channels, self.shares)]
        return [count * (channels // groups) for count in groups_a_device(groups, self.shares)]

    def held(self, name: str, owners: Mapping[str, Labels]) -> Labels | None:
        """(channels,) who holds what a reader finds in a set; None where all devices do, or nobody is known yet."""
        if name in owners:
            return owners[name]
        parts = [self.held(part, owners) for part in self.graph.coupled_set(name).parts]
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if known and len(known) == len(parts) else None

    def gain(self, name: str, owners: Mapping[str, Labels]) -> Matrix:
        """(channels, devices) importance that stays on a device with each channel there, the others as they are."""
        channels = self.graph.coupled_set(name).channels
        found = np.zeros((channels, self.devices))
        for reader, offset in self.around[name]:
            other = self.held(reader.reads if offset is None else reader.writes, owners)
            if other is not None:
                on_device = np.eye(self.devices)[other]
                if offset is None:
                    found += reader.importance @ on_device
                else:
                    found += (reader.importance.T @ on_device)[offset : offset + channels]
        return found

    def assigned(self, name: str, gain: Matrix) -> Labels:
        """The owners with the greatest gain."""
        blocks, sizes = self.blocks.get(name), self.sizes(name)
        if blocks is None:
            return sized_assignment(-gain, sizes)
        count = int(blocks.max()) + 1
        together = np.stack([gain[blocks == block].sum(0) for block in range(count)])
        return sized_assignment(-together, [size * count // len(blocks) for size in sizes])[blocks]

    def stays(self, owners: Mapping[str, Labels], name: str = "") -> float:
        """The importance of all kernels that need no exchange; of those alone that write or read a set."""
        total = 0.0
        for reader in dict.fromkeys(reader for reader, _ in self.around[name]) if name else self.readers:
            rows, columns = self.held(reader.writes, owners), self.held(reader.reads, owners)
            if rows is not None and columns is not None:
                here = reader.importance @ np.eye(self.devices)[columns]  # (filters, devices)
                total += float(here[np.arange(len(rows)), rows].sum())
        return total

    def loops(self, name: str) -> bool:
        """Whether something writes what it reads of this set."""
        written = {reader for reader, offset in self.around[name] if offset is None}
        return any(reader in written for reader, offset in self.around[name] if offset is not None)

    def around_of(self, name: str) -> Iterator[str]:
        """The sets whose best owners depend on this one's."""
        for reader, _ in self.around[name]:
            for end in (reader.reads, reader.writes):
                yield from (base for base in self._bases(end) if base in self.around)

    def _bases(self, name: str) -> Iterable[str]:
        """The sets whose channels a set holds: its own, or those of what it joins."""
        parts = self.graph.coupled_set(name).parts
        return [base for part in parts for base in self._bases(part)] if parts else [name]


def place(problem: Places, seed: int) -> Placement:
    """The best owners that are found; the same for the same problem and seed."""
    fixed = {
        name: _in_order(problem.sizes(name)) for name in problem.placed if problem.graph.coupled_set(name).in_order
    }
    free = [name for name in problem.placed if name not in fixed]
    rng = np.random.default_rng(seed)
    found = [_ascended(problem, _start(problem, free, fixed, rng), free) for _ in range(STARTS)]
    groups = {name: groups_a_device(count, problem.shares) for name, count in problem.groups.items()}
    owners = max(found, key=problem.stays)
    everywhere = {coupled.name: problem.held(coupled.name, owners) for coupled in problem.graph.coupled_sets}
    return Placement({name: held for name, held in everywhere.items() if held is not None}, groups)


def place_layers(
    given: MethodInput, groups: Mapping[str, int], blocks: Mapping[str, Labels] | None = None
) -> Placement:
    """For layers in so many groups, by their weights, on the devices of the request; `blocks` as in `Places`."""
    prices = given.request.mixing_price
    exchange = prices.exchange if prices else None
    assert exchange is not None, "a price of mixing is one between devices"
    importance = {name: kernel_importance(given, given.graph.layer(name)) for name in groups}
    return place(Places(given.graph, importance, groups, exchange.shares, blocks or {}), given.request.seed)


def kernel_importance(given: MethodInput, layer: Layer) -> Matrix:
    """(filters, channels) squared norms of a layer's kernels, with what BatchNorm multiplies the filters by."""
    weight = given.weights[layer.name].astype(np.float64)  # (C_out, C_in, *kernel)
    squares = np.square(weight).sum(axis=tuple(range(2, weight.ndim)))
    return np.asarray(squares * np.square(filter_gains(layer, given.norms))[:, None])


def groups_a_device(groups: int, shares: Sequence[float]) -> tuple[int, ...]:
    """How many of a layer's groups each device computes: neighbouring ones, those of the first device first."""
    return tuple(stop - start for start, stop in shares_of(groups, shares))


def sized_assignment(cost: Matrix, sizes: Sequence[int]) -> Labels:
    """(items,) a place of each at the least total cost, `sizes` items in each place. `cost`: (items, places)."""
    taken = [number for number, size in enumerate(sizes) if size]
    if len(taken) == 2:  # the first place goes to whom it saves most
        first, second = taken
        labels = np.full(len(cost), second, dtype=np.int64)
        labels[np.argsort(cost[:, first] - cost[:, second], kind="stable")[: sizes[first]]] = first
        return labels
    places = np.repeat(taken, [sizes[number] for number in taken])
    _, columns = linear_sum_assignment(cost[:, places])
    return np.asarray(places[columns], dtype=np.int64)


def _start(
    problem: Places, free: Sequence[str], fixed: Mapping[str, Labels], rng: np.random.Generator
) -> dict[str, Labels]:
    """One set after the other, each to suit those before it; what suits nobody yet is drawn."""
    owners = dict(fixed)
    for name in free:
        gain = problem.gain(name, owners)
        owners[name] = problem.assigned(name, gain if gain.any() else rng.random(gain.shape))
    return owners


def _ascended(problem: Places, owners: dict[str, Labels], free: Sequence[str]) -> dict[str, Labels]:
    """Owners none of which can gain with the others given."""
    waiting = list(free)
    while waiting:
        name = waiting.pop(0)
        gain, now = problem.gain(name, owners), owners[name]
        changed = {**owners, name: problem.assigned(name, gain)}
        before, after = (float(gain[np.arange(len(now)), labels].sum()) for labels in (now, changed[name]))
        if problem.loops(name):  # a layer that writes what it reads may make it worse
            before, after = (problem.stays(one, name) for one in (owners, changed))
        if after > before * (1 + 1e-12):
            owners = changed
            others = dict.fromkeys(problem.around_of(name))
            waiting += [other for other in others if other in free and other not in waiting]
    return owners


def _in_order(sizes: Sequence[int]) -> Labels:
    return np.repeat(np.arange(len(sizes)), sizes)
