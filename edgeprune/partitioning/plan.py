"""From a network and devices to the division that is predicted to be best."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from edgeprune.errors import InputError
from edgeprune.onnx_files.macs import count_macs
from edgeprune.partitioning.devices import Device, shares
from edgeprune.partitioning.network import Network
from edgeprune.partitioning.planning.choices import Choice, Choices
from edgeprune.partitioning.planning.costs import Costs
from edgeprune.partitioning.planning.roles import Role
from edgeprune.partitioning.planning.search import Division, Step, divide
from edgeprune.partitioning.written import Written, write_out

MOST_TIGHTENINGS = 4
"""Searches again with less memory, where a plan really takes more than the search thought."""


@dataclass
class Planner:
    """What there is to divide, and what it takes without."""

    network: Network
    roles: tuple[Role, ...]
    costs: Costs

    @staticmethod
    def of(network: Network, roles: Sequence[Role], devices: Sequence[Device]) -> Planner:
        return Planner(network, tuple(roles), Costs(network, devices))

    def best(self) -> Written:
        """The fastest division that beats the best single device; without one, the fastest that divides every grouped
        layer, or (in a network that has none) every dense one. InputError if nothing fits the devices' memory."""
        best = self._fitting(frozenset())
        if best is None:
            raise self._too_large()
        alone = min(self.singles.values(), default=math.inf)
        if len(self.costs.devices) == 1 or (best.is_divided and best.timeline.seconds < alone):
            return best
        return self._fitting(self._divisible()) or best

    @cached_property
    def macs(self) -> Mapping[str, int]:
        """Multiply-adds of a node by the first value that it writes."""
        found = Counter[str]()
        for node in count_macs(self.network.model, batch=self.network.batch).per_node:
            found[node.outermost] += node.macs if node.is_counted else 0
        return found

    @cached_property
    def whole_bytes(self) -> float:
        """Memory that the whole network takes on one device."""
        choices = Choices((1.0,) * len(self.costs.devices), ())
        steps = (Step(role, Choice(choices.single(0, role.channels)), ()) for role in self.roles)
        return write_out(Division(tuple(steps), (), 0.0), self.costs, self.macs).peaks[0]

    @cached_property
    def singles(self) -> Mapping[int, float]:
        """Device with the memory for the whole network -> seconds that it takes alone, inputs and outputs moved."""
        moved = [(False, spec.name) for spec in self.network.inputs] + [(True, name) for name in self.network.outputs]
        found = {}
        for device, limit in enumerate(self.costs.limits):
            if self.whole_bytes <= limit:
                found[device] = self.costs.alone[device]
                for is_back, name in moved if device else ():
                    per_byte, way = self.costs.links[device][0] if is_back else self.costs.links[0][device]
                    found[device] += way + per_byte * self.network.type_of(name).bytes
        return found

    def _divisible(self) -> frozenset[str]:
        grouped = frozenset(role.key for role in self.roles if role.kind == "grouped")
        return grouped or frozenset(role.key for role in self.roles if role.kind == "dense")

    def _fitting(self, divided: frozenset[str]) -> Written | None:
        """The fastest division that is found and fits the memory; None if none does."""
        costs = self.costs
        for _ in range(MOST_TIGHTENINGS):
            found = [divide(self.roles, costs, choices) for choices in self._choices(costs, divided)]
            fitting = [division for division in found if division is not None]
            if not fitting:
                return None
            written = write_out(min(fitting, key=lambda division: division.seconds), self.costs, self.macs)
            over = [max(peak - limit, 0.0) for peak, limit in zip(written.peaks, self.costs.limits, strict=True)]
            if not any(over):
                return written
            costs = costs.tightened(over)
        return None

    def _choices(self, costs: Costs, divided: frozenset[str]) -> Iterator[Choices]:
        """By the devices' speeds, on all of them, on the faster half ...; and by their memory where it is limited."""
        speeds = shares(costs.devices) or tuple(1 / seconds if seconds else 1.0 for seconds in costs.alone)
        order = sorted(range(len(speeds)), key=lambda device: (device != 0, -speeds[device], device))
        counts = [len(speeds)]
        while counts[-1] > 3:
            counts.append(counts[-1] // 2)
        for count in counts:
            chosen = set(order[:count])
            rates = [rate if device in chosen else 0.0 for device, rate in enumerate(speeds)]
            yield Choices.for_devices(self.roles, costs, rates, divided=divided)
        finite = [limit for limit in costs.limits if math.isfinite(limit)]
        if finite and len(speeds) > 1:
            memory = [min(limit, max(finite)) for limit in costs.limits]
            yield Choices.for_devices(self.roles, costs, memory, divided=divided)

    def _too_large(self) -> InputError:
        limited = [device for device in self.costs.devices if device.memory_mb is not None]
        told = ", ".join(f"{device.name} {device.memory_mb:g} MB" for device in limited)
        return InputError(
            f"the network takes {self.whole_bytes / 1e6:.1f} MB in one piece, and no division of it fits {told}",
            where="the devices",
            expected="memory for the weights and activations of each part",
            remedy="raise memory_mb, add devices, or prune the network further",
        )
