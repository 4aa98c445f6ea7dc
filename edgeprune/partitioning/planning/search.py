"""Choose what each device computes: a beam search over the nodes, with what the devices hold as its state.

The nodes are taken in the model's order. For each, the ways to divide it are tried on every state that is kept; a
device fetches the channels that it needs and does not hold. A state knows when each device and each link is free, so
that computing and sending overlap as they will. Of the states in which the devices hold the same of what is still
needed the fastest are kept, and of all of those again the fastest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from edgeprune.partitioning.planning import channels as ch
from edgeprune.partitioning.planning.channels import Channels, Parts
from edgeprune.partitioning.planning.choices import Choice, Choices, Holding
from edgeprune.partitioning.planning.costs import Costs
from edgeprune.partitioning.planning.roles import Role

WIDTH, LEAST_WIDTH = 96, 16
"""States that are kept: so many over the number of devices, and no fewer."""
ALIKE = 2
"""Of them, in which the devices hold the same."""


@dataclass(frozen=True)
class Fetch:
    """Channels of a value that a device gets from another, which made them."""

    value: str
    source: int
    to: int
    channels: Channels


@dataclass(frozen=True)
class Step:
    """One node, divided."""

    role: Role
    choice: Choice
    fetches: tuple[Fetch, ...]


@dataclass(frozen=True)
class Division:
    """A whole network, divided."""

    steps: tuple[Step, ...]
    deliveries: tuple[Fetch, ...]
    """What the host gets of the network's outputs in the end."""
    seconds: float
    """As the search predicts them."""


def addend(value: str, device: int) -> str:
    """The name of what one device adds to a value."""
    return f"{value}+{device}"


@dataclass(frozen=True)
class State:
    """What the devices hold, and when they and their links are free, behind some of the nodes."""

    values: Mapping[str, Holding]
    """Those that are still needed."""
    clock: tuple[float, ...]
    sending: tuple[float, ...]
    receiving: tuple[float, ...]
    weights: tuple[float, ...]
    moved: float = 0.0
    step: Step | None = None
    before: State | None = None

    @property
    def key(self) -> tuple[object, ...]:
        return tuple((name, held.made, held.held) for name, held in self.values.items())

    @property
    def rank(self) -> tuple[float, float, float]:
        last = max(max(self.clock), max(self.receiving))
        return last, self.moved, math.fsum(self.clock)

    def least_seconds(self, speeds: Sequence[float], left: float) -> float:
        """No division ends earlier that goes on from here, with work left that takes the first device so long: if all
        devices shared it, and nobody waited for anything."""
        done = math.fsum(clock * speed for clock, speed in zip(self.clock, speeds, strict=True))
        return max(self.rank[0], (done + left) / math.fsum(speeds))

    def fill(self, limits: Sequence[float]) -> float:
        """Of the memory that is limited, the share that weights take where they take the most."""
        return max(own / limit for own, limit in zip(self.weights, limits, strict=True))


def divide(roles: Sequence[Role], costs: Costs, choices: Choices, bound: float = math.inf) -> Division | None:
    """The fastest division that is found, None if none takes less than `bound` seconds and fits the devices' memory."""
    left = _seconds_left(roles, costs)
    last_use = {name: place for place, role in enumerate(roles) for name in role.reads}
    last_use |= dict.fromkeys(costs.network.outputs, len(roles))
    states = [_first(costs, choices, last_use)]
    for place, role in enumerate(roles):
        found: dict[tuple[object, ...], list[State]] = {}
        for state in states:
            for choice in choices.of(role, state.values):
                following = _advanced(state, role, choice, costs, place, last_use)
                if following is not None and following.least_seconds(costs.speeds, left[place + 1]) < bound:
                    found.setdefault(following.key, []).append(following)
        states = _kept(found, costs)
        if not states:
            return None
    ends = [end for end in (_delivered(state, costs) for state in states) if end.seconds < bound]
    return min(ends, key=lambda end: end.seconds, default=None)


def _seconds_left(roles: Sequence[Role], costs: Costs) -> list[float]:
    """Behind so many nodes: seconds that the rest would take the first device."""
    nodes = [costs.seconds[0][role.key].scaled for role in roles]
    return [*accumulate(reversed(nodes), initial=0.0)][::-1]


def _first(costs: Costs, choices: Choices, last_use: Mapping[str, int]) -> State:
    devices = len(costs.devices)
    values = {}
    for spec in costs.network.inputs:
        if spec.name in last_use:
            parts = choices.single(0, costs.network.channels(spec.name))
            values[spec.name] = Holding(parts, parts, (0.0,) * devices, (0.0,) * devices)
    free = (0.0,) * devices
    return State(values, free, free, free, free)


def _kept(found: Mapping[tuple[object, ...], list[State]], costs: Costs) -> list[State]:
    """The fastest of those that hold the same; of all, the fastest, and where memory is short those that fill it
    least."""
    best: list[State] = []
    for alike in found.values():
        best += sorted(alike, key=lambda state: state.rank)[:ALIKE]
        if costs.is_limited:
            best.append(min(alike, key=lambda state: (state.fill(costs.limits), state.rank)))
    best.sort(key=lambda state: state.rank)
    width = max(WIDTH // len(costs.devices), LEAST_WIDTH)
    if not costs.is_limited:
        return best[:width]
    thrifty = sorted(best[width:], key=lambda state: (state.fill(costs.limits), state.rank))
    return best[:width] + thrifty[:width]


def _advanced(
    state: State, role: Role, choice: Choice, costs: Costs, place: int, last_use: Mapping[str, int]
) -> State | None:
    """The state behind one more node; None if a device's memory does not suffice."""
    draft = _Draft(state, costs)
    outputs = [name for name in role.node.output if name]
    made = draft.run_addends(role, choice) if choice.addends else draft.run(role, choice.parts)
    for name in outputs:
        if last_use.get(name, -1) > place:
            parts = choice.parts if len(outputs) == 1 else _whole_where(choice.parts, costs.network.channels(name))
            draft.values[name] = Holding(parts, parts, made, made)
    if costs.is_limited and not draft.fits(role, choice.parts):
        return None
    for name in role.reads:
        if last_use[name] <= place:
            draft.values.pop(name, None)
    return draft.state(Step(role, choice, tuple(draft.fetches)), state)


def _whole_where(parts: Parts, count: int) -> Parts:
    return tuple(ch.whole(count) if part else ch.NONE for part in parts)


def _delivered(state: State, costs: Costs) -> Division:
    draft = _Draft(state, costs)
    ends = [state.clock[0]]
    for name in costs.network.outputs:
        ends.append(draft.bring(name, 0, ch.whole(costs.network.channels(name))))
    steps: list[Step] = []
    at: State | None = state
    while at is not None and at.step is not None:
        steps.append(at.step)
        at = at.before
    return Division(tuple(reversed(steps)), tuple(draft.fetches), max(ends))


@dataclass
class _Draft:
    """A state while one node is added to it."""

    before: State
    costs: Costs
    values: dict[str, Holding] = field(init=False)
    fetches: list[Fetch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values = dict(self.before.values)
        self.clock, self.weights = list(self.before.clock), list(self.before.weights)
        self.sending, self.receiving = list(self.before.sending), list(self.before.receiving)
        self.moved = self.before.moved

    def state(self, step: Step, before: State) -> State:
        clock, sending, receiving = tuple(self.clock), tuple(self.sending), tuple(self.receiving)
        return State(self.values, clock, sending, receiving, tuple(self.weights), self.moved, step, before)

    def run(self, role: Role, parts: Parts) -> tuple[float, ...]:
        """Compute parts of a node; per device the time at which it has its own."""
        done = [0.0] * len(parts)
        for device, part in enumerate(parts):
            if part:
                ready = [self.bring(name, device, need) for name, need in role.needs(part).items() if need]
                share = ch.size(part) / role.channels if role.kind not in ("whole", "lone") else 1.0
                seconds = self.costs.part_seconds(device, role, share)
                done[device] = self.clock[device] = max([self.clock[device], *ready]) + seconds
                self.weights[device] += self.costs.weight_bytes(role, share)
        return tuple(done)

    def run_addends(self, role: Role, choice: Choice) -> tuple[float, ...]:
        """Compute an addend on each device that has one, exchange what is to be added, and add it up."""
        inner, everything = role.reads[role.source], ch.whole(role.channels)
        sources = []
        for device, part in enumerate(choice.addends):
            if part:
                ready = self.bring(role.source, device, part)
                seconds = self.costs.part_seconds(device, role, ch.size(part) / inner)
                done = self.clock[device] = max(self.clock[device], ready) + seconds
                self.weights[device] += self.costs.weight_bytes(role, 1.0, ch.size(part) / inner)
                name = addend(role.key, device)
                held = tuple(everything if other == device else ch.NONE for other in range(len(choice.parts)))
                self.values[name] = Holding(held, held, *((done,) * len(held),) * 2)
                sources.append(name)
        finished = [0.0] * len(choice.parts)
        for device, part in enumerate(choice.parts):
            if part:
                ready_all = [self.bring(name, device, part, like=role.key) for name in sources]
                moved = self.costs.bytes_of(role.key, part) * (len(sources) + 1)
                start = max([self.clock[device], *ready_all])
                finished[device] = self.clock[device] = start + self.costs.moving_seconds(device, moved)
        for name in sources:
            del self.values[name]
        return tuple(finished)

    def bring(self, name: str, device: int, need: Channels, like: str = "") -> float:
        """Let a device have these channels of a value, fetched where it lacks some; when it has them. `like`: the value
        that has the same size."""
        held = self.values[name]
        if not ch.without(need, held.made[device]):
            return held.made_at[device]
        missing = ch.without(need, held.held[device])
        if not missing:
            return held.held_at[device]
        arrived = max(held.held_at[device], held.made_at[device]) if held.held[device] else 0.0
        rest, before = missing, len(self.fetches)
        while rest:
            source, part = self._source(held, device, rest)
            per_byte, way = self.costs.links[source][device]
            amount = self.costs.bytes_of(like or name, part)
            cut = self.costs.moving_seconds(source, 2 * amount) if part != held.made[source] else 0.0
            self.clock[source] += cut
            start = max(held.made_at[source] + cut, self.sending[source], self.receiving[device])
            self.sending[source] = self.receiving[device] = start + amount * per_byte
            arrived = max(arrived, start + amount * per_byte + way)
            self.moved += amount
            self.fetches.append(Fetch(name, source, device, part))
            rest = ch.without(rest, part)
        if missing != need or len(self.fetches) - before > 1:
            arrived += self.costs.moving_seconds(device, 2 * self.costs.bytes_of(like or name, need))  # to join it
        now = list(held.held), list(held.held_at)
        now[0][device], now[1][device] = held.held[device] | missing, arrived
        self.values[name] = Holding(held.made, tuple(now[0]), held.made_at, tuple(now[1]))
        return arrived

    def _source(self, held: Holding, device: int, missing: Channels) -> tuple[int, Channels]:
        """Who sends what of the missing channels: who made the most of them, then over the fastest
        link, then who is free first."""
        offers: Iterator[tuple[int, Channels]] = (
            (source, missing & made) for source, made in enumerate(held.made) if source != device
        )
        return min(
            ((source, part) for source, part in offers if part),
            key=lambda offer: (
                -ch.size(offer[1]),
                self.costs.links[offer[0]][device],
                max(held.made_at[offer[0]], self.sending[offer[0]]),
                offer[0],
            ),
        )

    def fits(self, role: Role, parts: Parts) -> bool:
        """Whether each device has the memory for its weights and what it holds."""
        for device, limit in enumerate(self.costs.limits):
            if math.isfinite(limit):
                live = math.fsum(self.costs.bytes_of(name, held.held[device]) for name, held in self.values.items())
                if role.key not in self.values:
                    live += self.costs.bytes_of(role.key, parts[device])
                if self.weights[device] + live > limit:
                    return False
        return True
