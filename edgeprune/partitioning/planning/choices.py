"""The ways to divide one node that a plan may choose from, given what the devices hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from edgeprune.devices.shares import shares_of
from edgeprune.partitioning.planning import channels as ch
from edgeprune.partitioning.planning.channels import NONE, Channels, Parts
from edgeprune.partitioning.planning.costs import Costs
from edgeprune.partitioning.planning.roles import FILLED, Role

MOST_CUTS = 4
"""Ways to cut channels that are tried on every layer, besides the layer's own."""
DENSE_GRAIN = 16
"""Channels of a dense layer come in so many equal runs where nothing else says how to cut."""
_WIDENING = frozenset({"DequantizeLinear", "Cast"})
"""What may rather be computed behind a transfer than in front of it, since its input has fewer bytes."""


class Choice(NamedTuple):
    """How one node is divided."""

    parts: Parts
    """Of its result, what each device computes."""
    addends: Parts = ()
    """Of its input, the channels that each device multiplies for an addend of the result; empty: no addends."""


class Holding(NamedTuple):
    """Where a value is."""

    made: Parts
    """What each device computed."""
    held: Parts
    """The same, with what it fetched."""
    made_at: tuple[float, ...]
    """Seconds."""
    held_at: tuple[float, ...]


@dataclass(frozen=True)
class Choices:
    """What may be chosen on devices that work at these rates."""

    rates: tuple[float, ...]
    """0: it gets no parts of layers."""
    cuts: tuple[tuple[Fraction, ...], ...]
    """Where channels are cut: per device, the share of them in front of its end."""
    divided: frozenset[str] = frozenset()
    """Nodes that must be divided."""
    every_single: bool = False
    """Whether any device may compute a node alone, not only the first, the fastest, and those that hold its input."""

    @staticmethod
    def for_devices(
        roles: Sequence[Role], costs: Costs, rates: Sequence[float], *, divided: frozenset[str] = frozenset()
    ) -> Choices:
        """With the cuts that fit most of the grouped layers' work."""
        work: dict[int, float] = {}
        for role in roles:
            if role.kind == "grouped":
                node = costs.seconds[0][role.key]
                work[role.units] = work.get(role.units, 0.0) + node.scaled
        units = sorted(work, key=lambda count: (-work[count], count))[: MOST_CUTS - 1]
        found = [_fractions(count, rates) for count in (*units, DENSE_GRAIN)]
        return Choices(tuple(rates), tuple(dict.fromkeys(found)), divided, costs.is_limited)

    @property
    def workers(self) -> tuple[int, ...]:
        return tuple(device for device, rate in enumerate(self.rates) if rate > 0)

    def of(self, role: Role, values: Mapping[str, Holding]) -> tuple[Choice, ...]:
        """Every way that may be chosen, each once."""
        found = list(self._ways(role, values))
        if role.key in self.divided:
            found = [choice for choice in found if _is_divided(choice, ch.whole(role.channels))] or found
        return tuple(dict.fromkeys(found))

    def single(self, device: int, channels: int) -> Parts:
        """All channels on one device."""
        return tuple(ch.whole(channels) if one == device else NONE for one in range(len(self.rates)))

    def splits(self, channels: int, units: int) -> tuple[Parts, ...]:
        """The channels cut where these units allow."""
        return _splits(self.cuts, self.rates, channels, units)

    def _ways(self, role: Role, values: Mapping[str, Holding]) -> Iterator[Choice]:
        if role.kind == "lone":
            yield from (Choice(self.single(device, role.channels)) for device in self._singles(role, values)[:1])
            return
        wholes = [self.single(device, role.channels) for device in self._singles(role, values)]
        everywhere = tuple(ch.whole(role.channels) if rate > 0 else NONE for rate in self.rates)
        if role.kind in ("channel_wise", "concat", "flatten", "pad"):
            at_hand = list(self._at_hand(role, values))
            yield from map(Choice, at_hand)
            if at_hand and role.node.op_type not in _WIDENING:
                return
        if role.kind in ("grouped", "dense", "gather", "channel_wise"):
            yield from map(Choice, self.splits(role.channels, role.units))
        if role.kind == "gather":
            yield from map(Choice, _where_named(role, values))
        if role.kind == "grouped":
            yield from map(Choice, _whole_groups(role, values))
        yield from map(Choice, (*wholes, everywhere))
        if role.summed:
            yield from self._addends(role, values, (*wholes[:2], everywhere))

    def _addends(self, role: Role, values: Mapping[str, Holding], wholes: Iterable[Parts]) -> Iterator[Choice]:
        """The layer divided over its input's channels, where these are divided already."""
        made = values[role.source].made
        if sum(map(bool, made)) < 2 or sum(map(ch.size, made)) != role.reads[role.source]:
            return
        for parts in (*self.splits(role.channels, role.units), *wholes):
            yield Choice(parts, made)

    def _singles(self, role: Role, values: Mapping[str, Holding]) -> tuple[int, ...]:
        """The devices that may compute a node alone, first those that hold all that it reads."""
        if self.every_single:
            allowed = list(range(len(self.rates)))
        else:
            allowed = [0, max(self.workers, key=lambda device: (self.rates[device], -device))]
        holders = [
            device
            for device in range(len(self.rates))
            if all(values[name].held[device] == ch.whole(count) for name, count in role.reads.items())
        ]
        near = [device for device in holders if self.every_single or device in allowed or len(holders) == 1]
        return tuple(dict.fromkeys((*near, *allowed)))

    def _at_hand(self, role: Role, values: Mapping[str, Holding]) -> Iterator[Parts]:
        """What the devices can compute of what they made, or hold; or of what one of the inputs is divided into."""
        full = {name for name, count in role.reads.items() if role.kind != "channel_wise" or count == role.channels}
        for which in ("made", "held"):
            own = {name: getattr(values[name], which) for name in full}
            parts = tuple(_part_of(role, {name: held[device] for name, held in own.items()}) for device in self._all())
            if full and _covers(parts, role.channels):
                yield parts
        if role.kind == "channel_wise":
            for name in sorted(full):
                yield values[name].made

    def _all(self) -> range:
        return range(len(self.rates))


def _is_divided(choice: Choice, everything: Channels) -> bool:
    return bool(choice.addends) or (sum(map(bool, choice.parts)) > 1 and everything not in choice.parts)


@lru_cache(maxsize=1024)
def _splits(
    cuts: tuple[tuple[Fraction, ...], ...], rates: tuple[float, ...], channels: int, units: int
) -> tuple[Parts, ...]:
    fitting = [own for own in cuts if all((bound * units).denominator == 1 for bound in own)]
    found = []
    for own in fitting or [_fractions(units, rates)]:
        bounds = [0, *(int(bound * channels) for bound in own)]
        found.append(tuple(ch.run(start, stop) for start, stop in pairwise(bounds)))
    return tuple(found)


def _fractions(units: int, rates: Sequence[float]) -> tuple[Fraction, ...]:
    return tuple(Fraction(stop, units) for _, stop in shares_of(units, rates))


def _covers(parts: Parts, channels: int) -> bool:
    return ch.union(parts) == ch.whole(channels)


def _part_of(role: Role, held: Mapping[str, Channels]) -> Channels:
    """The channels of the result that follow from these of the inputs."""
    if role.kind == "concat":
        offset, found = 0, NONE
        for name in role.node.input:
            found |= ch.shifted(held[name], offset)
            offset += role.reads[name]
        return found
    if role.kind == "pad":
        return _places(role.order, held[role.source], FILLED) if held[role.source] else NONE
    if role.kind == "flatten":
        return ch.scaled(held[role.source], role.channels, role.reads[role.source])
    part = ch.whole(role.channels)
    for own in held.values():
        part &= own
    return part


def _where_named(role: Role, values: Mapping[str, Holding]) -> Iterator[Parts]:
    """A Gather computed where the channels are that it names; what several devices made, such as zeros, by each."""
    parts = tuple(_places(role.order, made) for made in values[role.source].made)
    if _covers(parts, role.channels):
        yield parts


def _whole_groups(role: Role, values: Mapping[str, Holding]) -> Iterator[Parts]:
    """A grouped convolution computed where the channels are that its groups read, however these are scattered."""
    made, inputs = values[role.source].made, role.reads[role.source]
    in_group = inputs // role.units
    if all(bound % in_group == 0 for part in made for run in ch.runs(part) for bound in run):
        parts = tuple(ch.scaled(part, role.channels, inputs) for part in made)
        if sum(map(ch.size, parts)) == role.channels:
            yield parts


@lru_cache(maxsize=1024)
def _places(order: tuple[int, ...], made: Channels, *others: int) -> Channels:
    """Where in a Gather's or a Pad's result the channels are that a device made, and others."""
    held = {*ch.numbers(made), *others}
    return ch.of_numbers(place for place, number in enumerate(order) if number in held)
