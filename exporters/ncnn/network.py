"""From an ONNX model to a network of ncnn's layers."""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from edgeprune.errors import InputError
from edgeprune.exporters.ncnn.joining import joined
from edgeprune.exporters.ncnn.layers import Layer, NcnnNetwork, blob_sizes
from edgeprune.exporters.ncnn.node import Known, Node, refused
from edgeprune.exporters.ncnn.ops.table import ENTRIES
from edgeprune.exporters.ncnn.wiring import wired
from edgeprune.onnx_files.constants import Constants
from edgeprune.onnx_files.graph import fed_values, is_standard, opset, used_values
from edgeprune.onnx_files.model import as_model
from edgeprune.onnx_files.shapes import concrete_types, shape_constants


def ncnn_network(model: ModelProto) -> NcnnNetwork:
    """The network at batch 1, in float32. The model is not changed.

    InputError that names the node, its operation and the reason for what ncnn does not have, or where sizes other than
    the batch's are open.
    """
    model = as_model(model)
    types = concrete_types(model, 1)
    held = Constants(model.graph, model, known=shape_constants(model, types))
    shapes = {name: shape for name, (shape, _) in types.items() if shape is not None}
    known = Known(shapes, {name: kind for name, (_, kind) in types.items()}, held, opset(model))
    inputs = tuple(value.name for value in fed_values(model.graph))
    outputs = tuple(value.name for value in model.graph.output)
    for name in outputs:
        if name in held or name in inputs:
            raise InputError(f"the output {name!r} is a constant, or an input", where="ncnn")
    nodes = _needed(model, held)
    read = {*outputs, *(value for node in nodes for value in used_values(node))}
    layers = [_input(name, known) for name in inputs]
    for node in nodes:
        layers += _layers(Node(node, known), read)
    return wired(joined(layers, set(outputs)), inputs, outputs)


def _layers(node: Node, read: set[str]) -> list[Layer]:
    entry = ENTRIES.get(node.op) if is_standard(node.proto) else None
    if entry is None:
        raise refused(node.proto, "this operation is not in the table of those that can be written")
    if node.op != "Split" and (more := read & set(node.outputs[1:])):
        raise refused(node.proto, f"its output {min(more)!r} beside the first is unknown to ncnn")
    layers: list[Layer] = entry(node)
    return layers


def _input(name: str, known: Known) -> Layer:
    blob = Node(NodeProto(op_type="Input", name=name, output=[name]), known).blob(name)
    return Layer("Input", name, (), (name,), blob_sizes(blob))


def _needed(model: ModelProto, held: Constants) -> list[NodeProto]:
    """The nodes on which outputs depend, in order, without what is constant."""
    wanted, kept = {value.name for value in model.graph.output}, list[NodeProto]()
    for node in reversed(model.graph.node):
        if wanted & set(node.output) and not all(value in held for value in node.output if value):
            kept.append(node)
            wanted |= {value for value in used_values(node) if value not in held}
    return kept[::-1]
