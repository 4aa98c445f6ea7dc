"""Channel Gathers that remain after lowering, moved into the weights next to them where these can take them.

A dense convolution behind a Gather takes it into its input channels, one in front into its filters; two Gathers in a
row become one. Between them may stand what works on each element alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from edgeprune.lowering.forms import JOINED
from edgeprune.lowering.layers import GraphView
from edgeprune.onnx_files.graph import array, attributes, fresh_name, used_values
from edgeprune.plans.permutation import Selection

_ELEMENTWISE = frozenset(
    {"Clip", "Elu", "Erf", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Relu", "Sigmoid", "Tanh"}
)
WIDENED = 1.25
"""A dense convolution may read so many times the channels that a Gather gave it, to be rid of the Gather."""


def count_gathers(model: ModelProto) -> int:
    """Gathers over the channel axis with a constant index."""
    view = GraphView(model)
    return sum(view.channel_gather(node) is not None for node in model.graph.node)


def absorb_gathers(model: ModelProto) -> int:
    """Move what Gathers can be moved into weights, in place; returns how many Gathers are gone."""
    gone = 0
    while any(_absorb(model, view, node) for view in [GraphView(model)] for node in model.graph.node):
        gone += 1
    return gone


def activate_parts(model: ModelProto) -> None:
    """Put an activation behind the Concat of a split layer onto each of its parts, in place: the runtime then computes
    it with the convolution, as it does for a layer that is not split."""
    view = GraphView(model)
    for node in list(model.graph.node):
        if node.op_type != "Concat" or not node.name.endswith(JOINED):
            continue
        activation = view.only_user(node.output[0])
        if activation is None or activation.op_type not in _ELEMENTWISE:
            continue
        place = list(model.graph.node).index(node)
        for number, part in enumerate(list(node.input)):
            own = NodeProto()
            own.CopyFrom(activation)
            own.input[0], own.output[0] = part, f"{part}_active"
            own.name = f"{node.name}_active{number}"
            node.input[number] = own.output[0]
            model.graph.node.insert(place, own)
            place += 1
        node.output[0] = activation.output[0]
        model.graph.node.remove(activation)


def drop_unused(model: ModelProto) -> None:
    """Remove the nodes whose values nobody reads, and the initializers that no node needs, in place."""
    graph = model.graph
    while True:
        needed = {value for node in graph.node for value in used_values(node)}
        needed |= {value.name for value in graph.output}
        unused = [node for node in graph.node if not needed & set(node.output)]
        if not unused:
            break
        for node in unused:
            graph.node.remove(node)
    kept = [tensor for tensor in graph.initializer if tensor.name in needed]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)


def _absorb(model: ModelProto, view: GraphView, node: NodeProto) -> bool:
    """Remove this node if it is a Gather that something near it can take over."""
    index = view.channel_gather(node)
    return index is not None and (_into_reader(model, view, node, index) or _into_writer(model, view, node, index))


def _into_reader(model: ModelProto, view: GraphView, gather: NodeProto, index: Selection) -> bool:
    first = view.only_user(gather.output[0])
    reader = first
    while reader is not None and reader.op_type in _ELEMENTWISE:
        reader = view.only_user(reader.output[0])
    if first is None or reader is None:
        return False
    after = view.channel_gather(reader)
    if after is not None:
        composed = np.asarray(index.index, np.int64)[list(after.index)]
        _set_constant(model, reader, 1, composed)
    elif (channels := _dense_reader(view, reader, index, gather)) is not None:
        weight = array(view.constants[reader.input[1]])
        wide = np.zeros((weight.shape[0], channels, *weight.shape[2:]), weight.dtype)
        for column, channel in enumerate(index.index):
            wide[:, channel] += weight[:, column]
        _set_constant(model, reader, 1, wide)
    else:
        return False
    first.input[0] = gather.input[0]
    model.graph.node.remove(gather)
    return True


def _into_writer(model: ModelProto, view: GraphView, gather: NodeProto, index: Selection) -> bool:
    value = gather.input[0]
    for node in _chain_of_writers(view, value):
        if node.op_type in _ELEMENTWISE:
            continue
        weight = view.weight(node) if node.op_type == "Conv" else None
        if weight is None or attributes(node).get("group", 1) != 1 or len(index) > weight.dims[0]:
            return False
        bias = view.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if len(node.input) > 2 and node.input[2] and bias is None:
            return False
        order = list(index.index)
        _set_constant(model, node, 1, array(weight)[order])
        if bias is not None:
            _set_constant(model, node, 2, array(bias)[order])
        for user in model.graph.node:
            for place, name in enumerate(user.input):
                if name == gather.output[0]:
                    user.input[place] = value
        model.graph.node.remove(gather)
        return True
    return False


def _chain_of_writers(view: GraphView, value: str) -> Iterator[NodeProto]:
    """The nodes in front of a value, nearest first, as long as each one's value has no other reader."""
    while view.only_user(value) is not None and value in view.makers:
        node = view.makers[value]
        yield node
        value = node.input[0]


def _dense_reader(view: GraphView, node: NodeProto, index: Selection, gather: NodeProto) -> int | None:
    """Channels that this dense convolution would read without the Gather; None if it cannot or should not."""
    if node.op_type != "Conv" or attributes(node).get("group", 1) != 1 or view.weight(node) is None:
        return None
    channels = view.channels(gather.input[0])
    return channels if channels is not None and channels <= WIDENED * len(index) else None


def _set_constant(model: ModelProto, node: NodeProto, place: int, values: np.ndarray) -> None:
    """Give the node a constant of its own: another node may use the old one."""
    taken = {tensor.name for tensor in model.graph.initializer} | {v for n in model.graph.node for v in n.output}
    name = fresh_name(node.input[place], taken)
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    node.input[place] = name
