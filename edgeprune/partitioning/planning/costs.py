"""What the parts of a network cost on each device, and tensors on the links, by the device profiles."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from onnx import ModelProto

from edgeprune.onnx_files.graph import element_bytes
from edgeprune.partitioning.devices import Device, link_between
from edgeprune.partitioning.network import Network
from edgeprune.partitioning.planning.channels import Channels, size
from edgeprune.partitioning.planning.roles import Role
from edgeprune.profiling.estimating.estimates import NodeEstimate, estimate_nodes


@dataclass(frozen=True)
class NodeSeconds:
    """One node on one device."""

    fixed: float
    """Of starting it, however little of it is computed."""
    scaled: float
    """Of computing all of it; a part takes its share."""


class Costs:
    """Seconds and bytes of a network's parts on these devices."""

    def __init__(self, network: Network, devices: Sequence[Device]) -> None:
        self.network, self.devices = network, tuple(devices)
        self.margins = (0.0,) * len(self.devices)
        self.profiles = tuple(device.known_profile for device in self.devices)
        self.threads = tuple(device.used_threads for device in self.devices)
        self._bytes: dict[str, float] = {}
        self._weights: dict[str, tuple[float, float]] = {}

    @cached_property
    def seconds(self) -> tuple[Mapping[str, NodeSeconds], ...]:
        """Per device: first value that a node writes -> its time."""
        known: dict[tuple[int, int], Mapping[str, NodeSeconds]] = {}
        found = []
        for profile, threads in zip(self.profiles, self.threads, strict=True):
            how = id(profile), threads  # profiles are read once
            if how not in known:
                nodes = estimate_nodes(self.network.model, profile, self.network.batch, threads)
                known[how] = dict(zip(_keys(self.network.model), map(_node_seconds, nodes), strict=True))
            found.append(known[how])
        return tuple(found)

    @cached_property
    def alone(self) -> tuple[float, ...]:
        """Per device: seconds of the whole network."""
        return tuple(math.fsum(node.fixed + node.scaled for node in nodes.values()) for nodes in self.seconds)

    @cached_property
    def speeds(self) -> tuple[float, ...]:
        """Per device: how much of the network it computes while the first device computes all of it."""
        return tuple(self.alone[0] / seconds if seconds else 1.0 for seconds in self.alone)

    def part_seconds(self, device: int, role: Role, share: float) -> float:
        """Of a share of one node, 0 to 1, on a device."""
        node = self.seconds[device][role.key]
        return node.fixed + share * node.scaled

    def moving_seconds(self, device: int, moved: float) -> float:
        """Of an operation that does little else than read and write so many bytes."""
        profile = self.profiles[device]
        start = profile.execution.dispatch_us.value * 1e-6 if profile.execution else 0.0
        return start + moved / profile.bytes_per_s_of(self.threads[device], moved)

    def bytes_of(self, value: str, channels: Channels) -> float:
        """Of these channels of a value; 0 where its shape is not known."""
        if value not in self._bytes:
            known = self.network.knows(value)
            whole = self.network.type_of(value).bytes if known else 0
            self._bytes[value] = whole / self.network.channels(value)
        return self._bytes[value] * size(channels)

    def weight_bytes(self, role: Role, share: float, input_share: float = 1.0) -> float:
        """Of the constants that a part reads: its share of what has a part for each channel of the result (or, of an
        addend, of the input), and all of the rest."""
        if role.key not in self._weights:
            divided = rest = 0.0
            for place, name in enumerate(role.node.input):
                if name in self.network.constants:
                    tensor_bytes = self._constant_bytes(name)
                    divided += tensor_bytes if place in role.sliced else 0.0
                    rest += 0.0 if place in role.sliced else tensor_bytes
            self._weights[role.key] = divided, rest
        divided, rest = self._weights[role.key]
        return divided * share * input_share + rest

    def link(self, sender: int, receiver: int) -> tuple[float, float]:
        """Seconds a byte from one device to another, and seconds that any message is on its way besides: over the link,
        and through the engines on both sides, each of which has half of what its device's profile tells."""
        rate = link_between(self.devices[sender], self.devices[receiver])
        sides = [self.profiles[device].exchange_seconds for device in (sender, receiver)]
        a_byte, a_message = (math.fsum(part) / 2 for part in zip(*sides, strict=True))
        return rate.seconds(1) + a_byte, rate.round_trip_ms / 2e3 + a_message

    @cached_property
    def links(self) -> tuple[tuple[tuple[float, float], ...], ...]:
        """`link` of every sender and receiver."""
        count = range(len(self.devices))
        return tuple(tuple(self.link(sender, receiver) for receiver in count) for sender in count)

    @cached_property
    def limits(self) -> tuple[float, ...]:
        """Per device: bytes of memory that a plan may use; infinite where none are told."""
        told = (device.memory_bytes for device in self.devices)
        return tuple(
            math.inf if limit is None else max(limit - margin, 1.0)
            for limit, margin in zip(told, self.margins, strict=True)
        )

    def tightened(self, margins: Sequence[float]) -> Costs:
        """The same with so many bytes less for each device, besides those kept back already."""
        other = copy.copy(self)
        other.margins = tuple(own + more for own, more in zip(self.margins, margins, strict=True))
        other.__dict__.pop("limits", None)
        return other

    @property
    def is_limited(self) -> bool:
        return any(math.isfinite(limit) for limit in self.limits)

    def _constant_bytes(self, name: str) -> float:
        node = self.network.dequantised.get(name)
        stored = [name] if node is None else [read for read in node.input if read]
        sizes = (self.network.dims(one) for one in stored)
        kinds = (self.network.element_type(one) for one in stored)
        return math.fsum(math.prod(dims) * element_bytes(kind) for dims, kind in zip(sizes, kinds, strict=True))


def _keys(model: ModelProto) -> list[str]:
    return [node.output[0] for node in model.graph.node]


def _node_seconds(node: NodeEstimate) -> NodeSeconds:
    fixed = node.parts["dispatch"]
    return NodeSeconds(fixed, node.seconds - fixed)
