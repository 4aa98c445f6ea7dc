"""Divide the grouped convolutions of an ONNX network over several devices.

The first device is the host: it holds everything that cannot be divided, and a share of the groups. Every value has a
level: the number of divided convolutions on the longest path to it. The host's work of level k is one stage; the
segments that lead to level k + 1 are the next, in which all devices work at the same time on their own groups; the
host stage behind it concatenates their results. A device is sent only the channels that its groups read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from onnx import ModelProto, NodeProto, helper

from edgeprune.errors import InputError
from edgeprune.onnx_files.graph import all_graphs, attributes, used_values
from edgeprune.onnx_files.macs import count_macs
from edgeprune.onnx_files.model import CONVOLUTIONS
from edgeprune.partitioning.devices import Device, check_devices, load_devices, rates
from edgeprune.partitioning.estimate import Piece, estimate
from edgeprune.partitioning.manifest import (
    DeviceEntry,
    Partition,
    PartitionManifest,
    Stage,
    TensorInfo,
    Transfer,
    check_partition,
    load_manifest,
    load_partition,
    load_subgraph,
    write_partition,
)
from edgeprune.partitioning.network import Network
from edgeprune.partitioning.segments import (
    Segment,
    find_segments,
    group_ranges,
    has_own_constants,
    is_divisible,
    is_grouped,
)
from edgeprune.partitioning.subgraphs import Scope, Subgraph

__all__ = [
    "Device",
    "Partition",
    "PartitionManifest",
    "check_partition",
    "group_ranges",
    "load_devices",
    "load_manifest",
    "load_partition",
    "load_subgraph",
    "partition_model",
    "write_partition",
]


def partition_model(model: ModelProto, devices: Sequence[Device]) -> Partition:
    """Divide every grouped convolution of `model` over `devices`, the first of which is the host.

    The groups are divided in contiguous ranges in proportion to the devices' rates; a device may get none. With one
    device the result is a single subgraph. Bytes and MACs in the manifest are for batch 1 (or the batch that the
    model was exported with); a dynamic batch stays dynamic. `model` is as `load_model` returns it and is not changed.
    InputError if it holds no grouped convolution with constant weights, or shapes cannot be inferred.
    """
    check_devices(devices)
    network = Network(model)
    where = "the model"
    if not any(is_divisible(node, network) for node in network.nodes):
        raise _nothing_to_divide(network, where)
    for name in network.outputs:
        if name in network.constants:
            raise InputError(f"output {name!r} is a constant", where=where, expected="outputs that are computed")
    segments = find_segments(network, rates(devices))
    macs = Counter[str]()
    for node in count_macs(model, batch=network.batch).per_node:
        macs[node.outermost] += node.macs if node.is_counted else 0
    work = _Division(Scope(network, macs), tuple(devices))
    for ends, nodes, starts in _levels(network, segments):
        work.add_host_stage(ends, nodes, starts)
        if starts:
            work.add_parallel_stage(starts)
    return work.finish()


def _nothing_to_divide(network: Network, where: str) -> InputError:
    graphs = list(all_graphs(network.model.graph))
    inside = [node for graph in graphs[1:] for node in graph.node if is_grouped(node)]
    outside = [node for node in graphs[0].node if is_grouped(node)]
    if outside and has_own_constants(outside[0], network):
        return InputError(
            f"the weight of {outside[0].name!r} does not fit its groups and its input",
            where=where,
            expected="as many filters as a multiple of the groups, which read all channels of the input",
            remedy="export the network again",
        )
    if outside:
        return InputError(
            f"holds no grouped convolution with constant weights: {outside[0].name!r} computes its own while it runs",
            where=where,
            expected="weights that do not depend on the input",
            remedy="export the network with its weights as constants",
        )
    if inside:
        return InputError(
            f"holds no grouped convolution outside of If, Loop and Scan: {inside[0].name!r} lies in one",
            where=where,
            expected="grouped convolutions that every run computes once",
            remedy="export the network for one branch (traced, not scripted)",
        )
    others = [n for n in graphs[0].node if n.op_type in CONVOLUTIONS and attributes(n).get("group", 1) != 1]
    if others:
        return InputError(
            f"holds grouped convolutions of a kind that is not divided: {others[0].name!r} is {others[0].op_type}",
            where=where,
            expected="Conv, or QLinearConv",
            remedy="split the network before it is quantised" if "Integer" in others[0].op_type else "",
        )
    return InputError(
        "holds no grouped convolution with constant weights",
        where=where,
        expected="a convolution with group > 1",
        remedy="prune it into groups first (`edgeprune export --groups 8`), or split the bundle that it comes "
        "from: in its model.onnx, layers may be written dense",
    )


def _levels(
    network: Network, segments: Sequence[Segment]
) -> list[tuple[list[Segment], list[NodeProto], list[Segment]]]:
    """For every level: the segments that end in it, the host's nodes of it in order, the segments that start in it."""
    heads = {segment.nodes[0]: segment for segment in segments}
    inside = {output for segment in segments for output in segment.nodes}
    needed = _needed_nodes(network, segments, inside)
    of_value: dict[str, int] = {}
    nodes: dict[int, list[NodeProto]] = {}
    for node in network.nodes:
        if segment := heads.get(node.output[0]):
            of_value[segment.exit] = 1 + of_value.get(segment.source, 0)
        if node.output[0] in inside:
            continue
        level = max((of_value.get(name, 0) for name in used_values(node)), default=0)
        of_value.update((output, level) for output in node.output)
        if node.output[0] in needed:
            nodes.setdefault(level, []).append(node)
    ends: dict[int, list[Segment]] = {}
    for segment in segments:
        ends.setdefault(of_value[segment.exit], []).append(segment)
    depth = max(ends, default=0)
    return [(ends.get(level, []), nodes.get(level, []), ends.get(level + 1, [])) for level in range(depth + 1)]


def _needed_nodes(network: Network, segments: Sequence[Segment], inside: set[str]) -> set[str]:
    """First outputs of the host's nodes, without those that nothing reads any more (a Gather that devices do now)."""
    wanted = set(network.outputs) | {segment.source for segment in segments}
    needed = set()
    for node in reversed(network.nodes):
        if node.output[0] not in inside and wanted & set(node.output):
            needed.add(node.output[0])
            wanted |= used_values(node)
    return needed


@dataclass
class _Division:
    """The stages made so far."""

    scope: Scope
    devices: tuple[Device, ...]
    subgraphs: list[Subgraph] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    transfers: dict[tuple[str, str, int], Transfer] = field(default_factory=dict)
    parts: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Segment's exit -> (device, name of its part), in the order of the channels."""
    cuts: dict[tuple[str, tuple[int, ...]], str] = field(default_factory=dict)
    """(source, channels) -> the value that the host cut out of it in its last stage."""

    @property
    def host(self) -> str:
        return self.devices[0].name

    def add_host_stage(self, ends: Sequence[Segment], nodes: Sequence[NodeProto], starts: Sequence[Segment]) -> None:
        """Join what the devices computed, do the host's own work, cut out what the devices will read."""
        work = Subgraph(self.host, len(self.stages))
        for segment in ends:
            parts = self.parts[segment.exit]
            work.add_join([name for _, name in parts], segment.exit)
            for sender, name in parts:
                self._move(sender, self.host, name, work.stage)
        for node in nodes:
            work.add_node(node, self.scope)
        self.cuts = {}
        for segment in starts:
            for number, device in enumerate(self.devices[1:], start=1):
                sent = self._channels_sent(segment, number)
                if sent and sent != self._all_channels(segment) and (segment.source, sent) not in self.cuts:
                    cut = work.add_gather(segment.source, sent, f"{segment.source}@{device.name}", self.scope)
                    self.cuts[segment.source, sent] = cut
        if work.nodes:
            self.subgraphs.append(work)
            self.stages.append(Stage(work.stage, "host", {self.host: work.file}, ()))

    def add_parallel_stage(self, segments: Sequence[Segment]) -> None:
        """Every device's parts of the segments that can start now."""
        stage = len(self.stages)
        files = {}
        for number, device in enumerate(self.devices):
            work = Subgraph(device.name, stage)
            for segment in segments:
                if self._channels_sent(segment, number):
                    data = self._read(work, segment, number)
                    part = work.add_part(segment, number, data, self.scope)
                    self.parts.setdefault(segment.exit, []).append((device.name, part))
            if work.nodes:
                self.subgraphs.append(work)
                files[device.name] = work.file
        layers = tuple(name for segment in segments for name in segment.convolutions)
        self.stages.append(Stage(stage, "parallel", files, layers))

    def _read(self, work: Subgraph, segment: Segment, number: int) -> str:
        """Bring a segment's input to a device; the value from which its part reads its channels in order."""
        everything = self._all_channels(segment)
        held = everything if number == 0 else self._channels_sent(segment, number)
        value = segment.source if held == everything else self.cuts[segment.source, held]
        if number:
            self._move(self.host, self.devices[number].name, value, work.stage)
        start, stop = segment.entry_ranges[number]
        place = {channel: position for position, channel in enumerate(held)}
        positions = tuple(place[channel] for channel in segment.reads[start:stop])
        if positions == tuple(range(len(held))):
            return value
        return work.add_gather(value, positions, f"{value}_read", self.scope)

    def _channels_sent(self, segment: Segment, number: int) -> tuple[int, ...]:
        """The channels of a segment's source that a device needs, in the order in which it gets them; empty if none.

        Each channel once; in the order in which the convolution reads them where none repeats, since the device then
        has nothing to rearrange; in their own order if they are all, since nothing need then be cut out.
        """
        start, stop = segment.entry_ranges[number]
        read = segment.reads[start:stop]
        unique = tuple(sorted(set(read)))
        return read if len(unique) == len(read) and unique != self._all_channels(segment) else unique

    def _all_channels(self, segment: Segment) -> tuple[int, ...]:
        return tuple(range(self.scope.type_of(segment.source).shape[1]))

    def _move(self, sender: str, receiver: str, tensor: str, stage: int) -> None:
        if sender != receiver:
            size = self.scope.type_of(tensor).bytes
            self.transfers[receiver, tensor, stage] = Transfer(sender, receiver, tensor, size, stage)

    def finish(self) -> Partition:
        network = self.scope.network
        wanted = {name for work in self.subgraphs for name in work.read}
        wanted |= {move.tensor for move in self.transfers.values()} | set(network.outputs)
        transfers = tuple(self.transfers.values())
        pieces = [Piece(work.device, work.stage, work.macs, work.weight_bytes) for work in self.subgraphs]
        manifest = PartitionManifest(
            devices=tuple(self._entry(device) for device in self.devices),
            stages=tuple(self.stages),
            transfers=transfers,
            predicted=estimate(self.devices, self.stages, pieces, transfers),
            inputs=tuple(self._info(spec.name) for spec in network.inputs),
            outputs=tuple(self._info(name) for name in network.outputs),
        )
        return Partition(manifest, {work.file: work.to_model(self.scope, wanted) for work in self.subgraphs})

    def _entry(self, device: Device) -> DeviceEntry:
        own = [work for work in self.subgraphs if work.device == device.name]
        return DeviceEntry(
            device.name,
            device.known_profile.name,
            tuple(work.file for work in own),
            sum(work.macs for work in own),
            sum(work.weight_bytes for work in own),
        )

    def _info(self, name: str) -> TensorInfo:
        known = self.scope.type_of(name)
        return TensorInfo(name, str(helper.tensor_dtype_to_np_dtype(known.elem_type)), known.dims)
