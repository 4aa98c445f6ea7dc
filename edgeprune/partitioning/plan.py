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
from edgeprune.partitioning.prediction import LEAST_GAIN
from edgeprune.partitioning.written import Written, write_out

MOST_TIGHTENINGS = 4
"""Searches again with less memory, where a plan really takes more than the search thought."""
MOST_ONE_BY_ONE = 8
"""Devices up to which leaving out each is tried by itself."""


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
        """The fastest division that beats the best single device by more than estimates err; without one, the fastest
        that divides every grouped layer, or (in a network that has none) every dense one. InputError if nothing fits
        the devices' memory."""
        best = None
        if len(self.costs.devices) > 1:
            best = self._fitting(frozenset(), min(self.singles.values(), default=math.inf) / LEAST_GAIN)
            if best is None and self.singles:
                best = self._fitting(self._divisible())
        best = best or self._fitting(frozenset())
        if best is None:
            raise self._too_large()
        return best

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

    def _fitting(self, divided: frozenset[str], bound: float = math.inf) -> Written | None:
        """The fastest division that is found, takes less than `bound` seconds and fits the memory, if there is one."""
        costs = self.costs
        for _ in range(MOST_TIGHTENINGS):
            found = [self._by_speed(costs, divided, bound), self._by_memory(costs, divided, bound)]
            fitting = [division for division in found if division is not None]
            if not fitting:
                return None
            written = write_out(min(fitting, key=lambda division: division.seconds), self.costs, self.macs)
            over = [max(peak - limit, 0.0) for peak, limit in zip(written.peaks, self.costs.limits, strict=True)]
            if not any(over):
                return written
            costs = costs.tightened(over)
        return None

    def _by_speed(self, costs: Costs, divided: frozenset[str], bound: float) -> Division | None:
        """Shares by the devices' speeds; without those devices that are rather a burden."""
        speeds = shares(costs.devices) or tuple(1 / seconds if seconds else 1.0 for seconds in costs.alone)
        workers = frozenset(range(len(speeds)))
        best = self._divided(costs, speeds, workers, divided, bound)
        while len(workers) > (2 if divided else 1):
            fewer = [workers - left_out for left_out in _dispensable(costs, speeds, workers)]
            bound = best.seconds if best else bound
            tried = [(self._divided(costs, speeds, some, divided, bound), some) for some in fewer]
            better, some = min(tried, key=lambda one: one[0].seconds if one[0] else math.inf)
            if better is None and best is not None:
                break
            best, workers = better, some if better else fewer[-1]
        return best

    def _by_memory(self, costs: Costs, divided: frozenset[str], bound: float) -> Division | None:
        """Shares by the memory of the devices, where that is limited."""
        finite = [limit for limit in costs.limits if math.isfinite(limit)]
        if not finite or len(costs.limits) < 2:
            return None
        memory = [min(limit, max(finite)) for limit in costs.limits]
        return self._divided(costs, memory, frozenset(range(len(memory))), divided, bound)

    def _divided(
        self, costs: Costs, rates: Sequence[float], workers: frozenset[int], divided: frozenset[str], bound: float
    ) -> Division | None:
        own = [rate if device in workers else 0.0 for device, rate in enumerate(rates)]
        return divide(self.roles, costs, Choices.for_devices(self.roles, costs, own, divided=divided), bound)

    def _too_large(self) -> InputError:
        limited = [device for device in self.costs.devices if device.memory_mb is not None]
        told = ", ".join(f"{device.name} {device.memory_mb:g} MB" for device in limited)
        return InputError(
            f"the network takes {self.whole_bytes / 1e6:.1f} MB in one piece, and no division of it fits {told}",
            where="the devices",
            expected="memory for the weights and activations of each part",
            remedy="raise memory_mb, add devices, or prune the network further",
        )


def _dispensable(costs: Costs, speeds: Sequence[float], workers: frozenset[int]) -> Iterator[frozenset[int]]:
    """Which devices may be left out next: the slowest, or that with the worst link to the host; of many the slower
    half."""
    others = sorted(workers - {0}, key=lambda device: (speeds[device], -device))
    if len(others) > MOST_ONE_BY_ONE:
        yield frozenset(others[: len(others) // 2])
        return
    yield frozenset(others[:1])
    farthest = max(others, key=lambda device: (*costs.links[0][device], device))
    if farthest != others[0]:
        yield frozenset({farthest})
