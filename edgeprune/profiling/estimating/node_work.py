"""What each node of an ONNX model computes and moves when a runtime executes it: the work that estimates put a rate to.

Runtimes compute activations, and additions of a residual, along with the convolution in front; fast kernels keep
channels in blocks, and data is reordered where an operation needs it as the model has it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import ModelProto, NodeProto

from edgeprune.devices.channel_block import reads_blocks
from edgeprune.devices.kernels import Kernel, conv_kernel
from edgeprune.onnx_files.constants import constants
from edgeprune.onnx_files.graph import attributes, element_bytes
from edgeprune.onnx_files.shapes import concrete_types
from edgeprune.profiling.layer_times import ModelLayers

_ACTIVATIONS = frozenset({"BatchNormalization", "Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
_HOSTS = frozenset({"BatchNormalization", "Conv", "ConvTranspose", "Gemm"})
_BLOCKWISE = _ACTIVATIONS | {
    "Add",
    "AveragePool",
    "Concat",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "MaxPool",
    "Mul",
    "Sum",
}
_WIDE = 1 << 16
"""Columns of a matrix product, which has no border."""
_REMOVED = frozenset({"Constant", "Dropout", "Identity"})
_VIEWS = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class NodeWork:
    """One node, for the whole batch."""

    name: str
    op_type: str
    layer: str
    """The layer that it belongs to, as `ModelLayers.owners`, also where it is computed along with it; or empty."""
    kernel: Kernel | None = None
    """None: it has no multiply-adds."""
    macs: int = 0
    """Multiply-adds, channels filled up to whole blocks."""
    weight_bytes: float = 0.0
    moved_bytes: float = 0.0
    """Activations that it reads and writes."""
    reordered_bytes: float = 0.0
    """Activations that are read and written before, to have them in the layout that it needs."""
    reorders: int = 0
    """How many values are reordered."""
    starts: int = 1
    """0 where it is computed along with another node, or not at all."""

    @property
    def launches(self) -> int:
        """How many nodes the runtime starts."""
        return self.starts + self.reorders


def node_works(model: ModelProto, batch: int, block: int, *, reorders: bool) -> tuple[NodeWork, ...]:
    """The work of every node, in the model's order, on a device with this channel block.

    `reorders`: its fast kernels keep channels in blocks, in a layout of their own. InputError if the batch does not fit
    the model, or shapes cannot be inferred.
    """
    return _Walk(model, batch, block, reorders).works()


class _Walk:
    """One pass over the nodes, in order."""

    def __init__(self, model: ModelProto, batch: int, block: int, reorders: bool) -> None:
        self.model, self.block, self.reorders = model, block, reorders
        layers = ModelLayers.of(model, batch)
        self.owners, self.macs = dict(layers.owners), {node.output: node.macs for node in layers.counted.per_node}
        types = concrete_types(model, batch)
        self.shapes = {value: shape for value, (shape, _) in types.items() if shape is not None}
        self.bytes = {value: math.prod(shape) * element_bytes(types[value][1]) for value, shape in self.shapes.items()}
        self.fixed = frozenset(constants(model))
        self.uses = Counter(value for node in model.graph.node for value in node.input)
        self.uses.update(value.name for value in model.graph.output)
        self.done: list[NodeWork] = []
        self.hosts: dict[str, int] = {}
        """Value -> place in `done` of the node that computes it, perhaps along with what it is for."""
        self.blocked: set[str] = set()
        """Values in the layout of the fast kernels."""
        self.turned: set[str] = set()
        """Values that were put into the other layout already."""

    def works(self) -> tuple[NodeWork, ...]:
        for node in self.model.graph.node:
            self.done.append(self._work(node))
        return tuple(self.done)

    def _work(self, node: NodeProto) -> NodeWork:
        data = [value for value in node.input if value and value not in self.fixed]
        layer = self.owners.get(node.name, "")
        if node.op_type in _REMOVED or not data:
            self.blocked |= set(node.output) if set(data) & self.blocked else set()
            return NodeWork(node.name, node.op_type, layer, starts=0)
        host = self._host(node, data)
        works_blocked = self._works_blocked(node, data)
        reorders, reordered = self._reordered(data, works_blocked)
        if works_blocked:
            self.blocked |= {value for value in node.output if len(self.shapes.get(value, ())) > 2}
        if host:
            place = self.hosts[node.output[0]] = self.hosts[host]
            own = self.done[place]
            others = math.fsum(self.bytes.get(value, 0) for value in data if value != host)
            self.done[place] = replace(own, moved_bytes=own.moved_bytes + others)
            return NodeWork(node.name, node.op_type, own.layer, reordered_bytes=reordered, reorders=reorders, starts=0)
        if node.op_type in _HOSTS:
            self.hosts[node.output[0]] = len(self.done)
        if node.op_type in _VIEWS:
            return NodeWork(node.name, node.op_type, layer, reordered_bytes=reordered, reorders=reorders)
        kernel = self._kernel(node)
        return NodeWork(
            node.name,
            node.op_type,
            layer,
            kernel,
            round(self.macs[node.output[0]] * kernel.fill) if kernel else 0,
            math.fsum(self.bytes.get(value, 0) for value in node.input if value in self.fixed),
            self._moved(node, data),
            reordered,
            reorders,
        )

    def _moved(self, node: NodeProto, data: Sequence[str]) -> float:
        written = math.fsum(self.bytes.get(value, 0) for value in node.output)
        if node.op_type == "Gather":  # it reads what it writes: a part of its input, or some of it twice
            return 2 * written
        return written + math.fsum(self.bytes.get(value, 0) for value in data)

    def _host(self, node: NodeProto, data: Sequence[str]) -> str:
        """The input whose convolution computes this node along; empty if none does."""
        alone = [value for value in data if value in self.hosts and self.uses[value] == 1]
        is_activation = node.op_type in _ACTIVATIONS and len(data) == 1
        same = {self.shapes.get(value) for value in data}
        is_residual = node.op_type in ("Add", "Sum") and len(data) == 2 and len(same) == 1
        if is_residual and self.reorders and not set(data) <= self.blocked:
            return ""  # only the fast kernels can begin with another value than 0, and that in their own layout
        return alone[-1] if alone and (is_activation or is_residual) else ""

    def _works_blocked(self, node: NodeProto, data: Sequence[str]) -> bool:
        if not self.reorders:
            return False
        if node.op_type == "Conv":
            weight, groups = self.shapes.get(node.input[1], ()), _groups(attributes(node))
            return len(weight) > 1 and reads_blocks(groups, weight[1], weight[0] // groups, self.block)
        channels = [self.shapes[value][1] for value in data if len(self.shapes.get(value, ())) > 2]
        whole = node.op_type != "Concat" or not any(count % self.block for count in channels)
        return node.op_type in _BLOCKWISE and whole and set(data) <= self.blocked

    def _reordered(self, data: Sequence[str], works_blocked: bool) -> tuple[int, float]:
        """How many inputs to put into the layout that is needed, each once, and the bytes to read and write for it."""
        count, moved = 0, 0.0
        for value in data:
            shape = self.shapes.get(value, ())
            reads_as_it_is = works_blocked and value not in self.blocked and len(shape) > 1 and shape[1] < self.block
            if (value in self.blocked) != works_blocked and not reads_as_it_is and value not in self.turned:
                self.turned.add(value)
                count, moved = count + 1, moved + 2 * self.bytes.get(value, 0)
        return count, moved

    def _kernel(self, node: NodeProto) -> Kernel | None:
        """None for a node without multiply-adds."""
        macs, output = self.macs.get(node.output[0], 0), self.shapes.get(node.output[0], ())
        if not macs or not output:
            return None
        if node.op_type not in ("Conv", "FusedConv"):
            return Kernel("pointwise", output[-1], _WIDE, max(macs // math.prod(output), 1))
        return conv_kernel(self.shapes[node.input[1]], _groups(attributes(node)), output[-1], self.block)


def _groups(settings: Mapping[str, object]) -> int:
    groups = settings.get("group", 1)
    return groups if isinstance(groups, int) and groups > 0 else 1
