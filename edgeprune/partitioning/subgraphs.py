"""Cut each device's operations into subgraphs, and build their ONNX models.

A subgraph ends behind what another device waits for, and begins in front of what waits for another device, so that
nothing waits without need. Its stage is its place on the longest way to it through subgraphs and transfers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeprune.onnx_files.graph import array, attributes, element_bytes, used_values
from edgeprune.onnx_files.model import name_nodes
from edgeprune.partitioning.network import Network
from edgeprune.partitioning.operations import ConstantPart, Op, Program
from edgeprune.partitioning.planning.channels import numbers, runs
from edgeprune.partitioning.tensors import Tensors, bare


@dataclass
class Subgraph:
    """One subgraph while it is built."""

    device: int
    name: str
    """The device's."""
    ops: list[Op] = field(default_factory=list)
    stage: int = -1
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)

    @property
    def file(self) -> str:
        return f"{self.name}/stage_{self.stage:02d}.onnx"

    @property
    def macs(self) -> int:
        return sum(op.macs for op in self.ops)

    @property
    def made(self) -> list[str]:
        """The tensors that it computes."""
        return [output for op in self.ops for output in op.node.output if output]

    @property
    def read(self) -> list[str]:
        """The tensors that it needs from outside, in order of use."""
        known = {output for node in self.nodes for output in node.output} | self.constants.keys()
        used = dict.fromkeys(name for node in self.nodes for name in sorted(used_values(node)))
        return [name for name in used if name not in known]

    @property
    def weight_bytes(self) -> int:
        sizes = (math.prod(tensor.dims) * element_bytes(tensor.data_type) for tensor in self.constants.values())
        return math.ceil(math.fsum(sizes))

    def build(self, network: Network) -> None:
        """Make the nodes and constants of the operations."""
        for op in self.ops:
            node = bare(op.node)
            for place, part in op.constants.items():
                node.input[place] = self._slice(part, network)
            for name in sorted(used_values(op.node)):  # of graphs inside the node, too
                if name in network.constants and name not in op.node.input:
                    self._hold(name, network)
            self.constants.update((tensor.name, tensor) for tensor in op.own)
            self.nodes.append(node)

    def to_model(self, tensors: Tensors, wanted: Collection[str]) -> ModelProto:
        """The subgraph as a model; its outputs are those of its tensors that are `wanted` elsewhere."""
        outputs = [name for name in self.made if name in wanted]
        graph = helper.make_graph(
            self.nodes,
            f"{self.name}_stage_{self.stage}",
            [tensors.value_info(name) for name in self.read],
            [tensors.value_info(name) for name in outputs],
            list(self.constants.values()),
        )
        name_nodes(graph)
        source = tensors.network.model
        return helper.make_model(
            graph, opset_imports=source.opset_import, ir_version=max(source.ir_version, 4), producer_name="edgeprune"
        )

    def _hold(self, name: str, network: Network) -> None:
        """Keep a constant, as integers with what makes numbers of them where it is so."""
        node = network.dequantised.get(name)
        if node is None:
            self.constants[name] = network.constants[name]
        elif not any(name in known.output for known in self.nodes):
            self.constants.update((read, network.constants[read]) for read in node.input if read)
            self.nodes.append(bare(node))

    def _slice(self, part: ConstantPart, network: Network) -> str:
        """Keep a constant, or some of its channels along an axis; returns the name that it has here."""
        if part.axis is None:
            self._hold(part.name, network)
            return part.name
        taken = ",".join(f"{start}:{stop}" for start, stop in runs(part.channels))
        key = f"{part.name}[{'' if part.axis == 0 else f'axis {part.axis}, '}{taken}]"
        if key in self.constants or any(key in known.output for known in self.nodes):
            return key
        node = network.dequantised.get(part.name)
        if node is not None and (axes := _sliced_axes(node, part.axis, network)):
            copy = bare(node)
            for place, along in axes.items():
                copy.input[place] = self._slice(ConstantPart(node.input[place], along, part.channels), network)
            copy.output[0] = key
            self.nodes.append(copy)
        else:
            self.constants[key] = numpy_helper.from_array(_taken(array(network.constants[part.name]), part), key)
        return key


def subgraphs_of(program: Program, names: Sequence[str]) -> list[Subgraph]:
    """The subgraphs of all devices, built, in the order of their stages."""
    found: list[Subgraph] = []
    sources: list[dict[str, int]] = [{} for _ in names]
    sent: list[set[str]] = [set() for _ in names]
    for move in program.moves:
        sources[move.to][move.tensor] = move.source
        sent[move.source].add(move.tensor)
    for device, ops in enumerate(program.ops):
        found += _cut(device, names[device], ops, sent[device], set(sources[device]))
    _number(found, sources)
    for subgraph in found:
        subgraph.build(program.tensors.network)
    return sorted(found, key=lambda subgraph: (subgraph.stage, subgraph.device))


def _cut(device: int, name: str, ops: Sequence[Op], sent: set[str], received: set[str]) -> list[Subgraph]:
    """One device's operations in runs."""
    runs: list[Subgraph] = []
    arrived: set[str] = set()
    is_over = True
    for op in ops:
        fresh = (used_values(op.node) & received) - arrived
        sends = bool(sent & set(op.node.output))
        if (is_over and not op.is_cut) or not runs or (fresh and runs[-1].ops):
            runs.append(Subgraph(device, name))
            is_over = False
        runs[-1].ops.append(op)
        arrived |= fresh
        is_over = is_over or sends
    return runs


def _number(subgraphs: Sequence[Subgraph], sources: Sequence[Mapping[str, int]]) -> None:
    """Give each subgraph its stage: behind that before it on its device, and behind those that it gets tensors from.

    `sources`: per device, tensor that it gets -> the device that sends it.
    """
    makers = {(subgraph.device, tensor): subgraph for subgraph in subgraphs for tensor in subgraph.made}
    behind: dict[int, list[Subgraph]] = {id(subgraph): [] for subgraph in subgraphs}
    for first, second in pairwise(subgraphs):
        if first.device == second.device:
            behind[id(second)].append(first)
    for subgraph in subgraphs:
        for tensor in {name for op in subgraph.ops for name in used_values(op.node)}:
            source = sources[subgraph.device].get(tensor)
            if source is not None and (source, tensor) in makers:  # else it is an input of the network
                behind[id(subgraph)].append(makers[source, tensor])

    def stage_of(subgraph: Subgraph) -> int:
        if subgraph.stage < 0:
            subgraph.stage = 1 + max(map(stage_of, behind[id(subgraph)]), default=-1)
        return subgraph.stage

    for subgraph in subgraphs:
        stage_of(subgraph)


def _taken(values: NDArray[np.generic], part: ConstantPart) -> NDArray[np.generic]:
    """The channels of a constant along an axis; not copied where they are neighbours."""
    axis = part.axis or 0
    first, *more = runs(part.channels)
    if more:
        return values.take(np.asarray(numbers(part.channels), np.int64), axis)
    places = [slice(None)] * values.ndim
    places[axis] = slice(*first)
    return values[tuple(places)]


def _sliced_axes(node: NodeProto, axis: int, network: Network) -> Mapping[int, int | None]:
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
