"""Build the ONNX subgraphs of a partition: the host's work between two joins, and a device's part of a segment."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edgeprune.onnx_files.graph import array, attributes, element_bytes, fresh_name, used_values
from edgeprune.onnx_files.model import name_nodes
from edgeprune.partitioning.network import Network, ValueType
from edgeprune.partitioning.segments import Segment, Step


class Scope:
    """What all subgraphs of one partition share: the network, and the values that only the partition has."""

    def __init__(self, network: Network, macs: Mapping[str, int]) -> None:
        self.network = network
        self.macs = macs
        """Multiply-adds of a node by the first value that it writes."""
        self._types: dict[str, ValueType] = {}
        self._taken = set(network.constants) | set(network.producers) | {spec.name for spec in network.inputs}

    def new_value(self, base: str, known: ValueType | None = None) -> str:
        """A name that no other value has; the type is needed only where the value leaves its subgraph."""
        name = fresh_name(base, self._taken)
        if known:
            self._types[name] = known
        return name

    def type_of(self, value: str) -> ValueType:
        return self._types[value] if value in self._types else self.network.type_of(value)

    def value_info(self, value: str) -> ValueInfoProto:
        known = self.type_of(value)
        return helper.make_tensor_value_info(value, known.elem_type, known.dims)


@dataclass
class Subgraph:
    """One subgraph while it is built."""

    device: str
    stage: int
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    macs: int = 0

    @property
    def file(self) -> str:
        return f"{self.device}/stage_{self.stage:02d}.onnx"

    @property
    def made(self) -> set[str]:
        """The values that it computes."""
        return {output for node in self.nodes for output in node.output if output}

    @property
    def read(self) -> list[str]:
        """The values that it needs from outside, in order of use."""
        known = self.made | self.constants.keys()
        used = dict.fromkeys(name for node in self.nodes for name in sorted(used_values(node)))
        return [name for name in used if name not in known]

    @property
    def weight_bytes(self) -> int:
        sizes = (math.prod(tensor.dims) * element_bytes(tensor.data_type) for tensor in self.constants.values())
        return math.ceil(math.fsum(sizes))

    def add_node(self, node: NodeProto, scope: Scope) -> None:
        """One of the network's nodes as it is, with the constants that it reads."""
        for name in sorted(used_values(node)):
            if name in scope.network.constants:
                self._hold(name, scope.network)
        self.nodes.append(_bare(node))
        self.macs += scope.macs.get(node.output[0], 0)

    def add_gather(self, source: str, positions: Sequence[int], base: str, scope: Scope) -> str:
        """The channels of `source` (N, C, ...) at `positions`, as a new value named like `base`."""
        name = scope.new_value(base, with_channels(scope.type_of(source), len(positions)))
        index = scope.new_value(f"{name}_channels")
        self.constants[index] = numpy_helper.from_array(np.asarray(positions, np.int64), index)
        self.nodes.append(helper.make_node("Gather", [source, index], [name], name=f"Gather_{name}", axis=1))
        return name

    def add_join(self, parts: Sequence[str], result: str) -> None:
        """Concatenate the devices' channels."""
        self.nodes.append(helper.make_node("Concat", parts, [result], name=f"Concat_{result}", axis=1))

    def add_part(self, segment: Segment, number: int, data: str, scope: Scope) -> str:
        """Device `number`'s part of a segment, reading its input channels from `data`; the name of its result."""
        renamed = {segment.steps[0].node.input[0]: data}
        if segment.entry is not None:
            renamed[segment.steps[0].node.input[0]] = self._add_entry(segment.entry, data, scope)
        for step in segment.steps:
            start, stop = step.ranges[number]
            total = step.ranges[-1][1]  # the ranges lie end to end
            result = step.node.output[0]
            known = with_channels(scope.type_of(result), stop - start) if result == segment.exit else None
            renamed[result] = scope.new_value(f"{result}@{self.device}", known)
            self.nodes.append(self._part_of(step, number, renamed, scope.network))
            self.macs += scope.macs.get(result, 0) * (stop - start) // total
        return renamed[segment.exit]

    def _add_entry(self, node: NodeProto, data: str, scope: Scope) -> str:
        """What makes numbers of the integers that a part reads."""
        copy = _bare(node)
        copy.input[0] = data
        copy.output[0] = result = scope.new_value(f"{node.output[0]}@{self.device}")
        for name in filter(None, node.input[1:]):
            self._hold(name, scope.network)
        self.nodes.append(copy)
        return result

    def _part_of(self, step: Step, number: int, renamed: Mapping[str, str], network: Network) -> NodeProto:
        node = _bare(step.node)
        start, stop = step.ranges[number]
        for place, name in enumerate(step.node.input):
            if name in network.constants:
                node.input[place] = self._slice(name, step.sliced.get(place), start, stop, network)
            elif name:
                node.input[place] = renamed[name]
        node.output[0] = renamed[step.node.output[0]]
        for attribute in node.attribute:
            if step.per_group and attribute.name == "group":
                attribute.i = (stop - start) // step.per_group
        return node

    def _hold(self, name: str, network: Network) -> None:
        """Keep a constant, as integers with what makes numbers of them where it is so."""
        node = network.dequantised.get(name)
        if node is None:
            self.constants[name] = network.constants[name]
        elif name not in self.made:
            self.constants.update((read, network.constants[read]) for read in node.input if read)
            self.nodes.append(_bare(node))

    def _slice(self, name: str, axis: int | None, start: int, stop: int, network: Network) -> str:
        """Keep a constant, or its channels start..stop along `axis`; returns the name that it has here."""
        if axis is None:
            self._hold(name, network)
            return name
        key = f"{name}[{start}:{stop}]"
        if key in self.constants or key in self.made:
            return key
        node = network.dequantised.get(name)
        if node is not None and (axes := _sliced_axes(node, axis, network)):
            copy = _bare(node)
            for place, along in axes.items():
                copy.input[place] = self._slice(node.input[place], along, start, stop, network)
            copy.output[0] = key
            self.nodes.append(copy)
        else:
            self.constants[key] = numpy_helper.from_array(
                array(network.constants[name]).take(np.arange(start, stop), axis), key
            )
        return key

    def to_model(self, scope: Scope, wanted: Collection[str]) -> ModelProto:
        """The subgraph as a model; its outputs are those of its values that are `wanted` elsewhere."""
        outputs = [name for node in self.nodes for name in node.output if name in wanted]
        graph = helper.make_graph(
            self.nodes,
            f"{self.device}_stage_{self.stage}",
            [scope.value_info(name) for name in self.read],
            [scope.value_info(name) for name in outputs],
            list(self.constants.values()),
        )
        name_nodes(graph)
        source = scope.network.model
        return helper.make_model(
            graph, opset_imports=source.opset_import, ir_version=max(source.ir_version, 4), producer_name="edgeprune"
        )


def with_channels(value: ValueType, channels: int) -> ValueType:
    """The type of a value (N, C, ...) cut to some of its channels."""
    shape = (value.shape[0], channels, *value.shape[2:])
    return ValueType(shape, (value.dims[0], channels, *value.dims[2:]), value.elem_type)


def _sliced_axes(node: NodeProto, axis: int, network: Network) -> dict[int, int | None]:
    """Along which axis to slice each input of a DequantizeLinear of constants (None: not at all), so that its result is
    sliced along `axis`; empty where blocks of several channels share a scale."""
    dims = network.dims(node.input[0])
    own_axis = int(str(attributes(node).get("axis", 1))) % max(len(dims), 1)
    found: dict[int, int | None] = {0: axis}
    for place, name in enumerate(node.input):
        if not place or not name:
            continue
        scale = network.dims(name)
        if math.prod(scale) == 1 or (len(scale) == 1 and own_axis != axis):
            found[place] = None
        elif len(scale) == 1:
            found[place] = 0
        elif scale[axis] == dims[axis]:
            found[place] = axis
        else:
            return {}
    return found


def _bare(node: NodeProto) -> NodeProto:
    """A copy without the exporter's notes (stack traces with paths of the machine it ran on)."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("doc_string")
    copy.ClearField("metadata_props")
    return copy
