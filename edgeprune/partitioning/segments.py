"""Find what can be divided over devices: each grouped convolution, with the channel-wise work that follows it.

A segment is a chain that starts at a grouped convolution and goes on as long as every channel of the result depends on
nothing but the same channel (activations, BatchNorm, pooling, adding a constant), or, at a further grouped
convolution, on channels that the same device has just computed. A device that owns groups [a, b) of the first
convolution owns a contiguous range of channels of every value of the chain, so that it needs only slices of the
constants, and nothing from another device before the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from edgeprune.onnx_files.graph import array, attributes, is_standard
from edgeprune.partitioning.channel_wise import channel_wise, has_one_scale
from edgeprune.partitioning.network import Network

Range = tuple[int, int]
"""First channel (or group), and the one behind the last."""
_WEIGHT_PLACE = {"Conv": 1, "QLinearConv": 3}
_SLICED = {"Conv": (1, 2), "QLinearConv": (3, 4, 5, 8)}
"""Inputs that have a part for each filter: weight and bias, scales and zero points where each filter has its own."""


@dataclass(frozen=True)
class Step:
    """One node of a segment."""

    node: NodeProto
    sliced: Mapping[int, int]
    """Constant input's position -> the axis along which a device takes its channels' slice."""
    ranges: tuple[Range, ...]
    """Per device, the channels of the node's output that it computes; start == stop if none."""
    per_group: int = 0
    """A convolution's output channels a group; 0 for other nodes."""


@dataclass(frozen=True)
class Segment:
    """Chain of nodes that the devices share."""

    steps: tuple[Step, ...]
    source: str
    """The value whose channels the first convolution reads."""
    reads: tuple[int, ...]
    """The channel of `source` at each input position of the first convolution."""
    entry_ranges: tuple[Range, ...]
    """Per device, its input positions of the first convolution."""
    exit: str
    """The value that the chain ends in."""
    entry: NodeProto | None = None
    """The DequantizeLinear between the source and the first convolution, which the devices run: what is moved are the
    integers."""

    @property
    def convolutions(self) -> tuple[str, ...]:
        return tuple(step.node.name or step.node.output[0] for step in self.steps if step.per_group)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Its nodes, each by the first value that it writes (names may be missing or shared)."""
        return tuple(step.node.output[0] for step in self.steps)

    @property
    def exit_ranges(self) -> tuple[Range, ...]:
        return self.steps[-1].ranges


def group_ranges(groups: int, rates: Sequence[float]) -> tuple[Range, ...]:
    """Divide `groups` in contiguous ranges, one a device, in proportion to `rates` by the largest remainder."""
    total = math.fsum(rates)
    quotas = [groups * rate / total for rate in rates]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(rates)), key=lambda device: counts[device] - quotas[device])  # ties: first device
    for device in by_remainder[: groups - sum(counts)]:
        counts[device] += 1
    stops = [sum(counts[: device + 1]) for device in range(len(rates))]
    return tuple((stop - count, stop) for stop, count in zip(stops, counts, strict=True))


def is_grouped(node: NodeProto) -> bool:
    """Whether a node is a convolution in groups, of a kind that can be divided."""
    return node.op_type in _WEIGHT_PLACE and is_standard(node) and _group(node) > 1


def is_divisible(node: NodeProto, network: Network) -> bool:
    """Whether a node is a grouped convolution whose weights are constants that fit its input."""
    if not is_grouped(node) or node.input[0] in network.constants or not has_own_constants(node, network):
        return False
    dims, groups, data = _weight_dims(node, network), _group(node), node.input[0]
    if len(dims) < 3 or min(dims) < 1 or dims[0] % groups:
        return False
    return not network.rank(data) or network.type_of(data).shape[1:2] == (dims[1] * groups,)


def has_own_constants(node: NodeProto, network: Network) -> bool:
    """Whether all that a convolution reads beside its data is constant."""
    return all(name in network.constants for name in node.input[1:] if name)


def find_segments(network: Network, rates: Sequence[float]) -> tuple[Segment, ...]:
    """Every segment of which a device other than the host (the first) gets a part, in the order of the model."""
    segments: list[Segment] = []
    taken: set[str] = set()
    for node in network.nodes:
        if node.output[0] in taken or not is_divisible(node, network):
            continue
        groups = group_ranges(_group(node), rates)
        if all(start == stop for start, stop in groups[1:]):
            continue
        segment = _segment(node, groups, network)
        taken.update(segment.nodes)
        segments.append(segment)
    return tuple(segments)


def _weight_dims(node: NodeProto, network: Network) -> tuple[int, ...]:
    return network.dims(node.input[_WEIGHT_PLACE[node.op_type]])


def _group(node: NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def _segment(head: NodeProto, groups: tuple[Range, ...], network: Network) -> Segment:
    steps = [_convolution_step(head, groups, network)]
    while following := _following(steps[-1], network):
        steps += following
    steps = _with_least_to_move(steps, network)
    per_group_in = _weight_dims(head, network)[1]
    reads = tuple(range(per_group_in * _group(head)))
    source, chosen = _through_gather(head.input[0], reads, network)
    entry = network.producers.get(source)
    if entry is None or entry.op_type != "DequantizeLinear" or not has_one_scale(entry, network):
        entry = None
    else:
        source = entry.input[0]
        source, chosen = _through_gather(source, reads, network) if chosen == reads else (source, chosen)
    positions = _scaled(groups, per_group_in)
    return Segment(tuple(steps), source, chosen, positions, steps[-1].node.output[0], entry)


def _with_least_to_move(steps: list[Step], network: Network) -> list[Step]:
    """The steps up to the value behind the last convolution that has the fewest bytes: integers, where numbers are made
    of them afterwards; the last of equals."""
    last = max(place for place, step in enumerate(steps) if step.per_group)
    ends = [place for place in range(last, len(steps)) if not _is_gate(steps, place)]
    sizes = {place: network.type_of(steps[place].node.output[0]).bytes for place in ends}
    return steps[: max(ends, key=lambda place: (-sizes[place], place)) + 1]


def _is_gate(steps: Sequence[Step], place: int) -> bool:
    """Whether the next step reads more of the segment than what this one writes, as the product of a gate does."""
    following = steps[place + 1].node.input if place + 1 < len(steps) else ()
    inside = {output for step in steps[:place] for output in step.node.output}
    return bool(inside & set(following))


def _convolution_step(node: NodeProto, groups: tuple[Range, ...], network: Network) -> Step:
    per_group = _weight_dims(node, network)[0] // _group(node)
    places = [place for place in _SLICED[node.op_type] if place < len(node.input) and node.input[place]]
    sliced = {place: 0 for place in places if math.prod(network.dims(node.input[place])) > 1}
    return Step(node, sliced, _scaled(groups, per_group), per_group)


def _scaled(ranges: tuple[Range, ...], factor: int) -> tuple[Range, ...]:
    return tuple((start * factor, stop * factor) for start, stop in ranges)


def _through_gather(value: str, reads: tuple[int, ...], network: Network) -> tuple[str, tuple[int, ...]]:
    """The value that channels are taken from, and which of it, looking through a Gather by constant channel numbers."""
    gather = network.producers.get(value)
    plain = value, reads
    if gather is None or gather.op_type != "Gather" or not is_standard(gather):
        return plain
    if gather.input[1] not in network.constants:
        return plain
    data, rank = gather.input[0], network.rank(gather.input[0])
    axis = int(str(attributes(gather).get("axis", 0)))
    index = array(network.constants[gather.input[1]])
    if data in network.constants or index.ndim != 1 or not rank or axis % rank != 1:
        return plain
    held = network.type_of(data).shape[1]
    if index.min(initial=0) < -held or index.max(initial=0) >= held:
        return plain  # ONNX Runtime will say so
    return data, tuple(int(i) % held for i in index)


def _following(last: Step, network: Network) -> list[Step]:
    """The step (or a gate's two) that can follow in a segment; empty where the segment ends."""
    value = last.node.output[0]
    nodes = network.consumers.get(value, [])
    if value in network.outputs or any(name for name in last.node.output[1:]):
        return []
    if len(nodes) == 2:
        return _gate(nodes, value, last, network)
    if len(nodes) != 1:
        return []
    node = nodes[0]
    if is_divisible(node, network) and node.input[0] == value:
        per_group_in = _weight_dims(node, network)[1]
        if any(bound % per_group_in for channels in last.ranges for bound in channels):
            return []
        groups = tuple((start // per_group_in, stop // per_group_in) for start, stop in last.ranges)
        return [_convolution_step(node, groups, network)]
    sliced = channel_wise(node, value, network)
    return [] if sliced is None else [Step(node, sliced, last.ranges)]


def _gate(nodes: Sequence[NodeProto], value: str, last: Step, network: Network) -> list[Step]:
    """x * sigmoid(x), as SiLU is exported: both nodes, if nothing else reads what lies between them."""
    for gate, product in (nodes, nodes[::-1]):
        between = gate.output[0]
        if (
            gate.op_type in ("Sigmoid", "HardSigmoid", "Tanh")
            and product.op_type == "Mul"
            and sorted(product.input) == sorted((value, between))
            and network.consumers.get(between) == [product]
            and between not in network.outputs
        ):
            return [Step(gate, {}, last.ranges), Step(product, {}, last.ranges)]
    return []
