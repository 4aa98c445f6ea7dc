"""The grouped layers of an ONNX model: a convolution with the channel Gathers in front of and behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

from edgeprune.onnx_files.constants import constants
from edgeprune.onnx_files.graph import array, attributes, is_standard, used_values
from edgeprune.onnx_files.inputs import static_batch
from edgeprune.onnx_files.shapes import concrete_shapes
from edgeprune.plans.permutation import Selection

Reads = tuple[tuple[int, ...], ...]
"""Per group, the channels of the source tensor that it reads, in order."""


@dataclass(frozen=True)
class GroupedLayer:
    """One grouped convolution, seen from the tensors outside of its Gathers."""

    name: str
    source: str
    """The value that it reads, before any Gather of its own."""
    source_shape: tuple[int, ...]
    """Of one sample: (channels, *positions)."""
    output: str
    """The value that it writes, behind any Gather of its own."""
    output_shape: tuple[int, ...]
    """Of one sample."""
    reads: Reads
    weight: NDArray[np.generic]
    """(filters, inputs a group, *kernel), group after group."""
    bias: NDArray[np.generic] | None
    writes: Selection
    """Channel i of `output` is filter writes[i]."""
    attributes: tuple[AttributeProto, ...]
    """Those of the Conv node, without `group`."""
    nodes: tuple[str, ...]
    """Names of the nodes that only it needs: its Gathers and the Conv."""

    @property
    def channels(self) -> int:
        """Channels of the source."""
        return self.source_shape[0]

    @property
    def groups(self) -> int:
        return len(self.reads)

    @property
    def filters(self) -> int:
        return int(self.weight.shape[0])

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.weight.shape[2:])


def grouped_layers(model: ModelProto) -> dict[str, GroupedLayer]:
    """Every grouped convolution with constant weights, by its node's name; depthwise ones are left out.

    A depthwise convolution has one input channel a group: no other form of it can be faster. Nodes must have names
    (`onnx_model.load_model` gives them).
    """
    view = GraphView(model)
    found = (_layer(node, view) for node in model.graph.node if _is_grouped(node, view))
    return {layer.name: layer for layer in found if layer is not None}


class GraphView:
    """Who makes and who uses each value of a model's top-level graph, and its constants. Not kept up to date."""

    def __init__(self, model: ModelProto) -> None:
        self.constants = constants(model)
        self.makers: dict[str, NodeProto] = {}
        self.users: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for value in node.output:
                self.makers[value] = node
            for value in _read(node):
                self.users.setdefault(value, []).append(node)
        self.uses: Mapping[str, int] = Counter(value for node in model.graph.node for value in _read(node))
        self.outputs = {value.name for value in model.graph.output}
        self._model = model

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every value at the model's own batch size, or 1."""
        return concrete_shapes(self._model, static_batch(self._model) or 1)

    def weight(self, node: NodeProto) -> TensorProto | None:
        """The constant weight of a layer; None for one that is kept in integers, as which it must stay."""
        value = node.input[1]
        maker = self.constants.makers.get(value)
        return None if maker is not None and maker.op_type == "DequantizeLinear" else self.constants.get(value)

    def channels(self, value: str) -> int | None:
        """Size of the value's axis 1; None where it is unknown."""
        shape = self.shapes.get(value, ())
        return shape[1] if len(shape) > 1 else None

    def only_user(self, value: str) -> NodeProto | None:
        """The one node that reads this value, once, if the model does not hand it out as well."""
        users = self.users.get(value, [])
        return users[0] if self.uses.get(value, 0) == 1 and value not in self.outputs else None

    def channel_gather(self, node: NodeProto | None) -> Selection | None:
        """The selection of a Gather over axis 1 with a constant one-dimensional index; None for any other node.

        Its source is unknown to the Gather itself: it ends with the largest index.
        """
        if node is None or node.op_type != "Gather" or not is_standard(node) or attributes(node).get("axis", 0) != 1:
            return None
        index = self.constants.get(node.input[1])
        if index is None or len(index.dims) != 1 or not index.dims[0]:
            return None
        values = array(index).astype(np.int64)
        if values.min() < 0:
            return None
        return Selection(tuple(values.tolist()), int(values.max()) + 1)


def _layer(node: NodeProto, view: GraphView) -> GroupedLayer | None:
    """None where shapes are not known."""
    weight = view.constants[node.input[1]]
    bias = view.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else None
    groups, inner = _groups(node), int(weight.dims[1])
    source, flat, names = node.input[0], tuple(range(groups * inner)), [node.name]
    before, after = _gather_before(node, view), _gather_behind(node, view)
    if before is not None and (taken := view.channel_gather(before)) is not None:
        source, flat = before.input[0], taken.index
        if view.only_user(node.input[0]) is not None:
            names.insert(0, before.name)
    output, writes = node.output[0], Selection.identity(int(weight.dims[0]))
    if after is not None and (put := view.channel_gather(after)) is not None:
        output, writes = after.output[0], Selection(put.index, int(weight.dims[0]))
        names.append(after.name)
    if source not in view.shapes or output not in view.shapes:
        return None
    return GroupedLayer(
        name=node.name,
        source=source,
        source_shape=view.shapes[source][1:],
        output=output,
        output_shape=view.shapes[output][1:],
        reads=tuple(flat[start : start + inner] for start in range(0, groups * inner, inner)),
        weight=array(weight),
        bias=None if bias is None else array(bias),
        writes=writes,
        attributes=tuple(attribute for attribute in node.attribute if attribute.name != "group"),
        nodes=tuple(names),
    )


def _read(node: NodeProto) -> list[str]:
    """The values that a node reads, as often as it does, those of the graphs inside it included."""
    return [*node.input, *(used_values(node) - set(node.input))]


def _groups(node: NodeProto) -> int:
    groups = attributes(node).get("group", 1)
    return groups if isinstance(groups, int) else 1


def _is_grouped(node: NodeProto | None, view: GraphView) -> bool:
    """Whether this is a grouped convolution, not a depthwise one, whose weights are constants."""
    if node is None or node.op_type != "Conv" or not is_standard(node):
        return False
    groups, weight = _groups(node), view.weight(node)
    bias = len(node.input) > 2 and node.input[2]
    if groups < 2 or weight is None or (bias and bias not in view.constants):
        return False
    return bool(weight.dims[1] > 1 and weight.dims[0] % groups == 0)


def _gather_behind(node: NodeProto, view: GraphView) -> NodeProto | None:
    """The Gather that belongs to what this grouped convolution writes: not one that only a grouped one reads."""
    after = view.only_user(node.output[0])
    if after is None or view.channel_gather(after) is None or _is_grouped(view.only_user(after.output[0]), view):
        return None
    return after


def _gather_before(node: NodeProto, view: GraphView) -> NodeProto | None:
    """The Gather in front of this grouped convolution, unless it belongs to the grouped one that writes for it."""
    before = view.makers.get(node.input[0])
    if before is None or view.channel_gather(before) is None:
        return None
    writer = view.makers.get(before.input[0])
    if writer is not None and _is_grouped(writer, view) and _gather_behind(writer, view) is before:
        return None
    return before
